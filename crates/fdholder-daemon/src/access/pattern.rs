//! POSIX extended regular expressions, by the C library's `regcomp`.
//!
//! The rules were written for that meaning, in which `^\d+$` is not "digits": a library
//! with another one would give rights that nobody granted.
#![allow(unsafe_code)]

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
    /// The C library's text when it is none, or holds a NUL.
    pub fn new(source: &[u8]) -> Result<Self, String> {
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
        // SAFETY: `compiled` is a compiled expression (`new`), the text is a C string, and
        // no matches are asked for.
        unsafe {
            libc::regexec(&raw const *self.compiled, text.as_ptr(), 0, std::ptr::null_mut(), 0) == 0
        }
    }
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
    fn a_bad_one_says_why() {
        assert!(Pattern::new(b"(").unwrap_err().contains('('));
        assert!(Pattern::new(b"a\0").is_err());
    }
}
