//! The file of the listening socket: looked at while the daemon serves, and made again when it is gone.
//!
//! A Unix socket is not linked to its file: once that is removed, no client comes, and nobody is told.
//! So the daemon compares what its path leads to with what it was, by device and inode.

use super::admission::{is_lost, newcomer};
use super::{Accepting, Server, CLAIM, FORMER, LISTENER};
use crate::accept_queue::inode_of_file;
use crate::clock;
use crate::closing::ClientFd;
use crate::credentials;
use crate::limits::{FOLLOWERS_MAX, FORMER_LISTENERS_MAX};
use crate::reading::retried;
use crate::{claim, listen};
use claim::{claimant, Claimed};
use fdholder::strerror;
use listen::{is_bound, listen_at, Listen};
use rustix::event::{epoll, poll, PollFd, PollFlags, Timespec};
use rustix::fs::{lstat, FileType};
use rustix::io::{fcntl_dupfd_cloexec, Errno};
use rustix::net::{accept_with, SocketFlags};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tracing::{info, warn};

/// How often to look at the file. One lstat(2) each time; a client that comes meanwhile is refused.
const LOOK_PAUSE: Duration = Duration::from_secs(1);

/// At which look to see who has the claim in our place: a daemon before us ends sooner.
const LOOKS_AT_CLAIMANT: u32 = 3;

/// How many strangers that come by the claim are sent away between two looks.
const STRANGERS_PER_LOOK: usize = 64;

/// A file: its device and inode.
type FileId = (u64, u64);

/// What is known of the file of the listening socket.
#[derive(Debug)]
pub(super) struct SocketFile {
    /// How it is made.
    listen: Listen,
    /// What the path led to when it last led here.
    file: Option<FileId>,
    /// What is wrong, as it was said.
    problem: Option<String>,
    /// By this the next daemon finds us whatever is with the file.
    claim: Option<OwnedFd>,
    /// How often in a row another process had it.
    claim_denied: u32,
    look_at: Instant,
}

/// What the path leads to.
#[derive(Debug, PartialEq, Eq)]
enum Leads {
    Here,
    Nowhere,
    /// To the socket of a daemon of ours that is gone.
    ToDeadSocket,
    Elsewhere(String),
}

impl SocketFile {
    fn look(&mut self, listener: &OwnedFd) -> Leads {
        let path = &self.listen.path;
        let stat = match lstat(path) {
            Ok(stat) => stat,
            Err(Errno::NOENT | Errno::NOTDIR) => return Leads::Nowhere,
            Err(errno) => return Leads::Elsewhere(strerror(errno)),
        };
        if FileType::from_raw_mode(stat.st_mode) != FileType::Socket {
            return Leads::Elsewhere("something else is there, and no socket".to_owned());
        }
        let file = (stat.st_dev, stat.st_ino);
        match is_bound(path) {
            Ok(true) if self.file.map_or_else(|| is_ours(file, listener), |own| own == file) => {
                self.file = Some(file);
                // It was changed by SIGHUP, or by hand.
                self.listen.mode = stat.st_mode & 0o777;
                Leads::Here
            }
            Ok(true) => Leads::Elsewhere("the socket of another process is there".to_owned()),
            Ok(false) if stat.st_uid == rustix::process::geteuid().as_raw() => Leads::ToDeadSocket,
            Ok(false) => Leads::Elsewhere(format!("a socket of uid {} is there", stat.st_uid)),
            Err(errno) => Leads::Elsewhere(strerror(errno)),
        }
    }

    /// Says what is wrong once, and when it is not any more.
    fn note(&mut self, problem: Option<String>) {
        if self.problem == problem {
            return;
        }
        let path = self.listen.path.display();
        if let Some(problem) = &problem {
            warn!("no client can come by {path}: {problem}");
        } else {
            info!("{path} leads here again");
        }
        self.problem = problem;
    }
}

/// Whether a file is that of the listening socket. One that has just begun to serve takes it for its
/// own where the kernel does not tell.
fn is_ours((_, inode): FileId, listener: &OwnedFd) -> bool {
    retried(|| inode_of_file(listener)).map_or(true, |own| own == inode as u32) // Half is told.
}

impl Server {
    /// Has the server look after the file of its listening socket, which was made in this way.
    #[must_use]
    pub fn with_socket_file(mut self, listen: Listen) -> Self {
        let listen = Listen { patience: Duration::ZERO, ..listen };
        let look_at = clock::now();
        let (file, problem, claim, claim_denied) = (None, None, None, 0);
        let socket = SocketFile { listen, file, problem, claim, claim_denied, look_at };
        self.socket_file = Some(socket);
        self.look_at_socket_file();
        self
    }

