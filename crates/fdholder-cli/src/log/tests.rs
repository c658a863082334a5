//! Lines in each form, and a journal that does not always read.

use super::*;
use fdholder::Identifier;
use fdholder_daemon::audit::{Auditor, Operation, Verdict, Who};
use proptest::prelude::*;
use std::collections::HashMap;
use std::os::unix::net::UnixDatagram;
use std::time::Instant;
use tracing::subscriber::with_default;
use tracing::warn;

/// What is made of events.
#[derive(Default)]
struct Collector(Mutex<Vec<Line>>);

impl<S: Subscriber> Layer<S> for &'static Collector {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        self.0.lock().unwrap().push(Line::of(event));
    }
}

/// The only line that is said.
fn line(what: impl FnOnce()) -> Line {
    let collector: &'static Collector = Box::leak(Box::default());
    with_default(registry().with(collector), what);
    let mut lines = std::mem::take(&mut *collector.0.lock().unwrap());
    assert_eq!(lines.len(), 1);
    lines.remove(0)
}

fn audit(id: &Identifier, reason: &str) {
    let who = Who { uid: 1000, gid: Some(100), pid: Some(123) };
    let verdict = Verdict::DeniedAs(fdholder::Errno::PERM, &reason);
    let event = audit::Event { who, operation: Operation::Store, id: Some(id), verdict };
    Auditor::new(true).note(&event, Instant::now());
}

fn fields(datagram: &[u8]) -> HashMap<&str, &str> {
    let text = std::str::from_utf8(datagram).unwrap();
    let fields = text.lines().map(|field| field.split_once('=').unwrap()).collect::<Vec<_>>();
    let is_key = |key: &str| key.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_');
    assert!(fields.iter().all(|(key, _)| is_key(key)), "{text}");
    let count = fields.len();
    let fields: HashMap<_, _> = fields.into_iter().collect();
    assert_eq!(fields.len(), count, "{text}");
    fields
}

#[test]
fn a_line_in_each_form() {
    let id = Identifier::new(b"web\n1\"").unwrap();
    let line = line(|| audit(&id, "only 5"));
    let said = r#"uid=1000 gid=100 pid=123 op=store id="web\n1\0x22" result=EPERM reason="only 5""#;
    let text = String::from_utf8(render::text("fdholder serve", &line)).unwrap();
    assert_eq!(text, format!("fdholder serve: audit: {said}\n"));
    let json = String::from_utf8(render::json(&line)).unwrap();
    let rest = r#""level":"info","message":"audit","uid":1000,"gid":100,"pid":123,"op":"store","id":"web\\n1\"","result":"EPERM","reason":"only 5"}"#;
    assert!(json.starts_with("{\"ts\":\"20") && json.ends_with(&format!("Z\",{rest}\n")), "{json}");
    let datagram = render::journal("fdholder serve", &line);
    let expected = [
        ("MESSAGE", &*format!("audit: {said}")),
        ("PRIORITY", "6"),
        ("SYSLOG_IDENTIFIER", "fdholder"),
        ("FDHOLDER_AUDIT", "1"),
        ("FDHOLDER_UID", "1000"),
        ("FDHOLDER_GID", "100"),
        ("FDHOLDER_PID", "123"),
        ("FDHOLDER_OP", "store"),
        ("FDHOLDER_ID", "web\\n1\""),
        ("FDHOLDER_RESULT", "EPERM"),
        ("FDHOLDER_REASON", "only 5"),
    ];
    assert_eq!(fields(&datagram), HashMap::from(expected));
}

#[test]
fn what_is_no_audit_has_its_level() {
    let line = line(|| warn!("it is {}", "late"));
    assert_eq!(render::text("s6-fdholderd", &line), b"s6-fdholderd: warning: it is late\n");
    let json: serde_json::Value = serde_json::from_slice(&render::json(&line)).unwrap();
    assert_eq!((&json["level"], &json["message"]), (&"warning".into(), &"it is late".into()));
    let datagram = render::journal("s6-fdholderd", &line);
    let expected =
        [("MESSAGE", "it is late"), ("PRIORITY", "4"), ("SYSLOG_IDENTIFIER", "s6-fdholderd")];
    assert_eq!(fields(&datagram), HashMap::from(expected));
}

/// Any text, with more of what may be mistaken for something else.
fn any_text() -> impl Strategy<Value = String> {
    let letter = prop_oneof![
        any::<char>(),
        proptest::sample::select(vec!['"', '\\', '\n', '\x1b', '\u{9b}', '=', ' ']),
    ];
    proptest::collection::vec(letter, 0..3000).prop_map(String::from_iter)
}

fn any_id() -> impl Strategy<Value = Identifier> {
    let byte = prop_oneof![1u8..=255, proptest::sample::select(b"\"\\\n\x1b\xff".to_vec())];
    let bytes = proptest::collection::vec(byte, 1..=255);
    bytes.prop_map(|bytes| Identifier::new(bytes).unwrap())
}

