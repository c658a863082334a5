//! A daemon between a client and a holder that does what a holder should not.

use fdholder::extension::VERSION;
use fdholder::frame::{Decoder, Message};
use fdholder::transport::{self, Wait};
use fdholder::{reply, Errno};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};

/// Whom it seems to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seems {
    /// It hangs up on what s6's daemon does not know.
    S6,
    Fdholder,
    /// A fdholder of a later version.
    Later,
    /// A fdholder that knows no extension.
    KnowsNothing,
}

/// What it does instead of handing on a message of a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Misdeed {
    Refuses,
    Closes,
    /// It takes everything and says nothing.
    Stalls,
    /// It takes nothing more.
    StopsReading,
    AnswersGarbage,
    SendsDescriptors,
    /// It hands on what it should, but says that all has come before it has.
    AnswersEarly,
    /// It waits until it is told to go on.
    WaitsForLeave,
    /// It takes everything, confirms it, and keeps nothing.
    Lies,
    /// Something is stored under `late` just before it gives its first dump.
    GrowsBeforeDump,
}

/// What it was asked, a list for each connection: the first bytes of each request.
pub type Asked = Arc<Mutex<Vec<Vec<u8>>>>;

/// One before a real holder.
pub struct Proxy {
    pub path: PathBuf,
    pub asked: Asked,
    leave: Arc<Leave>,
    connections: Arc<Mutex<Vec<UnixStream>>>,
}

impl Proxy {
    /// Before the holder at `to`; misbehaves at the `at`th message of a set.
    pub fn new(folder: &Path, to: &Path, seems: Seems, misdeed: Misdeed, at: usize) -> Self {
        let path = folder.join("proxy");
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        let (asked, connections) = (Asked::default(), Arc::<Mutex<Vec<UnixStream>>>::default());
        let leave = Arc::<Leave>::default();
        let proxy = Self {
            path,
            asked: Arc::clone(&asked),
            leave: Arc::clone(&leave),
            connections: Arc::clone(&connections),
        };
        let to = to.to_owned();
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let client = client.unwrap();
                connections.lock().unwrap().push(client.try_clone().unwrap());
                let end = client.try_clone().unwrap();
                let number = {
                    let mut asked = asked.lock().unwrap();
                    asked.push(Vec::new());
                    asked.len() - 1
                };
                let connection = Connection {
                    client: Stream::new(client),
                    holder: Stream::new(UnixStream::connect(&to).unwrap()),
                    seems,
                    misdeed,
                    at,
                    number,
                    asked: Arc::clone(&asked),
                    leave: Arc::clone(&leave),
                    to: to.clone(),
                };
                std::thread::spawn(move || {
                    connection.serve();
                    // Another descriptor of it is kept for the end of the test.
                    let _ = end.shutdown(std::net::Shutdown::Both);
                });
            }
        });
        proxy
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        for connection in self.connections.lock().unwrap().iter() {
            let _ = connection.shutdown(std::net::Shutdown::Both);
        }
    }
}

/// Where one waits for another.
#[derive(Default)]
struct Leave {
    /// Whether somebody waits, and whether to go on.
    state: Mutex<(bool, bool)>,
    changed: Condvar,
}

impl Leave {
    fn wait(&self) {
        let mut state = self.state.lock().unwrap();
        state.0 = true;
        self.changed.notify_all();
        drop(self.changed.wait_while(state, |(_, go_on)| !*go_on).unwrap());
    }
}

impl Proxy {
    /// Until a [`Misdeed::WaitsForLeave`] has come to its message.
    pub fn wait_until_it_waits(&self) {
        let state = self.leave.state.lock().unwrap();
        drop(self.leave.changed.wait_while(state, |(waits, _)| !*waits).unwrap());
    }

    /// It may go on.
    pub fn give_leave(&self) {
        self.leave.state.lock().unwrap().1 = true;
        self.leave.changed.notify_all();
    }
}

/// A stream of frames.
struct Stream {
    stream: UnixStream,
    decoder: Decoder<OwnedFd>,
}

impl Stream {
    fn new(stream: UnixStream) -> Self {
        Self { stream, decoder: Decoder::new(1 << 20) }
    }

    fn receive(&mut self) -> Option<(Vec<u8>, Vec<OwnedFd>)> {
        let mut buffer = [0; 16 * 1024];
        while !self.decoder.has_frame() {
            let received = transport::receive(&self.stream, &mut buffer, Wait::Yes).ok()?;
            if received.len == 0 {
                return None;
            }
            self.decoder.push(&buffer[..received.len], received.fds, received.fds_lost);
        }
        let frame = self.decoder.next().ok()??;
        Some((frame.payload.to_vec(), frame.fds))
    }

