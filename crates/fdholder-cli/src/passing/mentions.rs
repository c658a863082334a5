//! Numbers of descriptors in texts: arguments, and variables of the environment.

use std::ffi::OsString;
use std::ops::Range;

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

/// What arguments say in the ways of programs (`--ready-fd=9`, `--fds 9,10`, `fd:9`, `fd@9`, `pipe:9`)
/// and of shell scripts (`>&9`, `read -u 9`, `flock 9`). It may as well mean a descriptor that is
/// passed on.
pub fn in_arguments(arguments: &[OsString]) -> Vec<u32> {
    let texts: Vec<_> = arguments.iter().map(|text| text.to_string_lossy()).collect();
    let mut found = Vec::new();
    for text in &texts {
        let text = text.to_ascii_lowercase().into_bytes();
        for prefix in ["fd=", "fds=", "fd:", "fds:", "fd://", "fd@", "pipe:", ">&", "<&"] {
            let places = places_behind(&text, prefix.as_bytes());
            found.extend(places.filter(|at| !is_count(last_word(&text[..*at]))).flat_map(|at| {
                let spaces = text[at..].iter().take_while(|byte| **byte == b' ').count();
                let spaces = if prefix.ends_with('&') { spaces } else { 0 };
                list(&text[at + spaces..], true)
            }));
        }
    }
    let words =
        || texts.iter().flat_map(|text| text.split(is_between_words)).filter(|it| !it.is_empty());
    let is_used = |names: &[&str]| words().any(|word| names.contains(&file_name(word)));
    let reads = is_used(&["read", "readarray", "mapfile"]);
    let (mut locks, mut before) = (false, "");
    for word in words() {
        // What is no option and no number is a file to lock, or a command.
        locks &= word.starts_with('-') || leading(word.as_bytes()).is_some();
        let is_value = locks || takes_descriptor(before) || (reads && before == "-u");
        let value =
            if is_value { word } else { word.strip_prefix("-u").filter(|_| reads).unwrap_or("") };
        found.extend(list(value.as_bytes(), false));
        locks |= file_name(word) == "flock";
        before = word;
    }
    found.into_iter().map(|mention| mention.number).collect()
}

/// Options with a descriptor as their value whose names do not say so: ours, and those of bwrap.
const OPTIONS: [&str; 5] = ["--keep", "--args", "--seccomp", "--bind-data", "--ro-bind-data"];

fn takes_descriptor(option: &str) -> bool {
    option.starts_with('-') && names_descriptors(option) || OPTIONS.contains(&option)
}

/// Whether a name is that of a descriptor, or of several.
fn names_descriptors(name: &str) -> bool {
    let name = name.to_ascii_uppercase();
    name.ends_with("FD") || name.ends_with("FDS") && !is_count(name.as_bytes())
}

/// Whether a name is that of a number of descriptors.
fn is_count(name: &[u8]) -> bool {
    let name = String::from_utf8_lossy(name).to_ascii_uppercase();
    let words = name.trim_end_matches(['=', ':']).split(['-', '_']);
    name.trim_start_matches('-').starts_with("MAXFDS")
        || words
            .into_iter()
            .any(|it| ["MAX", "MIN", "NUM", "N", "NFDS", "COUNT", "LIMIT"].contains(&it))
}

fn is_between_words(letter: char) -> bool {
    letter.is_whitespace() || ";|&()'\"`".contains(letter)
}

fn last_word(text: &[u8]) -> &[u8] {
    let is_between = |byte: &u8| is_between_words(char::from(*byte)) || *byte == b',';
    text.rsplit(is_between).next().unwrap_or_default()
}

fn file_name(word: &str) -> &str {
    word.rsplit('/').next().unwrap_or_default()
}

/// What a variable says: the value of one whose name ends in `FD` or `FDS` is a number or several
/// (`NODE_CHANNEL_FD`), as is libwayland's; make tells of its jobserver among its flags, and some
/// servers of the addresses as well.
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
    match name {
        // ADDRESS=9;ADDRESS=10
        "SERVER_STARTER_PORT" | "FPM_SOCKETS" => {
            let ends = |mention: &Mention| {
                matches!(value.get(mention.place.end), None | Some(b',' | b';'))
            };
            behind(value, &[b"="]).into_iter().filter(ends).collect()
        }
        // 9:ADDRESS
        "PUMA_INHERIT" => {
            let has_address = |mention: &Mention| value.get(mention.place.end) == Some(&b':');
            leading(value).filter(has_address).into_iter().collect()
        }
        "WAYLAND_SOCKET" => list(value, false),
        name if names_descriptors(name) => list(value, false),
        _ => Vec::new(),
    }
}

