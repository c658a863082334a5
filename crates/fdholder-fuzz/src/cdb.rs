//! Rules in a cdb: a file that is none, or lies, grants nothing that does not stand in it,
//! and a good one gives back what was put into it.

use crate::input::Input;
use crate::rules::{check_grants, is_tame};
use fdholder_daemon::access::cdb::Cdb;
use fdholder_daemon::access::{keys, Refusal, Rights, Rules, User};
use memchr::memmem;

/// Where tables are pointed to: before everything else.
const POINTERS_LEN: usize = 256 * 8;

/// Who is asked for, in a daemon of the first.
const USERS: [User; 3] =
    [User { uid: 5, gid: 6 }, User { uid: 1, gid: 6 }, User { uid: 1000, gid: 1000 }];

/// A file: as it is, as pointers and the rest, or as records, damaged or not.
pub fn cdb(data: &[u8]) {
    let mut input = Input::new(data);
    match input.byte() % 4 {
        0 => {
            let key = input.short();
            ask(input.rest().to_vec(), key);
        }
        1 => {
            let key = input.short();
            let mut bytes = vec![0; POINTERS_LEN];
            for _ in 0..input.byte() {
                let (table, start, slots) = (input.below(256), input.u16(), input.u16());
                bytes[table * 8..table * 8 + 2].copy_from_slice(&start.to_le_bytes());
                bytes[table * 8 + 4..table * 8 + 6].copy_from_slice(&slots.to_le_bytes());
            }
            bytes.extend_from_slice(input.rest());
            ask(bytes, key);
        }
        2 => {
            let key = input.short();
            let damages: Vec<_> =
                (0..input.below(8)).map(|_| (input.u16(), input.byte())).collect();
            let cut = input.u16();
            let mut bytes = make(&records(&mut input));
            for (position, byte) in damages {
                let position = usize::from(position) % bytes.len();
                bytes[position] = byte;
            }
            bytes.truncate(bytes.len() - usize::from(cut) % bytes.len());
            ask(bytes, key);
        }
        _ => {
            let other = input.short();
            check_good(&records(&mut input), other);
        }
    }
}

type Record = (Vec<u8>, Vec<u8>);

/// Records as they may be in rules, or any.
fn records(input: &mut Input<'_>) -> Vec<Record> {
    let mut records = Vec::new();
    while !input.is_empty() {
        let kind = input.byte();
        let key = match kind % 8 {
            0 => input.short().to_vec(),
            1 => b"uid/self".to_vec(),
            2 => b"gid/self".to_vec(),
            3 => b"uid/1".to_vec(),
            4 => b"gid/6".to_vec(),
            5 => b"uid/1000".to_vec(),
            6 => b"gid/1000".to_vec(),
            _ => b"uid/default".to_vec(),
        };
        let data = match kind >> 3 & 3 {
            0 => input.short().to_vec(),
            1 => b"D".to_vec(),
            _ => {
                let environment = input.long();
                let len = (environment.len() as u16).to_be_bytes(); // `long` has counted it so.
                [b"A", &len[..], environment, &[0, 0]].concat()
            }
        };
        records.push((key, data));
    }
    records
}

/// Looks up everything, in bytes that may be anything.
fn ask(bytes: Vec<u8>, key: &[u8]) {
    let file = bytes.clone();
    let Ok(cdb) = Cdb::from_bytes(bytes, String::new()) else {
        assert!(file.len() < POINTERS_LEN);
        return;
    };
    let own = USERS[0];
    let keys = USERS.iter().flat_map(|user| keys(*user, own)).map(String::into_bytes);
    for key in keys.chain([key.to_vec()]) {
        if let Ok(Some(data)) = cdb.find(&key) {
            let record = [&key[..], data].concat();
            assert!(stands_in(&file, &record), "a record that is not there: {record:?}");
        }
    }
    if let Ok(records) = cdb.records() {
        let len: usize = records.iter().map(|(key, data)| 8 + key.len() + data.len()).sum();
        assert!(POINTERS_LEN + len <= file.len(), "records are longer than the file");
    }
    if !is_tame(&file) {
        return;
    }
    let rules = Rules::of_cdb(cdb);
    for user in USERS {
        if let Ok((key, rights)) = rules.explain(user, own) {
            assert!(keys_of(user, own).contains(&key));
            assert!(stands_in(&file, key.as_bytes()));
            check_grants(&rights, &file);
        }
    }
}

