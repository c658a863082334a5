//! POSIX extended regular expressions, by the C library's `regcomp`.
//!
//! The rules were written for that meaning, in which `^\d+$` is not "digits": a library
//! with another one would give rights that nobody granted.
#![allow(unsafe_code)]

use crate::limits::PATTERN_LEN_MAX;
use crate::memory::reserve;
use fdholder::limits::ID_LEN_MAX;
use fdholder::Identifier;
use std::ffi::{CStr, CString};
use std::fmt;
use std::mem::MaybeUninit;

/// A compiled expression.
pub struct Pattern {
    /// Boxed, so that it stays where `regcomp` has put it.
    compiled: Box<libc::regex_t>,
    source: CString,
}

/// What is compiled from the same is the same.
impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
    }
}

impl Eq for Pattern {}

// SAFETY: a compiled expression is plain memory that only regexec and regfree touch;
// POSIX lets threads share one in regexec, and regfree runs once, in `drop`.
unsafe impl Send for Pattern {}
// SAFETY: as above; `regexec` takes it by const pointer.
unsafe impl Sync for Pattern {}

impl Pattern {
    /// Compiles an extended regular expression.
    ///
    /// # Errors
    ///
    /// The C library's text when it is none, or what is wrong with it: it holds a NUL, or
    /// to compile it or to match it could take all memory, or forever.
    pub fn new(source: &[u8]) -> Result<Self, String> {
        if refers_back(source) {
            return Err(
                "it refers back (\\1), which POSIX's extended expressions do not".to_owned()
            );
        }
        let len = written_out(source);
        if len > PATTERN_LEN_MAX {
            return Err(format!("with all repetitions it is over {PATTERN_LEN_MAX} items long"));
        }
        if !reserve::has_room(compiled_len(source, len)) {
            return Err(NO_MEMORY.to_owned());
        }
        let source = CString::new(source).map_err(|_| "it holds a NUL byte".to_owned())?;
        let mut compiled = Box::new(MaybeUninit::<libc::regex_t>::uninit());
        // SAFETY: the pointer is to writable memory of the right type, the source is a C
        // string, and both outlive the call.
        let code = unsafe {
            libc::regcomp(
                compiled.as_mut_ptr(),
                source.as_ptr(),
                libc::REG_EXTENDED | libc::REG_NOSUB,
            )
        };
        if code != 0 {
            return Err(error_text(code, compiled.as_ptr()));
        }
        // SAFETY: regcomp has returned 0, so it has filled the value in.
        let compiled = unsafe { compiled.assume_init() };
        Ok(Self { compiled, source })
    }

    /// Whether a part of `id` matches.
    pub fn is_found_in(&self, id: &Identifier) -> bool {
        let mut text = [0u8; ID_LEN_MAX + 1];
        let bytes = id.as_bytes();
        text[..bytes.len()].copy_from_slice(bytes);
        let Ok(text) = CStr::from_bytes_until_nul(&text) else {
            return false;
        };
        // The C library remembers how it goes on with what it has seen.
        reserve::make_room(MATCH_LEN);
        // SAFETY: `compiled` is a compiled expression (`new`), the text is a C string, and
        // no matches are asked for.
        unsafe {
            libc::regexec(&raw const *self.compiled, text.as_ptr(), 0, std::ptr::null_mut(), 0) == 0
        }
    }
}

/// Said of an expression that may be compiled once there is memory.
pub(super) const NO_MEMORY: &str = "there is no memory to compile it now";

/// Bytes that the C library takes to match an identifier at most: a state for each of its bytes,
/// with a table of what comes next (2 KiB).
const MATCH_LEN: usize = 3 * 1024 * ID_LEN_MAX;

/// Bytes that the C library may take to compile an expression that is so long once written out.
/// It is asked about before: glibc's frees some of it twice when it finds none. Measured: up to
/// 1.4 KiB an item, and what grows with the square where groups are repeated (40 KiB for 7000).
fn compiled_len(source: &[u8], len: usize) -> usize {
    let repeats_groups = source.windows(2).any(|pair| matches!(pair, b")*" | b")+"));
    let square = if repeats_groups { len.saturating_mul(len).saturating_mul(8) } else { 0 };
    len.saturating_mul(2048).saturating_add(square).saturating_add(64 * 1024)
}

