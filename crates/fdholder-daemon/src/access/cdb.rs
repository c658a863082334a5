//! Rules in a constant database, as `s6-accessrules-cdb-from-fs` makes it.
//!
//! The format is D. J. Bernstein's cdb: 256 pointers to hash tables, records, the tables.
//! All positions come from the file, so each is checked before it is followed.

use super::{broken, Refusal, Rights, Verdict};
use crate::confinement::explain;
use crate::limits::{RULES_FILE_LEN_MAX, RULES_RECORD_PART_MAX};
use rustix::fs::{fstat, open, FileType, Mode, OFlags};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// A database in memory. Kept as bytes, not mapped: a mapped file that somebody cuts
/// short kills the daemon with SIGBUS.
#[derive(Debug)]
pub struct Cdb {
    bytes: Vec<u8>,
    /// Where it came from, for messages.
    name: String,
}

/// The pointers at the beginning: position and length of 256 tables.
const POINTERS_LEN: usize = 256 * 8;

/// The file is not a cdb, or not one of rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Corrupt(pub(super) &'static str);

impl Cdb {
    /// Reads a file.
    ///
    /// # Errors
    ///
    /// When it cannot be read, is too large, or is no cdb.
    pub fn read(path: &Path) -> Result<Self, Refusal> {
        let mut bytes = Vec::new();
        // NONBLOCK so that a FIFO put in the place does not stop the daemon.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
        let system = |errno| broken(path, explain(errno));
        let file = open(path, flags, Mode::empty()).map_err(system)?;
        if FileType::from_raw_mode(fstat(&file).map_err(system)?.st_mode) != FileType::RegularFile {
            return Err(broken(path, "not a regular file"));
        }
        File::from(file)
            .take(RULES_FILE_LEN_MAX + 1)
            .read_to_end(&mut bytes)
            .map_err(|error| broken(path, error))?;
        if bytes.len() as u64 > RULES_FILE_LEN_MAX {
            return Err(broken(path, format_args!("over {RULES_FILE_LEN_MAX} bytes long")));
        }
        Self::from_bytes(bytes, path.display().to_string())
            .map_err(|Corrupt(problem)| broken(path, problem))
    }

    /// A database that was read already.
    ///
    /// # Errors
    ///
    /// [`Corrupt`] when it is too short to be one.
    pub fn from_bytes(bytes: Vec<u8>, name: String) -> Result<Self, Corrupt> {
        if bytes.len() < POINTERS_LEN {
            return Err(Corrupt("not a cdb: it is too short"));
        }
        Ok(Self { bytes, name })
    }

    fn numbers(&self, position: usize) -> Result<(usize, usize), Corrupt> {
        let bytes = position
            .checked_add(8)
            .and_then(|end| self.bytes.get(position..end))
            .ok_or(Corrupt("not a cdb: a position is beyond the end"))?;
        let number = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]) as usize
        };
        Ok((number(0), number(4)))
    }

    /// The data of the first record under a key.
    ///
    /// # Errors
    ///
    /// [`Corrupt`] when the file contradicts itself.
    pub fn find(&self, key: &[u8]) -> Result<Option<&[u8]>, Corrupt> {
        let hash = hash(key);
        let (table, slots) = self.numbers((hash as usize % 256) * 8)?;
        if slots == 0 {
            return Ok(None);
        }
        // The table must lie within the file, so that a search ends.
        if slots > self.bytes.len() / 8 {
            return Err(Corrupt("not a cdb: a table is longer than the file"));
        }
        for probe in 0..slots {
            let slot = ((hash >> 8) as usize + probe) % slots;
            let (found, position) = self.numbers(table + slot * 8)?;
            if position == 0 {
                return Ok(None);
            }
            if found == hash as usize {
                let (found_key, data) = self.record(position)?;
                if found_key == key {
                    return Ok(Some(data));
                }
            }
        }
        Ok(None)
    }

    fn record(&self, position: usize) -> Result<(&[u8], &[u8]), Corrupt> {
        let (key_len, data_len) = self.numbers(position)?;
        let rest = &self.bytes[position + 8..];
        rest.split_at_checked(key_len)
            .and_then(|(key, rest)| Some((key, rest.get(..data_len)?)))
            .ok_or(Corrupt("not a cdb: a record is longer than the file"))
    }

    /// All records, key and data, in the order of the file.
    ///
    /// # Errors
    ///
    /// [`Corrupt`] when the file contradicts itself.
    pub fn records(&self) -> Result<Vec<(&[u8], &[u8])>, Corrupt> {
        let mut records = Vec::new();
        let mut position = POINTERS_LEN;
        // Records end where the first table begins.
        let mut end = self.bytes.len();
        for table in 0..256 {
            let (start, slots) = self.numbers(table * 8)?;
            if slots > 0 {
                end = end.min(start);
            }
        }
        while position < end {
            let (key, data) = self.record(position)?;
            records.push((key, data));
            position += 8 + key.len() + data.len();
        }
        Ok(records)
    }

    pub(super) fn look_up(&self, key: &str) -> Result<Verdict, Refusal> {
        let place = || format!("{}: {key}", self.name);
        let verdict = match self.find(key.as_bytes()) {
            Ok(None) => Ok(Verdict::NoMatch),
            Ok(Some(data)) => verdict_of(data),
            Err(Corrupt(problem)) => Err(problem.to_owned()),
        };
        verdict.map_err(|problem| Refusal::Broken { place: place(), problem })
    }
}

