//! A datagram of `sd_notify(3)`.

use crate::limits::NOTIFY_STATUS_LEN_MAX;

/// The longest FDNAME, as with systemd.
const NAME_LEN_MAX: usize = 255;

/// What a datagram says, as far as it is for us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// FDSTORE=1: hold the descriptors that come with it.
    pub stores: bool,
    /// FDSTOREREMOVE=1: hold those under FDNAME no longer.
    pub removes: bool,
    /// FDNAME=, if it is one.
    pub name: Option<String>,
    /// Not FDPOLL=0: hold them only for as long as there is somebody at the other end.
    pub polls: bool,
    /// READY=1, or STOPPING=1.
    pub ready: Option<bool>,
    /// STATUS=
    pub status: Option<String>,
}

impl Message {
    /// Reads a datagram: assignments, a line each. Whatever is unknown is passed over; of
    /// several for one name the last counts, as with systemd.
    pub fn parse(datagram: &[u8]) -> Self {
        let mut message = Self {
            stores: false,
            removes: false,
            name: None,
            polls: true,
            ready: None,
            status: None,
        };
        for line in String::from_utf8_lossy(datagram).split('\n') {
            match line.split_once('=') {
                Some(("FDSTORE", value)) => message.stores = value == "1",
                Some(("FDSTOREREMOVE", value)) => message.removes = value == "1",
                Some(("FDNAME", name)) => message.name = is_name(name).then(|| name.to_owned()),
                Some(("FDPOLL", value)) => message.polls = value != "0",
                Some(("READY", "1")) => message.ready = Some(true),
                Some(("STOPPING", "1")) => message.ready = Some(false),
                Some(("STATUS", text)) => message.status = Some(shortened(text)),
                _ => {}
            }
        }
        message
    }
}

/// Printable ASCII without colons, as systemd has it.
fn is_name(name: &str) -> bool {
    let fits = |byte: u8| matches!(byte, b' '..=b'~') && byte != b':';
    (1..=NAME_LEN_MAX).contains(&name.len()) && name.bytes().all(fits)
}

fn shortened(text: &str) -> String {
    let letters = text.chars().map(|letter| if letter.is_control() { ' ' } else { letter });
    let mut shortened = String::new();
    for letter in letters {
        if shortened.len() + letter.len_utf8() > NOTIFY_STATUS_LEN_MAX {
            break;
        }
        shortened.push(letter);
    }
    shortened
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn assignments_are_read() {
        let message = Message::parse(b"FDSTORE=1\nFDNAME=conn\nFDPOLL=0\nX=y\nnothing\n");
        assert!(message.stores && !message.removes && !message.polls);
        assert_eq!(message.name.as_deref(), Some("conn"));
        let message = Message::parse(b"READY=1\nSTATUS=one\nSTATUS=two\tthree");
        assert_eq!((message.ready, message.status.as_deref()), (Some(true), Some("two three")));
        assert!(message.polls && !message.stores);
        assert_eq!(Message::parse(b"STOPPING=1").ready, Some(false));
        for bad in ["a:b", "", "\u{e9}", "a\tb", &"x".repeat(256)] {
            let name = Message::parse(format!("FDNAME={bad}").as_bytes()).name;
            assert_eq!(name, None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn noise_never_panics_and_nothing_grows(datagram: Vec<u8>) {
            let message = Message::parse(&datagram);
            prop_assert!(message.name.is_none_or(|name| is_name(&name)));
            prop_assert!(message.status.is_none_or(|text| text.len() <= NOTIFY_STATUS_LEN_MAX));
        }

        #[test]
        fn a_status_is_cut_at_a_letter(text in "\\PC{0,600}") {
            let status = Message::parse(format!("STATUS={text}").as_bytes()).status.unwrap();
            prop_assert!(text.starts_with(&status));
        }
    }
}