/// Whether it refers back to what a group has matched: the C library would, and may then try
/// every way in which the groups can match.
fn refers_back(source: &[u8]) -> bool {
    let mut bytes = source.iter();
    while let Some(byte) = bytes.next() {
        if *byte == b'\\' && bytes.next().is_some_and(u8::is_ascii_digit) {
            return true;
        }
    }
    false
}

/// How long an expression is once its repetitions are written out, as the C library does:
/// `(ab){9}` has nine times what `(ab)` has, `a+` is `aa*`. At least that long, where it is no
/// expression at all.
#[doc(hidden)]
pub fn written_out(source: &[u8]) -> usize {
    // What each open group has so far, but for its last item, and that.
    let mut open = vec![(0usize, 0usize)];
    let mut at = 0;
    while let Some(&byte) = source.get(at) {
        at += 1;
        let depth = open.len() - 1;
        let (before, item) = &mut open[depth];
        match byte {
            b'(' => open.push((0, 0)),
            b')' if depth > 0 => {
                let group = before.saturating_add(*item).saturating_add(1);
                open.pop();
                let (before, item) = &mut open[depth - 1];
                *before = before.saturating_add(*item);
                *item = group;
            }
            b'*' | b'?' => *item = item.saturating_add(1),
            b'+' => *item = item.saturating_mul(2).saturating_add(1),
            b'{' if interval(&source[at..]).is_some() => {
                let (times, len) = interval(&source[at..]).unwrap_or_default();
                *item = item.saturating_mul(times.max(1)).saturating_add(1);
                at += len;
            }
            _ => {
                at += match byte {
                    b'\\' => 1,
                    b'[' => bracket_len(&source[at..]),
                    _ => 0,
                };
                *before = before.saturating_add(*item);
                *item = 1;
            }
        }
    }
    open.iter()
        .fold(0, |sum: usize, (before, item)| sum.saturating_add(*before).saturating_add(*item))
}

/// How often at most `9}` or `1,9}` repeats, and how many bytes it has, if it begins with one.
fn interval(rest: &[u8]) -> Option<(usize, usize)> {
    let end = rest.iter().position(|&byte| byte == b'}')?;
    let mut most = 0;
    for number in rest[..end].split(|&byte| byte == b',') {
        let mut value = 0usize;
        for digit in number {
            let digit = digit.is_ascii_digit().then(|| usize::from(digit - b'0'))?;
            value = value.saturating_mul(10).saturating_add(digit);
        }
        most = most.max(value);
    }
    Some((most, end + 1))
}

/// How many bytes of `rest` belong to the bracket expression that was opened before it.
fn bracket_len(rest: &[u8]) -> usize {
    let mut at = usize::from(rest.first() == Some(&b'^'));
    // Closing, it would be an empty one; there is none.
    at += usize::from(rest.get(at) == Some(&b']'));
    while let Some(&byte) = rest.get(at) {
        at += 1;
        match (byte, rest.get(at)) {
            (b']', _) => return at,
            (b'[', Some(&kind @ (b':' | b'.' | b'='))) => {
                let end = rest[at + 1..].windows(2).position(|two| two == [kind, b']']);
                at += end.map_or(1, |end| end + 3);
            }
            _ => {}
        }
    }
    at
}

/// What `regerror` says. `compiled` may be what a failed `regcomp` has left.
fn error_text(code: i32, compiled: *const libc::regex_t) -> String {
    let mut text = [0u8; 128];
    // SAFETY: the buffer is as long as its length says; regerror takes the expression of
    // the failed call and ends the text with NUL.
    unsafe { libc::regerror(code, compiled, text.as_mut_ptr().cast(), text.len()) };
    CStr::from_bytes_until_nul(&text)
        .map_or_else(|_| format!("error {code}"), |text| text.to_string_lossy().into_owned())
}