/// What a record says.
pub(super) fn verdict_of(data: &[u8]) -> Result<Verdict, String> {
    let (kind, rest) = data.split_first().ok_or("an empty record")?;
    match kind {
        b'D' => Ok(Verdict::Deny),
        b'A' => {
            let (environment, rest) = part(rest).ok_or("a record that ends too early")?;
            match part(rest) {
                Some((_exec, [])) => {}
                _ => return Err("a record with a wrong length".to_owned()),
            }
            Rights::from_environment(variables(environment)).map(Verdict::Allow)
        }
        _ => Ok(Verdict::NoMatch),
    }
}

/// A length, and so many bytes.
fn part(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = bytes.split_first_chunk()?;
    let len = usize::from(u16::from_be_bytes(*len));
    if len > RULES_RECORD_PART_MAX {
        return None;
    }
    rest.split_at_checked(len)
}

/// `NAME=value` each ended by NUL. A name without `=` unsets a variable: it grants
/// nothing.
fn variables(environment: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    environment.split(|&byte| byte == 0).filter_map(|variable| {
        let equals = variable.iter().position(|&byte| byte == b'=')?;
        Some((&variable[..equals], &variable[equals + 1..]))
    })
}

fn hash(key: &[u8]) -> u32 {
    key.iter().fold(5381, |hash: u32, &byte| hash.wrapping_mul(33) ^ u32::from(byte))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use fdholder::Identifier;
    use proptest::prelude::*;

    /// Writes a cdb, for the tests of the reader; the peers' own maker is used by the
    /// tests of the whole daemon.
    pub fn make(records: &[(&[u8], &[u8])]) -> Vec<u8> {
        let mut bytes = vec![0; POINTERS_LEN];
        let mut tables: Vec<Vec<(u32, u32)>> = vec![vec![]; 256];
        for (key, data) in records {
            tables[(hash(key) % 256) as usize].push((hash(key), bytes.len() as u32));
            bytes.extend((key.len() as u32).to_le_bytes());
            bytes.extend((data.len() as u32).to_le_bytes());
            bytes.extend([*key, *data].concat());
        }
        for (index, table) in tables.iter().enumerate() {
            let slots = table.len() * 2;
            let mut filled = vec![(0, 0); slots];
            for &(hash, position) in table {
                let mut slot = (hash >> 8) as usize % slots;
                while filled[slot].1 != 0 {
                    slot = (slot + 1) % slots;
                }
                filled[slot] = (hash, position);
            }
            let start = bytes.len() as u32;
            bytes[index * 8..index * 8 + 4].copy_from_slice(&start.to_le_bytes());
            bytes[index * 8 + 4..index * 8 + 8].copy_from_slice(&(slots as u32).to_le_bytes());
            for (hash, position) in filled {
                bytes.extend([hash.to_le_bytes(), position.to_le_bytes()].concat());
            }
        }
        bytes
    }

    pub fn allow(environment: &[u8]) -> Vec<u8> {
        let len = (environment.len() as u16).to_be_bytes();
        [b"A", &len[..], environment, &[0, 0]].concat()
    }

    #[test]
    fn rules_are_found() {
        let environment = b"S6_FDHOLDER_STORE_REGEX=^web\0S6_FDHOLDER_LIST=\0S6_FDHOLDER_GETDUMP\0";
        let mut bytes =
            make(&[(b"uid/1", &allow(environment)), (b"uid/2", b"D"), (b"uid/3", b"X")]);
        // Where an empty table is does not matter.
        for pointer in bytes[..POINTERS_LEN].chunks_exact_mut(8).filter(|it| it[4..] == [0; 4]) {
            pointer.fill(0);
        }
        let cdb = Cdb::from_bytes(bytes, "rules".into()).unwrap();
        let Verdict::Allow(rights) = cdb.look_up("uid/1").unwrap() else { panic!() };
        assert!(rights.may_store(&Identifier::new("web").unwrap()));
        assert!(rights.list && !rights.getdump && !rights.setdump);
        assert!(matches!(cdb.look_up("uid/2").unwrap(), Verdict::Deny));
        assert!(matches!(cdb.look_up("uid/3").unwrap(), Verdict::NoMatch));
        assert!(matches!(cdb.look_up("uid/4").unwrap(), Verdict::NoMatch));
        assert_eq!(cdb.records().unwrap().len(), 3);
    }

    #[test]
    fn a_file_is_read_if_it_is_one_of_rules() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("rules");
        let problem = || match Cdb::read(&file).unwrap_err() {
            Refusal::Broken { place, problem } if place == file.display().to_string() => problem,
            other => panic!("{other}"),
        };
        assert_eq!(problem(), "No such file or directory");
        std::fs::create_dir(&file).unwrap();
        assert_eq!(problem(), "not a regular file");
        std::fs::remove_dir(&file).unwrap();
        // Nobody writes to it, and it is not waited for.
        rustix::fs::mknodat(rustix::fs::CWD, &file, FileType::Fifo, Mode::RUSR, 0).unwrap();
        assert_eq!(problem(), "not a regular file");
        std::fs::remove_file(&file).unwrap();
        std::fs::write(&file, [0; POINTERS_LEN - 1]).unwrap();
        assert_eq!(problem(), "not a cdb: it is too short");
        std::fs::write(&file, make(&[])).unwrap();
        assert!(Cdb::read(&file).unwrap().records().unwrap().is_empty());
        std::fs::write(&file, make(&[(b"uid/2", b"D")])).unwrap();
        let cdb = Cdb::read(&file).unwrap();
        assert!(matches!(cdb.look_up("uid/2").unwrap(), Verdict::Deny));
        let sparse = File::options().write(true).open(&file).unwrap();
        sparse.set_len(RULES_FILE_LEN_MAX).unwrap();
        assert!(Cdb::read(&file).is_ok());
        sparse.set_len(RULES_FILE_LEN_MAX + 1).unwrap();
        assert_eq!(problem(), format!("over {RULES_FILE_LEN_MAX} bytes long"));
    }

    /// The shortest cdb there is, and what it may not say.
    #[test]
    fn positions_are_checked_before_they_are_followed() {
        let hash = hash(b"k");
        let pointer = (hash as usize % 256) * 8;
        // A table of one slot, and a record behind it.
        let table = POINTERS_LEN as u32;
        let file = |slots: u32, record: u32, key_len: u32, data_len: u32| {
            let mut bytes = vec![0; POINTERS_LEN];
            bytes[pointer..pointer + 4].copy_from_slice(&table.to_le_bytes());
            bytes[pointer + 4..pointer + 8].copy_from_slice(&slots.to_le_bytes());
            for number in [hash, record, key_len, data_len] {
                bytes.extend(number.to_le_bytes());
            }
            bytes.extend(b"kD");
            Cdb::from_bytes(bytes, "rules".into()).unwrap()
        };
        let (record, len) = (table + 8, table + 18);
        assert_eq!(file(1, record, 1, 1).find(b"k"), Ok(Some(&b"D"[..])));
        assert_eq!(file(1, record, 1, 0).find(b"k"), Ok(Some(&b""[..])));
        assert_eq!(file(1, record, 2, 0).find(b"k"), Ok(None), "another key");
        assert_eq!(file(1, 0, 1, 1).find(b"k"), Ok(None), "an empty slot");
        assert_eq!(file(0, record, 1, 1).find(b"k"), Ok(None), "no table");
        assert!(file(1, record, 1, 2).find(b"k").is_err());
        assert!(file(1, record, 3, 0).find(b"k").is_err());
        assert!(file(1, len - 7, 1, 1).find(b"k").is_err());
        assert!(file(1, u32::MAX, 1, 1).find(b"k").is_err());
        // With so many slots the key stands in the first; but the others must have room, too.
        let slots = hash >> 8;
        let mut long = file(slots, record, 1, 1);
        assert!(long.find(b"k").is_err());
        long.bytes.resize(slots as usize * 8, 0);
        assert_eq!(long.find(b"k"), Ok(Some(&b"D"[..])));
        let refusal = file(1, u32::MAX, 1, 1).look_up("k").unwrap_err();
        assert_eq!(refusal.to_string(), "rules: k: not a cdb: a position is beyond the end");
    }

    /// As others compute it, which the maker in here does not show.
    #[test]
    fn hashes_are_those_of_cdb() {
        assert_eq!((hash(b""), hash(b"uid/0")), (5381, 184_290_434));
    }

    #[test]
    fn records_that_lie_are_refused() {
        for data in [&b""[..], b"A", b"A\0\x05ab\0\0", b"A\0\0\0\0x", b"A\0\0", b"A\x20\0"] {
            assert!(verdict_of(data).is_err(), "{data:?}");
        }
        assert!(verdict_of(&allow(b"S6_FDHOLDER_STORE_REGEX=(\0")).is_err());
        let most = [&b"x="[..], &[b'y'; RULES_RECORD_PART_MAX - 2]].concat();
        assert!(verdict_of(&allow(&most)).is_ok());
        assert!(verdict_of(&allow(&[&most[..], b"y"].concat())).is_err());
    }

    proptest! {
        #[test]
        fn every_key_finds_its_own_data(
            records in proptest::collection::btree_map(
                proptest::collection::vec(any::<u8>(), 0..12),
                proptest::collection::vec(any::<u8>(), 0..12), 0..60),
            other in proptest::collection::vec(any::<u8>(), 0..12),
        ) {
            let list: Vec<_> = records.iter().map(|(k, d)| (k.as_slice(), d.as_slice())).collect();
            let cdb = Cdb::from_bytes(make(&list), String::new()).unwrap();
            for (key, data) in &records {
                prop_assert_eq!(cdb.find(key).unwrap(), Some(data.as_slice()));
            }
            prop_assert_eq!(cdb.find(&other).unwrap(), records.get(&other).map(Vec::as_slice));
            prop_assert_eq!(cdb.records().unwrap(), list);
        }

        #[test]
        fn a_damaged_file_never_panics_or_hangs(
            damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..40),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut bytes = make(&[(b"uid/1", &allow(b"S6_FDHOLDER_LIST=\0")), (b"uid/2", b"D")]);
            for (index, byte) in damage {
                let at = index.index(bytes.len());
                bytes[at] = byte;
            }
            bytes.truncate(POINTERS_LEN + cut.index(bytes.len() - POINTERS_LEN + 1));
            let cdb = Cdb::from_bytes(bytes, String::new()).unwrap();
            let _ = cdb.look_up("uid/1");
            let _ = cdb.look_up("uid/2");
            let _ = cdb.records();
        }
    }
}
