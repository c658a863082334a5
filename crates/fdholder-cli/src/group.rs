//! The descriptors of one service: those of several addresses are held under ID/1, ID/2, …

use crate::endpoint::is_bound;
use fdholder::{Cause, Client, Deadline, Errno, Error, Identifier};
use std::collections::BTreeSet;

/// Identifiers named in a message at most.
const NAMED_MAX: usize = 4;

/// What a holder has of a group, beside what is wanted of it.
#[derive(Debug)]
pub struct Group {
    /// Held, and not wanted; as far as this user may see it.
    pub surplus: Vec<Identifier>,
    /// How many of those that are wanted are held.
    held: usize,
    wanted: usize,
}

/// The number that an identifier has in a group.
pub fn number_in(group: &[u8], id: &Identifier) -> Option<u32> {
    let digits = id.as_bytes().strip_prefix(group)?.strip_prefix(b"/")?;
    let is_number =
        digits.first().is_some_and(|first| *first != b'0') && digits.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(digits).ok().filter(|_| is_number)?.parse().ok()
}

/// The group that an identifier may belong to: what is before `/5`.
pub fn group_of(id: &Identifier) -> Option<&[u8]> {
    let bytes = id.as_bytes();
    let slash = bytes.iter().rposition(|&byte| byte == b'/')?;
    number_in(&bytes[..slash], id).map(|_| &bytes[..slash])
}

/// Some identifiers, in words.
pub fn in_words(ids: &[Identifier]) -> String {
    let shown = &ids[..ids.len().min(NAMED_MAX)];
    let names: Vec<_> = shown.iter().map(ToString::to_string).collect();
    match (names.split_last(), ids.len() - shown.len()) {
        (Some((last, [])), 0) => last.clone(),
        (Some((last, first)), 0) => format!("{} and {last}", first.join(", ")),
        (_, more) => format!("{} and {more} more", names.join(", ")),
    }
}

impl Group {
    /// Looks at a holder.
    ///
    /// # Errors
    ///
    /// When it breaks off. One that does not let its identifiers be listed is asked for the next.
    pub fn of(
        id: &Identifier,
        wanted: &[Identifier],
        holder: &mut Client,
        deadline: Deadline,
    ) -> Result<Self, Error> {
        let held: BTreeSet<_> = match holder.list(deadline) {
            Ok(ids) => ids.into_iter().collect(),
            Err(error) if matches!(error.cause(), Cause::Denied(_)) => {
                let next = [id.as_bytes(), format!("/{}", wanted.len() + 1).as_bytes()].concat();
                next_held(&next, holder, deadline)?.into_iter().collect()
            }
            Err(error) => return Err(error),
        };
        let is_wanted = |one: &&Identifier| wanted.contains(one);
        let (found, others): (Vec<_>, Vec<_>) = held.iter().partition(is_wanted);
        let mut surplus = Vec::new();
        for one in others {
            let is_of_group = one == id || number_in(id.as_bytes(), one).is_some();
            if is_of_group && may_have_clients(one, holder, deadline)? {
                surplus.push(one.clone());
            }
        }
        surplus.sort_by_key(|one| number_in(id.as_bytes(), one));
        Ok(Self { surplus, held: found.len(), wanted: wanted.len() })
    }

    /// That more is held than is wanted; `replace` is the option that releases it.
    pub fn warning(&self, replace: &str) -> Option<String> {
        let (is, them) = match self.surplus.len() {
            0 => return None,
            1 => ("is", "it"),
            _ => ("are", "them"),
        };
        let ids = in_words(&self.surplus);
        Some(format!(
            "{ids} {is} held, too: clients wait there while no program has {them}; {replace} \
             or delete releases {them}"
        ))
    }

    /// That there are more addresses than there were.
    pub fn growth(&self) -> Option<String> {
        let Self { held, wanted, .. } = self;
        (*held > 0 && held < wanted).then(|| {
            format!("{held} of {wanted} addresses were held: a program that runs has no others")
        })
    }
}

/// Whether a socket with an address is held there, and not a connection, say, that a service has
/// stored under such an identifier; as far as this user may see it.
pub fn may_have_clients(
    id: &Identifier,
    holder: &mut Client,
    deadline: Deadline,
) -> Result<bool, Error> {
    match holder.retrieve(id, deadline) {
        Ok(fd) => Ok(is_bound(fd)),
        Err(error) => match error.cause() {
            Cause::Denied(errno) => Ok(errno != Errno::NOENT),
            _ => Err(error),
        },
    }
}

fn next_held(
    next: &[u8],
    holder: &mut Client,
    deadline: Deadline,
) -> Result<Option<Identifier>, Error> {
    let Ok(next) = Identifier::new(next) else { return Ok(None) };
    match holder.retrieve(&next, deadline) {
        Ok(_) => Ok(Some(next)),
        Err(error) if matches!(error.cause(), Cause::Denied(Errno::NOENT | Errno::PERM)) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifier_with_a_number_belongs_to_a_group() {
        let id = |text: &str| Identifier::new(text).unwrap();
        for (text, group) in [
            ("web/1", Some("web")),
            ("a/b/20", Some("a/b")),
            ("web", None),
            ("web/", None),
            ("web/0", None),
            ("web/01", None),
            ("web/x1", None),
            ("web/-1", None),
            ("web/99999999999", None),
        ] {
            assert_eq!(group_of(&id(text)), group.map(str::as_bytes), "{text}");
        }
        assert_eq!(number_in(b"web", &id("web/20")), Some(20));
        assert_eq!(number_in(b"we", &id("web/20")), None);
        let ids: Vec<_> = (1..=9).map(|n| id(&format!("w/{n}"))).collect();
        assert_eq!(in_words(&ids[..1]), "w/1");
        assert_eq!(in_words(&ids[..3]), "w/1, w/2 and w/3");
        assert_eq!(in_words(&ids), "w/1, w/2, w/3, w/4 and 5 more");
    }
}
