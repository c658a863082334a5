//! Where a daemon gets what it serves with: a new socket, or everything that another
//! daemon has.

use super::Settings;
use crate::failure::{exit, Failure};
use crate::passing::inherited;
use fdholder::{Client, Deadline, Errno};
use fdholder_daemon::access::User;
use fdholder_daemon::claim::{another_listens_by, claimant, Claimed};
use fdholder_daemon::credentials::{self, Credentials};
use fdholder_daemon::fdstore::{is_abandoned, is_undecided, may_recover, recover, Past, Recovered};
use fdholder_daemon::follower::{FollowError, Follower};
use fdholder_daemon::inheritance::Inheritance;
use fdholder_daemon::launch::{FOLLOW_VARIABLE, TAKE_OVER_VARIABLE, UNCLOSED_VARIABLE};
use fdholder_daemon::listen::{connect_to, listen_at, Listen, ListenError};
use fdholder_daemon::privileges::Become;
use fdholder_daemon::ClientFd;
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use std::ffi::OsStr;
use std::fmt;
use std::fs::Permissions;
use std::mem::ManuallyDrop;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, Instant};
use tracing::warn;

/// How a daemon has come to serve.
pub enum Start {
    /// On a new socket, or with what systemd has kept.
    Anew(Inheritance, Past),
    /// It has taken over from another one.
    TakenOver { inheritance: Inheritance, pid: u32 },
    /// It was the standby of one that has gone.
    Promoted { inheritance: Inheritance, pid: u32 },
    /// It was a standby, and is not needed any more.
    NotNeeded,
}

/// As it is told behind "ready".
impl fmt::Display for Start {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anew(inheritance, _) if inheritance.store.is_empty() => Ok(()),
            Self::Anew(inheritance, _) => {
                write!(f, "; has {} from systemd", inheritance.store.len())
            }
            Self::NotNeeded => Ok(()),
            Self::TakenOver { inheritance, pid } => {
                write!(f, "; has taken over {} from pid {pid}", inheritance.store.len())
            }
            Self::Promoted { inheritance, pid } => {
                write!(f, "; has {} from pid {pid}, which has gone", inheritance.store.len())
            }
        }
    }
}

/// How long to try again while another daemon is starting or ending at the same place.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long a daemon that serves may take to answer, before it is looked at again whether it
/// is there.
const ANSWER_PATIENCE: Duration = Duration::from_millis(100);

/// How long to wait for room in the queue of a daemon before it is looked at again whether it is
/// there.
const QUEUE_PATIENCE: Duration = Duration::from_secs(1);

/// How long to wait in between.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// How long to leave the path free between two looks: a daemon looks at its file each second.
const FILE_PAUSE: Duration = Duration::from_millis(300);

/// For one that was started to follow another: follows it until there is something to
/// serve. `None` for one that was not.
pub fn by_following(settings: &Settings) -> Result<Option<Start>, Failure> {
    let unable = |error| Failure::new(exit::SYSTEM, format_args!("unable to follow: {error}"));
    let begin = |socket| Follower::begin(socket, settings.room.capacity).map_err(unable);
    // It was started as the user that it is to be.
    let settle = || settings.give_up(&Become::default());
    if let Some(socket) = socket_in(TAKE_OVER_VARIABLE)? {
        let unclosed = unclosed()?;
        settle()?;
        let follower = begin(socket)?;
        // Others may close it from here on.
        drop(unclosed);
        let pid = follower.head().pid;
        // The keeper would serve in its place, but under another pid.
        let inheritance = follower.take_over(None).map_err(unable)?;
        return Ok(Some(Start::TakenOver { inheritance, pid }));
    }
    let Some(socket) = socket_in(FOLLOW_VARIABLE)? else { return Ok(None) };
    // It was started by a path that says nothing of its name, by which people look for it.
    let _ = rustix::thread::set_name(c"fdholder");
    settle()?;
    let follower = begin(socket)?;
    let pid = follower.head().pid;
    match follower.stand_by(settings.signals.term()).map_err(unable)? {
        Some(inheritance) => Ok(Some(Start::Promoted { inheritance, pid })),
        None => Ok(Some(Start::NotNeeded)),
    }
}

