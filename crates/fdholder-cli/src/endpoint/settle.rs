//! Acting on what [`compare`] found: nothing, a change in place, another one in its place, or a
//! refusal that names what differs.

use super::address::{leads, Leads};
use super::compare::{compare, lock_of, Difference, Remedy, BUF_LOCK};
use super::diag::accept_queue;
use super::options::EndpointOptions;
use super::table::{How, Kind, Reading, ROWS};
use super::users::{in_words, users_of, Users};
use super::{Endpoint, OpenError, UnixAddress};
use crate::look::describe::{describe, Queue};
use crate::sockopt::{get_int, set_int};
use fdholder::{strerror, Errno};
use fdholder_daemon::accept_queue::AcceptQueue;
use fdholder_daemon::confinement::explain;
use rustix::fs::{chmod, chown, fchmod, fchown, rename, stat, Gid, Mode, Uid};
use rustix::net::sockopt::{set_socket_reuseport, socket_reuseport, socket_type};
use rustix::net::{bind, connect_unspec, getpeername, getsockname, listen, SocketAddrAny};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Differences that begin so are those of the whole socket, not of an option.
const ANOTHER: &str = "another ";

/// What may be done.
#[derive(Debug, Clone, Copy)]
pub struct Policy<'a> {
    /// What cannot be changed in place is replaced.
    pub replace: bool,
    pub unasked: Unasked<'a>,
}

