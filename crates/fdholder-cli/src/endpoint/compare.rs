//! What is held, compared with what was asked for: the whole of it, and what to do about each
//! difference. `bind`, `--config` and SIGHUP act on the same result.

use super::address::{has_scope, is_same_place, leads, Leads};
use super::diag::accept_queue;
use super::open::{backlog, create};
use super::options::{EndpointOptions, Mode, Value};
use super::table::{has_lost_its_device, How, Kind, Reading, Row, ROWS};
use super::{Endpoint, IpProtocol, UnixAddress, UnixKind};
use crate::sockopt::{get_int, network_namespace, IntOption};
use fdholder_daemon::access::User;
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::fs::{
    fcntl_get_seals, fcntl_getfl, statx, AtFlags, FileType, OFlags, Statx, StatxFlags, CWD,
};
use rustix::net::getpeername;
use rustix::net::sockopt::{socket_acceptconn, socket_domain, socket_type};
use rustix::net::{AddressFamily, SocketType};
use std::ffi::OsStr;
use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Which buffers have a size that was set, rather than the kernel's: socket(7).
pub const BUF_LOCK: IntOption = (libc::SOL_SOCKET, 72);

/// One thing that is held otherwise than it was asked for.
#[derive(Debug, Clone)]
pub struct Difference {
    pub name: &'static str,
    /// As it is, and as it was asked for; empty where the name says it.
    pub is: String,
    pub wanted: String,
    /// It was asked for; otherwise it is what the system would have.
    pub is_asked: bool,
    pub remedy: Remedy,
}

/// What to do about it.
#[derive(Debug, Clone)]
pub enum Remedy {
    /// The option is set.
    Set(&'static Row, Reading),
    Backlog(i32),
    /// It listens again, where it did.
    Listen(i32),
    /// It takes from everybody again, not from one peer.
    Disconnect,
    Mode(u32),
    Owner(User),
    /// None; it is said.
    Say,
    /// No client gets to it any more: another one takes its place.
    Lost,
    /// Another one takes its place, if that is asked for.
    Replace,
}

impl Difference {
    /// One whose name says it all.
    fn of(name: &'static str, remedy: Remedy) -> Self {
        let (is, wanted) = (String::new(), String::new());
        Self { name, is, wanted, is_asked: true, remedy }
    }

    fn between(
        name: &'static str,
        is: impl fmt::Display,
        wanted: impl fmt::Display,
        remedy: Remedy,
    ) -> Self {
        let (is, wanted) = (is.to_string(), wanted.to_string());
        Self { name, is, wanted, is_asked: true, remedy }
    }
}

/// To read behind "with ".
impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is.is_empty() {
            return f.write_str(self.name);
        }
        write!(f, "{} {}, not {}", self.name, self.is, self.wanted)
    }
}

/// It is another thing, or elsewhere: then nothing else is compared.
const KIND: &str = "another kind";
const ADDRESS: &str = "another address";

/// Compares a held descriptor with what would be opened.
pub fn compare(endpoint: &Endpoint, options: &EndpointOptions, held: impl AsFd) -> Vec<Difference> {
    let held = held.as_fd();
    let other = match endpoint {
        Endpoint::Fifo(path) => fifo(path, held),
        Endpoint::Memfd(name) => {
            (!is_memfd(held, name)).then(|| Difference::of(KIND, Remedy::Replace))
        }
        _ => other_socket(endpoint, held).or_else(|| lost(endpoint, held)),
    };
    let mut differences: Vec<_> = other.into_iter().collect();
    if differences.iter().any(|it| !matches!(it.remedy, Remedy::Say)) {
        return differences;
    }
    differences.extend(reach(endpoint, options, held));
    if endpoint.file().is_some() {
        differences.extend(file(endpoint, options, held));
    }
    let mut fresh = create(endpoint).ok();
    let rows = ROWS.iter().filter(|row| row.suits(endpoint) && row.how != How::Otherwise);
    differences.extend(rows.filter_map(|row| option(row, endpoint, options, held, &mut fresh)));
    differences
}