/// A connected socket that was left to this process, by the variable that tells its number.
fn socket_in(variable: &str) -> Result<Option<OwnedFd>, Failure> {
    let Some(number) = std::env::var_os(variable) else { return Ok(None) };
    let number = crate::options::number(&number).map_err(|problem| {
        Failure::new(exit::USAGE, format_args!("invalid {variable}: {problem}"))
    })?;
    let socket = inherited::take(number);
    socket.map(Some).map_err(|errno| Failure::system(format!("take the socket {number}"), errno))
}

/// What the program that this process was has left to be closed, and whose it is.
fn unclosed() -> Result<Vec<ClientFd>, Failure> {
    let Ok(all) = std::env::var(UNCLOSED_VARIABLE) else { return Ok(Vec::new()) };
    let taken = all.split(',').filter_map(|one| {
        let (number, owner) = one.split_once(':')?;
        let (number, owner) = (number.parse().ok()?, owner.parse().ok()?);
        Some(inherited::take(number).map(|fd| ClientFd::new(fd, owner)))
    });
    taken.collect::<Result<_, _>>().map_err(|errno| Failure::system("take what is unclosed", errno))
}

/// Listens on a path, or takes over from the fdholder that does; with what systemd has given
/// to this process.
pub fn at(
    listen: &Listen,
    user: &Become,
    settings: &Settings,
    given: Vec<(String, OwnedFd)>,
) -> Result<Start, Failure> {
    let capacity = settings.room.capacity;
    let mut recovered = recover(given, capacity);
    let own_uid = user.uid.unwrap_or_else(|| User::this_process().uid);
    let whose = whose(&recovered, &listen.path, own_uid, settings)?;
    if whose == Whose::Nobodys {
        warn!("what systemd has kept is older than what was held last, and is dropped");
        recovered.drop_what_is_held();
    }
    let Recovered { listener, kept_listeners, roll, store, past } = recovered;
    // Never closed: that would free the lock, also where the same file comes from a predecessor.
    let roll = roll.map(ManuallyDrop::new);
    if whose == Whose::Anothers {
        drop((listener, kept_listeners));
        // It may have changed things since what systemd has given to this process.
        let is_there = || roll.as_ref().is_none_or(|roll| !is_abandoned(&**roll));
        return listen_or_take_over(listen, user, settings, is_there, |_| {
            Err(Failure::new(exit::SYSTEM, GONE))
        });
    }
    let with = |listener, store| Inheritance { store, ..Inheritance::of(listener, capacity) };
    let leads_here = |listener: &OwnedFd| listens_on(listener, &listen.path);
    // That of a socket unit may be newer than the one that was kept; then it is kept from now on.
    let made = listener.filter(leads_here);
    let (listener, past) = match made {
        Some(listener) => (Some(listener), past.without_listener()),
        None => match kept_listeners.into_iter().find(|(_, listener)| leads_here(listener)) {
            Some((name, listener)) => (Some(listener), past.with_listener(name)),
            None => (None, past.without_listener()),
        },
    };
    if let Some(listener) = listener {
        settings.give_up(user)?;
        return Ok(Start::Anew(with(listener, store), past));
    }
    let begin = |listener| Ok(Start::Anew(with(listener, store), past));
    listen_or_take_over(listen, user, settings, || true, begin)
}

/// What is said when systemd is to give what it has by now.
const GONE: &str =
    "the daemon that served has gone before it was taken over from: start this one again";

