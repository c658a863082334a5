//! What to bind: an identifier, its addresses and options; as `bind` takes them, and as the one
//! value of `--bind`.

use crate::endpoint::{is_scheme, Endpoint, EndpointOptions};
use crate::similar;
use fdholder::Identifier;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

/// The option that is not one of the socket.
const REPLACE: &str = "replace";

/// How the command line says what to bind; messages name options in the same way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Syntax {
    /// `bind --replace … web tcp:0.0.0.0:80`
    Options,
    /// `exec --bind web=tcp:0.0.0.0:80,replace`
    Value,
}

impl Syntax {
    /// What replaces held sockets that cannot be changed.
    pub fn replace(self) -> &'static str {
        match self {
            Self::Options => "--replace",
            Self::Value => "--bind …,replace",
        }
    }

    fn reuseport(self) -> &'static str {
        match self {
            Self::Options => "--reuseport",
            Self::Value => "reuseport",
        }
    }
}

/// What is to be open, and held under which identifier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BindSpec {
    id: Identifier,
    /// One under `id` itself, or several under `id/1`, `id/2`, …
    sockets: Vec<(Identifier, Endpoint)>,
    options: EndpointOptions,
    replaces: bool,
    syntax: Syntax,
}

impl BindSpec {
    /// # Errors
    ///
    /// Which option suits none of the addresses, which address is there twice, and that there is
    /// no such identifier.
    pub fn new(
        id: Identifier,
        endpoints: Vec<Endpoint>,
        options: EndpointOptions,
        replaces: bool,
        syntax: Syntax,
    ) -> Result<Self, String> {
        options.suit_one_of(&endpoints.iter().collect::<Vec<_>>())?;
        for (place, endpoint) in endpoints.iter().enumerate() {
            if endpoints[..place].contains(endpoint) && !endpoint.may_be_twice(&options) {
                let reuseport = syntax.reuseport();
                return Err(format!("{endpoint} is there twice, which takes {reuseport}"));
            }
        }
        if let [endpoint] = &endpoints[..] {
            let options = options.held_under(&id, endpoint);
            let sockets = endpoints.into_iter().map(|endpoint| (id.clone(), endpoint)).collect();
            return Ok(Self { id, sockets, options, replaces, syntax });
        }
        let count = endpoints.len();
        let numbered = |n: usize| {
            let bytes = [id.as_bytes(), format!("/{n}").as_bytes()].concat();
            Identifier::new(bytes).map_err(|bad| format!("{id}/{count} is no id: {bad}"))
        };
        let sockets = endpoints.into_iter().zip(1..);
        let sockets = sockets.map(|(endpoint, n)| Ok((numbered(n)?, endpoint)));
        let sockets = sockets.collect::<Result<_, String>>()?;
        Ok(Self { id, sockets, options, replaces, syntax })
    }

    /// Reads `ID=ADDRESS[,ADDRESS]…[,OPTION[=VALUE]]…`. The identifier may contain `=`: it ends at
    /// the first one that an address follows. A part with a colon before any `=` is an address.
    ///
    /// # Errors
    ///
    /// What is wrong, and what was probably meant.
    pub fn read(text: &OsStr) -> Result<Self, String> {
        let (id, rest) = split_id(text.as_bytes())?;
        let id = Identifier::new(id).map_err(|bad| bad.to_string())?;
        let rest = std::str::from_utf8(rest).map_err(|_| "the address is not UTF-8".to_owned())?;
        let parts = split(rest);
        let (mut endpoints, mut words, mut replaces) = (Vec::new(), Vec::new(), false);
        for (place, part) in parts.iter().enumerate() {
            if place > 0 && part.is_empty() {
                return Err("nothing stands between two commas, or behind the last".to_owned());
            }
            let end = part.find([':', '=']);
            let is_address = end.is_some_and(|at| part.as_bytes()[at] == b':');
            if place == 0 || is_address {
                endpoints.push(part.parse::<Endpoint>()?);
                continue;
            }
            let (word, value) = match part.split_once('=') {
                Some((word, value)) => (word, Some(value)),
                None => (part.as_str(), None),
            };
            match value {
                Some(_) if word == REPLACE => return Err(format!("{REPLACE} takes no value")),
                None if word == REPLACE => replaces = true,
                _ => words.push((word, value)),
            }
        }
        let options = EndpointOptions::of_words(&words, |unknown, known| {
            let all = [known, &[(REPLACE, REPLACE)]].concat();
            similar::unknown("option", unknown, &all)
        })?;
        Self::new(id, endpoints, options, replaces, Syntax::Value)
    }

