//! Rules: in doubt nobody gets in, and nobody gets more than is written.

use crate::input::Input;
use fdholder::Identifier;
use fdholder_daemon::access::pattern::written_out;
use fdholder_daemon::access::{check, dir, keys, Ids, Refusal, Rights, Rules, User, VARIABLES};
use fdholder_daemon::limits::{PATTERN_LEN_MAX, RULE_FILE_LEN_MAX};
use memchr::memmem;
use std::cell::RefCell;
use std::fs;
use std::path::Path;
use tempfile::TempDir;

const OWN: User = User { uid: 100, gid: 200 };
/// Users, so that each key is one's.
const USERS: [User; 4] = [
    User { uid: 100, gid: 200 },
    User { uid: 1, gid: 200 },
    User { uid: 1, gid: 2 },
    User { uid: 3, gid: 4 },
];
/// The rules that may be there.
const KEYS: [&str; 6] = ["uid/self", "uid/1", "gid/self", "gid/2", "uid/3", "uid/default"];

/// The content of a file, an environment, or a whole folder.
pub fn rules(data: &[u8]) {
    let mut input = Input::new(data);
    match input.byte() % 3 {
        0 => value(input.rest()),
        1 => environment(&mut input),
        _ => folder(&mut input),
    }
}

/// What a file gives its variable is its first line, and nothing if there is nothing.
fn value(content: &[u8]) {
    let value = dir::value_of(content.to_vec());
    assert_eq!(value, expected_value(content));
    if let Some(value) = &value {
        assert!(value.len() <= content.len());
        assert!(!value.contains(&0), "no variable can have that");
    }
    let Some(value) = value.filter(|value| is_tame_value(value)) else { return };
    let variables = [(VARIABLES[0].as_bytes(), &value[..])];
    if let Ok(rights) = Rights::from_environment(variables.into_iter()) {
        assert_eq!(shown(&rights.store), Some(value.escape_ascii().to_string()));
        assert!(matches!(rights.retrieve, Ids::None));
        assert!(!(rights.list || rights.getdump || rights.setdump));
    }
}

/// By the rules of envdir, said in another way.
fn expected_value(content: &[u8]) -> Option<Vec<u8>> {
    if content.is_empty() {
        return None;
    }
    let mut line: Vec<u8> = content.iter().copied().take_while(|&byte| byte != b'\n').collect();
    while line.last().is_some_and(|last| b" \t\r".contains(last)) {
        line.pop();
    }
    Some(line.into_iter().map(|byte| if byte == 0 { b'\n' } else { byte }).collect())
}

/// Variables, each as it may be in a record.
fn environment(input: &mut Input<'_>) {
    let mut variables: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    while !input.is_empty() {
        let name = match input.byte() % 8 {
            known @ 0..5 => VARIABLES[usize::from(known)].as_bytes().to_vec(),
            5 => input.short().to_vec(),
            // Nearly one.
            6 => VARIABLES[input.below(5)].as_bytes()[..usize::from(input.byte()) % 16].to_vec(),
            _ => [VARIABLES[input.below(5)].as_bytes(), b"_"].concat(),
        };
        variables.push((name, input.short().to_vec()));
    }
    if !variables.iter().all(|(_, value)| is_tame_value(value)) {
        return;
    }
    let pairs = || variables.iter().map(|(name, value)| (&name[..], &value[..]));
    let Ok(rights) = Rights::from_environment(pairs()) else { return };
    let first = |name: &str| pairs().find(|pair| pair.0 == name.as_bytes()).map(|pair| pair.1);
    let escaped = |name| first(name).map(|value| value.escape_ascii().to_string());
    assert_eq!(shown(&rights.store), escaped(VARIABLES[0]));
    assert_eq!(shown(&rights.retrieve), escaped(VARIABLES[1]));
    assert_eq!(rights.list, first(VARIABLES[2]).is_some());
    assert_eq!(rights.getdump, first(VARIABLES[3]).is_some());
    assert_eq!(rights.setdump, first(VARIABLES[4]).is_some());
    assert_eq!(rights.is_nothing(), VARIABLES.iter().all(|name| first(name).is_none()));
    if let Ok(id) = Identifier::new(b"web") {
        assert!(!rights.may_store(&id) || first(VARIABLES[0]).is_some());
        assert!(!rights.may_retrieve(&id) || first(VARIABLES[1]).is_some());
    }
}