/// Begins with a new socket on a path; or takes over from the fdholder that is there, as long as
/// it may be.
fn listen_or_take_over(
    listen: &Listen,
    user: &Become,
    settings: &Settings,
    is_there: impl Fn() -> bool,
    begin: impl FnOnce(OwnedFd) -> Result<Start, Failure>,
) -> Result<Start, Failure> {
    let give_up_at = Instant::now() + PATIENCE;
    let path = &listen.path;
    let mut has_become = false;
    // By the path nobody gets in who finds its queue full, or all connections taken.
    let mut by_claim = false;
    loop {
        if !is_there() {
            return Err(Failure::new(exit::SYSTEM, GONE));
        }
        // Made here where a daemon may live whose file is gone.
        let mut made = None;
        let (mut pid, mut uid) = match listen_at(listen) {
            Ok(listener) => {
                let uid = user.uid.unwrap_or_else(|| User::this_process().uid);
                let file = file_at(path);
                let made = made.insert(Made { listener: Some(listener), path, file });
                let is_last = Instant::now() >= give_up_at;
                match made.living_daemon(uid, is_last) {
                    Ok(Some(who)) if listen.reuse => (who.pid, Some(who.user.uid)),
                    Ok(Some(who)) => {
                        let (path, pid, uid) = (path.clone(), who.pid, Some(who.user.uid));
                        return Err(Failure::new(
                            exit::SYSTEM,
                            ListenError::InUse { path, pid, uid },
                        ));
                    }
                    Ok(None) => {
                        if !has_become {
                            settings.give_up(user)?;
                        }
                        if let Some(listener) = made.keep() {
                            return begin(listener);
                        }
                        continue;
                    }
                    Err(failure) if is_last => return Err(failure),
                    Err(_) if settings.signals.is_to_end() => return Err(asked_to_end()),
                    // A living daemon makes its file again meanwhile, if nothing stands there.
                    Err(_) => {
                        made.remove();
                        std::thread::sleep(FILE_PAUSE);
                        continue;
                    }
                }
            }
            Err(ListenError::InUse { pid, uid, .. }) => (pid, uid),
            Err(error) => return Err(Failure::new(exit::SYSTEM, error)),
        };
        // It decides by who we are.
        if !has_become {
            settings.give_up(user)?;
            has_become = true;
        }
        let connected =
            if by_claim || made.is_some() { connect_by_claim(path) } else { connect_by_path(path) };
        if let Ok(Some((who, _))) = &connected {
            (pid, uid) = (who.pid, Some(who.user.uid));
        }
        let stop = settings.signals.term();
        let error = match take_over(connected, settings.room.capacity, stop) {
            Ok(Some((mut inheritance, pid))) => {
                if let Some(listener) = made.as_mut().and_then(Made::keep) {
                    warn!("{} was gone, and is made again", path.display());
                    let former = std::mem::replace(&mut inheritance.listener, listener);
                    inheritance.former.push(former);
                }
                let permissions = Permissions::from_mode(listen.mode);
                if let Err(error) = std::fs::set_permissions(path, permissions) {
                    warn!("{} keeps the mode it has: {error}", path.display());
                }
                return Ok(Start::TakenOver { inheritance, pid });
            }
            // The process that listened there has gone meanwhile, or another one has come; or its queue is full.
            Ok(None) => None,
            Err(
                error @ (FollowError::Gone
                | FollowError::GivenUp
                | FollowError::Refused(Errno::BUSY | Errno::SHUTDOWN | Errno::DQUOT)),
            ) => Some(error),
            Err(error) => return Err(cannot_take_over(path, pid, uid, error)),
        };
        by_claim = !by_claim && matches!(error, None | Some(FollowError::Refused(Errno::DQUOT)));
        if Instant::now() >= give_up_at {
            let error = error.unwrap_or(FollowError::TimedOut);
            return Err(cannot_take_over(path, pid, uid, error));
        }
        if settings.signals.is_to_end() {
            return Err(asked_to_end());
        }
        std::thread::sleep(RETRY_PAUSE);
    }
}

fn asked_to_end() -> Failure {
    Failure::new(exit::SYSTEM, "asked to end while another one serves")
}

/// A socket that was made, and is removed unless it is kept.
struct Made<'a> {
    listener: Option<OwnedFd>,
    path: &'a Path,
    /// Its device and inode.
    file: Option<(u64, u64)>,
}

