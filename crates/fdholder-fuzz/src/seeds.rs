//! What honest programs would say: inputs to begin with, made by the encoders.

mod scripts;

pub use scripts::connection;

use crate::cdb::{hash, make};
use fdholder::extension::{self, Extension, OnConflict, Taken, VERSION};
use fdholder::frame::Message;
use fdholder::limits::HEADER_LEN;
use fdholder::link::{self, Changes, Dropped, HandedClient, Head, Heard};
use fdholder::{
    reply, Entry, Errno, Identifier, Limit, Origin, Request, Service, Standby, Status, Tenure,
    Timestamp,
};

fn id(id: &[u8]) -> Identifier {
    let Ok(id) = Identifier::new(id) else { panic!("it is one") };
    id
}

fn limit() -> Limit {
    let Ok(stamp) = Timestamp::new((1 << 62) + 1_700_000_000, 500) else { panic!("it is one") };
    Limit::at(stamp)
}

fn entry(name: &[u8]) -> Entry<()> {
    Entry { id: id(name), limit: limit(), fd: () }
}

fn payload<F>(message: &Message<F>) -> &[u8] {
    &message.bytes()[HEADER_LEN..]
}

/// A number that an input has in one byte.
fn byte(number: usize) -> u8 {
    let Ok(byte) = u8::try_from(number) else { panic!("seeds are short") };
    byte
}

/// Bytes as [`Input::short`](crate::input::Input::short) reads them.
fn short(bytes: &[u8]) -> Vec<u8> {
    [&[byte(bytes.len())], bytes].concat()
}

/// Bytes as [`Input::long`](crate::input::Input::long) reads them.
fn long(bytes: &[u8]) -> Vec<u8> {
    let Ok(len) = u16::try_from(bytes.len()) else { panic!("seeds are short") };
    [&len.to_be_bytes(), bytes].concat()
}

fn all_requests() -> Vec<Request<()>> {
    let extensions = [
        Extension::Hello(VERSION),
        Extension::Snapshot { entries: true },
        Extension::Deliver { runs: vec![0..3, 7..8], to: () },
        Extension::Release { runs: vec![1..2, 3..300], only_ask: true },
        Extension::OnConflict(OnConflict::Keep),
        Extension::Taken,
        Extension::Follow { capacity: 1000 },
        Extension::Upgrade,
        Extension::Inspect,
        Extension::Status,
        Extension::Unknown,
    ];
    let plain = [
        Request::Store(entry(b"unix:/run/web")),
        Request::Store(entry(&[b'x'; 255])),
        Request::Delete(id(b"web")),
        Request::Retrieve { id: id(b"web\x1b\xff"), delete: true },
        Request::List,
        Request::Getdump,
        Request::Setdump(3),
        Request::SetdumpData(vec![entry(b"a"), entry(b"b"), entry(b"c")]),
    ];
    plain.into_iter().chain(extensions.map(Request::Extension)).collect()
}

pub fn requests() -> Vec<Vec<u8>> {
    let seed =
        |message: Message<()>| [&[byte(message.fds().len()), 0, 0, 1], payload(&message)].concat();
    let mut seeds: Vec<_> =
        all_requests().into_iter().map(|request| seed(request.into_message())).collect();
    // The same, and what came with it did not fit.
    seeds.push([&[0, 1, 0, 1], payload(&Request::Store(entry(b"a")).into_message())].concat());
    seeds
}

/// How a stream is cut, and each message as `kind` says.
fn stream(kind: u8, messages: &[Message<()>]) -> Vec<u8> {
    let mut seed = [&[0], &short(&[2, 0, 30, 5])[..]].concat();
    for message in messages {
        seed.push(kind | byte(message.fds().len().min(7)) << 3);
        if kind & 7 >= 5 {
            seed.extend(short(payload(message)));
        } else {
            // In two parts, the second without descriptors.
            let (first, second) = message.bytes().split_at(message.bytes().len() / 2);
            seed.extend(short(first));
            seed.push(0);
            seed.extend(short(second));
        }
    }
    seed
}

