//! `exec --notify`: the socket by which a program that was written for systemd talks to the
//! holder. How the holder reads it is in `fdholder-daemon`, `notify.rs`.

use crate::endpoint::{is_bound, leads, Leads, Mode};
use crate::failure::{exit, Failure};
use crate::passing::{is_fd_name, natural, stand_in, Passed};
use fdholder::environ::Variable;
use fdholder::{Cause, Client, Deadline, Errno, Error, Identifier, Limit};
use fdholder_daemon::access::User;
use fdholder_daemon::listen::{listen_at, Listen};
use fdholder_daemon::notify::{fd_name, service_of, status_id};
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::net::sockopt::set_socket_passcred;
use rustix::net::{
    connect, getsockname, socket_with, AddressFamily, SocketAddrUnix, SocketFlags, SocketType,
};
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The socket of a service, which the holder reads.
#[derive(Debug)]
pub struct FrontDoor {
    service: Vec<u8>,
    /// What `NOTIFY_SOCKET` says.
    address: OsString,
    /// How many descriptors the holder can hold.
    room: u32,
}

/// What is said of the socket itself.
#[derive(Debug)]
pub struct Wanted {
    pub path: Option<PathBuf>,
    pub mode: Option<Mode>,
    pub owner: Option<User>,
}

impl FrontDoor {
    /// Finds the door of a service, or makes one. What the service has said of itself when
    /// it ran last is forgotten.
    ///
    /// # Errors
    ///
    /// When the holder is no fdholder, which would not read it; or does not let us.
    pub fn open(
        holder: &mut Client,
        service: &OsStr,
        wanted: &Wanted,
        at: &Path,
        deadline: Deadline,
    ) -> Result<Self, Failure> {
        if holder.version().is_none_or(|version| version < VERSION_WITH_DOORS) {
            return Err(takes_fdholder());
        }
        let service = service.as_bytes().to_vec();
        let id = door_id(&service)?;
        let held = match holder.retrieve(&id, deadline) {
            Ok(door) => Some(door),
            Err(error) if is(&error, Errno::NOENT) => None,
            Err(error) => return Err(error.into()),
        };
        let known = held.as_ref().and_then(address_of);
        let at_its_place = held.as_ref().zip(known.as_ref());
        // What is there may be somebody else's by now.
        let is_here =
            at_its_place.is_some_and(|(door, path)| leads(path, door.as_fd()) == Leads::Here);
        let is_of_use = |known: &PathBuf| {
            is_here
                && wanted.path.as_ref().is_none_or(|path| path == known)
                && is_as_wanted(known, wanted)
                && held.as_ref().is_some_and(is_open)
        };
        let address = if let Some(known) = known.clone().filter(is_of_use) {
            known
        } else {
            let path = wanted.path.clone().or_else(|| known.clone());
            let path = path.unwrap_or_else(|| beside(at, &service));
            let path = std::path::absolute(&path)
                .map_err(|error| Failure::system(format!("find {}", path.display()), error))?;
            if is_here && known.as_ref() == Some(&path) {
                // Clients that know this socket's address find the new one there.
                remove(&path)?;
            }
            make(holder, &id, &path, wanted, deadline)?;
            drop(held);
            if let Some(old) = known.filter(|old| is_here && *old != path) {
                remove_dead(&old);
            }
            path
        };
        let status = status_id(&service).ok_or_else(too_long)?;
        match holder.delete(&status, deadline) {
            Err(error) if is(&error, Errno::NOENT) => {}
            result => result?,
        }
        let room = holder.snapshot(false, deadline)?.capacity;
        Ok(Self { service, address: address.into_os_string(), room })
    }

    /// The door of a service that is open already, where programs are to send to another address.
    ///
    /// # Errors
    ///
    /// Those of asking the holder.
    pub fn behind(
        address: OsString,
        holder: &mut Client,
        service: &OsStr,
        deadline: Deadline,
    ) -> Result<Self, Failure> {
        let room = holder.snapshot(false, deadline)?.capacity;
        Ok(Self { service: service.as_bytes().to_vec(), address, room })
    }