/// What becomes of an option that was not asked for, and is not as the system would have it: a
/// server may have set it for itself.
#[derive(Debug, Clone, Copy)]
pub enum Unasked<'a> {
    /// It gets the system's value, if no program has the socket but these processes, which hold it.
    Reset(&'a [u32]),
    /// The same, and if a program has it, that is not said.
    ResetOrStays(&'a [u32]),
    Stays,
    /// It stays, and that is said.
    IsSaid,
}

/// How it is held by now.
#[derive(Debug)]
pub enum Settled {
    /// As it was asked for; what was changed is said.
    Held(Vec<String>),
    /// This one, and not the held one, is as it was asked for; and why there is another, if that
    /// was not asked for.
    Replaced(OwnedFd, Option<String>),
    /// The held one has to be closed before there can be another, and why there has to be.
    MustGo(String),
}

/// Why it is held otherwise; the held one is as it was.
#[derive(Debug)]
pub enum NotSettled {
    /// To read behind "held under it is ".
    Differs(String),
    /// Another one could not be opened.
    Open(OpenError),
    /// One thing could not be changed: to read behind "unable to change ", and why.
    Unable { what: String, why: String },
}

/// Sees to it that a held descriptor is what was asked for. `opened` is one that was bound for
/// it already.
///
/// # Errors
///
/// [`NotSettled`].
pub fn settle(
    endpoint: &Endpoint,
    options: &EndpointOptions,
    held: impl AsFd,
    policy: Policy<'_>,
    opened: Option<OwnedFd>,
) -> Result<Settled, NotSettled> {
    let held = held.as_fd();
    let differences = compare(endpoint, options, held);
    let needs = |is: fn(&Remedy) -> bool| differences.iter().find(move |it| is(&it.remedy));
    let lost = needs(|remedy| matches!(remedy, Remedy::Lost));
    let fixed = needs(|remedy| matches!(remedy, Remedy::Replace));
    if fixed.is_some() && !policy.replace {
        return Err(NotSettled::Differs(words_of(&differences, held)));
    }
    if lost.or(fixed).is_some() {
        let why = lost.map(|lost| lost.name.to_owned());
        return replace(endpoint, options, held, why, policy, opened);
    }
    let mut notes = Vec::new();
    let mut users = None;
    for difference in differences {
        let name = difference.name;
        if !difference.is_asked && matches!(difference.remedy, Remedy::Set(..)) {
            let (Unasked::Reset(holders) | Unasked::ResetOrStays(holders)) = policy.unasked else {
                if matches!(policy.unasked, Unasked::IsSaid) {
                    notes.push(format!(
                        "{name} stays {}, which the file does not say",
                        difference.is
                    ));
                }
                continue;
            };
            let why = match users.get_or_insert_with(|| users_of(held, holders)) {
                Users::None => None,
                Users::Some(users) => Some(format!("{} has it open", in_words(users))),
                Users::Unknown => Some("unable to see whether a program has it open".to_owned()),
            };
            if let Some(why) = why {
                if matches!(policy.unasked, Unasked::ResetOrStays(_)) {
                    continue;
                }
                let is = &difference.is;
                notes.push(format!("{name} stays {is}, which nobody asked for: {why}"));
                continue;
            }
        }
        match adjust(endpoint, &difference, held) {
            // It had a single address before it was connected as well.
            Ok(_) if is_elsewhere(endpoint, &difference, held) => {
                if policy.replace {
                    return replace(endpoint, options, held, None, policy, opened);
                }
                return Err(NotSettled::Differs(describe(held).to_string()));
            }
            Ok(note) => notes.extend(note),
            // Its address may be somebody else's by now.
            Err(_) if matches!(difference.remedy, Remedy::Listen(_)) => {
                let why = "it was not listening any more".to_owned();
                return replace(endpoint, options, held, Some(why), policy, opened);
            }
            Err(errno) if difference.is_asked => {
                let what = format!("{name} to {}", difference.wanted);
                return Err(NotSettled::Unable { what, why: explain(errno) });
            }
            Err(errno) => {
                notes.push(format!("{name} stays {}: {}", difference.is, strerror(errno)));
            }
        }
    }
    if !notes.is_empty() {
        set_again(endpoint, options, held);
    }
    notes.extend(limits(endpoint, options, held));
    Ok(Settled::Held(notes))
}

fn is_elsewhere(endpoint: &Endpoint, done: &Difference, held: BorrowedFd<'_>) -> bool {
    matches!(done.remedy, Remedy::Disconnect) && !endpoint.is_address_of(held)
}

/// Sets what was asked for once more: the kernel changes some options with others.
fn set_again(endpoint: &Endpoint, options: &EndpointOptions, held: BorrowedFd<'_>) {
    let rows = ROWS.iter().filter(|row| row.is_changeable && row.how != How::Otherwise);
    for row in rows.filter(|row| row.suits(endpoint)) {
        if let Some(value) = options.get(row.name).and_then(|value| value.reading(row)) {
            // What could not be set was said.
            let _ = row.set(held, &value, endpoint);
        }
    }
}

/// What is held instead, to read behind "held under it is ", if it cannot be changed in place.
pub fn fixed_differences(
    endpoint: &Endpoint,
    options: &EndpointOptions,
    held: impl AsFd,
) -> Option<String> {
    let held = held.as_fd();
    let differences = compare(endpoint, options, held);
    let is_fixed = differences.iter().any(|it| matches!(it.remedy, Remedy::Replace));
    is_fixed.then(|| words_of(&differences, held))
}

/// Whether clients get to a descriptor by this endpoint, and it needs no other in its place.
pub fn is_reachable_at(endpoint: &Endpoint, options: &EndpointOptions, held: impl AsFd) -> bool {
    let differences = compare(endpoint, options, held);
    !differences.iter().any(|it| matches!(it.remedy, Remedy::Replace | Remedy::Lost))
}

/// Whether it is a socket with an address that anybody can send to.
pub fn is_bound(fd: impl AsFd) -> bool {
    let fd = fd.as_fd();
    let has_peer = getpeername(fd).is_ok_and(|peer| peer.is_some());
    socket_type(fd).is_ok() && !has_peer && !describe(fd).address.is_empty()
}

/// What is held, and what of it differs.
fn words_of(differences: &[Difference], held: BorrowedFd<'_>) -> String {
    let said: Vec<_> = differences
        .iter()
        .filter(|it| matches!(it.remedy, Remedy::Replace) && !it.name.starts_with(ANOTHER))
        .map(Difference::to_string)
        .collect();
    let is_elsewhere = differences.iter().any(|it| it.name.ends_with("namespace"));
    let place = if is_elsewhere { " in another network namespace" } else { "" };
    let with = if said.is_empty() { "" } else { " with " };
    format!("{}{place}{with}{}", describe(held), said.join(", "))
}

/// Changes one thing on what is held; what was changed is said.
fn adjust(
    endpoint: &Endpoint,
    difference: &Difference,
    held: BorrowedFd<'_>,
) -> Result<Option<String>, Errno> {
    let changed =
        |to: &str| Some(format!("{} changed from {} to {to}", difference.name, difference.is));
    match &difference.remedy {
        Remedy::Set(row, value) => {
            row.set(held, value, endpoint)?;
            if row.value == Kind::Size && !difference.is_asked {
                let lock = get_int(held, BUF_LOCK)?;
                set_int(held, BUF_LOCK, lock & !lock_of(row))?;
            }
            // Where the kernel does not tell, it may have been so before.
            let Some(is) = row.read(held, endpoint) else { return Ok(None) };
            let is = row.in_words(&is);
            return Ok(changed(&is).filter(|_| is != difference.is));
        }
        Remedy::Backlog(backlog) => {
            listen(held, *backlog)?;
            // Where the kernel does not tell, it may have been so before.
            let Some((_, is)) = accept_queue(held) else { return Ok(None) };
            return Ok(changed(&is.to_string()).filter(|_| is.to_string() != difference.is));
        }
        Remedy::Listen(backlog) => {
            let address = getsockname(held)?;
            bind_again(endpoint, held, &address)?;
            listen(held, *backlog)?;
            return Ok(Some("listens again, which it did not any more (was it shut down?)".into()));
        }
        Remedy::Disconnect => {
            let address = address_without_peer(endpoint, held)?;
            connect_unspec(held)?;
            bind_again(endpoint, held, &address)?;
            return Ok(Some("takes from everybody again, and not from one peer alone".into()));
        }
        Remedy::Mode(mode) => {
            let mode = Mode::from_raw_mode(*mode);
            match endpoint {
                Endpoint::Fifo(_) => fchmod(held, mode)?,
                _ => chmod(file_of(endpoint), mode)?,
            }
        }
        Remedy::Owner(user) => {
            let (uid, gid) = (Some(Uid::from_raw(user.uid)), Some(Gid::from_raw(user.gid)));
            match endpoint {
                Endpoint::Fifo(_) => fchown(held, uid, gid)?,
                _ => chown(file_of(endpoint), uid, gid)?,
            }
        }
        Remedy::Say => return Ok(Some(difference.name.to_owned())),
        Remedy::Lost | Remedy::Replace => {}
    }
    Ok(changed(&difference.wanted))
}

/// What it is bound to once it has no peer, for which the kernel has chosen a single address.
fn address_without_peer(endpoint: &Endpoint, held: BorrowedFd<'_>) -> Result<SocketAddrAny, Errno> {
    let address = getsockname(held)?;
    match (endpoint, SocketAddr::try_from(address.clone())) {
        (Endpoint::Ip { address: wanted, .. }, Ok(is)) if wanted.ip().is_unspecified() => {
            Ok(SocketAddr::new(wanted.ip(), is.port()).into())
        }
        _ => Ok(address),
    }
}

/// The kernel takes back a port that it chose itself when a socket is shut down or disconnected.
fn bind_again(
    endpoint: &Endpoint,
    held: BorrowedFd<'_>,
    address: &SocketAddrAny,
) -> Result<(), Errno> {
    match endpoint {
        Endpoint::Ip { .. } => match bind(held, address) {
            // It is bound.
            Err(Errno::INVAL) => Ok(()),
            result => result,
        },
        _ => Ok(()),
    }
}

fn file_of(endpoint: &Endpoint) -> &Path {
    endpoint.file().unwrap_or(Path::new(""))
}

/// What the kernel has made less than was asked for.
pub fn limits(endpoint: &Endpoint, options: &EndpointOptions, fd: impl AsFd) -> Vec<String> {
    let fd = fd.as_fd();
    let mut notes = Vec::new();
    let queue = options.number("backlog").zip(accept_queue(fd));
    if let Some((asked, (_, most))) = queue.filter(|(asked, (_, most))| most < asked) {
        notes.push(format!("backlog is {most}, not {asked}: net.core.somaxconn allows no more"));
    }
    for row in ROWS.iter().filter(|row| row.value == Kind::Size || row.name == "fastopen") {
        let asked = options.get(row.name).and_then(|value| value.reading(row));
        let is = asked.as_ref().and_then(|_| row.read(fd, endpoint));
        if let (Some(Reading::Int(asked)), Some(Reading::Int(is))) = (asked, is) {
            if is < asked {
                let [is, asked] = [is, asked].map(|value| row.in_words(&Reading::Int(value)));
                let name = row.name;
                notes.push(format!("{name} is {is}, not {asked}: the system allows no more"));
            }
        }
    }
    notes
}

/// What waits in a descriptor that is replaced or released.
pub fn left_in_queue(held: impl AsFd) -> Option<String> {
    let held = held.as_fd();
    let what = describe(held);
    match what.queue {
        Some(Queue::Clients(AcceptQueue { len: 0, .. }) | Queue::Bytes(0)) => None,
        Some(Queue::Clients(AcceptQueue { max: 0, .. })) => {
            Some("at least 1 client waits in its queue".to_owned())
        }
        Some(Queue::Clients(AcceptQueue { len: 1, .. })) => {
            Some("1 client waits in its queue".to_owned())
        }
        Some(Queue::Clients(AcceptQueue { len, .. })) => {
            Some(format!("{len} clients wait in its queue"))
        }
        Some(Queue::Bytes(bytes)) => Some(format!("{bytes} bytes in it were not read")),
        None if what.listening => {
            Some("unable to see whether clients wait in its queue".to_owned())
        }
        None => None,
    }
}

/// The same, and which programs have it still, once no other gets it from the holder.
pub fn left_behind(held: impl AsFd, holders: &[u32]) -> Vec<String> {
    let held = held.as_fd();
    let mut notes: Vec<_> = left_in_queue(held).into_iter().collect();
    if let Users::Some(users) = users_of(held, holders) {
        notes.push(format!("{} still has it open: restart it", in_words(&users)));
    }
    notes
}

/// Opens another one in its place.
fn replace(
    endpoint: &Endpoint,
    options: &EndpointOptions,
    held: BorrowedFd<'_>,
    why: Option<String>,
    policy: Policy<'_>,
    opened: Option<OwnedFd>,
) -> Result<Settled, NotSettled> {
    let has_name_for_itself = matches!(
        endpoint,
        Endpoint::Unix { address: UnixAddress::Abstract(_), .. } | Endpoint::Vsock { .. }
    );
    if has_name_for_itself && endpoint.is_in_the_way_of(held) {
        let why = why.unwrap_or_else(|| "it was to be replaced".to_owned());
        let users = match policy.unasked {
            Unasked::Reset(holders) | Unasked::ResetOrStays(holders) => users_of(held, holders),
            Unasked::Stays | Unasked::IsSaid => Users::Unknown,
        };
        let Users::Some(users) = users else { return Ok(Settled::MustGo(why)) };
        let problem = format!("{why}, and {} has its name: stop it first", in_words(&users));
        return Err(NotSettled::Open(OpenError::InUse(problem)));
    }
    let new = match opened {
        Some(new) => endpoint.listen(&new, options).map(|()| new),
        None => open_beside(endpoint, options, held),
    };
    new.map(|new| Settled::Replaced(new, why)).map_err(NotSettled::Open)
}

/// Opens an endpoint while the held socket has its address: by the leave of that one.
fn open_beside(
    endpoint: &Endpoint,
    options: &EndpointOptions,
    held: BorrowedFd<'_>,
) -> Result<OwnedFd, OpenError> {
    match endpoint {
        Endpoint::Ip { .. } if endpoint.is_in_the_way_of(held) => {
            // Both listen for a moment, so that no client is refused.
            let before = socket_reuseport(held).unwrap_or(false);
            let _ = set_socket_reuseport(held, true);
            let new = endpoint.open(&options.with_reuseport());
            if let Ok(new) = &new {
                let _ = set_socket_reuseport(new, options.is_on("reuseport"));
            }
            let _ = set_socket_reuseport(held, before);
            new
        }
        Endpoint::Unix { address: UnixAddress::Path(path), .. }
            if leads(path, held) == Leads::Here =>
        {
            // What nobody has asked for is as it was: it may have been set by hand.
            let options = &stat(path).map_or_else(|_| options.clone(), |it| options.as_file(&it));
            let aside = aside(path);
            rename(path, &aside).map_err(|errno| match errno {
                // Another process that does the same was faster.
                Errno::NOENT => OpenError::InUse("its file was put aside just now".to_owned()),
                _ => OpenError::of_file("put the socket's file aside", errno),
            })?;
            if leads(&aside, held) != Leads::Here {
                // Another one was put there just now.
                let _ = rename(&aside, path);
                return Err(OpenError::InUse("its file leads to another socket".to_owned()));
            }
            match endpoint.open(options) {
                Ok(new) => {
                    // It leads nowhere any more, and does no harm.
                    let _ = std::fs::remove_file(&aside);
                    Ok(new)
                }
                Err(error) if rename(&aside, path).is_ok() => Err(error),
                Err(error) => {
                    Err(OpenError::Other(format!("{error}; its file is {} now", aside.display())))
                }
            }
        }
        _ => endpoint.open(options),
    }
}

/// A name in the same folder that nobody else uses.
fn aside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".replaced-{}", std::process::id()));
    path.with_file_name(name)
}