/// What is of another kind, or at another address.
fn other_socket(endpoint: &Endpoint, held: BorrowedFd<'_>) -> Option<Difference> {
    if !is_of_kind(endpoint, held) {
        return Some(Difference::of(KIND, Remedy::Replace));
    }
    if let Endpoint::Ip { protocol, .. } = endpoint {
        let wanted = number_of(*protocol);
        let is = get_int(held, (libc::SOL_SOCKET, libc::SO_PROTOCOL)).ok();
        if let Some(is) = is.filter(|is| *is != wanted) {
            let name = |number| match number {
                libc::IPPROTO_TCP => "tcp".to_owned(),
                libc::IPPROTO_MPTCP => "mptcp".to_owned(),
                libc::IPPROTO_UDP => "udp".to_owned(),
                number => number.to_string(),
            };
            let (is, wanted) = (name(is), name(wanted));
            return Some(Difference::between("protocol", is, wanted, Remedy::Replace));
        }
    }
    if !endpoint.is_address_of(held) {
        return Some(Difference::of(ADDRESS, Remedy::Replace));
    }
    // A path leads to a socket from any of them.
    if endpoint.file().is_none() {
        let own = create(endpoint).ok().and_then(|socket| network_namespace(socket).ok());
        let held = network_namespace(held).ok();
        if own.zip(held).is_some_and(|(own, held)| own != held) {
            let text = "another network namespace";
            return Some(Difference::of(text, Remedy::Replace));
        }
    }
    None
}

pub fn number_of(protocol: IpProtocol) -> i32 {
    match protocol {
        IpProtocol::Tcp => libc::IPPROTO_TCP,
        IpProtocol::Mptcp => libc::IPPROTO_MPTCP,
        IpProtocol::Udp => libc::IPPROTO_UDP,
    }
}

fn is_of_kind(endpoint: &Endpoint, held: BorrowedFd<'_>) -> bool {
    let (domain, kind) = (socket_domain(held).ok(), socket_type(held).ok());
    let is =
        |wanted_domain, wanted_kind| domain == Some(wanted_domain) && kind == Some(wanted_kind);
    // A listener has no peer, whether it listens or not.
    let is_connection =
        kind != Some(SocketType::DGRAM) && getpeername(held).is_ok_and(|peer| peer.is_some());
    let is_kind = match endpoint {
        Endpoint::Ip { protocol, address } => is(
            if address.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET },
            match protocol {
                IpProtocol::Udp => SocketType::DGRAM,
                IpProtocol::Tcp | IpProtocol::Mptcp => SocketType::STREAM,
            },
        ),
        Endpoint::Unix { kind, .. } => is(AddressFamily::UNIX, kind.socket_type()),
        Endpoint::Vsock { .. } => is(AddressFamily::VSOCK, SocketType::STREAM),
        Endpoint::Fifo(_) | Endpoint::Memfd(_) => false,
    };
    is_kind && !is_connection
}

/// Why no client gets to it any more, where only another one helps.
fn lost(endpoint: &Endpoint, held: BorrowedFd<'_>) -> Option<Difference> {
    let lost = |text| Some(Difference::of(text, Remedy::Lost));
    let mut unsure = None;
    if let Endpoint::Unix { address: UnixAddress::Path(path), .. } = endpoint {
        match leads(path, held) {
            Leads::Here => {}
            Leads::PerhapsHere => {
                let text = "unable to see whether its file still leads to it";
                unsure = Some(Difference::of(text, Remedy::Say));
            }
            Leads::Elsewhere => return lost("its file leads to another socket"),
            Leads::ToNoSocket => return lost("something else is in the place of its file"),
            Leads::Nowhere => return lost("its file was removed"),
        }
    }
    if matches!(endpoint, Endpoint::Ip { .. }) && has_lost_its_device(held) {
        return lost("its interface was removed");
    }
    // Of TCP, listen(2) ends that.
    let is_tcp =
        matches!(endpoint, Endpoint::Ip { protocol: IpProtocol::Tcp | IpProtocol::Mptcp, .. });
    let mut polled = [PollFd::new(&held, PollFlags::RDHUP)];
    let shut_down = PollFlags::RDHUP | PollFlags::HUP;
    let is_shut_down = poll(&mut polled, Some(&Timespec::default())).is_ok()
        && polled[0].revents().intersects(shut_down);
    // What was bound and never listened hangs up, too.
    let waits = !endpoint.is_listener() || socket_acceptconn(held) == Ok(true);
    if is_shut_down && waits && !is_tcp {
        return lost("it was shut down");
    }
    unsure
}

