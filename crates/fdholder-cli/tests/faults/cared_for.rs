//! What the daemon itself looks after: notify sockets, sockets whose peer goes, listeners.

use crate::scene::{list, store, wait};
use fdholder::{Client, Deadline, Status};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;

/// What is known to have been stored.
#[derive(Debug, Default)]
pub struct CaredFor {
    /// Services, with the other ends of their notify sockets.
    services: Vec<(String, UnixDatagram)>,
    /// Whose peer has gone.
    hung_up: Vec<String>,
    /// With a client in the queue of each.
    listeners: Vec<(String, TcpStream)>,
}

impl CaredFor {
    /// Stores one of each. Returns all identifiers under which something may be held.
    pub fn store(&mut self, path: &Path, number: usize) -> Vec<String> {
        let service = format!("service {number}");
        let [door, status, hung_up, listener] = [
            format!("{service}/.notify"),
            format!("{service}/.status"),
            format!("hung up {number}"),
            format!("listener {number}"),
        ];
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        if store(path, &door, &theirs) {
            self.services.push((service, ours));
        }
        let (ours, theirs) = UnixStream::pair().unwrap();
        if store(path, &hung_up, &theirs) {
            self.hung_up.push(hung_up.clone());
        }
        drop((ours, theirs));
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(tcp.local_addr().unwrap()).unwrap();
        if store(path, &listener, &tcp) {
            self.listeners.push((listener.clone(), client));
        }
        vec![door, status, hung_up, listener]
    }

    /// Whether what services say is heard, what has hung up goes, and listeners are seen.
    pub fn check(&self, path: &Path) -> Result<(), String> {
        let text = format!("STATUS={}\nREADY=1", std::process::id());
        for (service, socket) in &self.services {
            socket.send(text.as_bytes()).map_err(|error| format!("{service}: {error}"))?;
        }
        for (service, _) in &self.services {
            wait(&format!("{service} is heard"), || {
                status(path).is_some_and(|status| {
                    let mut services = status.services.iter();
                    services.any(|heard| heard.name == *service && heard.ready)
                })
            })?;
        }
        for id in &self.hung_up {
            wait(&format!("{id:?} goes"), || list(path).is_ok_and(|held| !held.contains(id)))?;
        }
        for (id, _client) in &self.listeners {
            wait(&format!("{id:?} is seen"), || {
                status(path).is_some_and(|status| {
                    status.listeners.iter().any(|seen| seen.id == *id && seen.queue == 1)
                })
            })?;
        }
        Ok(())
    }
}

fn status(path: &Path) -> Option<Status> {
    let deadline = Deadline::after(crate::scene::SHORT);
    Client::connect_negotiated(path, deadline).ok()?.status(deadline).ok()
}
