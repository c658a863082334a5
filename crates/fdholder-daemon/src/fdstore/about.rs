//! What systemd's names cannot hold: identifiers, limits, origins; in sealed files in memory.

use crate::reading::retried;
use fdholder::limits::TIMESTAMP_LEN;
use fdholder::{Identifier, Limit, Origin, Tenure, Timestamp};
use rustix::fs::{fcntl_add_seals, fcntl_get_seals, fstat, memfd_create, MemfdFlags, SealFlags};
use rustix::io::{pread, pwrite, Errno};
use rustix::time::{clock_gettime, ClockId};
use std::os::fd::{AsFd, OwnedFd};

/// The first bytes: whose it is, and which layout.
const MAGIC: &[u8; 8] = b"fdholder";

/// Bytes at most: a list of as many as are kept, each with the longest identifier.
const LEN_MAX: u64 = 8 + 8 + 8 + (crate::limits::FDSTORE_FDS_MAX as u64) * (ENTRY_LEN_MAX as u64);

/// Bytes of one entry at most.
const ENTRY_LEN_MAX: usize = 8 + 4 + 4 + TIMESTAMP_LEN + 1 + 255;

/// Bytes that are written at once: in one piece of memory, with an entry behind it.
const WRITTEN_AT_ONCE: usize = 32 * 1024;

/// What one number is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct About {
    /// Its number, who gave it, since when it has been held.
    pub origin: Origin,
    /// When it expires.
    pub limit: Limit,
    /// What it is held under.
    pub id: Identifier,
}

/// Since when something has been so, by a clock that never goes back, and begins anew only
/// when systemd does; in nanoseconds.
pub fn moment() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    // Neither is negative.
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}

/// What was written at some moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    pub moment: u64,
    /// Everything up to this number that is not told of is nothing any more.
    pub last: u64,
    pub all: Vec<About>,
}

/// Writes down what some numbers are; everything up to `last` that is not among them is
/// nothing any more.
pub fn write<'a>(
    last: u64,
    all: impl Iterator<Item = (Origin, Limit, &'a Identifier)>,
) -> Result<OwnedFd, Errno> {
    let file = memfd_create("fdholder", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut written = 0;
    let mut append = |bytes: &mut Vec<u8>| {
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let len = pwrite(&file, rest, written)?;
            (rest, written) = (&rest[len..], written + len as u64);
        }
        bytes.clear();
        Ok::<(), Errno>(())
    };
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&moment().to_be_bytes());
    bytes.extend_from_slice(&last.to_be_bytes());
    for (origin, limit, id) in all {
        bytes.extend_from_slice(&origin.serial.to_be_bytes());
        bytes.extend_from_slice(&origin.owner.to_be_bytes());
        bytes.extend_from_slice(&origin.tenure.to_bits().to_be_bytes());
        bytes.extend_from_slice(&limit.timestamp().to_wire());
        bytes.push(id.as_bytes().len() as u8); // At most 255.
        bytes.extend_from_slice(id.as_bytes());
        if bytes.len() >= WRITTEN_AT_ONCE {
            append(&mut bytes)?;
        }
    }
    append(&mut bytes)?;
    fcntl_add_seals(&file, SEALS)?;
    Ok(file)
}

const SEALS: SealFlags =
    SealFlags::SEAL.union(SealFlags::SHRINK).union(SealFlags::GROW).union(SealFlags::WRITE);

/// Reads what was written; `None` for anything else.
pub fn read(file: impl AsFd) -> Option<Written> {
    // What may still change is not ours.
    if !retried(|| fcntl_get_seals(&file)).ok()?.contains(SEALS) {
        return None;
    }
    let len =
        u64::try_from(retried(|| fstat(&file)).ok()?.st_size).ok().filter(|len| *len <= LEN_MAX)?;
    let mut bytes = vec![0; usize::try_from(len).ok()?];
    let mut at = 0;
    while at < bytes.len() {
        match retried(|| pread(&file, &mut bytes[at..], at as u64)).ok()? {
            0 => return None,
            len => at += len,
        }
    }
    parse(&bytes)
}

fn parse(bytes: &[u8]) -> Option<Written> {
    let mut rest = bytes.strip_prefix(MAGIC)?;
    let moment = u64::from_be_bytes(take(&mut rest)?);
    let last = u64::from_be_bytes(take(&mut rest)?);
    let mut all = Vec::new();
    while !rest.is_empty() {
        let serial = u64::from_be_bytes(take(&mut rest)?);
        let owner = u32::from_be_bytes(take(&mut rest)?);
        let tenure = Tenure::from_bits(u32::from_be_bytes(take(&mut rest)?));
        let origin = Origin { owner, tenure, serial };
        let limit = Limit::at(Timestamp::from_wire(&take::<TIMESTAMP_LEN>(&mut rest)?).ok()?);
        let [len] = take(&mut rest)?;
        let (id, tail) = rest.split_at_checked(usize::from(len))?;
        rest = tail;
        all.push(About { origin, limit, id: Identifier::new(id).ok()? });
    }
    Some(Written { moment, last, all })
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (head, tail) = rest.split_first_chunk()?;
    *rest = tail;
    Some(*head)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_about() -> impl Strategy<Value = About> {
        let id = proptest::collection::vec(1u8..=255, 1..=255);
        let numbers = any::<(u64, u32, u32, u64)>();
        (numbers, 0u32..1_000_000_000, id).prop_map(|(numbers, nanos, id)| {
            let (serial, owner, bits, label) = numbers;
            let origin = Origin { owner, tenure: Tenure::from_bits(bits), serial };
            let limit = Limit::at(Timestamp::new(label, nanos).unwrap());
            About { origin, limit, id: Identifier::new(id).unwrap() }
        })
    }

    proptest! {
        #[test]
        fn it_comes_back_as_it_was(
            last: u64,
            all in proptest::collection::vec(any_about(), 0..200),
            cut in 1usize..20,
        ) {
            let file = write(last, all.iter().map(|it| (it.origin, it.limit, &it.id))).unwrap();
            let written = read(&file).unwrap();
            prop_assert_eq!((written.last, &written.all), (last, &all));
            prop_assert!(written.moment <= moment());
            let len = usize::try_from(fstat(&file).unwrap().st_size).unwrap();
            let mut bytes = vec![0; len];
            pread(&file, &mut bytes, 0).unwrap();
            bytes.truncate(len - cut.min(len));
            prop_assert!(parse(&bytes).is_none_or(|some| some.all.len() < all.len()));
        }
    }

    #[test]
    fn what_could_change_is_not_believed() {
        let file = write(1, std::iter::empty()).unwrap();
        assert!(read(&file).is_some());
        let open = memfd_create("open", MemfdFlags::CLOEXEC).unwrap();
        pwrite(&open, b"fdholder\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x01", 0).unwrap();
        assert_eq!(read(&open), None);
        assert_eq!(read(std::fs::File::open("/dev/null").unwrap()), None);
    }
}
