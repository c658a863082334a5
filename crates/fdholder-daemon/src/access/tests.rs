use super::*;

#[test]
fn keys_are_looked_up_in_order() {
    let daemon = User { uid: 5, gid: 6 };
    let keys = |uid, gid| keys(User { uid, gid }, daemon).collect::<Vec<_>>();
    assert_eq!(keys(5, 6), ["uid/self", "uid/5", "gid/self", "gid/6", "uid/default"]);
    assert_eq!(keys(0, 6), ["uid/0", "gid/self", "gid/6", "uid/default"]);
    assert_eq!(keys(0, 0), ["uid/0", "gid/0", "uid/default"]);
}

#[test]
fn without_rules_only_the_owner_gets_in() {
    let daemon = User { uid: 5, gid: 6 };
    let mut rules = Rules::owner_only();
    assert!(rules.rights(User { uid: 5, gid: 1 }, daemon).unwrap().setdump);
    assert_eq!(rules.rights(User { uid: 0, gid: 6 }, daemon).unwrap_err(), Refusal::NoRule);
}

#[test]
fn the_first_of_two_variables_counts() {
    let variables = [
        (&b"S6_FDHOLDER_STORE_REGEX"[..], &b"^a"[..]),
        (b"S6_FDHOLDER_STORE_REGEX", b"^b"),
        (b"S6_FDHOLDER_LIST", b""),
    ];
    let rights = Rights::from_environment(variables.into_iter()).unwrap();
    assert!(rights.may_store(&Identifier::new("a").unwrap()));
    assert!(!rights.may_store(&Identifier::new("b").unwrap()));
    assert!(!rights.may_retrieve(&Identifier::new("a").unwrap()));
    assert!(rights.list && !rights.getdump);
    let variables = [(&b"S6_FDHOLDER_RETRIEVE_REGEX"[..], &b"^a"[..])];
    let rights = Rights::from_environment(variables.into_iter()).unwrap();
    assert!(rights.may_retrieve(&Identifier::new("a").unwrap()));
    assert!(!rights.may_retrieve(&Identifier::new("b").unwrap()));
    assert!(!rights.may_store(&Identifier::new("a").unwrap()));
}

#[test]
fn limits_are_numbers_and_nothing_else() {
    let names = ["FDHOLDER_MAXFDS", "FDHOLDER_MAXCONN", "FDHOLDER_MAXBYTES", "FDHOLDER_MAXUNREAD"];
    let limits = |values: &[&str]| {
        let variables =
            names.iter().zip(values).map(|(name, value)| (name.as_bytes(), value.as_bytes()));
        Rights::from_environment(variables).map(|rights| rights.quotas)
    };
    let (fds, connections, bytes, unread) = (Some(1), Some(20), Some(300), Some(0));
    let quotas = Quotas { fds, connections, bytes, unread };
    assert_eq!(limits(&["1", "20", "300", "0"]), Ok(quotas));
    assert_eq!(limits(&[]), Ok(Quotas::default()));
    for value in ["", "-1", "+1", "1 ", "x", "99999999999999999999"] {
        let refused = format!("FDHOLDER_MAXFDS: '{value}' is not a number");
        assert_eq!(limits(&[value]), Err(refused), "{value}");
    }
    let twice = [(&b"FDHOLDER_MAXFDS"[..], &b"5"[..]), (b"FDHOLDER_MAXFDS", b"9")];
    let rights = Rights::from_environment(twice.into_iter()).unwrap();
    assert_eq!(rights.quotas.fds, Some(5), "the first counts");
}

