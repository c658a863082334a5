//! The socket a holder listens on: made at a path, or inherited.

use crate::access::User;
use crate::clock;
use crate::confinement::explain;
use crate::credentials;
use rustix::fs::{
    chown, flock, lstat, open, unlink, FileType, FlockOperation, Gid, Mode, OFlags, Uid,
};
use rustix::io::{ioctl_fionbio, Errno};
use rustix::net::sockopt::{
    set_socket_timeout, socket_acceptconn, socket_domain, socket_type, Timeout,
};
use rustix::net::{
    bind, connect, listen, socket_with, AddressFamily, SocketAddrUnix, SocketFlags, SocketType,
};
use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Connections that wait in the kernel until they are accepted, by default. The kernel
/// lowers it to `net.core.somaxconn`.
pub const BACKLOG_DEFAULT: i32 = 4096;

/// How long to wait for another daemon that is just binding in the same folder.
const LOCK_WAIT: Duration = Duration::from_secs(1);

/// How a listening socket is made.
#[derive(Debug, Clone)]
pub struct Listen {
    /// Where.
    pub path: PathBuf,
    /// Connections that wait in the kernel at most.
    pub backlog: i32,
    /// Who may connect, as far as the file system decides: 0o777 leaves it to the access
    /// rules, 0o600 to the owner.
    pub mode: u32,
    /// Replace the socket of a daemon that is gone.
    pub reuse: bool,
    /// Give the socket to this user, for a daemon that drops privileges afterwards.
    pub owner: Option<User>,
    /// What kind of socket. One for datagrams is bound, but nothing listens.
    pub kind: SocketType,
    /// Whether accept(2) and recv(2) on it fail with EAGAIN rather than wait.
    pub nonblocking: bool,
    /// How long to wait for another daemon that is just binding in the same folder.
    pub patience: Duration,
}

impl Listen {
    /// A daemon's own socket: a stream, in the place of one that is dead.
    pub fn stream_at(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            backlog: BACKLOG_DEFAULT,
            mode: 0o600,
            reuse: true,
            owner: None,
            kind: SocketType::STREAM,
            nonblocking: true,
            patience: LOCK_WAIT,
        }
    }
}

/// Why there is no listening socket.
#[derive(Debug)]
pub enum ListenError {
    /// A system call failed.
    System {
        /// What it was for, to read behind "unable to".
        doing: String,
        /// Its errno.
        errno: Errno,
    },
    /// A daemon listens there already.
    InUse {
        /// Where.
        path: PathBuf,
        /// Its process, if the kernel tells.
        pid: Option<i32>,
        /// Its user, if it could be asked: not while its queue is full.
        uid: Option<u32>,
    },
    /// Something that is no socket is there.
    NotASocket(PathBuf),
}

impl ListenError {
    fn system(doing: impl Into<String>) -> impl FnOnce(Errno) -> Self {
        let doing = doing.into();
        |errno| Self::System { doing, errno }
    }
}

impl fmt::Display for ListenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::System { doing, errno } => {
                write!(f, "unable to {doing}: {}", explain(*errno))?;
                if *errno == Errno::NAMETOOLONG {
                    f.write_str(" (the path of a socket has at most 107 bytes)")?;
                }
                Ok(())
            }
            Self::InUse { path, pid, uid } => {
                write!(f, "unable to bind to {}: a daemon listens there (", path.display())?;
                match (pid, uid) {
                    (Some(pid), Some(uid)) => write!(f, "pid {pid}, uid {uid})")?,
                    // Nobody listens to datagrams, so there is nobody to name.
                    (_, Some(u32::MAX)) => f.write_str("by datagrams)")?,
                    (_, Some(uid)) => write!(f, "uid {uid})")?,
                    (_, None) => f.write_str("its queue is full)")?,
                }
                f.write_str(": stop it first, or choose another path")
            }
            Self::NotASocket(path) => write!(
                f,
                "unable to bind to {path}: it is there and no socket: remove it, or choose \
                 another path",
                path = path.display()
            ),
        }
    }
}

impl std::error::Error for ListenError {}

/// Makes a listening socket.
///
/// A socket that nobody listens on any more is replaced, if `reuse` allows; one that a
/// daemon still listens on is left alone, and so is anything that is no socket. Two
/// daemons that start at once take turns.
///
/// # Errors
///
/// [`ListenError`].
pub fn listen_at(wanted: &Listen) -> Result<OwnedFd, ListenError> {
    listen_at_prepared(wanted, |_| Ok(()))
}

