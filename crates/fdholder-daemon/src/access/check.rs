//! Going through a set of rules: what each says, and what is wrong or odd about it.

use super::freshness::{Witness, SETTLED};
use super::{broken, cdb, dir, Refusal, Rights, Verdict, VARIABLES};
use fdholder::Errno;
use std::fs;
use std::io;
use std::path::Path;

/// One rule, as it was found.
#[derive(Debug)]
pub struct Rule {
    /// `uid/0`, `gid/self`, `uid/default` …
    pub key: String,
    /// What it says.
    pub says: Says,
    /// What its author may not have meant.
    pub remarks: Vec<String>,
}

/// What a rule says.
#[derive(Debug)]
pub enum Says {
    /// Who it is about may connect, and do this.
    Allow(Rights),
    /// Who it is about may not connect.
    Deny,
    /// Neither: the next rule that matches decides.
    Nothing,
    /// It cannot be read: who it is about may not connect.
    Broken(String),
}

/// All rules of a folder, or of a cdb, in order; and remarks on the whole.
///
/// # Errors
///
/// When the folder or file itself cannot be read.
pub fn check(path: &Path) -> Result<(Vec<Rule>, Vec<String>), Refusal> {
    let failed = |error: io::Error| {
        let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
        broken(path, fdholder::strerror(errno))
    };
    if fs::metadata(path).map_err(failed)?.is_dir() {
        check_dir(path).map_err(failed)
    } else {
        check_cdb(path)
    }
}

fn check_dir(path: &Path) -> io::Result<(Vec<Rule>, Vec<String>)> {
    let (mut rules, mut remarks) = (Vec::new(), Vec::new());
    for kind in names_in(path)? {
        if kind != "uid" && kind != "gid" {
            remarks.push(format!("{kind}: not looked at, only uid and gid are"));
            continue;
        }
        for name in names_in(&path.join(&kind))? {
            rules.push(check_rule(path, format!("{kind}/{name}")));
        }
    }
    if rules.is_empty() {
        remarks.push("no rule at all: nobody may connect".to_owned());
    }
    Ok((rules, remarks))
}

fn check_rule(rules: &Path, key: String) -> Rule {
    let folder = rules.join(&key);
    let mut remarks = Vec::new();
    remarks.extend(remark_on_key(&key));
    let there = |name: &str| folder.join(name).symlink_metadata().is_ok();
    let says = match dir::look_up(&folder, &mut Witness::new(SETTLED)) {
        Ok(Verdict::Allow(rights)) => {
            if rights.is_nothing() {
                remarks.push("it lets its users connect, but grants them nothing".to_owned());
            }
            if there("deny") {
                remarks.push("deny is there too, but allow goes before it".to_owned());
            }
            Says::Allow(rights)
        }
        Ok(Verdict::Deny) => Says::Deny,
        Ok(Verdict::NoMatch) => {
            remarks.push("neither allow nor deny is there, so it says nothing".to_owned());
            Says::Nothing
        }
        Err(refusal) => Says::Broken(refusal.to_string()),
    };
    if there("exec") {
        remarks.push("exec is there, but a holder executes nothing".to_owned());
    }
    for name in names_in(&folder.join("env")).unwrap_or_default() {
        if VARIABLES.contains(&name.as_str()) {
            let empty = fs::metadata(folder.join("env").join(&name)).is_ok_and(|m| m.len() == 0);
            if empty {
                remarks.push(format!("env/{name} is empty and says nothing; a newline would"));
            }
        } else if name.starts_with("S6_FDHOLDER_") || name.starts_with("FDHOLDER_") {
            remarks.push(format!("env/{name}: there is no such right or limit"));
        }
    }
    Rule { key, says, remarks }
}

fn check_cdb(path: &Path) -> Result<(Vec<Rule>, Vec<String>), Refusal> {
    let content = cdb::Cdb::read(path)?;
    let records = content.records().map_err(|cdb::Corrupt(problem)| broken(path, problem))?;
    let rules = records.into_iter().map(|(key, data)| {
        let key = key.escape_ascii().to_string();
        let says = match cdb::verdict_of(data) {
            Ok(Verdict::Allow(rights)) => Says::Allow(rights),
            Ok(Verdict::Deny) => Says::Deny,
            Ok(Verdict::NoMatch) => Says::Nothing,
            Err(problem) => Says::Broken(problem),
        };
        let remarks = remark_on_key(&key).into_iter().collect();
        Rule { key, says, remarks }
    });
    let mut rules: Vec<_> = rules.collect();
    rules.sort_by(|a, b| a.key.cmp(&b.key));
    let remarks = rules.is_empty().then(|| "no rule at all: nobody may connect".to_owned());
    Ok((rules, remarks.into_iter().collect()))
}

/// A key that no user is ever looked up under.
fn remark_on_key(key: &str) -> Option<String> {
    let known = match key.split_once('/') {
        Some(("uid", "self" | "default") | ("gid", "self")) => true,
        Some(("uid" | "gid", number)) => {
            number.parse::<u32>().is_ok_and(|parsed| parsed.to_string() == number)
        }
        _ => false,
    };
    (!known).then(|| "never looked up: a number, or self, or uid/default is".to_owned())
}

