//! A progress bar on stderr, once something lasts.

use fdholder::Progress;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{channel, RecvTimeoutError, Sender};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

/// What takes less is over before a bar could be read.
const LASTS: Duration = Duration::from_millis(500);

/// How often the bar is drawn.
const TICK: Duration = Duration::from_millis(100);

/// Shows how far a transfer is. The bar is drawn by a thread, so that it also shows that
/// nothing happens, and removed when this is dropped.
pub struct Bar {
    seen: Arc<Seen>,
    end: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Seen {
    confirmed: AtomicU32,
    total: AtomicU32,
}

impl Bar {
    /// A bar, if anybody is there to see it.
    pub fn on_terminal() -> Option<Self> {
        if !std::io::stderr().is_terminal() {
            return None;
        }
        let seen = Arc::new(Seen::default());
        let (end, ended) = channel();
        let drawn = Arc::clone(&seen);
        let draw = move || {
            if ended.recv_timeout(LASTS) != Err(RecvTimeoutError::Timeout) {
                return;
            }
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            let style = "{elapsed} {wide_bar} {human_pos} of {human_len} descriptors";
            // The template is a constant that is known to be one.
            bar.set_style(
                ProgressStyle::with_template(style)
                    .unwrap_or_else(|_| ProgressStyle::default_bar()),
            );
            while ended.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {
                bar.set_length(drawn.total.load(Ordering::Relaxed).into());
                bar.set_position(drawn.confirmed.load(Ordering::Relaxed).into());
                bar.tick();
            }
            bar.finish_and_clear();
        };
        // Without a thread there is no bar, which is no reason not to transfer.
        let thread = std::thread::Builder::new().spawn(draw).ok()?;
        Some(Self { seen, end: Some(end), thread: Some(thread) })
    }

    pub fn show(&self, progress: Progress) {
        self.seen.total.store(progress.total, Ordering::Relaxed);
        self.seen.confirmed.store(progress.confirmed, Ordering::Relaxed);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.end.take();
        if let Some(thread) = self.thread.take() {
            // It only draws.
            let _ = thread.join();
        }
    }
}