    fn send(&self, payload: &[u8], fds: &[OwnedFd]) -> Option<()> {
        let fds = fds.iter().map(AsFd::as_fd).collect();
        let message = Message::new(fds, |bytes| bytes.extend_from_slice(payload));
        self.send_message(&message)
    }

    fn send_message<F: AsFd>(&self, message: &Message<F>) -> Option<()> {
        let fds: Vec<_> = message.fds().iter().map(AsFd::as_fd).collect();
        let (mut bytes, mut fds) = (message.bytes(), &fds[..]);
        while !bytes.is_empty() {
            let sent = transport::send(&self.stream, bytes, fds, Wait::Yes).ok()?;
            (bytes, fds) = (&bytes[sent..], &[]);
        }
        Some(())
    }
}

struct Connection {
    client: Stream,
    holder: Stream,
    seems: Seems,
    misdeed: Misdeed,
    at: usize,
    number: usize,
    asked: Asked,
    leave: Arc<Leave>,
    to: PathBuf,
}

impl Connection {
    /// Until one side hangs up. Requests are answered one by one.
    fn serve(mut self) -> Option<()> {
        let mut message = 0;
        let mut announced = 0;
        loop {
            let (payload, fds) = self.client.receive()?;
            let command = payload[0];
            self.asked.lock().unwrap()[self.number].push(command);
            if command == b'+' && self.seems == Seems::S6 {
                return None;
            }
            if command == b'+' && self.seems == Seems::KnowsNothing {
                self.client.send_message(&reply::status::<OwnedFd>(Err(Errno::OPNOTSUPP)))?;
                continue;
            }
            if command == b'.' && message == self.at {
                match self.misdeed {
                    Misdeed::Refuses => {
                        self.client.send_message(&reply::status::<OwnedFd>(Err(Errno::NFILE)))?;
                        return None;
                    }
                    Misdeed::Closes => return None,
                    Misdeed::Stalls => {
                        // Until the client, or the test, has had enough.
                        while self.client.receive().is_some() {}
                        return None;
                    }
                    Misdeed::StopsReading => loop {
                        std::thread::park();
                    },
                    Misdeed::AnswersGarbage => {
                        self.client.send(b"HTTP/1.1 400 Bad Request", &[])?;
                        return None;
                    }
                    Misdeed::SendsDescriptors => {
                        self.client.send(&[0], &fds[..1])?;
                        return None;
                    }
                    Misdeed::WaitsForLeave => self.leave.wait(),
                    Misdeed::AnswersEarly | Misdeed::Lies | Misdeed::GrowsBeforeDump => {}
                }
            }
            message += usize::from(command == b'.');
            if command == b'!' {
                announced = u32::from_be_bytes(payload[1..5].try_into().unwrap());
            }
            if self.misdeed == Misdeed::Lies && command == b'.' {
                announced -= fds.len() as u32;
                let answer = if announced == 0 { Ok(()) } else { Err(Errno::AGAIN) };
                self.client.send_message(&reply::status::<OwnedFd>(answer))?;
                continue;
            }
            if command == b'?' && self.misdeed == Misdeed::GrowsBeforeDump {
                let mut other = fdholder::Client::connect(&self.to, super::deadline()).unwrap();
                let null = std::fs::File::open("/dev/null").unwrap();
                // The second time it is there.
                let never = fdholder::Limit::never();
                let _ = other.store(&super::id("late"), never, &null, super::deadline());
            }
            self.holder.send(&payload, &fds)?;
            drop(fds);
            let (mut answer, fds) = self.holder.receive()?;
            if payload.starts_with(b"+\0") && self.seems == Seems::Later {
                answer.clear();
                answer.push(0);
                answer.extend_from_slice(&(VERSION + 7).to_be_bytes());
                answer.extend_from_slice(b"and what else there is to say by then");
            }
            if self.misdeed == Misdeed::AnswersEarly
                && matches!(command, b'!' | b'.')
                && message == self.at
            {
                // Both at once, so that the second is there when the first is read.
                let early = reply::status::<OwnedFd>(Ok(()));
                let due = Message::new(fds, |bytes| bytes.extend_from_slice(&answer));
                let bytes = [due.bytes(), early.bytes()].concat();
                transport::send(&self.client.stream, &bytes, &[], Wait::Yes).ok()?;
                continue;
            }
            self.client.send(&answer, &fds)?;
            if command == b'?' && answer[0] == 0 {
                let messages = u32::from_be_bytes(answer[1..5].try_into().unwrap());
                for _ in 0..messages {
                    let (part, fds) = self.holder.receive()?;
                    self.client.send(&part, &fds)?;
                }
            }
        }
    }
}