    /// When to look at it next.
    pub(super) fn socket_file_due(&self) -> Option<Instant> {
        self.socket_file.as_ref().map(|socket| socket.look_at)
    }

    /// Looks at it, if that is due.
    pub(super) fn tend_socket_file(&mut self, now: Instant) {
        if self.socket_file_due().is_some_and(|at| at <= now) {
            self.look_at_socket_file();
        }
    }

    /// Looks whether the path still leads here, and makes the file again if nothing stands there.
    pub(super) fn look_at_socket_file(&mut self) {
        let Some(mut socket) = self.socket_file.take() else { return };
        socket.look_at = clock::now() + LOOK_PAUSE;
        self.renew_claim(&mut socket);
        let leads = socket.look(&self.listener);
        match leads {
            Leads::Here => socket.note(None),
            Leads::Elsewhere(why) => {
                socket.note(Some(format!(
                    "{why}, and is left alone: remove it, or choose another path"
                )));
            }
            Leads::Nowhere | Leads::ToDeadSocket if self.may_make_socket() => {
                let reuse = leads == Leads::ToDeadSocket;
                let made = self.make_socket_again(&mut socket, reuse);
                socket.note(made.err());
            }
            Leads::Nowhere | Leads::ToDeadSocket => {}
        }
        self.socket_file = Some(socket);
    }

    /// Not while another process is about to serve: that has the listening socket already.
    fn may_make_socket(&self) -> bool {
        let is_to_serve = self.links.iter().any(|(_, link)| link.wants_over.is_some());
        let is_ending = matches!(self.accepting, Accepting::LameDuck(_)) || self.ended.is_some();
        !is_to_serve && !is_ending && !self.has_lost_listener && self.upgrade.is_none()
    }

    fn make_socket_again(&mut self, socket: &mut SocketFile, reuse: bool) -> Result<(), String> {
        let path = socket.listen.path.display().to_string();
        let failed = |why: &dyn std::fmt::Display| {
            format!("its file was removed or renamed, and cannot be made again yet: {why}")
        };
        let errno = |errno| failed(&strerror(errno));
        let listener = listen_at(&Listen { reuse, ..socket.listen.clone() })
            .map_err(|error| failed(&error))?;
        // It is dead, and replaced by the next look, if anything fails from here on.
        socket.file = None;
        super::beginning::prepare(&listener).map_err(errno)?;
        let data = epoll::EventData::new_u64(LISTENER);
        let flags = epoll::EventFlags::IN | epoll::EventFlags::RDHUP;
        epoll::add(&self.epoll, &listener, data, flags).map_err(errno)?;
        let for_others = fcntl_dupfd_cloexec(&listener, 0).map_err(errno)?;
        if let Some(shelf) = &mut self.shelf {
            let kept = fcntl_dupfd_cloexec(&listener, 0).map_err(errno)?;
            shelf.keep_listener(Arc::new(kept));
        }
        let for_others = Arc::new(ClientFd::new(for_others, self.user.uid));
        for (_, link) in &self.links {
            if let Some(mirror) = self.hold.mirrors.get_mut(link.mirror) {
                mirror.comes_in_by(Arc::clone(&for_others));
            }
        }
        let former = std::mem::replace(&mut self.listener, listener);
        self.keep_former_listener(former);
        // Which is not what was asked for if clients wait just now.
        self.listening = true;
        self.watch_listener();
        if let Ok(stat) = lstat(&socket.listen.path) {
            socket.file = Some((stat.st_dev, stat.st_ino));
        }
        warn!("{path} was removed or renamed, and is made again");
        socket.problem = None;
        Ok(())
    }

    /// Clients may wait at a socket whose file is gone, or come by the name that it has now.
    pub(super) fn keep_former_listener(&mut self, former: OwnedFd) {
        let data = epoll::EventData::new_u64(FORMER);
        let flags = epoll::EventFlags::IN | epoll::EventFlags::RDHUP;
        let watched = epoll::modify(&self.epoll, &former, data, flags)
            .or_else(|_| epoll::add(&self.epoll, &former, data, flags));
        if let Err(errno) = watched {
            warn!("unable to watch the former listening socket: {}", strerror(errno));
        }
        if self.former.len() >= FORMER_LISTENERS_MAX {
            let oldest = self.former.remove(0);
            self.take_in_waiting(&oldest);
        }
        self.former.push(former);
        self.listening = true;
    }

