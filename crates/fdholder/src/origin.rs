//! What a holder knows of a descriptor beside its identifier and limit.

use crate::error::Malformed;
use crate::payload::Reader;
use crate::time::Timestamp;
use std::time::Duration;

/// Its bytes in a message.
pub(crate) const ORIGIN_LEN: usize = 4 + 4 + 8;

/// Where a held descriptor comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// The user who gave it.
    pub owner: u32,
    /// Since when it has been held, and for how long.
    pub tenure: Tenure,
    /// Its number: no other descriptor of this holder, or one before it, has it or had it.
    pub serial: u64,
}

impl Origin {
    pub(crate) fn put(self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(&self.owner.to_be_bytes());
        bytes.extend_from_slice(&self.tenure.0.to_be_bytes());
        bytes.extend_from_slice(&self.serial.to_be_bytes());
    }

    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let (owner, tenure) = (reader.u32()?, Tenure(reader.u32()?));
        Ok(Self { owner, tenure, serial: reader.u64()? })
    }
}

/// Since when a descriptor has been held, to the second, and whether it goes with its peer.
///
/// One number, as a holder of many is what matters: 31 bits of seconds since 2020, which last
/// until 2088, and the highest for the other thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tenure(u32);

const WITH_PEER: u32 = 1 << 31;

/// 2020-01-01 00:00:00 UTC.
const BASE: Timestamp = match Timestamp::new((1 << 62) + 37 + 1_577_836_800, 0) {
    Ok(base) => base,
    Err(_) => unreachable!(),
};

impl Tenure {
    /// It is held from now on.
    pub fn from(now: Timestamp) -> Self {
        let secs = now.saturating_since(BASE).as_secs();
        Self(u32::try_from(secs).unwrap_or(u32::MAX) & !WITH_PEER)
    }

    /// Reads the number of [`to_bits`](Self::to_bits).
    pub fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// As one number.
    pub fn to_bits(self) -> u32 {
        self.0
    }

    /// Only for as long as there is somebody at its other end.
    #[must_use]
    pub fn with_peer(self) -> Self {
        Self(self.0 | WITH_PEER)
    }

    /// Whether it is let go of when its other end has gone.
    pub fn is_with_peer(self) -> bool {
        self.0 & WITH_PEER != 0
    }

    /// Since when it has been held, to the second.
    pub fn since(self) -> Timestamp {
        BASE.saturating_add(Duration::from_secs((self.0 & !WITH_PEER).into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_number_of_seconds_and_a_bit() {
        let in_2020 = std::time::UNIX_EPOCH + Duration::from_secs(1_577_836_800);
        assert_eq!(Timestamp::from_system(in_2020), BASE);
        let tenure = Tenure::from(BASE.saturating_add(Duration::from_secs(5)));
        assert_eq!(tenure.to_bits(), 5);
        assert_eq!(tenure.with_peer().to_bits(), 0x8000_0005);
        assert_eq!(Tenure::from_bits(0x8000_0005), tenure.with_peer());
        assert_eq!(tenure.with_peer().with_peer(), tenure.with_peer());
        assert!(tenure.with_peer().is_with_peer() && !tenure.is_with_peer());
    }

    #[test]
    fn it_lasts_until_2088_and_then_stands_still() {
        let at = |secs| BASE.saturating_add(Duration::from_secs(secs));
        for secs in [0, 1, (1 << 31) - 1] {
            assert_eq!(Tenure::from(at(secs)).since(), at(secs));
            assert_eq!(Tenure::from(at(secs)).with_peer().since(), at(secs));
            assert!(!Tenure::from(at(secs)).is_with_peer());
        }
        assert!(!Tenure::from(at(1 << 32)).is_with_peer());
        let before = Timestamp::new(5, 0).unwrap();
        assert_eq!(Tenure::from(before).since(), BASE);
    }
}
