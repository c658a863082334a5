//! Log lines in the style of s6's programs: `NAME: warning: text`.

use rustix::event::{poll, PollFd, PollFlags, Timespec};
use std::fmt;
use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// Begins to log to stderr: nothing for verbosity 0, warnings and what matters for 1, all
/// for more.
pub fn start(called: &str, verbosity: u32) {
    let level = match verbosity {
        0 => return,
        1 => Level::INFO,
        _ => Level::DEBUG,
    };
    let format = Lines { called: called.to_owned() };
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(|| Stderr)
        .log_internal_errors(false)
        .event_format(format)
        .init();
}

/// Standard error for a process that must go on whatever becomes of it: a line that cannot
/// be written at once (the reader has gone, or is behind) is dropped, and counted.
struct Stderr;

static DROPPED: AtomicU64 = AtomicU64::new(0);

impl Write for Stderr {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let stderr = io::stderr();
        let mut ready = [PollFd::new(&stderr, PollFlags::OUT)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        // A pipe that is ready has room for a line: PIPE_BUF bytes, 4096.
        let writable = poll(&mut ready, Some(&now)) == Ok(1)
            && ready[0].revents().contains(PollFlags::OUT)
            && !ready[0].revents().contains(PollFlags::ERR);
        let dropped = DROPPED.load(Ordering::Relaxed);
        if writable
            && dropped > 0
            && writeln!(&stderr, "({dropped} lines before were lost)").is_ok()
        {
            DROPPED.fetch_sub(dropped, Ordering::Relaxed);
        }
        if !writable || (&stderr).write_all(&line[..line.len().min(LINE_LEN_MAX)]).is_err() {
            DROPPED.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A line and the one about lost lines fit into what a ready pipe takes.
const LINE_LEN_MAX: usize = 4000;

struct Lines {
    called: String,
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let level = match *event.metadata().level() {
            Level::ERROR => "error",
            Level::WARN => "warning",
            Level::INFO => "info",
            Level::DEBUG | Level::TRACE => "debug",
        };
        write!(writer, "{}: {level}: ", self.called)?;
        context.field_format().format_fields(writer.by_ref(), event)?;
        writeln!(writer)
    }
}
