//! A daemon under measurement.

use crate::bench::{Bench, DAEMON_FDS_MAX};
use crate::figures::Both;
use crate::programs::Holder;
use crate::Result;
use fdholder::{Client, Deadline, Identifier, Limit};
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

/// A child that does not outlive its use.
#[derive(Debug)]
pub struct Helper(Child);

impl Helper {
    /// Starts it.
    pub fn start(command: &mut Command) -> Result<Self> {
        Ok(Self(command.spawn()?))
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// Waits until it ends by itself.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        Ok(self.0.wait()?)
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        // Either fails only if it has ended and been waited for, which is what we want.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What a daemon is told that it may have.
#[derive(Debug, Clone, Copy)]
pub struct Room {
    /// Descriptors held.
    pub fds_max: u64,
    /// Clients at once.
    pub connections_max: u32,
}

impl Room {
    /// What most sections need: they have a client or two at once.
    pub const USUAL: Self = Self { fds_max: DAEMON_FDS_MAX, connections_max: 16 };
}

/// A daemon that is ready, until it is dropped.
#[derive(Debug)]
pub struct Daemon {
    process: Helper,
    path: PathBuf,
}

impl Daemon {
    /// A fresh, empty daemon of each kind.
    pub fn both(bench: &Bench) -> Result<Both<Self>> {
        Ok(Both { ours: Self::start(bench, Holder::Ours)?, s6: Self::start(bench, Holder::S6)? })
    }

    /// Starts one, empty, and waits until it says that it is ready.
    pub fn start(bench: &Bench, holder: Holder) -> Result<Self> {
        Self::start_with(bench, holder, Room::USUAL)
    }

    /// The same, with room of another size.
    pub fn start_with(bench: &Bench, holder: Holder, room: Room) -> Result<Self> {
        let path = bench.new_socket_path();
        let listener = UnixListener::bind(&path)?;
        listener.set_nonblocking(true)?; // As s6-ipcserver-socketbinder leaves it.
        let log = path.with_extension("log");
        let mut command = bench.programs.command(holder, "s6-fdholderd");
        command
            .args(["-1", "-n", &room.fds_max.to_string()])
            .args(["-c", &room.connections_max.to_string(), "-i"])
            .arg(bench.rules())
            .stdin(OwnedFd::from(listener))
            .stdout(Stdio::piped())
            .stderr(File::create(&log)?);
        let mut process = Helper::start(&mut command)?;
        let mut said = String::new();
        if let Some(stdout) = &mut process.0.stdout {
            // It closes its standard output after the newline.
            stdout.read_to_string(&mut said)?;
        }
        if said != "\n" {
            let log = fs::read_to_string(log)?;
            return Err(format!("a daemon ({holder:?}) did not get ready: {}", log.trim()).into());
        }
        Ok(Self { process, path })
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// A new connection to it.
    pub fn connect(&self) -> Result<Client> {
        Ok(Client::connect(&self.path, Deadline::NEVER)?)
    }

    /// Has it hold so many descriptors, each without expiry.
    pub fn fill(&self, count: u32) -> Result<()> {
        fill(&mut self.connect()?, count)
    }

    /// How many it says it holds.
    pub fn held(&self) -> Result<usize> {
        Ok(self.connect()?.list(Deadline::NEVER)?.len())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // The folder it is in will go anyway.
        let _ = fs::remove_file(&self.path);
    }
}

/// Has a holder hold so many descriptors, each without expiry.
pub fn fill(client: &mut Client, count: u32) -> Result<()> {
    let null = File::open("/dev/null")?;
    for id in identifiers(count)? {
        client.store(&id, Limit::never(), &null, Deadline::NEVER)?;
    }
    Ok(())
}

/// Identifiers as holders of listening sockets have them.
pub fn identifiers(count: u32) -> Result<Vec<Identifier>> {
    let ids = (0..count).map(|number| Identifier::new(format!("tcp:127.0.0.1:{number:05}")));
    Ok(ids.collect::<std::result::Result<_, _>>()?)
}
