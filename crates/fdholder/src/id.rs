//! Identifiers: the names under which descriptors are held.

use crate::limits::ID_LEN_MAX;
use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};

/// The name of a held descriptor: 1 to 255 bytes, any byte but NUL.
///
/// Identifiers are bytes, not text. [`Display`](fmt::Display) quotes what is not
/// printable ASCII, as `s6-fdholder-list` does (`\n`, `\\`, `\0x1b` …), so that one that
/// a stranger chose can be shown on a terminal.
///
/// ```
/// use fdholder::Identifier;
/// let id = Identifier::new("unix:/run/my socket")?;
/// assert_eq!(id.as_bytes(), b"unix:/run/my socket");
/// assert!(Identifier::new("").is_err());
/// assert_eq!(Identifier::new(b"bell\x07 esc\x1b")?.to_string(), "bell\\a esc\\0x1b");
/// # Ok::<(), fdholder::BadIdentifier>(())
/// ```
#[derive(Clone)]
pub struct Identifier(Bytes);

/// Most identifiers are short; those need no memory of their own.
#[derive(Clone)]
enum Bytes {
    Inline { len: u8, bytes: [u8; INLINE_LEN] },
    Boxed(Box<[u8]>),
}

/// What fits beside the tag and the length into the size that a box would make it.
const INLINE_LEN: usize = 22;

/// Why some bytes are not an [`Identifier`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadIdentifier {
    /// It has no bytes at all.
    Empty,
    /// It has more than [`ID_LEN_MAX`] bytes; the field says how many.
    TooLong(usize),
    /// There is a NUL byte at this position.
    Nul(usize),
}

impl Identifier {
    /// Checks `bytes` and copies them.
    ///
    /// # Errors
    ///
    /// [`BadIdentifier`] when they are none, too many, or hold a NUL.
    pub fn new(bytes: impl AsRef<[u8]>) -> Result<Self, BadIdentifier> {
        let bytes = bytes.as_ref();
        Self::check(bytes)?;
        Ok(Self::from_checked(bytes))
    }

    /// Copies bytes that [`check`](Self::check) has let pass.
    pub(crate) fn from_checked(bytes: &[u8]) -> Self {
        let mut inline = [0; INLINE_LEN];
        Self(match inline.get_mut(..bytes.len()) {
            Some(start) => {
                start.copy_from_slice(bytes);
                Bytes::Inline { len: bytes.len() as u8, bytes: inline } // At most INLINE_LEN.
            }
            None => Bytes::Boxed(bytes.into()),
        })
    }

    /// What [`new`](Self::new) checks, without the copy.
    pub(crate) fn check(bytes: &[u8]) -> Result<(), BadIdentifier> {
        if bytes.is_empty() {
            Err(BadIdentifier::Empty)
        } else if bytes.len() > ID_LEN_MAX {
            Err(BadIdentifier::TooLong(bytes.len()))
        } else if let Some(position) = bytes.iter().position(|&byte| byte == 0) {
            Err(BadIdentifier::Nul(position))
        } else {
            Ok(())
        }
    }

    /// The bytes themselves, without a terminator.
    #[inline]
    pub fn as_bytes(&self) -> &[u8] {
        match &self.0 {
            Bytes::Inline { len, bytes } => &bytes[..usize::from(*len)],
            Bytes::Boxed(bytes) => bytes,
        }
    }

    /// Reads back what [`Display`](fmt::Display) printed.
    ///
    /// # Errors
    ///
    /// [`BadIdentifier`] when the unquoted bytes are no identifier; an unknown escape
    /// stands for itself.
    pub fn from_quoted(text: &str) -> Result<Self, BadIdentifier> {
        let mut bytes = Vec::with_capacity(text.len());
        let mut rest = text.as_bytes();
        while let Some((&first, tail)) = rest.split_first() {
            let (byte, used) = match (first, tail) {
                (b'\\', [b'0', b'x', high, low, ..]) => {
                    let digit = |c: u8| (c as char).to_digit(16);
                    match (digit(*high), digit(*low)) {
                        (Some(high), Some(low)) => ((high * 16 + low) as u8, 5),
                        _ => (first, 1),
                    }
                }
                (b'\\', [b'\\', ..]) => (b'\\', 2),
                (b'\\', [letter, ..]) => match ESCAPES.iter().position(|e| e == letter) {
                    Some(index) => (ESCAPE_BASE + index as u8, 2),
                    None => (first, 1),
                },
                _ => (first, 1),
            };
            bytes.push(byte);
            rest = &rest[used..];
        }
        Self::new(bytes)
    }
}

/// The letters that stand for bytes 7 to 13 behind a backslash.
const ESCAPES: &[u8; 7] = b"abtnvfr";
/// The byte that the first letter of [`ESCAPES`] stands for.
const ESCAPE_BASE: u8 = 7;

