//! A server that only answers: what connecting and getting a descriptor takes at least.

use crate::bench::Bench;
use crate::daemon::Helper;
use crate::Result;
use fdholder::reply;
use fdholder::transport::{send, Wait};
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{accept_with, SocketFlags};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// One that is ready, until it is dropped.
#[derive(Debug)]
pub struct Echo {
    path: PathBuf,
    process: Helper,
}

impl Echo {
    /// Starts one.
    pub fn start(bench: &Bench) -> Result<Self> {
        let path = bench.new_socket_path();
        // Whoever connects before it runs waits for it there.
        let listener = UnixListener::bind(&path)?;
        listener.set_nonblocking(true)?;
        let process = Helper::start(super::role("echo", 0)?.stdin(OwnedFd::from(listener)))?;
        Ok(Self { path, process })
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }
}

const LISTENER: u64 = u64::MAX;

/// Serves those who connect to standard input.
pub fn serve() -> Result<()> {
    let listener = std::io::stdin().as_fd().try_clone_to_owned()?;
    let null = File::open("/dev/null")?;
    let answer = reply::retrieved(null.as_fd());
    let epoll = epoll::create(CreateFlags::CLOEXEC)?;
    epoll::add(&epoll, &listener, EventData::new_u64(LISTENER), EventFlags::IN)?;
    // By their numbers, which the kernel keeps small.
    let mut clients: Vec<Option<OwnedFd>> = Vec::new();
    let mut events = Vec::with_capacity(256);
    let mut buffer = [0; 4096];
    loop {
        events.clear();
        epoll::wait(&epoll, spare_capacity(&mut events), None)?;
        for event in &events {
            let number = event.data.u64();
            if number == LISTENER {
                // One at a time: epoll tells of the next one as well.
                match accept_with(&listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                    Ok(client) => admit(&epoll, &mut clients, client)?,
                    Err(Errno::AGAIN | Errno::CONNABORTED) => {}
                    Err(errno) => return Err(errno.into()),
                }
                continue;
            }
            let place = &mut clients[number as usize];
            let Some(client) = place.as_ref() else { continue };
            match rustix::io::read(client, &mut buffer) {
                Ok(1..) => drop(send(client, answer.bytes(), answer.fds(), Wait::No)?),
                // It has gone.
                Ok(0) | Err(Errno::CONNRESET) => *place = None,
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

fn admit(epoll: &OwnedFd, clients: &mut Vec<Option<OwnedFd>>, client: OwnedFd) -> Result<()> {
    let number = usize::try_from(client.as_raw_fd())?;
    epoll::add(epoll, &client, EventData::new_u64(number as u64), EventFlags::IN)?;
    if clients.len() <= number {
        clients.resize_with(number + 1, || None);
    }
    clients[number] = Some(client);
    Ok(())
}