/// The same, with a socket that the caller prepares before it is bound.
///
/// # Errors
///
/// [`ListenError`], and those of `prepare`.
pub fn listen_at_prepared<E: From<ListenError>>(
    wanted: &Listen,
    prepare: impl FnOnce(&OwnedFd) -> Result<(), E>,
) -> Result<OwnedFd, E> {
    let Listen { path, backlog, mode, reuse, owner, kind, nonblocking, patience } = wanted;
    let doing = || format!("bind to {}", path.display());
    let address = SocketAddrUnix::new(path).map_err(ListenError::system(doing()))?;
    // What is looked at must still be true when it is acted upon.
    let _turn = lock_folder_of(path, *patience);
    if *reuse {
        remove_dead(path, &address, *kind)?;
    }
    let waits = if *nonblocking { SocketFlags::NONBLOCK } else { SocketFlags::empty() };
    let socket = socket_with(AddressFamily::UNIX, *kind, SocketFlags::CLOEXEC | waits, None)
        .map_err(ListenError::system("create a socket"))?;
    prepare(&socket)?;
    let mode = Mode::from_raw_mode(*mode);
    let umask = rustix::process::umask(Mode::RWXU.union(Mode::RWXG).union(Mode::RWXO) - mode);
    let bound = bind(&socket, &address);
    rustix::process::umask(umask);
    bound.map_err(ListenError::system(doing()))?;
    let finish = || {
        if let Some(User { uid, gid }) = *owner {
            chown(path, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
                .map_err(ListenError::system(format!("give {} to uid {uid}", path.display())))?;
        }
        if *kind != SocketType::DGRAM {
            listen(&socket, *backlog)
                .map_err(ListenError::system(format!("listen to {}", path.display())))?;
        }
        Ok::<(), ListenError>(())
    };
    if let Err(error) = finish() {
        // It leads nowhere.
        let _ = unlink(path);
        return Err(error.into());
    }
    Ok(socket)
}

/// Connects with the process that listens on a path. If its queue is full, waits for room for so
/// long, or for as long as it takes.
///
/// # Errors
///
/// Those of connect(2). EAGAIN: the queue was full all the time.
pub fn connect_to(path: &Path, patience: Option<Duration>) -> Result<OwnedFd, Errno> {
    connect_to_address(&SocketAddrUnix::new(path)?, patience)
}

/// The same for an address.
pub(crate) fn connect_to_address(
    address: &SocketAddrUnix,
    patience: Option<Duration>,
) -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // No time is no limit to the kernel.
    let patience = patience.map(|patience| patience.max(Duration::from_millis(1)));
    if set_socket_timeout(&socket, Timeout::Send, patience).is_err() {
        ioctl_fionbio(&socket, true)?;
    }
    connect(&socket, address)?;
    ioctl_fionbio(&socket, true)?;
    Ok(socket)
}

/// Whether a process still has the socket that a path leads to. It notices nothing of this: the
/// kernel looks for the socket before it compares the kinds.
///
/// # Errors
///
/// Those of connect(2) that leave it open.
pub fn is_bound(path: &Path) -> Result<bool, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let probe = socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
    match connect(&probe, &SocketAddrUnix::new(path)?) {
        Ok(()) | Err(Errno::PROTOTYPE) => Ok(true),
        Err(Errno::CONNREFUSED) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Checks that an inherited descriptor is a listening Unix stream socket.
///
/// # Errors
///
/// What it is instead.
pub fn check_inherited(socket: impl AsFd) -> Result<(), &'static str> {
    let socket = socket.as_fd();
    if socket_domain(socket) != Ok(AddressFamily::UNIX) {
        return Err("not a Unix-domain socket");
    }
    if socket_type(socket) != Ok(SocketType::STREAM) {
        return Err("not a stream socket");
    }
    if socket_acceptconn(socket) != Ok(true) {
        return Err("not a listening socket");
    }
    Ok(())
}

/// Holds the folder's lock until it is dropped. A lock on the folder itself leaves no
/// file behind; but whoever may read the folder may hold it, so it is not waited for for
/// long, and without it only two daemons that start at the same moment can collide.
fn lock_folder_of(path: &Path, patience: Duration) -> Option<OwnedFd> {
    let folder = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let lock = open(folder, flags, Mode::empty()).ok()?;
    let give_up = Instant::now() + patience;
    while flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        if Instant::now() >= give_up {
            return None;
        }
        clock::pause(Duration::from_millis(10));
    }
    Some(lock)
}

