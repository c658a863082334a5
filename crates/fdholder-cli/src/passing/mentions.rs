//! Numbers of descriptors in texts: arguments, and variables of the environment.

use std::ffi::OsStr;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;

/// A number that a text mentions, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mention {
    pub number: u32,
    pub place: Range<usize>,
}

/// Paths of descriptors, as a shell gives them for `<(command)`: the text was made for that
/// descriptor.
pub fn in_paths(text: &[u8], own_pid: u32) -> Vec<Mention> {
    let own = format!("/proc/{own_pid}/fd/");
    let paths = ["/dev/fd/", "/proc/self/fd/", "/proc/thread-self/fd/", &own];
    behind(text, &paths.map(str::as_bytes))
}

/// The path that one of those ends.
pub fn path_of(text: &[u8], mention: &Mention) -> String {
    let text = String::from_utf8_lossy(&text[..mention.place.end]);
    let start = text.rfind("/dev/").max(text.rfind("/proc/")).unwrap_or(0);
    text[start..].to_owned()
}

/// What an argument says in the ways of programs (`--ready-fd=9`, `fd:9`, `fd://9`) and of shell
/// scripts (`>&9`), or by itself behind an option that ends in `fd`. It may as well mean a descriptor
/// that is passed on.
pub fn in_argument(argument: &[u8], before: Option<&OsStr>) -> Vec<Mention> {
    let mut found = behind(argument, &[b"fd=", b"fd:", b"fd://", b">&", b"<&"]);
    let is_option =
        |before: &OsStr| before.as_bytes().starts_with(b"-") && before.as_bytes().ends_with(b"fd");
    if before.is_some_and(is_option) {
        found.extend(whole(argument));
    }
    found
}

/// What a variable says: one whose name ends in `FD` is a number (`NODE_CHANNEL_FD`), as is
/// libwayland's; make tells of its jobserver among its flags.
pub fn in_variable(name: &str, value: &[u8]) -> Vec<Mention> {
    if name.ends_with("MAKEFLAGS") || name.ends_with("MFLAGS") {
        let mut found = behind(value, &[b"--jobserver-auth=", b"--jobserver-fds="]);
        for reader in found.clone() {
            // The writer's follows; behind a number that is none the path of a fifo does.
            let rest = &value[reader.place.end..];
            let writer = rest.strip_prefix(b",").and_then(leading);
            found.extend(writer.map(|writer| moved(writer, reader.place.end + 1)));
        }
        return found;
    }
    let name = name.trim_end_matches(|letter: char| letter.is_ascii_digit() || letter == '_');
    let is_number = name.ends_with("FD") || name == "WAYLAND_SOCKET";
    whole(value).into_iter().filter(|_| is_number).collect()
}

/// The value with other numbers.
pub fn renumbered(value: &[u8], numbers: &[(Mention, u32)]) -> Vec<u8> {
    let mut numbers: Vec<_> = numbers.iter().collect();
    numbers.sort_by_key(|(mention, _)| mention.place.start);
    let mut text = Vec::new();
    let mut end = 0;
    for (mention, number) in numbers {
        text.extend_from_slice(&value[end..mention.place.start]);
        text.extend_from_slice(number.to_string().as_bytes());
        end = mention.place.end;
    }
    text.extend_from_slice(&value[end..]);
    text
}

/// Numbers that stand right behind one of these.
fn behind(text: &[u8], prefixes: &[&[u8]]) -> Vec<Mention> {
    let mut found = Vec::new();
    for prefix in prefixes {
        for at in 0..text.len() {
            let rest = text[at..].strip_prefix(*prefix);
            let start = at + prefix.len();
            found.extend(rest.and_then(leading).map(|mention| moved(mention, start)));
        }
    }
    found
}

/// The number that a text is.
fn whole(text: &[u8]) -> Option<Mention> {
    leading(text).filter(|mention| mention.place.end == text.len())
}

/// The number that a text begins with.
fn leading(text: &[u8]) -> Option<Mention> {
    let len = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let number = std::str::from_utf8(&text[..len]).ok()?.parse().ok()?;
    Some(Mention { number, place: 0..len })
}

fn moved(Mention { number, place }: Mention, by: usize) -> Mention {
    Mention { number, place: place.start + by..place.end + by }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: [u32; 0] = [];

    fn numbers(found: Vec<Mention>) -> Vec<u32> {
        found.into_iter().map(|mention| mention.number).collect()
    }

    #[test]
    fn paths_of_descriptors_are_found_wherever_they_stand() {
        let of = |text: &str| numbers(in_paths(text.as_bytes(), 77));
        assert_eq!(of("/dev/fd/63"), [63]);
        assert_eq!(of("--config=/proc/self/fd/5,/proc/77/fd/6,/dev/fd/7"), [7, 5, 6]);
        let text = b"cat /dev/fd/1 </proc/self/fd/12 x";
        let found = in_paths(text, 77);
        let paths: Vec<_> = found.iter().map(|mention| path_of(text, mention)).collect();
        assert_eq!(paths, ["/dev/fd/1", "/proc/self/fd/12"]);
        assert_eq!(of("/proc/78/fd/6 /dev/fd/x /dev/fd/ /dev/fd/99999999999"), NONE);
    }

    #[test]
    fn arguments_name_descriptors_as_programs_and_shells_do() {
        let of = |text: &str, before: Option<&str>| {
            numbers(in_argument(text.as_bytes(), before.map(OsStr::new)))
        };
        assert_eq!(of("--ready-fd=9", None), [9]);
        assert_eq!(of("fd://9", None), [9]);
        assert_eq!(of("fd:9", Some("-pass")), [9]);
        assert_eq!(of("echo x >&9; cat <&10", None), [9, 10]);
        assert_eq!(of("9", Some("--status-fd")), [9]);
        assert_eq!(of("9", Some("-n")), NONE);
        assert_eq!(of("9", Some("fd")), NONE);
    }

    #[test]
    fn variables_name_descriptors_by_their_names() {
        let of = |name: &str, value: &str| numbers(in_variable(name, value.as_bytes()));
        assert_eq!(of("NODE_CHANNEL_FD", "3"), [3]);
        assert_eq!(of("BASH_XTRACEFD", "7"), [7]);
        assert_eq!(of("CHANNEL_FD_0", "7"), [7]);
        assert_eq!(of("WAYLAND_SOCKET", "8"), [8]);
        assert_eq!(of("MAKEFLAGS", "s -j2 --jobserver-auth=3,4"), [3, 4]);
        assert_eq!(
            of("CARGO_MAKEFLAGS", "--jobserver-fds=5,6 -j --jobserver-auth=5,6"),
            [5, 5, 6, 6]
        );
        assert_eq!(of("MAKEFLAGS", " --jobserver-auth=fifo:/tmp/GMfifo7"), NONE);
        assert_eq!(of("MAKEFLAGS", " --jobserver-auth=-2,-2"), NONE);
        // A count, and what is no number alone.
        assert_eq!(of("MAX_FDS", "3"), NONE);
        assert_eq!(of("NODE_CHANNEL_FD", "3x"), NONE);
        assert_eq!(of("HOME", "3"), NONE);
    }

    #[test]
    fn numbers_in_a_value_are_changed_where_they_stand() {
        let value = b"s -j2 --jobserver-auth=3,14 -- X=3";
        let found = in_variable("MAKEFLAGS", value);
        let changed: Vec<_> = found.into_iter().map(|mention| (mention, 100)).collect();
        assert_eq!(renumbered(value, &changed), b"s -j2 --jobserver-auth=100,100 -- X=3");
        assert_eq!(renumbered(value, &[]), value);
    }
}