    /// The same, with `O_NONBLOCK` set or cleared on its sockets, if they can have it.
    ///
    /// # Errors
    ///
    /// When its own options say the opposite.
    pub fn with_nonblock(self, on: bool) -> Result<Self, String> {
        let Some(options) = self.options.with_nonblock(on) else {
            let option = if on { "--nonblock" } else { "--blocking" };
            return Err(format!("--bind {} says the opposite of {option}", self.id));
        };
        let endpoints: Vec<_> = self.endpoints().collect();
        if options.suit_one_of(&endpoints).is_ok() {
            return Ok(Self { options, ..self });
        }
        Ok(self)
    }

    /// The identifier that was given. If there are several addresses, nothing is held under it.
    pub fn id(&self) -> &Identifier {
        &self.id
    }

    /// Under which identifiers the sockets are held.
    pub fn ids(&self) -> impl Iterator<Item = &Identifier> {
        self.sockets.iter().map(|(id, _)| id)
    }

    /// What is opened.
    pub fn endpoints(&self) -> impl Iterator<Item = &Endpoint> {
        self.sockets.iter().map(|(_, endpoint)| endpoint)
    }

    /// How it is opened.
    pub fn options(&self) -> &EndpointOptions {
        &self.options
    }

    /// Whether held sockets that cannot be changed are replaced.
    pub fn replaces(&self) -> bool {
        self.replaces
    }

    /// How messages name options.
    pub fn syntax(&self) -> Syntax {
        self.syntax
    }

    /// Whether there are several addresses.
    pub fn is_group(&self) -> bool {
        self.sockets.len() != 1
    }

    /// Why both cannot be bound, if so.
    pub fn contradicts(&self, other: &Self) -> Option<String> {
        if let Some(id) = self.ids().find(|id| other.ids().any(|it| it == *id)) {
            return Some(format!("--bind says twice what is held under {id}"));
        }
        let is_there = |one: &&Endpoint| {
            other.endpoints().any(|it| it == *one)
                && !(one.may_be_twice(&self.options) && one.may_be_twice(&other.options))
        };
        let twice = self.endpoints().find(is_there)?;
        let (id, other) = (&self.id, &other.id);
        Some(format!("--bind {id} has the address of --bind {other}: {twice}"))
    }
}

/// The identifier and what follows. If no known kind of address follows any `=`, the first one
/// counts that looks as if one did, so that the message names what was mistyped.
fn split_id(text: &[u8]) -> Result<(&[u8], &[u8]), String> {
    let cuts = || (0..text.len()).filter(|&at| text[at] == b'=');
    let scheme = |at: usize| {
        let rest = &text[at + 1..];
        rest.iter().position(|&byte| byte == b':').map(|colon| &rest[..colon])
    };
    let known = |at: &usize| scheme(*at).is_some_and(is_scheme);
    let looks_like_one = |at: &usize| {
        let word = |word: &[u8]| word.iter().all(|it| it.is_ascii_alphanumeric() || *it == b'-');
        scheme(*at).is_some_and(word)
    };
    let cut = cuts().find(known).or_else(|| cuts().find(looks_like_one)).or_else(|| cuts().next());
    cut.map(|at| (&text[..at], &text[at + 1..]))
        .ok_or_else(|| "it is not ID=ADDRESS, such as web=tcp:0.0.0.0:80".to_owned())
}