/// Removes the socket at `path` if nobody listens on it.
fn remove_dead(path: &Path, address: &SocketAddrUnix, kind: SocketType) -> Result<(), ListenError> {
    match lstat(path) {
        Err(_) => return Ok(()), // What is wrong with the path, bind will say.
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) != FileType::Socket => {
            return Err(ListenError::NotASocket(path.to_owned()));
        }
        Ok(_) => {}
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let probe = socket_with(AddressFamily::UNIX, kind, flags, None)
        .map_err(ListenError::system("create a socket"))?;
    match connect(&probe, address) {
        Err(Errno::CONNREFUSED) => {
            unlink(path).map_err(ListenError::system(format!("remove {}", path.display())))
        }
        // Its queue is full, so there is one.
        Err(Errno::AGAIN) => {
            Err(ListenError::InUse { path: path.to_owned(), pid: None, uid: None })
        }
        Ok(()) => {
            let owner = credentials::of_peer(&probe)
                .map_err(ListenError::system(format!("see who listens on {}", path.display())))?;
            let (pid, uid) = (owner.pid, Some(owner.user.uid));
            Err(ListenError::InUse { path: path.to_owned(), pid, uid })
        }
        Err(errno) => {
            Err(ListenError::system(format!("see who listens on {}", path.display()))(errno))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::{UnixListener, UnixStream};

    fn at(path: &Path) -> Listen {
        Listen { backlog: 8, ..Listen::stream_at(path) }
    }

    #[test]
    fn a_dead_socket_is_replaced_a_living_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        drop(UnixListener::bind(&path).unwrap());
        let without_reuse = Listen { reuse: false, ..at(&path) };
        assert!(matches!(
            listen_at(&without_reuse),
            Err(ListenError::System { errno: Errno::ADDRINUSE, .. })
        ));
        let listener = listen_at(&at(&path)).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        check_inherited(&listener).unwrap();
        let own = i32::try_from(std::process::id()).unwrap();
        let error = listen_at(&at(&path)).unwrap_err();
        assert!(matches!(error, ListenError::InUse { pid: Some(pid), .. } if pid == own));
        UnixStream::connect(&path).unwrap();
    }

    /// A daemon whose queue is full is taken over from, once there is room in the queue.
    #[test]
    fn connect_to_a_full_queue_waits_for_room() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = listen_at(&Listen { backlog: 0, nonblocking: false, ..at(&path) }).unwrap();
        let short = Duration::from_millis(20);
        let waiting = connect_to(&path, Some(short)).unwrap();
        assert_eq!(connect_to(&path, Some(short)).unwrap_err(), Errno::AGAIN);
        let listener = UnixListener::from(listener);
        std::thread::scope(|scope| {
            let connected = scope.spawn(|| connect_to(&path, Some(Duration::from_secs(60))));
            let (_first, _) = listener.accept().unwrap();
            let (_second, _) = listener.accept().unwrap();
            let socket = connected.join().unwrap().unwrap();
            // Nothing waits on it later.
            let flags = rustix::fs::fcntl_getfl(&socket).unwrap();
            assert!(flags.contains(OFlags::NONBLOCK));
        });
        drop(waiting);
    }

    #[test]
    fn whose_a_full_queue_is_is_not_made_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let _listener = listen_at(&Listen { backlog: 0, ..at(&path) }).unwrap();
        let _waiting = UnixStream::connect(&path).unwrap();
        let error = listen_at(&at(&path)).unwrap_err();
        assert!(matches!(error, ListenError::InUse { pid: None, uid: None, .. }), "{error:?}");
        assert!(error.to_string().contains("a daemon listens there (its queue is full)"));
    }

    #[test]
    fn bound_socket_is_told_from_a_dead_one_without_connecting() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        assert_eq!(is_bound(&path), Err(Errno::NOENT));
        let listener = UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        assert_eq!(is_bound(&path), Ok(true));
        assert!(listener.accept().is_err(), "it has noticed");
        drop(listener);
        assert_eq!(is_bound(&path), Ok(false));
    }

    #[test]
    fn what_is_no_socket_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(listen_at(&at(&path)), Err(ListenError::NotASocket(_))));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn inherited_sockets_are_checked() {
        let (stream, _other) = UnixStream::pair().unwrap();
        assert_eq!(check_inherited(&stream), Err("not a listening socket"));
        let file = fs::File::open("/dev/null").unwrap();
        assert_eq!(check_inherited(&file), Err("not a Unix-domain socket"));
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        assert_eq!(check_inherited(&tcp), Err("not a Unix-domain socket"));
    }
}