/// The expression that grants, as it is shown.
fn shown(ids: &Ids) -> Option<String> {
    match ids {
        Ids::None => None,
        Ids::All => panic!("no rule grants everything without an expression"),
        Ids::Matching(pattern) => Some(pattern.to_string()),
    }
}

/// One rule as it is written into a folder.
#[derive(Debug, Default)]
struct Rule {
    allows: bool,
    denies: bool,
    /// Contents for the variables that have a file.
    env: [Option<Vec<u8>>; VARIABLES.len()],
}

fn folder(input: &mut Input<'_>) {
    let mut rules: Vec<(&str, Rule)> = Vec::new();
    while !input.is_empty() {
        let key = input.choose(&KEYS);
        let what = input.byte();
        let mut rule = Rule { allows: what & 1 != 0, denies: what & 2 != 0, ..Rule::default() };
        // One byte says of the rights which are there, another one of the limits.
        let which = u16::from(what) >> 2 & 0x1f | u16::from(input.byte()) << 5;
        for (index, content) in rule.env.iter_mut().enumerate() {
            if which & 1 << index != 0 {
                let mut written = input.short().to_vec();
                if what & 0x80 != 0 && written.len() == 255 {
                    // Too long, or just not.
                    written.resize(RULE_FILE_LEN_MAX + usize::from(written[0] & 1), b'\n');
                }
                *content = Some(written);
            }
        }
        if rules.iter().all(|(other, _)| *other != key) {
            rules.push((key, rule));
        }
    }
    let contents = || rules.iter().flat_map(|(_, rule)| rule.env.iter().flatten());
    if contents().filter_map(|content| expected_value(content)).all(|it| is_tame_value(&it)) {
        IN_FOLDER.with_borrow(|folder| {
            let Some(folder) = folder.as_ref() else { panic!("there is no temporary folder") };
            check_folder(folder.path(), &rules);
        });
    }
}

thread_local! {
    /// One for all runs, which empty it.
    static IN_FOLDER: RefCell<Option<TempDir>> = RefCell::new(tempfile::tempdir().ok());
}

fn check_folder(path: &Path, rules: &[(&str, Rule)]) {
    for kind in ["uid", "gid"] {
        let _ = fs::remove_dir_all(path.join(kind));
    }
    for (key, rule) in rules {
        if let Err(error) = write(&path.join(key), rule) {
            panic!("no rule can be written into {}: {error}", path.display());
        }
    }
    let mut read = Rules::in_dir(path);
    for user in USERS {
        let rule = keys(user, OWN).find_map(|key| {
            let (key, rule) = rules.iter().find(|(other, _)| *other == key)?;
            (rule.allows || rule.denies).then_some((*key, rule))
        });
        let rights = read.rights(user, OWN);
        match (rule, read.explain(user, OWN)) {
            (None, Err(Refusal::NoRule)) => {}
            (Some((key, rule)), Err(Refusal::Denied(by))) => {
                assert!(by == key && !rule.allows && rule.denies);
            }
            (Some((_, rule)), Err(Refusal::Broken { .. })) => {
                assert!(rule.allows && is_broken(rule));
            }
            (Some((key, rule)), Ok((by, explained))) => {
                assert!(by == key && rule.allows);
                assert_eq!(granted(&explained), expected(rule));
                let Ok(rights) = &rights else { panic!("refused, and explained as let in") };
                assert_eq!(granted(rights), expected(rule));
            }
            (rule, said) => panic!("{user}: {rule:?}, but {said:?}"),
        }
        assert_eq!(rights.is_ok(), read.explain(user, OWN).is_ok());
    }
    let Ok((checked, _)) = check::check(path) else { panic!("the folder is there") };
    assert_eq!(checked.len(), rules.len());
}

