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
        let path = bench.new_socket_path();
        let listener = UnixListener::bind(&path)?;
        listener.set_nonblocking(true)?; // As s6-ipcserver-socketbinder leaves it.
        let log = path.with_extension("log");
        let mut command = bench.programs.command(holder, "s6-fdholderd");
        command
            .args(["-1", "-n", &DAEMON_FDS_MAX.to_string(), "-c", "16", "-i"])
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
