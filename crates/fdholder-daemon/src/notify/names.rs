//! Under which identifiers a service's door, its status, and what it has stored are held.

use fdholder::Identifier;

/// What the identifier of a door ends in.
const DOOR: &[u8] = b"/.notify";

/// What that of what a service says of itself ends in.
const STATUS: &[u8] = b"/.status";

/// What that of the socket ends in by which `run` is asked.
const RUN: &[u8] = b"/.run";

/// The service whose door is held under an identifier, if it is one.
pub fn service_of(id: &Identifier) -> Option<&[u8]> {
    id.as_bytes().strip_suffix(DOOR).filter(|name| !name.is_empty())
}

/// Under which what a service says of itself is held; `None` when its name is too long.
pub fn status_id(service: &[u8]) -> Option<Identifier> {
    Identifier::new([service, STATUS].concat()).ok()
}

/// Under which the socket of a service's `run` is held; `None` when its name is empty or too long.
pub fn run_id(service: &[u8]) -> Option<Identifier> {
    if service.is_empty() {
        return None;
    }
    Identifier::new([service, RUN].concat()).ok()
}

/// The service whose `run` can be asked by what is held under an identifier.
pub fn run_of(id: &Identifier) -> Option<&[u8]> {
    id.as_bytes().strip_suffix(RUN).filter(|name| !name.is_empty())
}

/// Whether something is held for the sake of a service, not by it: a door, a status, or the socket
/// of its `run`.
pub fn is_reserved(id: &Identifier) -> bool {
    [DOOR, STATUS, RUN].iter().any(|ending| id.as_bytes().ends_with(ending))
}

/// The FDNAME of something that is held for a service.
pub fn fd_name<'a>(service: &[u8], id: &'a Identifier) -> Option<&'a [u8]> {
    let name = id.as_bytes().strip_prefix(service)?.strip_prefix(b"/")?;
    if is_reserved(id) {
        return None;
    }
    // The second under one name, and so on, has a number behind a colon.
    let digits = name.iter().rev().take_while(|byte| byte.is_ascii_digit()).count();
    match name[..name.len() - digits].strip_suffix(b":") {
        Some(before) if digits > 0 => Some(before),
        _ => Some(name),
    }
}
