//! A holder inside another program, for tests and examples.

use crate::access::Rules;
use crate::listen::{listen_at, Listen};
use crate::signals::{Signals, Stop};
use crate::{Options, Server};
use std::io;
use std::path::Path;
use std::thread::JoinHandle;

/// A holder that serves in a thread of this process, until it is dropped.
///
/// It raises this process's soft limit on open files, as a daemon does.
///
/// ```
/// use fdholder::{Client, Deadline};
/// let folder = tempfile::tempdir()?;
/// let path = folder.path().join("holder");
/// let _holder = fdholder_daemon::embedded::Holder::start(&path)?;
/// assert!(Client::connect(&path, Deadline::NEVER)?.list(Deadline::NEVER)?.is_empty());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Holder {
    stop: Stop,
    thread: Option<JoinHandle<io::Result<crate::Ended>>>,
}

impl Holder {
    /// Starts one on `path`, for the user this process runs as.
    ///
    /// # Errors
    ///
    /// When there can be no listening socket, or the server cannot start.
    pub fn start(path: impl AsRef<Path>) -> io::Result<Self> {
        let listener = listen_at(&Listen::stream_at(path.as_ref())).map_err(io::Error::other)?;
        let signals = Signals::none()?;
        let stop = signals.stop()?;
        let server = Server::new(listener, Rules::owner_only(), signals, Options::default())?;
        let thread = std::thread::Builder::new().spawn(|| server.run())?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.stop.stop();
        if let Some(thread) = self.thread.take() {
            // How it ended matters to nobody any more.
            let _ = thread.join();
        }
    }
}
