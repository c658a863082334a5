//! The bytes between a primary and its follower: what either reads it would write, and a
//! follower that is told anything stays whole.

use crate::input::Input;
use crate::ledger::{numbers, Fd, Ledger};
use fdholder::frame::{Decoder, Frame, Message};
use fdholder::limits::{HEADER_LEN, MESSAGE_FDS_MAX};
use fdholder::link::{self, Changes, Fed, HandedClient, Heard, Mirrored, LINK_PAYLOAD_MAX};
use fdholder_daemon::Replica;

/// One message, read by either side; or all that a follower is told.
pub fn link(data: &[u8]) {
    let mut input = Input::new(data);
    let kind = input.byte();
    let ledger = Ledger::default();
    if kind % 4 == 3 {
        follow(&mut input, &ledger);
    } else {
        let fds = usize::from(input.byte()).min(MESSAGE_FDS_MAX);
        let fds_lost = kind & 4 != 0;
        let fds = if fds_lost { 0 } else { fds };
        let payload = input.rest();
        fed(payload, fds, fds_lost, &ledger);
        heard(payload, fds, fds_lost, &ledger);
    }
    ledger.settle();
}

fn fed(payload: &[u8], fds: usize, fds_lost: bool, ledger: &Ledger) {
    let frame = Frame { payload, fds: ledger.open_many(fds), fds_lost };
    let Ok(fed) = Fed::parse(frame) else {
        assert_eq!(ledger.open_count(), 0, "what is refused is closed");
        return;
    };
    assert_eq!(ledger.open_count(), fds, "each belongs to something");
    let (bytes, fds) = write(fed).into_parts();
    assert_eq!(bytes[HEADER_LEN..], canonical(payload));
    let before = numbers(&fds);
    let mut decoder = Decoder::new(bytes.len());
    decoder.push(&bytes, fds, false);
    let again = match decoder.next() {
        Ok(Some(frame)) => Fed::parse(frame),
        other => panic!("written as what is no message: {other:?}"),
    };
    let Ok(again) = again else { panic!("written as what nobody reads") };
    let (bytes_again, fds) = write(again).into_parts();
    assert_eq!((bytes_again, numbers(&fds)), (bytes, before));
}

fn write(fed: Fed<Fd>) -> Message<Fd> {
    match fed {
        Fed::Head { head, listener, roll, pending } => link::head(head, listener, roll, pending),
        Fed::Changes { up_to, goes_on, changes } => {
            let mut message = Changes::default();
            for change in changes {
                match change {
                    Mirrored::Held { entry, origin } => {
                        message.held(&entry.id, entry.limit, origin, entry.fd);
                    }
                    Mirrored::Released(id) => message.released(&id),
                }
            }
            message.into_message(up_to, goes_on)
        }
        Fed::Synced => link::synced(),
        Fed::Client(client) => {
            let HandedClient { socket, is_fdholder, awaits_upgrade, on_conflict, taken, unread } =
                client;
            let client = HandedClient {
                socket: (),
                is_fdholder,
                awaits_upgrade,
                on_conflict,
                taken,
                unread,
            };
            link::client(&client, socket)
        }
        Fed::Yours => link::yours(),
        Fed::Listener(listener) => link::listener(listener),
    }
}

/// A payload as we write it.
fn canonical(payload: &[u8]) -> Vec<u8> {
    let mut payload = payload.to_vec();
    match payload[..] {
        [1, _, _, _, _, _, _, _, _, ref mut goes_on, ..] => *goes_on = u8::from(*goes_on != 0),
        [3, ref mut flags, ..] => *flags &= 7,
        _ => {}
    }
    payload
}

fn heard(payload: &[u8], fds: usize, fds_lost: bool, ledger: &Ledger) {
    let frame = Frame { payload, fds: ledger.open_many(fds), fds_lost };
    if let Ok(heard) = Heard::parse(&frame) {
        assert!(fds == 0 && !fds_lost);
        assert_eq!(heard.into_message::<Fd>().bytes()[HEADER_LEN..], *payload);
    }
}

/// A follower that is told whatever stands in a stream, until it cannot follow.
fn follow(input: &mut Input<'_>, ledger: &Ledger) {
    let mut replica = Replica::new(input.below(20));
    let mut decoder = Decoder::new(LINK_PAYLOAD_MAX);
    let mut clients = 0;
    'stream: while !input.is_empty() {
        let fds = usize::from(input.byte()).min(MESSAGE_FDS_MAX);
        decoder.push(input.long(), ledger.open_many(fds), false);
        loop {
            let fed = match decoder.next() {
                Ok(Some(frame)) => Fed::parse(frame),
                Ok(None) => break,
                Err(_) => break 'stream,
            };
            let Ok(fed) = fed else { break 'stream };
            clients += usize::from(matches!(fed, Fed::Client(_)));
            if replica.hear(fed).is_err() {
                break 'stream;
            }
            replica.store().check();
        }
    }
    drop(decoder);
    let (store, handed, _dropped) = replica.into_parts();
    store.check();
    // What was set aside has gone, everything else is held once.
    assert_eq!(handed.len(), clients);
    assert_eq!(ledger.open_count(), store.len() + handed.len());
}