fn file_at(path: &Path) -> Option<(u64, u64)> {
    let file = std::fs::symlink_metadata(path).ok()?;
    Some((file.dev(), file.ino()))
}

impl Made<'_> {
    /// It is used; `None` when it was taken before.
    fn keep(&mut self) -> Option<OwnedFd> {
        self.listener.take()
    }

    /// The daemon that serves by the path although its file was gone. Where a claim does not answer, it
    /// is the last time that this is asked, or not.
    fn living_daemon(&self, uid: u32, is_last: bool) -> Result<Option<Credentials>, Failure> {
        let path = self.path.display();
        let unable = |error| Failure::system(format!("see whether a daemon serves {path}"), error);
        let Some(own) = &self.listener else { return Ok(None) };
        let another = || another_listens_by(self.path, own).map_err(unable);
        let (who, is_there) = match claimant(self.path, uid, QUEUE_PATIENCE) {
            Ok(Claimed::By(who, _)) => return Ok(Some(who)),
            Ok(Claimed::ByNobody) => return Ok(None),
            Ok(Claimed::ByStranger(who)) => {
                (format!("another user (uid {}) has", who.user.uid), another()?.unwrap_or(false))
            }
            // It may be anybody's.
            Err(error) if is_last && error.kind() == std::io::ErrorKind::WouldBlock => {
                ("who does not answer has".to_owned(), another()?.unwrap_or(true))
            }
            Err(error) => return Err(unable(error)),
        };
        if !is_there {
            return Ok(None);
        }
        Err(Failure::new(
            exit::SYSTEM,
            format_args!(
                "unable to serve {path}: a daemon serves there whose file is gone, and {who} the \
                 abstract name by which it would be found: end the process that has that name (ss \
                 -xlp shows both), and start this one again"
            ),
        ))
    }

    fn remove(&mut self) {
        // Somebody may have put another in its place since.
        let is_own = self.file.is_none() || file_at(self.path) == self.file;
        if self.listener.take().is_some() && is_own {
            // No daemon, no socket; if it cannot be removed, the next one will.
            let _ = std::fs::remove_file(self.path);
        }
    }
}

impl Drop for Made<'_> {
    fn drop(&mut self) {
        self.remove();
    }
}

/// Who is to serve with what systemd has given back.
#[derive(Debug, PartialEq, Eq)]
enum Whose {
    Ours,
    /// A process that had everything, too, serves. That is taken over from.
    Anothers,
    /// Such a process has served, and is gone.
    Nobodys,
}

/// How long one that has served may be silent, because it becomes another program, or its standby
/// takes its place.
const SILENT_MAX: Duration = Duration::from_secs(3);

fn whose(
    recovered: &Recovered,
    path: &Path,
    own_uid: u32,
    settings: &Settings,
) -> Result<Whose, Failure> {
    // The lock here has gone with the process that took it. Its next program, or its heir, has
    // another.
    let lives = || matches!(claimant(path, own_uid, ANSWER_PATIENCE), Ok(Claimed::By(..)));
    let served_until = Instant::now() + SILENT_MAX;
    // Either it serves, or it is about to begin, or to end: then there is nobody to answer.
    let answers = || {
        let client = Client::connect_negotiated(path, Deadline::after(ANSWER_PATIENCE));
        client.is_ok_and(|client| client.version().is_some())
    };
    let Some(roll) = &recovered.roll else {
        // Whoever has kept something with systemd has its roll there, but for a moment when
        // it has just begun.
        let was_served = recovered.past.has_listener();
        return Ok(if was_served && answers() { Whose::Anothers } else { Whose::Ours });
    };
    loop {
        // Asked before it is ours: it may be the predecessor's again.
        if is_undecided(roll) && answers() {
            return Ok(Whose::Anothers);
        }
        match may_recover(roll).map_err(|errno| Failure::system("see who may serve", errno))? {
            Some(true) => return Ok(Whose::Ours),
            Some(false) if answers() || lives() => return Ok(Whose::Anothers),
            Some(false) if Instant::now() >= served_until => return Ok(Whose::Nobodys),
            None if answers() => return Ok(Whose::Anothers),
            None if settings.signals.is_to_end() => {
                return Err(Failure::new(exit::SYSTEM, "asked to end while another one serves"));
            }
            Some(false) | None => std::thread::sleep(RETRY_PAUSE),
        }
    }
}