fn write(folder: &Path, rule: &Rule) -> std::io::Result<()> {
    fs::create_dir_all(folder.join("env"))?;
    if rule.allows {
        fs::write(folder.join("allow"), "")?;
    }
    if rule.denies {
        fs::write(folder.join("deny"), "")?;
    }
    for (name, content) in VARIABLES.iter().zip(&rule.env) {
        if let Some(content) = content {
            fs::write(folder.join("env").join(name), content)?;
        }
    }
    Ok(())
}

/// Whether a file is too long, or its expression none.
fn is_broken(rule: &Rule) -> bool {
    let limits = rule.env[5..].iter().flatten().filter_map(|content| expected_value(content));
    let is_no_number = |value: Vec<u8>| !value.iter().all(u8::is_ascii_digit) || value.is_empty();
    if limits.into_iter().any(|value| is_no_number(value.clone()) || number(&value).is_none()) {
        return true;
    }
    let expressions = rule.env[..2].iter().flatten().filter_map(|content| expected_value(content));
    rule.env.iter().flatten().any(|content| content.len() > RULE_FILE_LEN_MAX)
        || expressions.into_iter().any(|value| {
            let variables = [(VARIABLES[0].as_bytes(), &value[..])];
            Rights::from_environment(variables.into_iter()).is_err()
        })
}

type Granted = (Option<String>, Option<String>, [bool; 3], [Option<usize>; 4]);

fn number(value: &[u8]) -> Option<usize> {
    std::str::from_utf8(value).ok()?.parse().ok()
}

fn granted(rights: &Rights) -> Granted {
    let Rights { store, retrieve, list, getdump, setdump, quotas } = rights;
    let limits = [quotas.fds, quotas.connections, quotas.bytes, quotas.unread];
    (shown(store), shown(retrieve), [*list, *getdump, *setdump], limits)
}

fn expected(rule: &Rule) -> Granted {
    let values = rule.env.each_ref().map(|content| content.as_deref().and_then(expected_value));
    let [store, retrieve, list, getdump, setdump, limits @ ..] = values;
    let limits = limits.map(|value| value.as_deref().and_then(number));
    let escaped = |value: Option<Vec<u8>>| value.map(|value| value.escape_ascii().to_string());
    let flags = [list.is_some(), getdump.is_some(), setdump.is_some()];
    (escaped(store), escaped(retrieve), flags, limits)
}

/// Whatever is granted stands in these bytes, as a variable.
pub(crate) fn check_grants(rights: &Rights, bytes: &[u8]) {
    let stands = |name: &str, value: &str| {
        let name = [name.as_bytes(), b"="].concat();
        memmem::find_iter(bytes, &name).any(|start| {
            let rest = bytes[start + name.len()..].iter().copied();
            rest.flat_map(std::ascii::escape_default).take(value.len()).eq(value.bytes())
        })
    };
    for (ids, name) in [(&rights.store, VARIABLES[0]), (&rights.retrieve, VARIABLES[1])] {
        if let Some(expression) = shown(ids) {
            assert!(stands(name, &expression), "{name}={expression}, out of nothing");
        }
    }
    let flags = [rights.list, rights.getdump, rights.setdump];
    for (is_granted, name) in flags.into_iter().zip(&VARIABLES[2..]) {
        assert!(!is_granted || stands(name, ""), "{name}, out of nothing");
    }
}

/// Whether the C library compiles whatever expressions stand in here in no time: what a daemon
/// takes may be slower, of which a fuzzer would find more and more, and little else.
pub(crate) fn is_tame(bytes: &[u8]) -> bool {
    const END: &[u8] = b"_REGEX=";
    memmem::find_iter(bytes, END).all(|start| {
        let value = &bytes[start + END.len()..];
        is_tame_value(value.split(|&byte| byte == 0).next().unwrap_or_default())
    })
}

/// The same of one expression, or of the beginning of one.
fn is_tame_value(value: &[u8]) -> bool {
    !(200..=PATTERN_LEN_MAX).contains(&written_out(value))
}
