//! Log lines: which there are, as what they are written, and where they go.
//!
//! A daemon must go on whatever becomes of its log: what cannot be written at once (the reader
//! has gone, or is behind) is dropped, counted, and told of by the next line that can be.

mod journal;
mod line;
mod render;
mod stderr;
#[cfg(test)]
mod tests;

use crate::failure::{exit, Failure};
use clap::builder::PossibleValue;
use clap::ValueEnum;
use fdholder_daemon::audit;
use journal::Journal;
use line::{Level, Line};
use serde::Deserialize;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Mutex, OnceLock, PoisonError};
use stderr::Stderr;
use tracing::level_filters::LevelFilter;
use tracing::subscriber::set_global_default;
use tracing::{Event, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry;

/// How a daemon logs.
#[derive(Debug, Clone, Copy)]
pub struct Log {
    /// 0: nothing but the audit; 1: warnings and what matters; more: all.
    pub verbosity: u32,
    pub format: Format,
    pub to: Destination,
}

/// As what lines are written to stderr.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// In the style of s6's programs: `NAME: warning: text`.
    #[default]
    Text,
    /// One object a line.
    Json,
}

/// Where lines go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Destination {
    #[default]
    Stderr,
    Journal,
}

impl ValueEnum for Format {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Text, Self::Json]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(match self {
            Self::Text => "text",
            Self::Json => "json",
        }))
    }
}

impl ValueEnum for Destination {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Stderr, Self::Journal]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(match self {
            Self::Stderr => "stderr",
            Self::Journal => "journal",
        }))
    }
}

/// That of this process, once it has begun.
static LINES: OnceLock<Lines> = OnceLock::new();

/// Begins to log.
///
/// # Errors
///
/// When there is no journal to log to.
pub fn start(called: &str, log: Log) -> Result<(), Failure> {
    let out = match log.to {
        Destination::Stderr => Out::Stderr(log.format, Stderr::open()),
        Destination::Journal => Out::Journal(open_journal(Path::new(journal::SOCKET))?),
    };
    let lines = LINES.get_or_init(|| Lines::new(called, out));
    let level = match log.verbosity {
        0 => LevelFilter::OFF,
        1 => LevelFilter::INFO,
        _ => LevelFilter::DEBUG,
    };
    // Whether there is an audit is for the daemon to decide, also while it runs.
    let which = Targets::new().with_default(level).with_target(audit::TARGET, LevelFilter::INFO);
    // It is called once.
    let _ = set_global_default(registry().with(which).with(lines));
    Ok(())
}

fn open_journal(socket: &Path) -> Result<Journal, Failure> {
    Journal::open(socket).map_err(|error| {
        let place = socket.display();
        let advice = "is systemd-journald running? --log-to stderr does not need it";
        Failure::new(exit::SYSTEM, format_args!("unable to log to {place}: {error} ({advice})"))
    })
}

/// Says why a program ends, and gives the exit code. The service manager sees that on stderr in
/// any case.
pub fn end(called: &str, failure: &Failure) -> ExitCode {
    let Some(lines) = LINES.get() else { return failure.report(called) };
    let line = Line::new(Level::Fatal, &failure.to_string());
    match &lines.state().out {
        Out::Stderr(Format::Text, _) => return failure.report(called),
        // The last line is worth waiting for.
        Out::Stderr(Format::Json, _) => {
            let _ = std::io::stderr().write_all(&render::json(&line));
            return ExitCode::from(failure.code());
        }
        Out::Journal(_) => {}
    }
    lines.say(&line);
    failure.report(called)
}

/// Where lines go, as what.
enum Out {
    Stderr(Format, Stderr),
    Journal(Journal),
}

/// What is written, from whatever thread.
struct Lines {
    /// The name that the program was called by.
    called: String,
    state: Mutex<State>,
}

struct State {
    out: Out,
    /// How many lines could not be written since one could.
    lost: u64,
}

impl Lines {
    fn new(called: &str, out: Out) -> Self {
        Self { called: called.to_owned(), state: Mutex::new(State { out, lost: 0 }) }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        // It is whole between two lines.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn say(&self, line: &Line) {
        let mut state = self.state();
        if state.lost > 0 && self.write(&Line::lost(state.lost), &state.out) {
            state.lost = 0;
        }
        // Not past what was lost: the reader would take it for complete.
        if state.lost > 0 || !self.write(line, &state.out) {
            state.lost += 1;
        }
    }

    /// Whether it could be written.
    fn write(&self, line: &Line, out: &Out) -> bool {
        match out {
            Out::Stderr(Format::Text, out) => out.write(&render::text(&self.called, line)),
            Out::Stderr(Format::Json, out) => out.write(&render::json(line)),
            Out::Journal(journal) => journal.send(&render::journal(&self.called, line)),
        }
    }
}

impl<S: Subscriber> Layer<S> for &'static Lines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        self.say(&Line::of(event));
    }
}