/// The parts between commas. `\,` is a comma and `\\` a backslash within a part; any other
/// backslash stands for itself.
fn split(text: &str) -> Vec<String> {
    let mut parts = Vec::new();
    let mut part = String::new();
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        match letter {
            '\\' => part.push(letters.next_if(|next| matches!(next, ',' | '\\')).unwrap_or('\\')),
            ',' => parts.push(std::mem::take(&mut part)),
            letter => part.push(letter),
        }
    }
    parts.push(part);
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use proptest::sample::{select, subsequence};

    fn read(text: &str) -> Result<BindSpec, String> {
        BindSpec::read(OsStr::new(text))
    }

    /// A spec in words: what is held under which identifier.
    fn held(text: &str) -> Vec<String> {
        let spec = read(text).unwrap();
        spec.sockets.iter().map(|(id, endpoint)| format!("{id} {endpoint}")).collect()
    }

    fn options(words: &[(&str, Option<&str>)]) -> EndpointOptions {
        EndpointOptions::of_words(words, |word, _| panic!("{word}")).unwrap()
    }

    #[test]
    fn id_ends_where_an_address_follows() {
        for (text, sockets) in [
            ("web=tcp:0.0.0.0:80", &["web tcp:0.0.0.0:80"][..]),
            ("a=b=tcp:0.0.0.0:80", &["a=b tcp:0.0.0.0:80"]),
            ("a:b,c=x:y=udp:[::]:53", &["a:b,c=x:y udp:[::]:53"]),
            ("x=unix:/a=tcp:b", &["x unix:/a=tcp:b"]),
            ("x=memfd:a=b", &["x memfd:a=b"]),
            ("x=unix-stream:/a", &["x unix:/a"]),
            ("web=tcp:0.0.0.0:80,tcp:[::]:80", &["web/1 tcp:0.0.0.0:80", "web/2 tcp:[::]:80"]),
            ("web=unix:/a,backlog=5,udp:[::1]:5", &["web/1 unix:/a", "web/2 udp:[::1]:5"]),
            (r"x=unix:/a\,b\\,fifo:/c\d\\\,e\", &[r"x/1 unix:/a,b\", r"x/2 fifo:/c\d\,e\"]),
        ] {
            assert_eq!(held(text), sockets, "{text}");
        }
    }

    #[test]
    fn options_are_those_of_bind() {
        let spec = read("web=tcp:[::]:80,backlog=0x400,nonblock,ipv6only=false,replace").unwrap();
        let words = [("backlog", Some("1024")), ("nonblock", None), ("ipv6only", Some("false"))];
        assert_eq!((&spec.options, spec.replaces), (&options(&words), true));
        let spec = read("web=unix:/x,mode=0660,owner=0:0,blocking").unwrap();
        let words = [("mode", Some("660")), ("owner", Some("0:0")), ("nonblock", Some("false"))];
        assert_eq!((&spec.options, spec.replaces), (&options(&words), false));
        let spec = read("fdholder.notify/db=unix-dgram:/x");
        assert!(spec.is_ok_and(|spec| spec.syntax == Syntax::Value));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, says) in [
            ("web", "it is not ID=ADDRESS, such as web=tcp:0.0.0.0:80"),
            ("", "it is not ID=ADDRESS"),
            ("=tcp:0.0.0.0:80", "an identifier has at least one byte"),
            ("web=", "'' does not say what it is"),
            ("web=0.0.0.0:80", "'0.0.0.0:' is unknown: tcp:ADDRESS:PORT"),
            ("web=tpc:0.0.0.0:80", "'tpc:' is unknown: did you mean 'tcp:'?"),
            ("a=b=tpc:0.0.0.0:80", "'tpc:' is unknown: did you mean 'tcp:'?"),
            ("web=tcp:80", "say tcp:0.0.0.0:80"),
            ("web=tcp:0.0.0.0:80,tpc:[::]:80", "'tpc:' is unknown: did you mean 'tcp:'?"),
            ("web=tcp:0.0.0.0:80,[::]:80", "'[:' is unknown"),
            ("web=tcp:0.0.0.0:80,baklog=5", "unknown option 'baklog': did you mean 'backlog'?"),
            ("web=tcp:0.0.0.0:80,repalce", "unknown option 'repalce': did you mean 'replace'?"),
            ("web=tcp:0.0.0.0:80,bloking", "unknown option 'bloking': did you mean 'blocking'?"),
            ("web=tcp:0.0.0.0:80,xyz", "unknown option 'xyz': there are backlog, mode, owner"),
            ("web=tcp:0.0.0.0:80,backlog", "backlog: it takes a value, backlog=N"),
            ("web=tcp:0.0.0.0:80,backlog=", "backlog: it is not a number from 0"),
            ("web=tcp:0.0.0.0:80,nonblock=5", "nonblock: it is true or false"),
            ("web=tcp:0.0.0.0:80,replace=5", "replace takes no value"),
            ("web=tcp:0.0.0.0:80,blocking=5", "blocking takes no value"),
            ("web=tcp:0.0.0.0:80,nonblock,blocking", "nonblock is both on and off"),
            ("web=tcp:0.0.0.0:80,ttl=5,ttl=6", "ttl is there twice"),
            ("web=tcp:0.0.0.0:80,", "nothing stands between two commas, or behind the last"),
            ("web=tcp:0.0.0.0:80,,ttl=5", "nothing stands between two commas"),
            ("web=tcp:0.0.0.0:80,mode=0660", "mode is for unix and fifo with a path, not for tcp"),
            ("web=unix:/x,unix:/x", "unix:/x is there twice, which takes reuseport"),
        ] {
            let problem = read(text).unwrap_err();
            assert!(problem.contains(says), "{text}: {problem}");
            assert_eq!(problem.lines().count(), 1, "{problem}");
        }
        let long = format!("{}=tcp:0.0.0.0:0,tcp:0.0.0.0:0", "x".repeat(254));
        assert!(read(&long).unwrap_err().contains("/2 is no id"));
        let bytes = OsStr::from_bytes(b"w\xff=unix:/x");
        assert_eq!(BindSpec::read(bytes).unwrap().id.as_bytes(), b"w\xff");
        assert!(BindSpec::read(OsStr::from_bytes(b"web=unix:/\xff")).is_err());
    }

    #[test]
    fn specs_that_want_the_same_contradict_each_other() {
        for (a, b, says) in [
            ("a=tcp:1.2.3.4:5", "a=tcp:1.2.3.4:6", Some("twice what is held under a")),
            ("a=unix:/x,unix:/y", "a/2=unix:/z", Some("twice what is held under a/2")),
            ("a=unix:/x", "b=unix:/y,unix:/x", Some("--bind a has the address of --bind b: unix")),
            ("a=tcp:1.2.3.4:5,reuseport", "b=tcp:1.2.3.4:5", Some("has the address of")),
            ("a=tcp:1.2.3.4:5,reuseport", "b=tcp:1.2.3.4:5,reuseport", None),
            ("a=tcp:1.2.3.4:0", "b=tcp:1.2.3.4:0", None),
            ("a=unix:/x,unix:/y", "a=unix:/z", None),
        ] {
            let problem = read(a).unwrap().contradicts(&read(b).unwrap());
            match says {
                Some(says) => assert!(problem.as_ref().is_some_and(|it| it.contains(says)), "{a}"),
                None => assert_eq!(problem, None, "{a}"),
            }
        }
    }

    #[test]
    fn nonblock_for_all_is_that_of_each_which_says_nothing() {
        let with = |text: &str, on| read(text).unwrap().with_nonblock(on);
        assert_eq!(with("a=unix:/x", true), read("a=unix:/x,nonblock"));
        assert_eq!(with("a=unix:/x,nonblock", true), read("a=unix:/x,nonblock"));
        assert_eq!(with("a=unix:/x", false), read("a=unix:/x,blocking"));
        assert_eq!(with("a=memfd:x", true), read("a=memfd:x"));
        assert!(with("a=unix:/x,blocking", true)
            .unwrap_err()
            .contains("a says the opposite of --nonblock"));
    }

    /// Addresses of any letters that may stand in one.
    fn addresses() -> impl Strategy<Value = Vec<String>> {
        let beginning = select(vec!["unix:/", "unix-dgram:@", "fifo:/", "memfd:"]);
        let address = (beginning, r"[a-z=:,\\/ é-]{1,12}");
        let address = address.prop_map(|(beginning, rest)| format!("{beginning}{rest}"));
        let fixed = select(vec!["tcp:[::1]:0", "udp:127.0.0.1:0", "vsock::7"]);
        let any = prop_oneof![address, fixed.prop_map(str::to_owned)];
        proptest::collection::hash_set(any, 1..4).prop_map(|all| all.into_iter().collect())
    }

    fn escaped(text: &str) -> String {
        text.replace('\\', r"\\").replace(',', r"\,")
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            id in "[a-z=:,/]{1,12}",
            addresses in addresses(),
            words in subsequence(vec!["backlog=7", "nonblock", "mode=0600", "replace"], 0..4),
        ) {
            // Otherwise the identifier ends there.
            let in_front = format!("{id}=");
            prop_assume!(!["tcp", "udp", "unix", "fifo"].iter().any(|it| in_front.contains(it)));
            let parts = addresses.iter().map(|it| escaped(it));
            let parts: Vec<_> = parts.chain(words.iter().map(|&it| it.to_owned())).collect();
            let text = format!("{in_front}{}", parts.join(","));
            let endpoints: Vec<_> = addresses.iter().map(|it| it.parse().unwrap()).collect();
            let said = words.iter().filter(|it| **it != "replace").map(|it| {
                it.split_once('=').map_or((*it, None), |(word, value)| (word, Some(value)))
            });
            let wanted = BindSpec::new(
                Identifier::new(id.as_bytes()).unwrap(),
                endpoints,
                options(&said.collect::<Vec<_>>()),
                words.contains(&"replace"),
                Syntax::Value,
            );
            prop_assert_eq!(read(&text), wanted, "{}", text);
        }

        #[test]
        fn anything_is_read_or_refused_in_one_line(
            text in r"([a-z]{0,3}|=|,|:|\\|tcp:|unix:/|0\.0\.0\.0:1|nonblock|mode=|\PC){0,12}",
        ) {
            if let Err(problem) = read(&text) {
                prop_assert_eq!(problem.lines().count(), 1, "{}", problem);
            }
        }
    }
}