/// What keeps clients from it, and is set right on the socket.
fn reach(
    endpoint: &Endpoint,
    options: &EndpointOptions,
    held: BorrowedFd<'_>,
) -> Option<Difference> {
    let backlog = backlog(options);
    if !endpoint.is_listener() {
        let is_datagram = matches!(
            endpoint,
            Endpoint::Unix { kind: UnixKind::Datagram, .. } | Endpoint::Ip { .. }
        );
        let is_connected = is_datagram && getpeername(held).is_ok_and(|peer| peer.is_some());
        return is_connected.then(|| Difference::of("connected to one peer", Remedy::Disconnect));
    }
    if socket_acceptconn(held) != Ok(true) {
        return Some(Difference::of("not listening", Remedy::Listen(backlog)));
    }
    let is_asked = options.get("backlog").is_some();
    let wanted = backlog.cast_unsigned();
    let (name, remedy) = ("backlog", Remedy::Backlog(backlog));
    let difference = match accept_queue(held) {
        // A server may have lengthened what nobody has asked for.
        Some((_, most)) if most == wanted || (!is_asked && most > wanted) => return None,
        Some((_, most)) => Difference::between(name, most, wanted, remedy),
        None if is_asked => Difference::between(name, "unknown", wanted, remedy),
        None => return None,
    };
    Some(Difference { is_asked, ..difference })
}

/// The mode and owner of its file, where they were said.
fn file(endpoint: &Endpoint, options: &EndpointOptions, held: BorrowedFd<'_>) -> Vec<Difference> {
    let is = match endpoint {
        Endpoint::Fifo(_) => stat_of(held),
        _ => endpoint.file().and_then(stat_at),
    };
    let Some(is) = is else { return Vec::new() };
    let mut differences = Vec::new();
    if let Some(Mode(wanted)) = options.mode() {
        let mode = u32::from(is.stx_mode) & 0o7777;
        if mode != wanted {
            let (is, text) = (format!("{mode:04o}"), format!("{wanted:04o}"));
            differences.push(Difference::between("mode", is, text, Remedy::Mode(wanted)));
        }
    }
    if let Some(owner) = options.owner().filter(|it| (it.uid, it.gid) != (is.stx_uid, is.stx_gid)) {
        let (is, wanted) =
            (format!("{}:{}", is.stx_uid, is.stx_gid), format!("{}:{}", owner.uid, owner.gid));
        differences.push(Difference::between("owner", is, wanted, Remedy::Owner(owner)));
    }
    differences
}

/// One option, as it is and as a new socket has it on which the same was set: the kernel rounds,
/// doubles and limits values.
fn option(
    row: &'static Row,
    endpoint: &Endpoint,
    options: &EndpointOptions,
    held: BorrowedFd<'_>,
    fresh: &mut Option<OwnedFd>,
) -> Option<Difference> {
    let said = options.get(row.name);
    let asked = said.and_then(|value| value.reading(row));
    let Some(is) = row.read(held, endpoint) else {
        // It is set, as it was asked for; not all can be read of all protocols.
        let remedy = Remedy::Set(row, asked?);
        return Some(Difference::between(row.name, "unknown", "asked for", remedy));
    };
    let of_system = match row.how {
        How::Nonblock => Some(Reading::Int(0)),
        _ => fresh.as_ref().and_then(|fresh| row.read(fresh, endpoint)),
    };
    let (value, expected) = match asked {
        Some(asked) => {
            // Where this process may not set it, it may be set already.
            let set = fresh.as_ref().filter(|fresh| row.set(fresh, &asked, endpoint).is_ok());
            let read = set.and_then(|fresh| row.read(fresh, endpoint));
            let expected = read.unwrap_or_else(|| asked.clone());
            (asked, expected)
        }
        None => (of_system.clone()?, of_system?),
    };
    if is == expected {
        return None;
    }
    if asked_for_nothing(said) {
        let bound_by_scope = matches!(
            endpoint,
            Endpoint::Ip { address, .. } if row.how == How::Device && has_scope(address)
        );
        // Its size is the kernel's, which changes it.
        let is_kernels = row.value == Kind::Size
            && get_int(held, BUF_LOCK).is_ok_and(|lock| lock & lock_of(row) == 0);
        let is_by_tos = row.name == "priority" && options.get("tos").is_some();
        let is_for_all = row.name == "fastopen" && is_fastopen_for_all(&is, held);
        if bound_by_scope || is_kernels || is_by_tos || is_for_all {
            return None;
        }
    }
    let (was, wanted) = (row.in_words(&is), row.in_words(&expected));
    let remedy = if row.is_changeable { Remedy::Set(row, value) } else { Remedy::Replace };
    let difference = Difference::between(row.name, was, wanted, remedy);
    Some(Difference { is_asked: said.is_some() || !row.is_changeable, ..difference })
}