pub fn frames() -> Vec<Vec<u8>> {
    let messages: Vec<_> = [
        Request::Store(entry(b"web")),
        Request::List,
        Request::SetdumpData(vec![entry(b"a"), entry(b"b"), entry(b"c")]),
        Request::Setdump(3),
    ]
    .map(Request::into_message)
    .into();
    let many = [0, 0, 0x40 | 5 | 7 << 3, 1, b'x', 5, 1, b'y'];
    vec![
        stream(2, &messages),
        stream(5, &messages),
        stream(7, &messages),
        stream(4, &messages[..1]),
        many.to_vec(),
    ]
}

fn status() -> Status {
    let service =
        Service { name: "web".into(), ready: true, pid: 7, status: "serves 3\tclients".into() };
    Status {
        version: "1.2.3".into(),
        standby: Standby::Ready(9),
        fdstore: true,
        counts: [("store.ok".to_owned(), 5)].into(),
        services: vec![service],
        ..Status::default()
    }
}

pub fn replies() -> Vec<Vec<u8>> {
    let entries = [entry(b"unix:/run/web"), entry(b"tcp:80"), entry(&[b'x'; 255])];
    let listed = || entries.iter().map(|entry| (&entry.id, entry.limit));
    let origin = Origin { owner: 7, tenure: Tenure::from_bits(99), serial: 12 };
    let taken = Taken { added: 1, replaced: 2, kept: vec![3, 5] };
    let part = || reply::getdump_data(listed().map(|(id, limit)| (id, limit, ())));
    let messages: Vec<Message<()>> = vec![
        reply::status(Ok(())),
        reply::status(Err(Errno::PERM)),
        reply::retrieved(()),
        reply::list(entries.iter().map(|entry| &entry.id)),
        reply::list(entries[..0].iter().map(|entry| &entry.id)),
        reply::getdump_head(500),
        part(),
        reply::setdump_head(500),
        extension::hello(),
        extension::snapshot(3, 1000, listed()),
        extension::snapshot(3, 1000, listed().take(0)),
        extension::delivered(1 << 40),
        extension::released(3),
        extension::taken(&taken),
        extension::upgraded(Ok("1.2.3")),
        extension::upgraded(Err("it does not start")),
        extension::inspected(listed().map(|(id, limit)| (id, limit, origin))),
        extension::told_status(&status()),
    ];
    let one =
        |message: &Message<()>| [&[0, byte(message.fds().len()), 1, 0], payload(message)].concat();
    let head: Message<()> = reply::getdump_head(6);
    let mut dump = vec![3];
    for message in [&head, &part(), &part()] {
        dump.push(byte(message.fds().len()));
        dump.extend(long(message.bytes()));
    }
    messages.iter().map(one).chain([dump, vec![4, 0, 0, 0, 0]]).collect()
}

pub fn link() -> Vec<Vec<u8>> {
    let origin = Origin { owner: 7, tenure: Tenure::from_bits(99), serial: 12 };
    let changes = |goes_on| {
        let mut changes = Changes::default();
        changes.held(&id(b"unix:/run/web"), limit(), origin, ());
        changes.held(&id(b"b"), Limit::never(), origin, ());
        changes.released(&id(b"b"));
        changes.into_message(5, goes_on)
    };
    let taken = Some(Taken { added: 1, replaced: 2, kept: vec![3, 5] });
    let client = HandedClient {
        socket: (),
        is_fdholder: true,
        awaits_upgrade: true,
        on_conflict: OnConflict::Fail,
        taken,
        unread: b"\0\0\0\x01".to_vec(),
    };
    let first = link::head(Head { number: 1, pid: 2, count: 3, capacity: 4 }, (), (), None);
    let told = [
        changes(true),
        changes(false),
        link::synced(),
        link::client(&client, ()),
        link::client(&HandedClient { taken: None, ..client.clone() }, ()),
        link::yours(),
    ];
    let dropped = Dropped::from(origin);
    let said = [
        Heard::UpTo(9),
        Heard::Closing(vec![dropped, Dropped { serial: 13, ..dropped }]),
        Heard::Closed(vec![dropped]),
        Heard::Synced,
        Heard::TakeOver,
        Heard::Commit,
        Heard::Stop,
    ];
    let one = |message: &Message<()>| [&[0, byte(message.fds().len())], payload(message)].concat();
    let mut followed = vec![3, 10];
    for message in &told {
        followed.push(byte(message.fds().len()));
        followed.extend(long(message.bytes()));
    }
    let said = said.map(Heard::into_message);
    told.iter().chain(&said).chain([&first]).map(one).chain([followed]).collect()
}

