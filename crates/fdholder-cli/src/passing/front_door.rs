//! `exec --notify`: the socket by which a program that was written for systemd talks to the
//! holder. How the holder reads it is in `fdholder-daemon`, `notify.rs`.

use crate::endpoint::Mode;
use crate::failure::{exit, Failure};
use crate::passing::{natural, stand_in, Passed};
use fdholder::environ::Variable;
use fdholder::{Cause, Client, Deadline, Errno, Error, Identifier, Limit};
use fdholder_daemon::access::User;
use fdholder_daemon::listen::{listen_at, Listen};
use fdholder_daemon::notify::{fd_name, service_of, status_id};
use rustix::net::sockopt::set_socket_passcred;
use rustix::net::{getsockname, SocketAddrUnix, SocketType};
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

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
            let problem = "--notify takes a fdholder of this version: that holder is another";
            return Err(Failure::new(exit::DENIED, problem));
        }
        let service = service.as_bytes().to_vec();
        let id = door_id(&service)?;
        let held = match holder.retrieve(&id, deadline) {
            Ok(door) => Some(door),
            Err(error) if is(&error, Errno::NOENT) => None,
            Err(error) => return Err(error.into()),
        };
        let known = held.and_then(|door| address_of(&door));
        let is_wanted = |known: &PathBuf| wanted.path.as_ref().is_none_or(|path| path == known);
        let address = if let Some(known) = known.filter(is_wanted) {
            known
        } else {
            let path = wanted.path.clone().unwrap_or_else(|| beside(at, &service));
            make(holder, &id, &path, wanted, deadline)?
        };
        let status = status_id(&service).ok_or_else(too_long)?;
        match holder.delete(&status, deadline) {
            Err(error) if is(&error, Errno::NOENT) => {}
            result => result?,
        }
        let room = holder.snapshot(false, deadline)?.capacity;
        Ok(Self { service, address: address.into_os_string(), room })
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
            let name = stand_in(name);
            passed.push(Passed { fd, id, name, number: None });
        }
        Ok(passed)
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

/// The first version of the extensions of a holder that reads doors.
const VERSION_WITH_DOORS: u32 = 3;

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
    let is_socket = std::fs::metadata(&path).is_ok_and(|meta| meta.file_type().is_socket());
    is_socket.then_some(path)
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
) -> Result<PathBuf, Failure> {
    let path = std::path::absolute(path)
        .map_err(|error| Failure::system(format!("find {}", path.display()), error))?;
    let listen = Listen {
        mode: wanted.mode.map_or(0o600, |Mode(mode)| mode),
        owner: wanted.owner,
        kind: SocketType::DGRAM,
        ..Listen::stream_at(&path)
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
    Ok(path)
}
