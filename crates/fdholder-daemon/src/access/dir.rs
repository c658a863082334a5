//! Rules in a folder: `uid/0/allow`, `uid/0/env/S6_FDHOLDER_LIST` …

use super::freshness::Witness;
use super::{broken, decide, Refusal, Rights, User, Verdict, VARIABLES};
use crate::limits::RULE_FILE_LEN_MAX;
use rustix::fs::{accessat, fstat, lstat, open, Access, AtFlags, FileType, Mode, OFlags, CWD};
use rustix::io::Errno;
use std::ffi::CString;
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

/// What the rules in `path` say of `user`, and what was looked at to know it.
pub(super) fn decide_in(
    path: &Path,
    user: User,
    own: User,
    settled: Duration,
) -> (Result<(String, Rights), Refusal>, Witness) {
    let mut witness = Witness::new(settled);
    let decision = decide(user, own, |key| look_up(&path.join(key), &mut witness));
    (decision, witness)
}

/// What the rule in one folder says.
pub(super) fn look_up(folder: &Path, witness: &mut Witness) -> Result<Verdict, Refusal> {
    if is_readable(&folder.join("allow"), witness)? {
        return rights_in(&folder.join("env"), witness).map(Verdict::Allow);
    }
    if is_readable(&folder.join("deny"), witness)? {
        return Ok(Verdict::Deny);
    }
    Ok(Verdict::NoMatch)
}

/// Whether there is such a file. One that this process may not read might say that others are
/// denied, so it is no answer, and neither is anything else that goes wrong.
fn is_readable(path: &Path, witness: &mut Witness) -> Result<bool, Refusal> {
    let c_path = c_path(path)?;
    // Looked at first: a change from here on is noticed next time.
    witness.look_at(c_path.clone());
    match accessat(CWD, c_path.as_c_str(), Access::READ_OK, AtFlags::EACCESS) {
        Ok(()) => Ok(true),
        Err(Errno::NOENT) if lstat(c_path.as_c_str()).is_err() => Ok(false),
        Err(Errno::NOENT) => Err(broken(path, "it leads nowhere")),
        Err(errno) => Err(Refusal::of(path, errno)),
    }
}

fn rights_in(env: &Path, witness: &mut Witness) -> Result<Rights, Refusal> {
    // It changes when a file comes or goes, so those that are not there need not be looked at.
    witness.look_at(c_path(env)?);
    let mut variables = Vec::new();
    for name in VARIABLES {
        let path = env.join(name);
        if let Some(value) = value_in(&path, witness)? {
            variables.push((name.as_bytes(), value));
        }
    }
    if !witness.is_unchanged() {
        return Err(broken(env, "it changes while it is read"));
    }
    Rights::from_environment(variables.iter().map(|(name, value)| (*name, value.as_slice())))
        .map_err(|problem| broken(env, problem))
}

/// The value that a file of an `env` folder gives its variable; `None` when it is not
/// there, or empty.
fn value_in(path: &Path, witness: &mut Witness) -> Result<Option<Vec<u8>>, Refusal> {
    let c_path = c_path(path)?;
    // NONBLOCK so that a FIFO put in the place does not stop the daemon.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    let file = match open(c_path.as_c_str(), flags, Mode::empty()) {
        Ok(file) => file,
        Err(Errno::NOENT) if lstat(c_path.as_c_str()).is_err() => return Ok(None),
        Err(Errno::NOENT) => return Err(broken(path, "it leads nowhere")),
        Err(errno) => return Err(Refusal::of(path, errno)),
    };
    let stat = fstat(&file).map_err(|errno| Refusal::of(path, errno))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(broken(path, "not a regular file"));
    }
    witness.has_seen(c_path, stat);
    let mut content = Vec::new();
    File::from(file).take(RULE_FILE_LEN_MAX as u64 + 1).read_to_end(&mut content).map_err(
        |error| match Errno::from_io_error(&error) {
            Some(errno) => Refusal::of(path, errno),
            None => broken(path, error),
        },
    )?;
    if content.len() > RULE_FILE_LEN_MAX {
        return Err(broken(path, format_args!("over {RULE_FILE_LEN_MAX} bytes long")));
    }
    Ok(value_of(content))
}

/// The value that the content of a file stands for, by the rules of envdir: the first
/// line, without the blanks at its end, NUL meaning newline; none for an empty file.
#[doc(hidden)]
pub fn value_of(mut content: Vec<u8>) -> Option<Vec<u8>> {
    if content.is_empty() {
        return None;
    }
    let line = content.iter().position(|&byte| byte == b'\n').unwrap_or(content.len());
    let blank = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\r');
    let end = content[..line].iter().rposition(|byte| !blank(byte)).map_or(0, |last| last + 1);
    content.truncate(end);
    for byte in &mut content {
        if *byte == 0 {
            *byte = b'\n';
        }
    }
    Some(content)
}