/// Whether a listening socket is the one that a path leads to.
fn listens_on(listener: &OwnedFd, path: &Path) -> bool {
    let bound = rustix::net::getsockname(listener).ok();
    let bound = bound.and_then(|address| rustix::net::SocketAddrUnix::try_from(address).ok());
    let same = |bound: &std::ffi::CStr| Path::new(OsStr::from_bytes(bound.to_bytes())) == path;
    bound.is_some_and(|address| address.path().is_some_and(|bound| same(&bound)))
        && leads_to(path, listener)
}

/// Whether clients come in here by a path. Another socket may have been put there since, be it
/// that nobody listens on that.
fn leads_to(path: &Path, listener: &OwnedFd) -> bool {
    match connect_to(path, Some(Duration::ZERO)) {
        // Who has connected waits to be let in, which the listening socket tells at once.
        Ok(_client) => {
            let mut waiting = [PollFd::new(listener, PollFlags::IN)];
            poll(&mut waiting, Some(&Timespec::default())).is_ok_and(|count| count > 0)
        }
        // There are too many already.
        Err(Errno::AGAIN) => true,
        Err(_) => false,
    }
}

/// A daemon that this is connected with; `None` when there is none, or none that can be had now.
type Connected = Result<Option<(Credentials, OwnedFd)>, FollowError>;

fn connect_by_path(path: &Path) -> Connected {
    match connect_to(path, Some(QUEUE_PATIENCE)) {
        Ok(socket) => Ok(Some((credentials::of_peer(&socket)?, socket))),
        Err(Errno::CONNREFUSED | Errno::NOENT | Errno::AGAIN) => Ok(None),
        Err(errno) => Err(FollowError::System(errno)),
    }
}

fn connect_by_claim(path: &Path) -> Connected {
    let uid = User::this_process().uid;
    match claimant(path, uid, QUEUE_PATIENCE) {
        // By the claim only its own user gets in.
        Ok(Claimed::By(who, _)) if who.user.uid != uid => Err(FollowError::Refused(Errno::PERM)),
        Ok(Claimed::By(who, socket)) => Ok(Some((who, socket))),
        // It is tried again, or by the path.
        Ok(Claimed::ByNobody | Claimed::ByStranger(_)) | Err(_) => Ok(None),
    }
}

/// Takes over from a daemon; `None` when there is none any more.
fn take_over(
    connected: Connected,
    capacity: usize,
    stop: BorrowedFd<'_>,
) -> Result<Option<(Inheritance, u32)>, FollowError> {
    let Some((who, socket)) = connected? else { return Ok(None) };
    // One that began to listen as root may have become another user since.
    if ![User::this_process().uid, 0].contains(&who.user.uid) {
        return Err(FollowError::Refused(Errno::PERM));
    }
    let follower = Follower::begin(socket, capacity)?;
    let pid = follower.head().pid;
    Ok(Some((follower.take_over(Some(stop))?, pid)))
}

fn cannot_take_over(
    path: &Path,
    pid: Option<i32>,
    uid: Option<u32>,
    error: FollowError,
) -> Failure {
    let who = match (pid, uid) {
        (Some(pid), Some(uid)) => format!("pid {pid}, uid {uid}"),
        (None, Some(uid)) => format!("uid {uid}"),
        (_, None) => "its queue is full".to_owned(),
    };
    let advice = match error {
        FollowError::NoFdholder | FollowError::TooOld => {
            "choose another path, carry over what it holds with fdholder transferdump, then stop it"
        }
        _ => "stop it first, or choose another path",
    };
    Failure::new(
        exit::SYSTEM,
        format_args!(
            "unable to take over {}: a daemon listens there ({who}), and {error}: {advice}",
            path.display()
        ),
    )
}