const ENVIRONMENT: &[u8] = b"S6_FDHOLDER_STORE_REGEX=^web\0S6_FDHOLDER_RETRIEVE_REGEX=a|b\0\
    S6_FDHOLDER_LIST=\0S6_FDHOLDER_GETDUMP=1\0S6_FDHOLDER_SETDUMP=\0";

pub fn cdb() -> Vec<Vec<u8>> {
    let allow = [b"A", &long(ENVIRONMENT)[..], &[0, 0]].concat();
    let records: Vec<_> = ["uid/self", "uid/1", "gid/6", "uid/default"]
        .iter()
        .zip([allow.clone(), b"D".to_vec(), b"X".to_vec(), allow])
        .map(|(key, data)| (key.as_bytes().to_vec(), data))
        .collect();
    let file = make(&records);
    // As records are read from an input.
    let listed: Vec<u8> = [
        [&[1 | 2 << 3], &long(ENVIRONMENT)[..]].concat(),
        vec![3 | 1 << 3],
        [&[4], &short(b"X")[..]].concat(),
        [&[0], &short(b"key")[..], &short(b"data")].concat(),
        [&[0], &short(b"key")[..], &short(b"more")].concat(),
        [&[7 | 2 << 3], &long(b"S6_FDHOLDER_LIST=\0")[..]].concat(),
    ]
    .concat();
    // A table with two slots behind the pointers, a record behind it.
    let hashed = hash(b"uid/1");
    let slots = [hashed.to_le_bytes(), 2064u32.to_le_bytes(), [0; 4], [0; 4]].concat();
    let record = [&5u32.to_le_bytes()[..], &1u32.to_le_bytes(), b"uid/1D"].concat();
    let pointers = [1, hashed.to_le_bytes()[0], 8, 0, 0, 2];
    vec![
        [&[0], &short(b"uid/1")[..], &file].concat(),
        [&[1], &short(b"uid/1")[..], &pointers, &slots, &record].concat(),
        [&[2], &short(b"key")[..], &[1, 8, 3, 9, 0, 0], &listed].concat(),
        [&[3], &short(b"other")[..], &listed].concat(),
    ]
}

pub fn rules() -> Vec<Vec<u8>> {
    let variables: Vec<_> = [&b"^web"[..], b"a|b$", b"", b"1", b""]
        .iter()
        .zip(0u8..)
        .flat_map(|(value, name)| [&[name], &short(value)[..]].concat())
        .collect();
    let others = [&[5], &short(b"PATH")[..], &short(b"/bin"), &[6, 2, 9], &short(b"x")].concat();
    // A key, what is there, and the contents of the files.
    let allow = [&[1, 0x7d], &short(b"^web\n")[..], &short(b"(a|b)+"), &short(b"\n")].concat();
    let folder = [
        &[2][..],
        &allow,
        &short(b""),
        &short(b"1 \t\nmore"),
        &[2, 2],
        &[5, 1 | 4],
        &short(b"("),
        &[4, 0x81 | 4],
        &short(&[b'a'; 255]),
    ]
    .concat();
    vec![
        b"\0^unix:/run/[[:alnum:]]+$ \t\nmore".to_vec(),
        b"\0a\0b{2,3}".to_vec(),
        [&[1], &variables[..], &others].concat(),
        folder,
        // Who lists, and does nothing else.
        b"\x02\x01\x11\x01\n".to_vec(),
    ]
}
