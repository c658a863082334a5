//! systemd's journal, by its native protocol.
//!
//! Not by tracing-journald: its socket blocks. While the journal does not read, be it for a
//! moment, nobody would be served.

use rustix::net::sockopt::set_socket_send_buffer_size;
use std::io::{self, ErrorKind};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

/// Where journald listens.
pub const SOCKET: &str = "/run/systemd/journal/socket";

/// What may be on its way to the journal, if the system allows as much: a burst of lines.
const SEND_BUFFER_LEN: usize = 1 << 20;

/// A connection with the journal.
pub struct Journal {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Journal {
    /// Connects, now: later this process may not be allowed to.
    pub fn open(path: &Path) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        // The system may allow less, which will do as well.
        let _ = set_socket_send_buffer_size(&socket, SEND_BUFFER_LEN);
        socket.connect(path)?;
        Ok(Self { socket, path: path.to_owned() })
    }

    /// Sends a line, if that can be done at once.
    pub fn send(&self, datagram: &[u8]) -> bool {
        match self.socket.send(datagram) {
            Ok(_) => true,
            // The journal has a new socket, or none.
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::ConnectionRefused | ErrorKind::NotConnected
                ) =>
            {
                let again = self.socket.connect(&self.path);
                again.and_then(|()| self.socket.send(datagram)).is_ok()
            }
            Err(_) => false,
        }
    }
}