    /// Where the holder reads.
    pub fn address(&self) -> &OsStr {
        &self.address
    }

    /// What the service has stored, in the order of its identifiers, by the names that it
    /// has given.
    ///
    /// # Errors
    ///
    /// EPERM without the right to list, or to retrieve them.
    pub fn stored(
        &self,
        holder: &mut Client,
        deadline: Deadline,
    ) -> Result<Vec<Passed<OwnedFd>>, Failure> {
        let mut ids = holder.list(deadline)?;
        // What is below another service's door is that service's.
        let others: Vec<_> = ids.iter().filter_map(service_of).map(<[u8]>::to_vec).collect();
        let is_others = |id: &Identifier| {
            let below =
                |other: &Vec<u8>| other.len() > self.service.len() && fd_name(other, id).is_some();
            others.iter().any(below)
        };
        ids.retain(|id| fd_name(&self.service, id).is_some() && !is_others(id));
        ids.sort_by(|a, b| natural(a.as_bytes(), b.as_bytes()));
        let mut passed = Vec::with_capacity(ids.len());
        for id in ids {
            let fd = match holder.retrieve(&id, deadline) {
                Ok(fd) => fd,
                // It has gone since.
                Err(error) if is(&error, Errno::NOENT) => continue,
                Err(error) => return Err(error.into()),
            };
            let name = fd_name(&self.service, &id).unwrap_or_default();
            passed.push(Passed { fd, name: own_name(name), id, is_named: false, number: None });
        }
        Ok(passed)
    }

    /// What PROG would be refused if it becomes the owner of its socket; `None` also where that
    /// cannot be known.
    pub fn refused(
        &self,
        holder: &mut Client,
        owner: User,
        deadline: Deadline,
    ) -> Option<Identifier> {
        let ids = ["stored", ".status"].map(|name| {
            let id = [&self.service[..], b"/", name.as_bytes()].concat();
            Identifier::new(id).ok()
        });
        // Only root and the holder's own user are told, and not by older holders.
        let may = |holder: &mut Client, id: &Identifier| {
            holder.may_store(owner.uid, owner.gid, id, deadline).unwrap_or(true)
        };
        ids.into_iter().flatten().find(|id| !may(holder, id))
    }

    /// What tells the program of the door.
    pub fn variables(self) -> [Variable; 2] {
        // systemd says by the latter that there is a store at all.
        [
            ("NOTIFY_SOCKET".to_owned(), Some(self.address)),
            ("FDSTORE".to_owned(), Some(self.room.to_string().into())),
        ]
    }
}

/// The holder does not read doors.
pub fn takes_fdholder() -> Failure {
    let problem = "--notify takes a fdholder of this version: that holder is another";
    Failure::new(exit::DENIED, problem)
}

/// How long to wait until the holder has closed a socket that it holds no longer.
const CLOSE_PATIENCE: Duration = Duration::from_secs(1);

/// The first version of the extensions of a holder that reads doors.
const VERSION_WITH_DOORS: u32 = 3;

/// The name that a service has given, byte for byte; what was stored in another way may have one
/// that cannot stand there.
fn own_name(name: &[u8]) -> String {
    match std::str::from_utf8(name) {
        Ok(name) if is_fd_name(name) => name.to_owned(),
        _ => stand_in(name),
    }
}

fn is(error: &Error, errno: Errno) -> bool {
    matches!(error.cause(), Cause::Denied(denied) if denied == errno)
}

fn too_long() -> Failure {
    Failure::new(exit::USAGE, "the NAME of --notify is too long for an id")
}

fn door_id(service: &[u8]) -> Result<Identifier, Failure> {
    let id = Identifier::new([service, b"/.notify"].concat()).map_err(|_| too_long())?;
    if service_of(&id).is_none() {
        return Err(Failure::new(exit::USAGE, "the NAME of --notify is empty"));
    }
    Ok(id)
}

