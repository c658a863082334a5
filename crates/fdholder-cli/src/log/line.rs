//! What there is in one line, fit to be printed anywhere.

use fdholder_daemon::audit;
use std::fmt::{Debug, Write};
use tracing::field::{Field, Visit};
use tracing::Event;

/// How much a line matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// The program ends.
    Fatal,
    Error,
    Warning,
    Info,
    Debug,
    /// Who was refused what, and who has changed what.
    Audit,
}

/// What is told beside the message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    Signed(i64),
    Unsigned(u64),
    /// One of a few that the program itself has.
    Word(String),
    /// What others have chosen.
    Text(String),
}

/// One line. No text in it has control characters, and whatever it is written as, it fits into
/// what a ready pipe takes: `PIPE_BUF`, 4096 bytes.
#[derive(Debug)]
pub struct Line {
    pub level: Level,
    pub message: String,
    pub fields: Vec<(&'static str, Value)>,
    /// Bytes of text that there is room for.
    room: usize,
}

/// Bytes of all texts, of which JSON may make two each. An identifier of 255 bytes, escaped,
/// leaves room for why it was refused.
const TEXTS_LEN_MAX: usize = 1850;

impl Line {
    pub fn new(level: Level, message: &str) -> Self {
        let mut line = Self::empty(level);
        line.message = line.fit(message);
        line
    }

    pub fn of(event: &Event<'_>) -> Self {
        let metadata = event.metadata();
        let level = match *metadata.level() {
            _ if metadata.target() == audit::TARGET => Level::Audit,
            tracing::Level::ERROR => Level::Error,
            tracing::Level::WARN => Level::Warning,
            tracing::Level::INFO => Level::Info,
            tracing::Level::DEBUG | tracing::Level::TRACE => Level::Debug,
        };
        let mut line = Self::empty(level);
        event.record(&mut line);
        line
    }

    /// The one that tells how many there were not.
    pub fn lost(count: u64) -> Self {
        let mut line = Self::new(Level::Warning, "lines before were lost");
        line.fields.push(("count", Value::Unsigned(count)));
        line
    }

    fn empty(level: Level) -> Self {
        Self { level, message: String::new(), fields: Vec::new(), room: TEXTS_LEN_MAX }
    }

    /// A text without control characters (a terminal would heed them), and cut where there is
    /// no more room.
    fn fit(&mut self, text: &str) -> String {
        let mut fit = String::with_capacity(text.len().min(self.room));
        let mut quotes = 0;
        for letter in text.chars() {
            let before = fit.len();
            quotes += usize::from(letter == '"');
            if letter.is_control() {
                escape(&mut fit, letter);
            } else {
                fit.push(letter);
            }
            // Within quotes one takes four bytes more.
            if fit.len() + 4 * quotes > self.room {
                fit.truncate(before);
                fit.push('…');
                break;
            }
        }
        self.room = self.room.saturating_sub(fit.len() + 4 * quotes);
        fit
    }

    fn put(&mut self, field: &Field, value: Value) {
        self.fields.push((field.name(), value));
    }
}

/// As identifiers are: `\n`, `\0x1b`.
fn escape(text: &mut String, letter: char) {
    let mut bytes = [0; 4];
    for byte in letter.encode_utf8(&mut bytes).bytes() {
        match b"abtnvfr".get(usize::from(byte).wrapping_sub(7)) {
            Some(&name) => text.extend(['\\', char::from(name)]),
            // Writing to a string does not fail.
            None => _ = write!(text, "\\0x{byte:02x}"),
        }
    }
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let text = self.fit(&format!("{value:?}"));
        match field.name() {
            "message" => self.message = text,
            _ => self.put(field, Value::Text(text)),
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        let text = self.fit(value);
        match field.name() {
            "message" => self.message = text,
            _ => self.put(field, Value::Word(text)),
        }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, Value::Signed(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, Value::Unsigned(value));
    }
}