impl fmt::Display for Identifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use fmt::Write;
        for &byte in self.as_bytes() {
            match byte {
                7..=13 => {
                    f.write_char('\\')?;
                    f.write_char(ESCAPES[usize::from(byte - ESCAPE_BASE)] as char)?;
                }
                b'\\' => f.write_str("\\\\")?,
                b' '..=b'~' => f.write_char(byte as char)?,
                _ => write!(f, "\\0x{byte:02x}")?,
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Identifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identifier(\"{self}\")")
    }
}

impl AsRef<[u8]> for Identifier {
    fn as_ref(&self) -> &[u8] {
        self.as_bytes()
    }
}

impl PartialEq for Identifier {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for Identifier {}

impl PartialOrd for Identifier {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Identifier {
    fn cmp(&self, other: &Self) -> Ordering {
        self.as_bytes().cmp(other.as_bytes())
    }
}

impl Hash for Identifier {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // Alone it needs no mark of where it ends.
        state.write(self.as_bytes());
    }
}

impl fmt::Display for BadIdentifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("an identifier has at least one byte"),
            Self::TooLong(len) => {
                write!(f, "an identifier has at most {ID_LEN_MAX} bytes, this one has {len}")
            }
            Self::Nul(position) => write!(f, "byte {position} of the identifier is NUL"),
        }
    }
}

impl std::error::Error for BadIdentifier {}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;
    use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};

    proptest! {
        #[test]
        fn quoting_is_printable_and_reversible(
            bytes in proptest::collection::vec(1u8..=255, 1..=ID_LEN_MAX)
        ) {
            let id = Identifier::new(&bytes).unwrap();
            let quoted = id.to_string();
            prop_assert!(quoted.bytes().all(|byte| (b' '..=b'~').contains(&byte)));
            prop_assert_eq!(Identifier::from_quoted(&quoted).unwrap(), id);
        }
    }

    /// A holder of many keeps one of these for each.
    #[test]
    fn an_entry_is_small() {
        assert_eq!(size_of::<Identifier>(), 24);
        assert_eq!(size_of::<crate::Entry<std::os::fd::OwnedFd>>(), 40);
    }

    #[test]
    fn bounds_are_checked() {
        assert_eq!(Identifier::new(""), Err(BadIdentifier::Empty));
        assert!(Identifier::new([b'a'; 255]).is_ok());
        assert_eq!(Identifier::new([b'a'; 256]), Err(BadIdentifier::TooLong(256)));
        assert_eq!(Identifier::new(b"a\0b"), Err(BadIdentifier::Nul(1)));
    }

    #[test]
    fn what_is_wrong_is_said() {
        let said = |bytes: &[u8]| Identifier::new(bytes).unwrap_err().to_string();
        assert_eq!(said(b""), "an identifier has at least one byte");
        assert_eq!(said(&[b'a'; 300]), "an identifier has at most 255 bytes, this one has 300");
        assert_eq!(said(b"ab\0"), "byte 2 of the identifier is NUL");
    }

    /// What is kept inline and what is not compare alike.
    #[test]
    fn they_are_ordered_as_bytes() {
        let sorted: Vec<_> = ["a", "aaaaaaaaaaaaaaaaaaaaaa", "aaaaaaaaaaaaaaaaaaaaaaa", "ab", "b"]
            .map(|id| Identifier::new(id).unwrap())
            .into();
        let mut ids = sorted.clone();
        ids.reverse();
        ids.sort();
        assert_eq!(ids, sorted);
        assert_eq!(sorted[1].partial_cmp(&sorted[2]), Some(Ordering::Less));
        assert_ne!(sorted[1], sorted[2]);
        let hashed =
            sorted.iter().map(|id| BuildHasherDefault::<DefaultHasher>::default().hash_one(id));
        assert_eq!(hashed.collect::<HashSet<_>>().len(), sorted.len());
        assert_eq!(sorted[2].as_ref(), sorted[2].as_bytes());
        assert_eq!(format!("{:?}", sorted[3]), "Identifier(\"ab\")");
    }

    #[test]
    fn what_cannot_be_printed_is_escaped() {
        let id = Identifier::new(b"\x06\x07\x0d\x0e \\~\x7f\xff").unwrap();
        assert_eq!(id.to_string(), r"\0x06\a\r\0x0e \\~\0x7f\0xff");
    }

    #[test]
    fn an_escape_that_is_none_stands_for_itself() {
        for (text, bytes) in [
            (r"\a\r\\", &b"\x07\x0d\\"[..]),
            (r"\0x4aB", b"JB"),
            (r"\0xg0", br"\0xg0"),
            (r"\0x0g", br"\0x0g"),
            (r"\0x4", br"\0x4"),
            (r"\q", br"\q"),
            ("\\", b"\\"),
        ] {
            assert_eq!(Identifier::from_quoted(text).unwrap().as_bytes(), bytes, "{text}");
        }
        assert_eq!(Identifier::from_quoted(r"\0x00"), Err(BadIdentifier::Nul(0)));
    }
}