/// The numbers of a list, `9,10` or `9:10` or `9;10;`. Unless more may follow that is none of it, a
/// text that is not one as a whole has none.
fn list(text: &[u8], may_follow: bool) -> Vec<Mention> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(number) = leading(&text[at..]) {
        at += number.place.end;
        found.push(moved(number.clone(), at - number.place.end));
        match text.get(at) {
            Some(b',' | b':' | b';') => at += 1,
            _ => break,
        }
    }
    if may_follow || at == text.len() {
        found
    } else {
        Vec::new()
    }
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
    let one = |prefix: &&[u8]| -> Vec<Mention> {
        let places = places_behind(text, prefix);
        places.filter_map(|at| Some(moved(leading(&text[at..])?, at))).collect()
    };
    prefixes.iter().flat_map(one).collect()
}

/// Where a text goes on behind each of these.
fn places_behind<'a>(text: &'a [u8], prefix: &'a [u8]) -> impl Iterator<Item = usize> + 'a {
    (0..text.len()).filter(|at| text[*at..].starts_with(prefix)).map(|at| at + prefix.len())
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
        for (arguments, expected) in [
            (&["--ready-fd=9"][..], &[9][..]),
            (&["fd://9"], &[9]),
            (&["-pass", "fd:9"], &[9]),
            (&["FD:9"], &[9]),
            (&["--fds=9,10"], &[9, 10]),
            (&["tap,fds=9:10,vhost=on"], &[9, 10]),
            (&["--fds", "9,10"], &[9, 10]),
            (&["fd@9"], &[9]),
            (&["-i", "pipe:9"], &[9]),
            (&["echo x >&9; cat <&10 >& 11"], &[9, 10, 11]),
            (&["--status-fd", "9"], &[9]),
            (&["sh", "-c", "server --Listen-FD 9"], &[9]),
            (&["--keep", "9"], &[9]),
            (&["while read -r -u 9 x; do :; done"], &[9]),
            (&["mapfile -u9 lines"], &[9]),
            (&["read", "-u", "9", "x"], &[9]),
            (&["flock -n 9 && run"], &[9]),
            (&["/usr/bin/flock", "-x", "9"], &[9]),
            (&["-n", "9"], &[]),
            (&["sudo", "-u", "9"], &[]),
            (&["flock -n /run/lock sleep 9"], &[]),
            (&["fd", "9"], &[]),
            (&["--max-fds=9", "--max-fds", "9", "--nfds=9"], &[]),
            (&["--fd", "9x", "--fd=x"], &[]),
        ] {
            let arguments: Vec<_> = arguments.iter().map(OsString::from).collect();
            let mut found = in_arguments(&arguments);
            found.sort_unstable();
            found.dedup();
            assert_eq!(found, expected, "{arguments:?}");
        }
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
        assert_eq!(of("GUNICORN_FD", "9,10"), [9, 10]);
        assert_eq!(of("READY_FDS", "9"), [9]);
        assert_eq!(of("INHERITED_FDS", "9;10;"), [9, 10]);
        assert_eq!(of("notify_fd", "9"), [9]);
        assert_eq!(of("SERVER_STARTER_PORT", "8080=9;127.0.0.1:80=10;/run/x=11"), [9, 10, 11]);
        assert_eq!(of("FPM_SOCKETS", "127.0.0.1:9000=9,/run/fpm=10"), [9, 10]);
        assert_eq!(of("PUMA_INHERIT_0", "9:tcp://0.0.0.0:80"), [9]);
        // A count, and what is no number alone.
        assert_eq!(of("MAX_FDS", "3"), NONE);
        assert_eq!(of("NFDS", "3"), NONE);
        assert_eq!(of("NODE_CHANNEL_FD", "3x"), NONE);
        assert_eq!(of("NODE_CHANNEL_FD", "3,x"), NONE);
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