/// Whether the system turns TCP Fast Open on for all that listen: tcp(7). It is as long then as the
/// queue was.
fn is_fastopen_for_all(is: &Reading, held: BorrowedFd<'_>) -> bool {
    const WITHOUT_OPTION: u32 = 0x400;
    let setting = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_fastopen").ok();
    let setting = setting.and_then(|text| text.trim().parse::<u32>().ok());
    setting.is_some_and(|setting| setting & WITHOUT_OPTION != 0)
        || accept_queue(held).is_some_and(|(_, most)| *is == Reading::Int(most.cast_signed()))
}

fn asked_for_nothing(said: Option<&Value>) -> bool {
    matches!(said, None | Some(Value::Unset))
}

/// `SOCK_SNDBUF_LOCK` or `SOCK_RCVBUF_LOCK`.
pub fn lock_of(row: &Row) -> i32 {
    if row.name == "send-buffer" {
        1
    } else {
        2
    }
}

fn fifo(path: &Path, held: BorrowedFd<'_>) -> Option<Difference> {
    let replace = |name| Some(Difference::of(name, Remedy::Replace));
    let Some(is) = stat_of(held) else { return replace(KIND) };
    if FileType::from_raw_mode(is.stx_mode.into()) != FileType::Fifo {
        return replace(KIND);
    }
    let there = stat_at(path);
    let place = |stat: &Statx| (stat.stx_dev_major, stat.stx_dev_minor, stat.stx_ino);
    if there.as_ref().is_some_and(|there| place(there) == place(&is)) {
        return read_or_write_only(held);
    }
    // Without /proc one that was removed may have been anywhere.
    let was_there = target(held).map_or(is.stx_nlink == 0, |target| {
        let target = target.strip_suffix(b" (deleted)").unwrap_or(&target);
        is_same_place(Path::new(OsStr::from_bytes(target)), path)
    });
    match there {
        _ if !was_there => replace(ADDRESS),
        None => Some(Difference::of("its file was removed", Remedy::Lost)),
        Some(_) => Some(Difference::of("another one is in the place of its file", Remedy::Lost)),
    }
}

/// Without the other end in it, its readers or writers see an end when the last of the others goes.
fn read_or_write_only(held: BorrowedFd<'_>) -> Option<Difference> {
    let is = match fcntl_getfl(held).ok()? & OFlags::ACCMODE {
        OFlags::RDWR => return None,
        OFlags::WRONLY => "write-only",
        _ => "read-only",
    };
    Some(Difference::between("access", is, "read-write", Remedy::Replace))
}

fn is_memfd(held: BorrowedFd<'_>, name: &str) -> bool {
    // Without /proc it has no name, which is only to be looked at.
    let has_name = |target| target == format!("/memfd:{name} (deleted)").as_bytes();
    fcntl_get_seals(held).is_ok() && target(held).is_none_or(has_name)
}

/// What a descriptor is. No file server is asked: a client chose it.
fn stat_of(fd: BorrowedFd<'_>) -> Option<Statx> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    statx(fd, c"", flags, StatxFlags::BASIC_STATS).ok()
}

fn stat_at(path: &Path) -> Option<Statx> {
    statx(CWD, path, AtFlags::STATX_DONT_SYNC, StatxFlags::BASIC_STATS).ok()
}

/// The path of an open file; `None` without /proc.
fn target(fd: BorrowedFd<'_>) -> Option<Vec<u8>> {
    let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    link.ok().map(|target| target.into_os_string().into_encoded_bytes())
}
