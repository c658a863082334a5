//! Names of users and groups, from /etc/passwd and /etc/group.
//!
//! Not by the C library: it would load modules at run time, which a static program cannot.

use crate::options::number;
use fdholder_daemon::access::User;
use fdholder_daemon::confinement::advice;
use std::collections::HashMap;
use std::fs;
use std::io::ErrorKind;

const PASSWD: &str = "/etc/passwd";

/// Reads `USER` or `USER:GROUP`, by name or number. Without a group it is the user's, or for
/// a number the one with the same number.
///
/// # Errors
///
/// Which of them is not there, or why that cannot be seen.
pub fn read_owner(text: &str) -> Result<User, String> {
    let (user, group) = text.split_once(':').map_or((text, None), |(u, g)| (u, Some(g)));
    let (uid, its_gid) = if let Ok(uid) = number(user) {
        (uid, uid)
    } else {
        let (uid, gid) = look_up(PASSWD, user)?
            .ok_or_else(|| format!("there is no user '{user}' in {PASSWD}"))?;
        (uid, gid.unwrap_or(uid))
    };
    let gid = match group.map(|group| (group, number(group))) {
        None => its_gid,
        Some((_, Ok(gid))) => gid,
        Some((group, Err(_))) => {
            look_up("/etc/group", group)?
                .ok_or_else(|| format!("there is no group '{group}' in /etc/group"))?
                .0
        }
    };
    Ok(User { uid, gid })
}

/// The third field of a line, and the fourth if it is a number.
fn look_up(file: &str, name: &str) -> Result<Option<(u32, Option<u32>)>, String> {
    let content = match fs::read_to_string(file) {
        Ok(content) => content,
        // An image with nothing but a program has root, too.
        Err(error) if error.kind() == ErrorKind::NotFound => "root:x:0:0".to_owned(),
        Err(error) => {
            return Err(format!("unable to read {file}: {error}{}", advice(error.kind())));
        }
    };
    Ok(content.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then_some(())?;
        let id = fields.nth(1)?.parse().ok()?;
        Some((id, fields.next().and_then(|gid| gid.parse().ok())))
    }))
}

/// The names of users.
#[derive(Debug)]
pub struct UserNames(HashMap<u32, String>);

impl UserNames {
    /// As they are now. Of several for one user the first counts.
    pub fn read() -> Self {
        let content = fs::read_to_string(PASSWD).unwrap_or_default();
        let named = content.lines().rev().filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            Some((fields.nth(1)?.parse().ok()?, name.to_owned()))
        });
        Self(named.collect())
    }

    /// The name of a user, or the number.
    pub fn of(&self, uid: u32) -> String {
        self.0.get(&uid).cloned().unwrap_or_else(|| uid.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_are_read() {
        assert_eq!(read_owner("root"), Ok(User { uid: 0, gid: 0 }));
        assert_eq!(read_owner("5"), Ok(User { uid: 5, gid: 5 }));
        assert_eq!(read_owner("5:root"), Ok(User { uid: 5, gid: 0 }));
        assert!(read_owner("nobody-of-that-name").unwrap_err().contains("/etc/passwd"));
        assert!(read_owner("0:nobody-of-that-name").unwrap_err().contains("/etc/group"));
        assert_eq!(UserNames::read().of(0), "root");
        assert_eq!(UserNames::read().of(u32::MAX - 7), (u32::MAX - 7).to_string());
    }
}