impl Drop for Pattern {
    fn drop(&mut self) {
        // SAFETY: compiled by `new`, and freed only here.
        unsafe { libc::regfree(&raw mut *self.compiled) }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.source.to_bytes().escape_ascii())
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pattern({:?})", self.source)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(pattern: &str, id: &str) -> bool {
        Pattern::new(pattern.as_bytes()).unwrap().is_found_in(&Identifier::new(id).unwrap())
    }

    #[test]
    fn they_mean_what_posix_says() {
        assert!(found("^unix:/tmp/", "unix:/tmp/x"));
        assert!(found("foo.bar", "a foo-bar b"), "searched, not anchored");
        assert!(!found("^foobar$", "foobarx"));
        assert!(!found(r"^\d+$", "123"), "\\d is not digits");
        assert!(found("^[[:digit:]]{3}$", "123"));
        assert!(found("a|b", "b"));
        assert!(found("^(ab)+$", "abab"));
        assert!(!found(".^", "anything"));
        assert!(found("", "anything"));
    }

    #[test]
    fn bytes_that_are_not_utf_8_are_bytes() {
        let id = Identifier::new([0xff, b'x']).unwrap();
        assert!(Pattern::new(b"^.x$").unwrap().is_found_in(&id));
        let longest = Identifier::new([b'y'; ID_LEN_MAX]).unwrap();
        assert!(Pattern::new(b"^y{255}$").unwrap().is_found_in(&longest));
    }

    #[test]
    fn it_is_shown_as_it_was_written() {
        let pattern = Pattern::new(b"^a\x1b.*$").unwrap();
        assert_eq!(pattern.to_string(), r"^a\x1b.*$");
        assert_eq!(format!("{pattern:?}"), r#"Pattern("^a\x1b.*$")"#);
    }

    #[test]
    fn one_that_could_take_all_memory_is_refused() {
        for (source, len) in [
            ("", 0),
            ("^a\\.b$", 5),
            ("a{9}", 9 + 1),
            ("(ab){9}", 27 + 1),
            ("(ab){2,9}c", 27 + 2),
            ("a{9}{9}", (9 + 1) * 9 + 1),
            ("((a{10}){10}){10}", (((10 + 2) * 10 + 2) * 10) + 1),
            ("{x}", 3),
            ("[^])]{9}", 9 + 1),
            ("([)]a{9}){9}", (1 + 10 + 1) * 9 + 1),
            ("[[:alpha:][.].][=)=](]{3}", 3 + 1),
            ("[a", 1),
            ("a*b?", 4),
            ("a+", 3),
            ("a+++", 15),
            ("(ab)*{9}", (3 + 1) * 9 + 1),
            ("(ab)?{9}", (3 + 1) * 9 + 1),
            ("a{{9}", 1 + 9 + 1),
            ("(a|b)*", 5),
            ("((a", 1),
            ("a)b", 3),
        ] {
            assert_eq!(written_out(source.as_bytes()), len, "{source}");
        }
        let longest = "a".repeat(PATTERN_LEN_MAX);
        assert!(Pattern::new(longest.as_bytes()).is_ok());
        let too_long = format!("with all repetitions it is over {PATTERN_LEN_MAX} items long");
        let many = ["(".repeat(99), "a".into(), "+)".repeat(99)].concat();
        let many_times = "a{250}{250}{250}";
        for source in [&format!("{longest}a"), "a+++++++++++++++", many_times, &many] {
            assert_eq!(Pattern::new(source.as_bytes()).unwrap_err(), too_long, "{source}");
        }
    }

    #[test]
    fn one_that_could_take_forever_is_refused() {
        for source in [r"(a*)*\1", r"(a)\\\1", r"\9"] {
            assert!(Pattern::new(source.as_bytes()).unwrap_err().contains("refers back"));
        }
        assert!(found(r"^a\\1$", r"a\1"), "that is a backslash, and a digit");
    }

    #[test]
    fn a_bad_one_says_why() {
        assert!(Pattern::new(b"(").unwrap_err().contains('('));
        assert!(Pattern::new(b"a\0").is_err());
    }
}