/// Where a door is, if it still is where it was made.
fn address_of(door: &OwnedFd) -> Option<PathBuf> {
    let address = SocketAddrUnix::try_from(getsockname(door).ok()?).ok()?;
    let path = PathBuf::from(OsString::from_vec(address.path_bytes()?.to_vec()));
    let is_socket = std::fs::symlink_metadata(&path).is_ok_and(|it| it.file_type().is_socket());
    is_socket.then_some(path)
}

/// Whether this user can send to a socket that is there, and it has the mode and owner that were
/// asked for. If not, it is made anew: neither can be changed without following what may stand in
/// its place by then, and its owner may be the user of the last start (`DynamicUser=`).
fn is_as_wanted(path: &Path, wanted: &Wanted) -> bool {
    let Ok(meta) = std::fs::symlink_metadata(path) else { return false };
    let has_mode = wanted.mode.is_none_or(|Mode(mode)| meta.mode() & 0o7777 == mode);
    let is_owners = |owner: User| (owner.uid, owner.gid) == (meta.uid(), meta.gid());
    has_mode && wanted.owner.is_none_or(is_owners) && try_to_send(path).is_ok()
}

/// Whether everybody can send to a door, and the holder is told who does. A program that shares it
/// may have shut it down or connected it, or asked for no senders: that is asked for again.
fn is_open(door: &OwnedFd) -> bool {
    let mut polled = [PollFd::new(door, PollFlags::RDHUP)];
    let is_shut = poll(&mut polled, Some(&Timespec::default())) != Ok(0);
    !is_shut && is_bound(door) && set_socket_passcred(door, true).is_ok()
}

/// Removes a socket that leads nowhere once the holder has closed it, which it may do a moment after
/// it has said so. One that stays is in nobody's way.
fn remove_dead(path: &Path) {
    let until = Deadline::after(CLOSE_PATIENCE);
    while try_to_send(path) != Err(Errno::CONNREFUSED) {
        if until.passed() {
            return;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let _ = rustix::fs::unlink(path);
}

/// Connects, which takes the same rights as to send.
fn try_to_send(path: &Path) -> Result<(), Errno> {
    let address = SocketAddrUnix::new(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    connect(&socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?, &address)
}

fn remove(path: &Path) -> Result<(), Failure> {
    rustix::fs::unlink(path).map_err(|errno| {
        let path = path.display();
        let problem = format!(
            "unable to make {path} anew, which another user has made, or with another mode: {} \
             (--notify-socket says where else)",
            fdholder::strerror(errno)
        );
        Failure::new(exit::SYSTEM, problem)
    })
}

/// `PATH.NAME.notify`, beside the holder's own socket; in NAME `/` is `%2F`, and `%` is `%25`.
fn beside(holder: &Path, service: &[u8]) -> PathBuf {
    let mut path = holder.as_os_str().to_owned();
    path.push(".");
    path.push(stand_in(service).replace('/', "%2F"));
    path.push(".notify");
    path.into()
}

/// Makes a door, and has the holder read it. Senders are judged one by one; but it is not for
/// everybody to send.
fn make(
    holder: &mut Client,
    id: &Identifier,
    path: &Path,
    wanted: &Wanted,
    deadline: Deadline,
) -> Result<(), Failure> {
    let listen = Listen {
        mode: wanted.mode.map_or(0o600, |Mode(mode)| mode),
        owner: wanted.owner,
        kind: SocketType::DGRAM,
        ..Listen::stream_at(path)
    };
    let door = listen_at(&listen).map_err(|error| {
        Failure::new(exit::SYSTEM, format_args!("{error} (--notify-socket says where else)"))
    })?;
    // Also of what comes before the holder reads it, it is to know who has sent it.
    set_socket_passcred(&door, true)
        .map_err(|errno| Failure::system("ask for credentials", errno))?;
    // One that is there leads to where nobody sends any more.
    match holder.delete(id, deadline) {
        Err(error) if is(&error, Errno::NOENT) => {}
        result => result?,
    }
    holder.store(id, Limit::never(), door.as_fd(), deadline)?;
    Ok(())
}