fn keys_of(user: User, own: User) -> Vec<String> {
    keys(user, own).collect()
}

fn stands_in(file: &[u8], what: &[u8]) -> bool {
    memmem::find(file, what).is_some()
}

/// What was put in is found, the first of several under one key; nothing else is.
fn check_good(records: &[Record], other: &[u8]) {
    let file = make(records);
    let Ok(cdb) = Cdb::from_bytes(file.clone(), String::new()) else { panic!("it is one") };
    let first =
        |key: &[u8]| records.iter().find(|record| record.0 == key).map(|(_, data)| &data[..]);
    for (key, _) in records {
        assert_eq!(cdb.find(key), Ok(first(key)));
    }
    assert_eq!(cdb.find(other), Ok(first(other)));
    let all: Vec<_> = records.iter().map(|(key, data)| (&key[..], &data[..])).collect();
    assert_eq!(cdb.records(), Ok(all));
    if !is_tame(&file) {
        return;
    }
    let rules = Rules::of_cdb(cdb);
    for user in USERS {
        let said = rules.explain(user, USERS[0]);
        let decides = |key: &String| first(key.as_bytes()).is_some_and(|data| !says_nothing(data));
        let decisive = keys_of(user, USERS[0]).into_iter().find(decides);
        match (said, decisive) {
            (Ok((key, rights)), Some(decisive)) => {
                assert_eq!(key, decisive);
                let data = first(key.as_bytes()).unwrap_or_default();
                assert_eq!(data.first(), Some(&b'A'));
                // Not by another record of the file, but by this one.
                check_grants(&rights, data);
                check_all_granted(&rights, data);
            }
            (Err(Refusal::NoRule), None) => {}
            (Err(Refusal::Denied(key)), Some(decisive)) => {
                assert_eq!(key, decisive);
                assert_eq!(first(key.as_bytes()).and_then(<[u8]>::first), Some(&b'D'));
            }
            (Err(Refusal::Broken { .. }), Some(decisive)) => {
                assert_ne!(first(decisive.as_bytes()).and_then(<[u8]>::first), Some(&b'D'));
            }
            (said, decisive) => panic!("{user}: {decisive:?} decides, but {said:?}"),
        }
    }
}

/// Neither allows nor denies.
fn says_nothing(data: &[u8]) -> bool {
    !matches!(data.first(), Some(b'A' | b'D') | None)
}

/// A good record grants what it says.
fn check_all_granted(rights: &Rights, data: &[u8]) {
    let environment = &data[3..data.len() - 2];
    let says = |name: &[u8]| {
        environment.split(|&byte| byte == 0).any(|variable| variable.starts_with(name))
    };
    assert_eq!(rights.list, says(b"S6_FDHOLDER_LIST="));
    assert_eq!(rights.getdump, says(b"S6_FDHOLDER_GETDUMP="));
    assert_eq!(rights.setdump, says(b"S6_FDHOLDER_SETDUMP="));
}

pub(crate) fn hash(key: &[u8]) -> u32 {
    key.iter().fold(5381, |hash: u32, &byte| hash.wrapping_mul(33) ^ u32::from(byte))
}

/// Makes a cdb as D. J. Bernstein's cdbmake does.
pub(crate) fn make(records: &[Record]) -> Vec<u8> {
    let mut bytes = vec![0; POINTERS_LEN];
    let mut tables: Vec<Vec<(u32, u32)>> = vec![Vec::new(); 256];
    let number = |len: usize| (len as u32).to_le_bytes(); // No input is as long.
    for (key, data) in records {
        tables[hash(key) as usize % 256].push((hash(key), bytes.len() as u32));
        bytes.extend([number(key.len()), number(data.len())].concat());
        bytes.extend([&key[..], data].concat());
    }
    for (index, table) in tables.iter().enumerate() {
        let mut slots = vec![(0, 0); table.len() * 2];
        for &(hash, position) in table {
            let mut slot = (hash >> 8) as usize % slots.len();
            while slots[slot].1 != 0 {
                slot = (slot + 1) % slots.len();
            }
            slots[slot] = (hash, position);
        }
        let pointer = [number(bytes.len()), number(slots.len())].concat();
        bytes[index * 8..index * 8 + 8].copy_from_slice(&pointer);
        for (hash, position) in slots {
            bytes.extend([hash.to_le_bytes(), position.to_le_bytes()].concat());
        }
    }
    bytes
}