fn c_path(path: &Path) -> Result<CString, Refusal> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| broken(path, "a NUL in the path"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::Rules;
    use fdholder::Identifier;
    use rustix::fs::{utimensat, Timespec, Timestamps};
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::PathBuf;
    use std::sync::Arc;

    const DAEMON: User = User { uid: 100, gid: 200 };

    struct Folder(tempfile::TempDir);

    impl Folder {
        /// In a folder of its own: what others delete beside it would be told, too.
        fn new() -> Self {
            let folder = Self(tempfile::tempdir().unwrap());
            fs::create_dir(folder.path()).unwrap();
            folder
        }

        fn path(&self) -> PathBuf {
            self.0.path().join("rules")
        }

        fn write(&self, file: &str, content: &str) -> &Self {
            let path = self.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
            self
        }

        fn ask(&self, uid: u32, gid: u32) -> Result<Arc<Rights>, Refusal> {
            Rules::in_dir(self.path()).rights(User { uid, gid }, DAEMON)
        }
    }

    #[test]
    fn values_follow_envdir() {
        let value = |content: &str| value_of(content.into());
        assert_eq!(value(""), None);
        assert_eq!(value("\n"), Some(b"".to_vec()));
        assert_eq!(value("a b \t\r\nsecond"), Some(b"a b".to_vec()));
        assert_eq!(value("a\0b"), Some(b"a\nb".to_vec()));
        assert_eq!(value("   "), Some(b"".to_vec()));
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        let rules = Folder::new();
        rules.write("uid/default/allow", "").write("uid/default/env/S6_FDHOLDER_LIST", "\n");
        rules.write("uid/1/deny", "").write("gid/1/allow", "");
        rules.write("uid/2/allow", "").write("uid/2/deny", "");
        rules.write("gid/3/allow", "").write("gid/3/env/S6_FDHOLDER_GETDUMP", "\n");
        rules.write("uid/self/allow", "").write("gid/self/deny", "");
        assert!(rules.ask(9, 9).unwrap().list);
        assert_eq!(rules.ask(1, 1).unwrap_err(), Refusal::Denied("uid/1".into()));
        assert!(!rules.ask(2, 1).unwrap().list, "allow goes before deny");
        assert!(rules.ask(9, 3).unwrap().getdump);
        assert!(!rules.ask(100, 3).unwrap().getdump, "self goes before the gid");
        assert_eq!(rules.ask(9, 200).unwrap_err(), Refusal::Denied("gid/self".into()));
        assert_eq!(Folder::new().ask(0, 0).unwrap_err(), Refusal::NoRule);
    }

    #[test]
    fn an_empty_file_grants_nothing_and_a_newline_does() {
        let rules = Folder::new();
        rules.write("uid/1/allow", "").write("uid/1/env/S6_FDHOLDER_LIST", "");
        rules.write("uid/1/env/S6_FDHOLDER_SETDUMP", "\n");
        let rights = rules.ask(1, 1).unwrap();
        assert!(!rights.list && rights.setdump);
        let id = Identifier::new("x").unwrap();
        assert!(!rights.may_store(&id) && !rights.may_retrieve(&id));
    }

    #[test]
    fn a_file_may_be_as_long_as_s6_reads_it() {
        let rules = Folder::new();
        let longest = "a".repeat(RULE_FILE_LEN_MAX);
        rules.write("uid/1/allow", "").write("uid/1/env/S6_FDHOLDER_LIST", &longest);
        assert!(rules.ask(1, 1).unwrap().list);
    }

    #[test]
    fn in_doubt_nobody_gets_in() {
        let rules = Folder::new();
        rules.write("uid/default/allow", "");
        let env = |uid: u32| format!("uid/{uid}/env/S6_FDHOLDER_STORE_REGEX");
        for uid in 1..=4 {
            rules.write(&format!("uid/{uid}/allow"), "").write(&env(uid), "^ok");
        }
        rules.write(&env(1), "(");
        rules.write(&env(2), &"a".repeat(RULE_FILE_LEN_MAX + 1));
        fs::remove_file(rules.path().join(env(3))).unwrap();
        fs::create_dir(rules.path().join(env(3))).unwrap();
        fs::remove_file(rules.path().join(env(4))).unwrap();
        rustix::fs::mknodat(CWD, rules.path().join(env(4)), FileType::Fifo, Mode::RUSR, 0).unwrap();
        rules.write("uid/5", "a file where a folder is due");
        symlink("6", rules.path().join("uid/6")).unwrap();
        rules.write("uid/7/other", "");
        symlink("nowhere", rules.path().join("uid/7/deny")).unwrap();
        // A limit that is lost is not to be none.
        rules.write("uid/8/allow", "").write("uid/8/env/OTHER", "");
        symlink("nowhere", rules.path().join("uid/8/env/FDHOLDER_MAXFDS")).unwrap();
        for uid in 1..=8 {
            let refusal = rules.ask(uid, 9).unwrap_err();
            let Refusal::Broken { place, .. } = &refusal else { panic!("{uid}: {refusal}") };
            assert!(place.contains(&format!("uid/{uid}")), "{place}");
        }
    }

    #[test]
    fn what_is_no_right_does_not_matter() {
        let rules = Folder::new();
        rules.write("uid/1/allow", "").write("uid/1/env/S6_FDHOLDER_LIST", "\n");
        rules.write("uid/1/env/OTHER/file", "").write("uid/1/env/a=b", "x");
        assert!(rules.ask(1, 1).unwrap().list);
    }

    #[test]
    fn a_changed_rule_holds_at_once() {
        let folder = Folder::new();
        folder.write("uid/1/allow", "").write("uid/1/env/S6_FDHOLDER_STORE_REGEX", "^a");
        let mut rules = Rules::in_dir(folder.path());
        let user = User { uid: 1, gid: 1 };
        let (a, b) = (Identifier::new("a").unwrap(), Identifier::new("b").unwrap());
        assert!(rules.rights(user, DAEMON).unwrap().may_store(&a));
        for _ in 0..50 {
            folder.write("uid/1/env/S6_FDHOLDER_STORE_REGEX", "^b");
            assert!(rules.rights(user, DAEMON).unwrap().may_store(&b));
            folder.write("uid/1/env/S6_FDHOLDER_STORE_REGEX", "^a");
            assert!(rules.rights(user, DAEMON).unwrap().may_store(&a));
        }
        fs::remove_file(folder.path().join("uid/1/allow")).unwrap();
        assert_eq!(rules.rights(user, DAEMON).unwrap_err(), Refusal::NoRule);
    }

    /// What is remembered is used; and each file that was looked at, when it changes, ends
    /// that.
    #[test]
    fn what_is_remembered_holds_until_a_file_changes() {
        let folder = Folder::new();
        folder.write("gid/1/allow", "").write("gid/1/env/S6_FDHOLDER_LIST", "\n");
        folder.write("gid/1/env/S6_FDHOLDER_STORE_REGEX", "^a");
        let mut rules = Rules::in_settled_dir(folder.path());
        let user = User { uid: 1, gid: 1 };
        let mut seconds = 0;
        // A time of its own for each file that is written, however coarse the clock.
        let mut write = |file: &str, content: &str| {
            folder.write(file, content);
            seconds += 1;
            let time = Timespec { tv_sec: seconds, tv_nsec: 0 };
            let times = Timestamps { last_access: time, last_modification: time };
            utimensat(CWD, folder.path().join(file), &times, AtFlags::empty()).unwrap();
        };
        let mut changes = [
            ("gid/1/env/S6_FDHOLDER_STORE_REGEX", "^b"),
            ("gid/1/env/S6_FDHOLDER_RETRIEVE_REGEX", "^b"),
            ("gid/1/env/S6_FDHOLDER_LIST", ""),
            ("gid/1/env/S6_FDHOLDER_GETDUMP", "\n"),
            ("gid/1/env/S6_FDHOLDER_SETDUMP", "\n"),
            ("uid/1/allow", ""),
        ]
        .into_iter();
        let mut seen: Vec<Arc<Rights>> = Vec::new();
        loop {
            let first = rules.rights(user, DAEMON).unwrap();
            let second = rules.rights(user, DAEMON).unwrap();
            assert!(Arc::ptr_eq(&first, &second), "it is remembered");
            // Of what changes now we are told.
            assert!(rules.is_told_of(user));
            let third = rules.rights(user, DAEMON).unwrap();
            assert!(Arc::ptr_eq(&first, &third), "it is remembered");
            assert!(!seen.iter().any(|earlier| Arc::ptr_eq(earlier, &first)), "it is read again");
            seen.push(first);
            let Some((file, content)) = changes.next() else { break };
            write(file, content);
        }
        assert_eq!(seen.len(), 7);
        write("uid/1/env/S6_FDHOLDER_STORE_REGEX", "(");
        for _ in 0..2 {
            assert!(matches!(rules.rights(user, DAEMON), Err(Refusal::Broken { .. })));
        }
        assert!(!rules.remembers(user), "what is broken may be mended without a trace");
    }
}
