//! The example server in its versions, and clients that notice whatever goes wrong.

use crate::file;
use crate::support::{eventually, PATIENCE};
use std::fs::{self, Permissions};
use std::io::{ErrorKind, Read};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// What a version that fails writes.
pub const COMPLAINT: &str = "no such database";

/// Clients at once.
const CLIENTS: usize = 2;

/// The file that the service runs: a version of the server can take the place of another.
pub struct Server {
    path: PathBuf,
    gate: Gate,
}

/// What a server waits for before it is ready: a pipe with a name.
struct Gate {
    /// As the test and the server find it.
    path: PathBuf,
    inner: PathBuf,
}

impl Server {
    /// The good one. The gate is in a folder that the server may know by another name.
    pub fn install(path: PathBuf, folder: &Path, inner: &Path) -> Self {
        let gate = Gate { path: folder.join("gate"), inner: inner.join("gate") };
        rustix::fs::mkfifoat(rustix::fs::CWD, &gate.path, rustix::fs::Mode::RUSR).unwrap();
        fs::set_permissions(&gate.path, Permissions::from_mode(0o666)).unwrap();
        let server = Self { path, gate };
        server.good();
        server
    }

    pub fn good(&self) {
        self.write(&Self::text());
    }

    /// One that gets ready only once the gate is open.
    pub fn gated(&self) {
        let waits = format!("open({:?}).read()\n", self.gate.inner.to_str().unwrap());
        self.write(&(waits + &Self::text()));
    }

    /// Lets one through that waits at the gate, as soon as it is there.
    pub fn open_gate(&self) {
        drop(fs::File::options().write(true).open(&self.gate.path).unwrap());
    }

    /// One that does not start.
    pub fn bad(&self) {
        self.write(&format!("import sys\nsys.exit({COMPLAINT:?})\n"));
    }

    /// One that is not its own process: it leaves others behind, which end a little later.
    pub fn with_orphans(&self) {
        let fork = "import os\nif os.fork() == 0:\n    os.fork()\n    os._exit(0)\nos.wait()\n";
        self.write(&(fork.to_owned() + &Self::text()));
    }

    fn text() -> String {
        fs::read_to_string(file("example-web.py")).unwrap()
    }

    /// A reader at the same time has one version or the other.
    fn write(&self, text: &str) {
        let new = self.path.with_extension("new");
        fs::write(&new, text).unwrap();
        fs::rename(new, &self.path).unwrap();
    }
}

/// Clients that come one after the other, without a pause, until they are counted.
pub struct Clients {
    address: SocketAddr,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    have_stopped: AtomicBool,
    served: Mutex<u64>,
    failures: Mutex<Vec<std::io::Error>>,
}

impl Clients {
    pub fn of(address: SocketAddr) -> Self {
        let shared = Arc::<Shared>::default();
        let come = |_| {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || {
                while !shared.have_stopped.load(Ordering::Relaxed) {
                    match try_served_by(address) {
                        Ok(_) => *shared.served.lock().unwrap() += 1,
                        Err(error) => shared.failures.lock().unwrap().push(error),
                    }
                }
            })
        };
        let threads = (0..CLIENTS).map(come).collect();
        let clients = Self { address, shared, threads };
        clients.wait_for_more();
        clients
    }

    /// Waits until some more have been served.
    pub fn wait_for_more(&self) {
        let served = || *self.shared.served.lock().unwrap();
        let before = served();
        eventually("more clients are served", || served() > before + 20);
    }

    /// Waits until a client is served by another process than this; returns by which.
    pub fn wait_for_successor(&self, before: u32) -> u32 {
        let mut pid = before;
        eventually("another process serves", || {
            pid = served_by(self.address);
            pid != before
        });
        pid
    }

    /// Every one must have been served.
    pub fn all_were_served(self) {
        let (served, failures) = self.count();
        assert!(failures.is_empty(), "{} of {served} failed: {failures:?}", failures.len());
    }

    /// Some may have been accepted by a server that was killed.
    pub fn none_was_refused(self) {
        let (served, mut failures) = self.count();
        failures.retain(|error| {
            !matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset)
        });
        assert!(failures.is_empty(), "{} of {served} were refused: {failures:?}", failures.len());
    }

    fn count(self) -> (u64, Vec<std::io::Error>) {
        self.wait_for_more();
        self.shared.have_stopped.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().unwrap();
        }
        let served = *self.shared.served.lock().unwrap();
        (served, std::mem::take(&mut *self.shared.failures.lock().unwrap()))
    }
}

pub fn served_by(address: SocketAddr) -> u32 {
    try_served_by(address).unwrap()
}

fn try_served_by(address: SocketAddr) -> std::io::Result<u32> {
    pid_from(TcpStream::connect(address)?)
}

/// The process that serves a client who has connected.
pub fn pid_from(mut stream: TcpStream) -> std::io::Result<u32> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let is_whole = text.ends_with('\n');
    let pid = text.trim_end().parse().ok().filter(|_| is_whole);
    pid.ok_or_else(|| std::io::Error::new(ErrorKind::UnexpectedEof, text))
}
