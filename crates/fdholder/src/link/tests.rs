use super::*;
use crate::frame::Decoder;
use crate::request::tests::any_entry;
use crate::Tenure;
use proptest::prelude::*;

fn through<T>(message: Message<u32>, read: impl FnOnce(Frame<'_, u32>) -> T) -> T {
    let (bytes, fds) = message.into_parts();
    let mut decoder = Decoder::new(LINK_PAYLOAD_MAX);
    decoder.push(&bytes, fds, false);
    let frame = decoder.next().unwrap().unwrap();
    read(frame)
}

fn any_change() -> impl Strategy<Value = Mirrored<u32>> {
    prop_oneof![
        (any_entry(), any::<(u32, u32, u64)>()).prop_map(|(entry, (owner, bits, serial))| {
            let origin = Origin { owner, tenure: Tenure::from_bits(bits), serial };
            Mirrored::Held { entry, origin }
        }),
        any_entry().prop_map(|entry| Mirrored::Released(entry.id)),
    ]
}

proptest! {
    #[test]
    fn changes_come_as_they_were(
        changes in proptest::collection::vec(any_change(), 0..300),
        up_to: u64,
        goes_on: bool,
    ) {
        let mut rest = changes.iter();
        let mut came = Vec::new();
        while came.len() < changes.len() {
            let mut message = Changes::default();
            while !message.is_full() {
                match rest.next() {
                    Some(Mirrored::Held { entry, origin }) => {
                        message.held(&entry.id, entry.limit, *origin, entry.fd);
                    }
                    Some(Mirrored::Released(id)) => message.released(id),
                    None => break,
                }
            }
            prop_assert!(!message.is_empty());
            match through(message.into_message(up_to, goes_on), Fed::parse).unwrap() {
                Fed::Changes { up_to: to, goes_on: more, changes } => {
                    prop_assert_eq!((to, more), (up_to, goes_on));
                    came.extend(changes);
                }
                other => prop_assert!(false, "{:?}", other),
            }
        }
        prop_assert_eq!(came, changes);
    }

    #[test]
    fn noise_never_panics(payload in proptest::collection::vec(any::<u8>(), 0..80), fds in 0u32..4) {
        let frame = || Frame { payload: &payload, fds: (0..fds).collect(), fds_lost: false };
        let _ = Fed::parse(frame());
        let _ = Heard::parse(&frame());
    }
}

#[test]
fn everything_else_comes_as_it_was() {
    let about = Head { number: 1, pid: 2, count: 3, capacity: 4 };
    for pending in [None, Some(Pending { roll: 7, number: 8 })] {
        let first = through(head(about, 5, 6, pending), Fed::parse);
        assert_eq!(first, Ok(Fed::Head { head: about, listener: 5, roll: 6, pending }));
    }
    assert_eq!(through(synced(), Fed::parse), Ok(Fed::Synced));
    assert_eq!(through(yours(), Fed::parse), Ok(Fed::Yours));
    assert_eq!(through(listener(7), Fed::parse), Ok(Fed::Listener(7)));
    let handed = HandedClient {
        socket: 7,
        is_fdholder: false,
        awaits_upgrade: true,
        on_conflict: OnConflict::Keep,
        taken: None,
        unread: vec![0; CLIENT_LEN_MAX],
    };
    let taken = Some(Taken { added: 1, replaced: 2, kept: (3..4000).collect() });
    let unread = vec![0; CLIENT_LEN_MAX - 4 * 3997];
    let also = HandedClient { taken, unread, ..handed.clone() };
    assert!(fits(0, CLIENT_LEN_MAX) && !fits(0, CLIENT_LEN_MAX + 1));
    assert!(fits(3997, also.unread.len()) && !fits(3998, also.unread.len()));
    for handed in [handed, also.clone()] {
        assert_eq!(through(client(&handed, 7), Fed::parse), Ok(Fed::Client(handed)));
    }
    let mapped = also.clone().map(|socket| Some(socket.to_string()));
    assert_eq!(mapped.unwrap().map(|socket| socket.parse().ok()), Some(also.clone()));
    assert_eq!(also.clone().map(|_| None::<u32>), None);
    for (is_fdholder, awaits_upgrade) in [(false, false), (true, false), (true, true)] {
        let handed = HandedClient { is_fdholder, awaits_upgrade, ..also.clone() };
        assert_eq!(through(client(&handed, 7), Fed::parse), Ok(Fed::Client(handed)));
    }
    let dropped = |serial| Dropped { owner: 7, serial };
    let all = [
        Heard::UpTo(9),
        Heard::Closing(vec![dropped(1), dropped(u64::MAX)]),
        Heard::Closed(vec![dropped(1)]),
        Heard::Synced,
        Heard::TakeOver,
        Heard::Commit,
        Heard::Stop,
    ];
    for said in all {
        let message = said.clone().into_message();
        assert_eq!(through(message, |frame| Heard::parse(&frame)), Ok(said));
    }
}

/// The primary reads it with room for a request.
#[test]
fn what_a_follower_says_has_bounds() {
    let dropped = vec![Dropped { owner: 7, serial: 8 }; DROPPED_MAX];
    let (bytes, _) = Heard::Closing(dropped).into_message::<u32>().into_parts();
    let payload = &bytes[crate::limits::HEADER_LEN..];
    assert!(payload.len() <= crate::limits::REQUEST_PAYLOAD_MAX);
    let parse = |payload| Heard::parse(&Frame { payload, fds: Vec::<u32>::new(), fds_lost: false });
    assert!(parse(&payload[..payload.len() - 12]).is_ok());
    for cut in 1..12 {
        assert!(parse(&payload[..payload.len() - cut]).is_err(), "{cut}");
    }
}

#[test]
fn a_message_of_changes_has_bounds() {
    let (id, origin) = (
        Identifier::new([b'a'; 255]).unwrap(),
        Origin { owner: 9, tenure: Tenure::from_bits(8), serial: 7 },
    );
    let mut most = Changes::default();
    assert!(most.is_empty());
    for fd in 0..MESSAGE_FDS_MAX {
        assert!(!most.is_full(), "{fd}");
        most.held(&id, Limit::never(), origin, fd);
    }
    assert!(most.is_full() && !most.is_empty());
    assert_eq!(most.bytes.len(), MESSAGE_FDS_MAX * CHANGE_LEN_MAX, "the longest there are");
    let mut many: Changes<u32> = Changes::default();
    (0..MESSAGE_FDS_MAX).for_each(|_| many.released(&Identifier::new("a").unwrap()));
    assert!(many.is_full(), "short as they are");
}

#[test]
fn a_link_begins_as_a_request_is_answered() {
    let about = Head { number: 1, pid: 2, count: 3, capacity: 4 };
    let (mut bytes, fds) = head(about, 5, 6, None).into_parts();
    let parse = |bytes: &[u8], fds: &[u32]| {
        let payload = &bytes[crate::limits::HEADER_LEN..];
        Fed::parse(Frame { payload, fds: fds.to_vec(), fds_lost: false })
    };
    assert!(parse(&bytes, &fds).is_ok());
    assert!(parse(&bytes, &fds[..1]).is_err());
    bytes[crate::limits::HEADER_LEN + 1] = fed::SYNCED;
    assert!(parse(&bytes, &fds).is_err());
}

/// Every byte of a message counts, and so does every descriptor.
#[test]
fn what_is_cut_short_or_too_long_is_refused() {
    let mut changes = Changes::default();
    let entry = Entry { id: Identifier::new("ab").unwrap(), limit: Limit::never(), fd: 1 };
    let origin = Origin { owner: 9, tenure: Tenure::from_bits(8), serial: 7 };
    changes.held(&entry.id, entry.limit, origin, entry.fd);
    let (bytes, _) = changes.into_message(1, false).into_parts();
    let payload = &bytes[crate::limits::HEADER_LEN..];
    let parse =
        |payload, fds: &[u32]| Fed::parse(Frame { payload, fds: fds.to_vec(), fds_lost: false });
    assert!(parse(payload, &[1]).is_ok());
    assert!(parse(payload, &[]).is_err());
    assert!(parse(payload, &[1, 2]).is_err());
    for end in 0..payload.len() {
        // Without any change it is one that changes nothing.
        assert!(end == 10 || parse(&payload[..end], &[1]).is_err(), "{end}");
    }
    assert!(Fed::<u32>::parse(Frame { payload, fds: vec![], fds_lost: true }).is_err());
}
