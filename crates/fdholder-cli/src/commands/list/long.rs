//! Everything that is held, to be looked at.

use crate::look::contents::{Contents, Seen};
use crate::look::describe::{Description, Queue};
use crate::show::duration::brief;
use crate::show::table::{Cell, Table};
use crate::show::terminal::{Screen, Style};
use crate::users::UserNames;
use fdholder::{Identifier, Limit, Timestamp};
use fdholder_daemon::accept_queue::AcceptQueue;
use serde_json::{json, Value};
use std::io::Write;
use std::time::{Duration, UNIX_EPOCH};

/// What expires within this time stands out.
const SOON: Duration = Duration::from_secs(60);

/// What is shown where something is not known.
const UNKNOWN: &str = "?";

/// What is shown where there is nothing.
const NOTHING: &str = "-";

pub fn text(contents: &Contents, screen: Screen) -> String {
    let (now, users) = (Timestamp::now(), UserNames::read());
    let mut table = Table::new(["ID", "KIND", "ADDRESS", "QUEUE", "OWNER", "AGE", "EXPIRES"]);
    for seen in &contents.seen {
        table.row([
            seen.id.to_string().into(),
            kind(seen.what.as_ref()),
            address(seen.what.as_ref()),
            queue(seen),
            seen.origin.map_or(UNKNOWN.to_owned(), |origin| users.of(origin.owner)).into(),
            seen.origin
                .map_or(UNKNOWN.to_owned(), |origin| {
                    brief(now.saturating_since(origin.tenure.since()))
                })
                .into(),
            expiry(seen.limit, now),
        ]);
    }
    table.to_text(screen)
}

fn kind(what: Option<&Description>) -> Cell {
    match what {
        Some(what) if what.listening => Cell::styled(&what.kind, Style::Good),
        Some(what) => what.kind.as_str().into(),
        None => Cell::styled(UNKNOWN, Style::Faint),
    }
}

fn address(what: Option<&Description>) -> Cell {
    match what {
        Some(Description { address, peer, .. }) if !peer.is_empty() => {
            format!("{address} > {peer}").into()
        }
        Some(Description { address, .. }) if address.is_empty() => NOTHING.into(),
        Some(Description { address, .. }) => address.as_str().into(),
        None => UNKNOWN.into(),
    }
}

fn queue(seen: &Seen) -> Cell {
    match seen.what.as_ref().map(|what| what.queue) {
        Some(Some(queue @ Queue::Clients(AcceptQueue { len, max }))) => {
            let secs = unattended(seen);
            let is_full = len >= max && max > 0;
            let style = if is_full || secs.is_some() { Style::Soon } else { Style::Plain };
            let since = secs
                .map(|secs| format!(", nobody accepts for {}", brief(Duration::from_secs(secs))));
            Cell::styled(format!("{queue}{}", since.unwrap_or_default()), style)
        }
        Some(Some(queue)) => queue.to_string().into(),
        Some(None) => NOTHING.into(),
        None => UNKNOWN.into(),
    }
}

/// For how many seconds nobody has accepted from a listener at which clients wait.
fn unattended(seen: &Seen) -> Option<u64> {
    let queue = seen.what.as_ref().and_then(|what| what.queue);
    let is_waited_at = matches!(queue, Some(Queue::Clients(AcceptQueue { len: 1.., .. })));
    seen.waiting.filter(|&secs| secs > 0 && is_waited_at)
}

fn expiry(limit: Option<Limit>, now: Timestamp) -> Cell {
    match limit.map(Limit::moment) {
        None => UNKNOWN.into(),
        Some(None) => Cell::styled("never", Style::Faint),
        Some(Some(moment)) => {
            let left = moment.saturating_since(now);
            let style = if left < SOON { Style::Soon } else { Style::Plain };
            Cell::styled(format!("in {}", brief(left)), style)
        }
    }
}

/// As many lines as there is room for, and how many there are more.
pub fn fitting(text: &str, screen: Screen) -> String {
    let lines: Vec<_> = text.lines().collect();
    let Some((_, room)) = screen.size.filter(|&(_, room)| lines.len() >= room && room > 2) else {
        return text.to_owned();
    };
    let shown = &lines[..room - 2];
    format!("{}\n({} more)\n", shown.join("\n"), lines.len() - shown.len())
}

/// That a holder does not tell everything.
pub fn say_what_is_missing(called: &str) {
    // Whoever does not read it does not miss it.
    let _ = writeln!(
        std::io::stderr(),
        "{called}: info: that holder is s6's, which does not tell owners and ages"
    );
}

pub fn names_as_json(id: &Identifier) -> Value {
    let text = std::str::from_utf8(id.as_bytes()).ok();
    json!({ "id": text, "quoted": id.to_string() })
}

pub fn json(contents: &Contents) -> String {
    let all = contents.seen.iter().map(as_json).collect();
    format!("{}\n", Value::Array(all))
}

fn as_json(seen: &Seen) -> Value {
    let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let what = seen.what.as_ref();
    let (queue, queue_max) = match what.and_then(|what| what.queue) {
        Some(Queue::Clients(AcceptQueue { len, max })) => {
            (Some(u64::from(len)), Some(max).filter(|&max| max > 0))
        }
        Some(Queue::Bytes(bytes)) => (Some(bytes), None),
        None => (None, None),
    };
    let mut value = names_as_json(&seen.id);
    value["kind"] = json!(what.map(|what| what.kind.as_str()));
    value["address"] = json!(what.and_then(|what| text(&what.address)));
    value["peer"] = json!(what.and_then(|what| text(&what.peer)));
    value["listening"] = json!(what.map(|what| what.listening));
    value["nonblock"] = json!(what.and_then(|what| what.nonblock));
    value["queue"] = json!(queue);
    value["queue_max"] = json!(queue_max);
    value["waiting_seconds"] = json!(seen.waiting);
    value["unattended"] = json!(seen.waiting.map(|_| unattended(seen).is_some()));
    value["owner_uid"] = json!(seen.origin.map(|origin| origin.owner));
    value["held_since"] = json!(seen.origin.and_then(|origin| unix(origin.tenure.since())));
    value["expires_at"] = json!(seen.limit.and_then(Limit::moment).and_then(unix));
    value
}

/// Seconds since 1970.
fn unix(moment: Timestamp) -> Option<u64> {
    let since = moment.to_system()?.duration_since(UNIX_EPOCH).ok()?;
    Some(since.as_secs())
}
