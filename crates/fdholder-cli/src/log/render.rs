//! A line as bytes.

use super::line::{Level, Line, Value};
use serde::ser::{SerializeMap, Serializer};
use std::fmt::Write;
use std::time::SystemTime;

/// `NAME: warning: text`, and a newline.
pub fn text(called: &str, line: &Line) -> Vec<u8> {
    format!("{called}: {}: {}\n", word(line.level), said(line)).into_bytes()
}

/// One object, and a newline.
pub fn json(line: &Line) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(256);
    // Numbers and texts can be serialised, and memory be written to.
    let _ = put_json(line, &mut serde_json::Serializer::new(&mut bytes));
    bytes.push(b'\n');
    bytes
}

fn put_json(
    line: &Line,
    to: &mut serde_json::Serializer<&mut Vec<u8>>,
) -> Result<(), serde_json::Error> {
    let is_audit = line.level == Level::Audit;
    let mut object = to.serialize_map(None)?;
    let now = humantime::format_rfc3339_millis(SystemTime::now());
    object.serialize_entry("ts", &format_args!("{now}"))?;
    let level = if is_audit { Level::Info } else { line.level };
    object.serialize_entry("level", word(level))?;
    object.serialize_entry("message", if is_audit { "audit" } else { &line.message })?;
    for (key, value) in &line.fields {
        match value {
            Value::Signed(number) => object.serialize_entry(key, number)?,
            Value::Unsigned(number) => object.serialize_entry(key, number)?,
            Value::Word(text) | Value::Text(text) => object.serialize_entry(key, text)?,
        }
    }
    object.end()
}

/// A datagram of systemd's native protocol. That no value has a newline makes it simple.
pub fn journal(called: &str, line: &Line) -> Vec<u8> {
    let priority = match line.level {
        Level::Fatal => 2,
        Level::Error => 3,
        Level::Warning => 4,
        Level::Info | Level::Audit => 6,
        Level::Debug => 7,
    };
    let is_audit = line.level == Level::Audit;
    let message = if is_audit { format!("audit: {}", said(line)) } else { said(line) };
    let program = called.split(' ').next().unwrap_or_default();
    let mut fields =
        format!("MESSAGE={message}\nPRIORITY={priority}\nSYSLOG_IDENTIFIER={program}\n");
    if is_audit {
        fields.push_str("FDHOLDER_AUDIT=1\n");
    }
    for (key, value) in &line.fields {
        let key = key.to_ascii_uppercase();
        // Writing to a string does not fail.
        let _ = match value {
            Value::Signed(number) => writeln!(fields, "FDHOLDER_{key}={number}"),
            Value::Unsigned(number) => writeln!(fields, "FDHOLDER_{key}={number}"),
            Value::Word(text) | Value::Text(text) => writeln!(fields, "FDHOLDER_{key}={text}"),
        };
    }
    fields.into_bytes()
}

fn word(level: Level) -> &'static str {
    match level {
        Level::Fatal => "fatal",
        Level::Error => "error",
        Level::Warning => "warning",
        Level::Info => "info",
        Level::Debug => "debug",
        Level::Audit => "audit",
    }
}

/// The message, and `key=value …`. What others have chosen stands in quotes, so that nobody can
/// make it look like the next key.
fn said(line: &Line) -> String {
    let mut said = line.message.clone();
    for (key, value) in &line.fields {
        if !said.is_empty() {
            said.push(' ');
        }
        // Writing to a string does not fail.
        let _ = match value {
            Value::Signed(number) => write!(said, "{key}={number}"),
            Value::Unsigned(number) => write!(said, "{key}={number}"),
            Value::Word(word) => write!(said, "{key}={word}"),
            // It can be read back as what `list` prints can.
            Value::Text(text) => write!(said, "{key}=\"{}\"", text.replace('"', "\\0x22")),
        };
    }
    said
}
