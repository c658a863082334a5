//! Names in `LISTEN_FDNAMES`: `sd_listen_fds_with_names(3)`.

use std::fmt::Write;

/// The longest name that systemd allows.
const FD_NAME_MAX: usize = 255;

/// Whether `LISTEN_FDNAMES` can carry it: printable ASCII without a colon.
pub fn is_fd_name(name: &str) -> bool {
    (1..=FD_NAME_MAX).contains(&name.len()) && name.bytes().all(can_stand)
}

fn can_stand(byte: u8) -> bool {
    matches!(byte, b' '..=b'~') && byte != b':'
}

/// The name of an identifier: itself, where that can be. Otherwise each byte that cannot
/// stand there, and each `%`, is written as `%` and two hexadecimal digits: `tcp:80` is
/// `tcp%3A80`. So each identifier has a name of its own; one that is longer than systemd
/// allows is for whoever reads it to take.
pub fn stand_in(id: &[u8]) -> String {
    let mut name = String::with_capacity(id.len());
    for &byte in id {
        if can_stand(byte) && byte != b'%' {
            name.push(byte.into());
        } else {
            // Writing to a string does not fail.
            let _ = write!(name, "%{byte:02X}");
        }
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn identifiers_have_names() {
        assert_eq!(stand_in(b"web/1"), "web/1");
        assert_eq!(stand_in(b"tcp:80"), "tcp%3A80");
        assert_eq!(stand_in(b"50%"), "50%25");
        assert_eq!(stand_in("\u{e9}\n".as_bytes()), "%C3%A9%0A");
    }

    proptest! {
        #[test]
        fn two_identifiers_never_share_a_name(a: Vec<u8>, b: Vec<u8>) {
            prop_assert_eq!(stand_in(&a) == stand_in(&b), a == b);
            prop_assert!(stand_in(&a).bytes().all(can_stand));
        }
    }
}