fn assert_one_line(bytes: &[u8]) {
    assert!(bytes.len() <= 4096, "{}", bytes.len());
    let text = std::str::from_utf8(bytes).unwrap().strip_suffix('\n').unwrap();
    assert!(!text.contains(char::is_control), "{text:?}");
}

proptest! {
    #[test]
    fn whatever_is_said_is_one_line(id in any_id(), text in any_text()) {
        let hostile = line(|| audit(&id, &text));
        let plain = line(|| warn!("{text}"));
        for line in [&hostile, &plain] {
            assert_one_line(&render::text("fdholder serve", line));
            assert_one_line(&render::json(line));
            let _ = serde_json::from_slice::<serde_json::Value>(&render::json(line)).unwrap();
        }
        fields(&render::journal("fdholder serve", &plain));
        // What it is about is said in full, and can be read back.
        let json: serde_json::Value = serde_json::from_slice(&render::json(&hostile)).unwrap();
        prop_assert_eq!(&Identifier::from_quoted(json["id"].as_str().unwrap()).unwrap(), &id);
        let datagram = render::journal("fdholder serve", &hostile);
        let told = fields(&datagram)["FDHOLDER_ID"];
        prop_assert_eq!(&Identifier::from_quoted(told).unwrap(), &id);
        let said = String::from_utf8(render::text("fdholder serve", &hostile)).unwrap();
        let told = said.split(" id=\"").nth(1).unwrap().split('"').next().unwrap();
        prop_assert_eq!(&Identifier::from_quoted(told).unwrap(), &id);
    }
}

/// What was too long ends so.
#[test]
fn what_has_no_room_is_cut() {
    let line = line(|| warn!("{}", "x".repeat(5000)));
    assert!(line.message.ends_with("xx…") && line.message.len() < 2000);
}

/// A journal that reads when it is asked to.
struct Fake {
    folder: tempfile::TempDir,
    socket: Option<UnixDatagram>,
}

impl Fake {
    fn start() -> Self {
        let mut fake = Self { folder: tempfile::tempdir().unwrap(), socket: None };
        fake.restart();
        fake
    }

    fn path(&self) -> std::path::PathBuf {
        self.folder.path().join("socket")
    }

    fn stop(&mut self) {
        self.socket = None;
        std::fs::remove_file(self.path()).unwrap();
    }

    fn restart(&mut self) {
        let socket = UnixDatagram::bind(self.path()).unwrap();
        socket.set_nonblocking(true).unwrap();
        self.socket = Some(socket);
    }

    /// All messages that have come.
    fn messages(&self) -> Vec<String> {
        let mut datagram = vec![0; 65536];
        let next = || {
            let length = self.socket.as_ref()?.recv(&mut datagram).ok()?;
            Some(fields(&datagram[..length])["MESSAGE"].to_owned())
        };
        std::iter::from_fn(next).collect()
    }

    fn lines(&self) -> &'static Lines {
        let journal = open_journal(&self.path()).unwrap();
        Box::leak(Box::new(Lines::new("fdholder serve", Out::Journal(journal))))
    }
}

#[test]
fn the_journal_gets_lines() {
    let fake = Fake::start();
    let id = Identifier::new("web").unwrap();
    with_default(registry().with(fake.lines()), || {
        warn!("one");
        audit(&id, "two");
    });
    let audit = r#"audit: uid=1000 gid=100 pid=123 op=store id="web" result=EPERM reason="two""#;
    assert_eq!(fake.messages(), ["one", audit]);
}

/// It is not waited for; what it did not get is told of.
#[test]
fn a_journal_that_does_not_read_keeps_nobody_waiting() {
    let fake = Fake::start();
    with_default(registry().with(fake.lines()), || {
        let count = 2000;
        (0..count).for_each(|number| warn!("{number}"));
        let came = fake.messages();
        let expected: Vec<_> = (0..came.len()).map(|number| number.to_string()).collect();
        assert_eq!(came, expected);
        assert!(came.len() < count);
        warn!("again");
        let lost = format!("lines before were lost count={}", count - came.len());
        assert_eq!(fake.messages(), [&lost, "again"]);
    });
}

#[test]
fn a_journal_may_end_and_come_back() {
    let mut fake = Fake::start();
    with_default(registry().with(fake.lines()), || {
        warn!("one");
        assert_eq!(fake.messages(), ["one"]);
        fake.stop();
        warn!("two");
        warn!("three");
        fake.restart();
        warn!("four");
        assert_eq!(fake.messages(), ["lines before were lost count=2", "four"]);
        // Also when nothing was said meanwhile.
        fake.stop();
        fake.restart();
        warn!("five");
        assert_eq!(fake.messages(), ["five"]);
    });
}

#[test]
fn without_a_journal_it_is_said_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("none");
    let failure = open_journal(&path).err().unwrap();
    assert_eq!(failure.code(), exit::SYSTEM);
    let text = failure.to_string();
    assert!(text.contains("none: No such file") && text.contains("--log-to stderr"), "{text}");
}