#[test]
fn rights_are_shown_and_told_from_none() {
    let shown = [Ids::None, Ids::All, Ids::Matching(Pattern::new(b"^a").unwrap())];
    assert!(shown.iter().map(ToString::to_string).eq(["-", "all", "^a"]));
    assert!(Rights::default().is_nothing() && !Rights::all().is_nothing());
    let one_each: [fn(&mut Rights); 5] = [
        |rights| rights.store = Ids::All,
        |rights| rights.retrieve = Ids::All,
        |rights| rights.list = true,
        |rights| rights.getdump = true,
        |rights| rights.setdump = true,
    ];
    for grant in one_each {
        let mut rights = Rights::default();
        grant(&mut rights);
        assert!(!rights.is_nothing(), "{rights:?}");
    }
    let id = Identifier::new("x").unwrap();
    assert!(Rights::all().may_store(&id) && Rights::all().may_retrieve(&id));
}

#[test]
fn a_refusal_says_why() {
    let broken = Refusal::Broken { place: "uid/1".into(), problem: "worn out".into() };
    let said = [Refusal::NoRule, Refusal::Denied("uid/0".into()), broken].map(|it| it.to_string());
    assert_eq!(said, ["no rule for this user", "denied by rule uid/0", "uid/1: worn out"]);
    assert_eq!(User { uid: 1, gid: 2 }.to_string(), "uid 1 gid 2");
    let own = rustix::process::geteuid().as_raw();
    assert_eq!(User::this_process().uid, own);
}

/// What a cdb says holds until it is read again; if it cannot be, it holds on.
#[test]
fn a_cdb_is_read_again_when_that_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("rules");
    let (user, own) = (User { uid: 1, gid: 1 }, User { uid: 5, gid: 5 });
    let write = |data: &[u8]| std::fs::write(&file, cdb::tests::make(&[(b"uid/1", data)])).unwrap();
    write(b"D");
    let mut rules = Rules::in_cdb(&file).unwrap();
    let denied = Refusal::Denied("uid/1".into());
    assert_eq!(rules.rights(user, own).unwrap_err(), denied);
    write(&cdb::tests::allow(b"S6_FDHOLDER_LIST=\0"));
    assert_eq!(rules.rights(user, own).unwrap_err(), denied);
    rules.reload().unwrap();
    assert!(rules.rights(user, own).unwrap().list);
    let (key, rights) = rules.explain(user, own).unwrap();
    assert!(key == "uid/1" && rights.list);
    std::fs::remove_file(&file).unwrap();
    assert!(rules.reload().is_err());
    assert!(rules.rights(user, own).unwrap().list);
    assert!(Rules::in_cdb(&file).is_err());
}

#[test]
fn only_so_many_users_are_remembered() {
    let mut rules = Rules::owner_only();
    let user = |uid| User { uid, gid: 1 };
    for uid in 0..RIGHTS_CACHED_MAX as u32 {
        let _ = rules.rights(user(uid), user(0));
    }
    assert_eq!(rules.remembered.len(), RIGHTS_CACHED_MAX);
    let _ = rules.rights(user(u32::MAX), user(0));
    assert_eq!(rules.remembered.len(), 1);
}

/// Each connection has its rights for as long as it lasts, and there may be thousands.
#[test]
fn what_says_the_same_is_had_once() {
    let folder = tempfile::tempdir().unwrap();
    let rule = folder.path().join("uid/1000");
    std::fs::create_dir_all(rule.join("env")).unwrap();
    std::fs::write(rule.join("allow"), "").unwrap();
    let write = |regex: &str| {
        std::fs::write(rule.join("env/S6_FDHOLDER_STORE_REGEX"), regex).unwrap();
    };
    let (user, own) = (User { uid: 1000, gid: 1000 }, User { uid: 0, gid: 0 });
    // What was written a moment ago is read each time.
    let mut rules = Rules::in_dir(folder.path());
    write("^a");
    let first = rules.rights(user, own).unwrap();
    write("^b");
    let second = rules.rights(user, own).unwrap();
    let third = rules.rights(user, own).unwrap();
    assert!(Arc::ptr_eq(&second, &third) && !Arc::ptr_eq(&first, &second));
    let b = Identifier::new("b").unwrap();
    assert!(second.may_store(&b) && !first.may_store(&b));
}