    /// They are served as if another daemon had handed them over.
    fn take_in_waiting(&mut self, listener: &OwnedFd) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        while let Ok(socket) = retried(|| accept_with(listener, flags)) {
            let uid = credentials::of_peer(&socket).map_or(self.user.uid, |who| who.user.uid);
            self.handed.push(newcomer(Arc::new(ClientFd::new(socket, uid))));
        }
    }

    /// A client has come by a former listening socket, or none can any more.
    pub(super) fn hear_former(&mut self, flags: epoll::EventFlags, most: usize) {
        if flags.intersects(epoll::EventFlags::RDHUP | epoll::EventFlags::HUP) {
            let is_shut_down = |socket: &OwnedFd| {
                let mut polled = [PollFd::new(socket, PollFlags::empty())];
                let _ = poll(&mut polled, Some(&Timespec::default()));
                polled[0].revents().contains(PollFlags::HUP)
            };
            self.former.retain(|socket| !is_shut_down(socket));
        } else {
            self.accept(most, None);
        }
    }

    fn renew_claim(&mut self, socket: &mut SocketFile) {
        let data = epoll::EventData::new_u64(CLAIM);
        if let Some(claim) = &socket.claim {
            // It may rest since the last look.
            let _ = epoll::modify(&self.epoll, claim, data, epoll::EventFlags::IN);
            return;
        }
        // Until the daemon before has ended, it has it.
        let claim = match claim::claim(&socket.listen.path) {
            Ok(claim) => claim,
            Err(errno) => {
                socket.claim_denied += u32::from(errno == Errno::ADDRINUSE);
                if socket.claim_denied == LOOKS_AT_CLAIMANT {
                    self.warn_of_claimant(&socket.listen.path);
                }
                return;
            }
        };
        socket.claim_denied = 0;
        let added = epoll::add(&self.epoll, &claim, data, epoll::EventFlags::IN);
        socket.claim = added.is_ok().then_some(claim);
    }

    fn warn_of_claimant(&self, path: &Path) {
        if let Ok(Claimed::ByStranger(who)) = claimant(path, self.user.uid, Duration::ZERO) {
            let (path, uid) = (path.display(), who.user.uid);
            warn!(
                "another user (uid {uid}) has the abstract name by which the next daemon finds this \
                 one when {path} is gone: end that process (ss -xlp shows it)"
            );
        }
    }

    /// Processes have come by the claim. Only one of our user may: to take over, as anything else can be
    /// had by the path. Strangers are sent away, some at once: one of ours may wait behind them.
    pub(super) fn hear_claim(&mut self, events: epoll::EventFlags) {
        let Some(socket_file) = &mut self.socket_file else { return };
        if events.contains(epoll::EventFlags::HUP) {
            // It was shut down by somebody who has it, too, and would tell of that all the time. The
            // next look makes another.
            socket_file.claim = None;
            return;
        }
        for _ in 0..STRANGERS_PER_LOOK {
            if !self.let_in_by_claim() {
                return;
            }
        }
        self.rest_from_claim();
    }

    /// Anybody can connect with an abstract name: they wake us once a second at most.
    fn rest_from_claim(&self) {
        let claim = self.socket_file.as_ref().and_then(|socket| socket.claim.as_ref());
        if let Some(claim) = claim {
            let data = epoll::EventData::new_u64(CLAIM);
            let _ = epoll::modify(&self.epoll, claim.as_fd(), data, epoll::EventFlags::empty());
        }
    }

    /// Returns whether it was a stranger, and others may wait.
    fn let_in_by_claim(&mut self) -> bool {
        let Some(socket_file) = &mut self.socket_file else { return false };
        let Some(claim) = &socket_file.claim else { return false };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let came = accept_with(claim, flags).and_then(|socket| {
            let uid = credentials::of_peer(&socket)?.user.uid;
            Ok((socket, uid))
        });
        let has_room = self.peers.len() < self.room.clients_max() + FOLLOWERS_MAX;
        match came {
            Ok((socket, uid)) if uid == self.user.uid && has_room => {
                if let Some(token) = self.let_in_own(socket) {
                    self.serve_in_turn(token, clock::now());
                }
            }
            Err(Errno::AGAIN) => {}
            // Root looks who has the claim, and becomes our user then.
            Ok((_, 0)) => return true,
            Ok((_, uid)) if uid != self.user.uid => return true,
            // It is of no use any more, of which epoll would tell all the time. The next look makes
            // another.
            Err(errno) if is_lost(errno) => socket_file.claim = None,
            // What fails for a moment is tried again at the next look.
            Ok(_) | Err(_) => self.rest_from_claim(),
        }
        false
    }
}