/// The names in a folder, sorted; hidden ones are nobody's rule.
fn names_in(folder: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if !name.starts_with('.') {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_odd_is_pointed_out() {
        let dir = tempfile::tempdir().unwrap();
        let write = |file: &str, content: &str| {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        };
        write("uid/0/allow", "");
        write("uid/0/env/S6_FDHOLDER_LIST", "");
        write("uid/0/env/S6_FDHOLDER_STORE_REGEXP", "x");
        write("uid/1/allow", "");
        write("uid/1/env/S6_FDHOLDER_STORE_REGEX", "(");
        write("uid/root/allow", "");
        write("gid/default/deny", "");
        write("gid/7/env/S6_FDHOLDER_LIST", "\n");
        write("users/0/allow", "");
        let (rules, remarks) = check(dir.path()).unwrap();
        let rule = |key: &str| rules.iter().find(|rule| rule.key == key).unwrap();
        assert_eq!(rule("uid/0").remarks.len(), 3, "{:?}", rule("uid/0").remarks);
        assert!(matches!(&rule("uid/0").says, Says::Allow(rights) if !rights.list));
        assert!(matches!(&rule("uid/1").says, Says::Broken(why) if why.contains("STORE_REGEX")));
        assert!(rule("uid/root").remarks[0].contains("never looked up"));
        assert!(rule("gid/default").remarks[0].contains("never looked up"));
        assert!(matches!(rule("gid/7").says, Says::Nothing));
        assert!(remarks[0].starts_with("users"));
    }

    /// Each remark where it is due, and nowhere else.
    #[test]
    fn a_rule_that_is_meant_so_is_not_remarked_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = |file: &str| {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            path
        };
        let write = |file: &str, content: &str| fs::write(path(file), content).unwrap();
        for file in ["allow", "env/PATH"] {
            write(&format!("uid/0/{file}"), "");
        }
        write("uid/0/env/S6_FDHOLDER_LIST", "\n");
        for file in ["allow", "deny", "exec"] {
            write(&format!("uid/1/{file}"), "");
        }
        write("uid/1/env/S6_FDHOLDER_GETDUMP", "\n");
        write("uid/2/deny", "");
        write("uid/3/env/S6_FDHOLDER_GETDUMP", "\n");
        // What is there but cannot be read is broken, which says enough.
        std::os::unix::fs::symlink("none", path("uid/4/allow")).unwrap();
        std::os::unix::fs::symlink("none", path("uid/5/deny")).unwrap();
        for key in ["uid/self", "uid/default", "gid/self", "gid/07", "gid/.8"] {
            write(&format!("{key}/deny"), "");
        }
        let (rules, remarks) = check(dir.path()).unwrap();
        assert!(remarks.is_empty());
        let told: Vec<_> =
            rules.iter().map(|it| (it.key.as_str(), it.remarks.join("; "))).collect();
        let told: Vec<_> = told.iter().map(|(key, remarks)| (*key, remarks.as_str())).collect();
        assert_eq!(
            told,
            [
                ("gid/07", "never looked up: a number, or self, or uid/default is"),
                ("gid/self", ""),
                ("uid/0", ""),
                (
                    "uid/1",
                    "deny is there too, but allow goes before it; \
                     exec is there, but a holder executes nothing"
                ),
                ("uid/2", ""),
                ("uid/3", "neither allow nor deny is there, so it says nothing"),
                ("uid/4", ""),
                ("uid/5", ""),
                ("uid/default", ""),
                ("uid/self", ""),
            ]
        );
    }

    #[test]
    fn without_any_rule_nobody_connects() {
        let dir = tempfile::tempdir().unwrap();
        let nobody = ["no rule at all: nobody may connect"];
        assert_eq!(check(dir.path()).unwrap().1, nobody);
        let file = dir.path().join("rules");
        fs::write(&file, cdb::tests::make(&[])).unwrap();
        assert_eq!(check(&file).unwrap().1, nobody);
        let missing = check(&dir.path().join("none")).unwrap_err();
        assert!(missing.to_string().ends_with("none: No such file or directory"), "{missing}");
    }

    #[test]
    fn a_cdb_is_gone_through_too() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("rules");
        let all = cdb::tests::allow(b"S6_FDHOLDER_LIST=\0");
        let records =
            [(&b"uid/7"[..], &b"X"[..]), (b"uid/1", &all), (b"uid/x", b"D"), (b"uid/2", b"")];
        fs::write(&file, cdb::tests::make(&records)).unwrap();
        let (rules, remarks) = check(&file).unwrap();
        assert!(remarks.is_empty());
        assert!(rules.iter().map(|it| &it.key).eq(["uid/1", "uid/2", "uid/7", "uid/x"]));
        assert!(rules.iter().map(|it| it.remarks.len()).eq([0, 0, 0, 1]));
        assert!(matches!(&rules[0].says, Says::Allow(rights) if rights.list));
        assert!(matches!(&rules[1].says, Says::Broken(why) if why == "an empty record"));
        assert!(matches!(rules[2].says, Says::Nothing) && matches!(rules[3].says, Says::Deny));
    }
}
