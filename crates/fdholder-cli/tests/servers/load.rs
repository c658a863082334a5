//! Clients of an HTTP server, who connect anew for each request.

use crate::support::{eventually, PATIENCE};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// Clients at once.
const CLIENTS: usize = 8;

/// Clients at work.
pub struct Load {
    shared: Arc<Shared>,
    clients: Vec<JoinHandle<()>>,
}

/// One connection, one request, the whole answer.
pub type Ask = fn(SocketAddr) -> std::io::Result<()>;

struct Shared {
    address: SocketAddr,
    ask: Ask,
    stop: AtomicBool,
    answered: AtomicUsize,
    failed: Mutex<Vec<String>>,
}

impl Load {
    pub fn on(address: SocketAddr, ask: Ask) -> Self {
        let shared = Arc::new(Shared {
            address,
            ask,
            stop: AtomicBool::new(false),
            answered: AtomicUsize::new(0),
            failed: Mutex::default(),
        });
        let client = |_| {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || shared.ask_and_ask())
        };
        Self { clients: (0..CLIENTS).map(client).collect(), shared }
    }

    /// Waits until so many more have been answered, each within its patience; or one fails.
    pub fn wait_for(&self, more: usize) {
        let enough = self.answered() + more;
        eventually("more clients are answered", || {
            self.answered() >= enough || !self.shared.failed.lock().unwrap().is_empty()
        });
    }

    fn answered(&self) -> usize {
        self.shared.answered.load(Ordering::Relaxed)
    }

    /// Ends; nobody may have been refused or left without a whole answer.
    pub fn finish(self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.join().unwrap();
        }
        let failed = self.shared.failed.lock().unwrap();
        let answered = self.shared.answered.load(Ordering::Relaxed);
        assert!(failed.is_empty(), "{answered} were answered, {} not: {failed:?}", failed.len());
        assert!(answered > 0);
    }
}

impl Shared {
    fn ask_and_ask(&self) {
        while !self.stop.load(Ordering::Relaxed) {
            match (self.ask)(self.address) {
                Ok(()) => drop(self.answered.fetch_add(1, Ordering::Relaxed)),
                Err(error) => self.failed.lock().unwrap().push(error.to_string()),
            }
        }
    }
}

/// By HTTP.
pub fn ask(address: SocketAddr) -> std::io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    // Some send the body as a chunk.
    let body = answer.split(|&byte| byte == b'\n').any(|line| line.starts_with(b"hello"));
    if answer.starts_with(b"HTTP/1.1 200 ") && body {
        return Ok(());
    }
    Err(std::io::Error::other(format!("not an answer: {:?}", String::from_utf8_lossy(&answer))))
}
