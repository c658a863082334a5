//! Datagrams, carried out on a store of numbers.

use super::*;
use crate::access::Rights;

fn now() -> Timestamp {
    Timestamp::now()
}

fn id(text: &str) -> Identifier {
    Identifier::new(text).unwrap()
}

/// What a user with all rights, or some, sends for the service `web`.
fn send(store: &mut Store<u32>, rights: &Rights, text: &str, fds: &[u32]) -> Option<Errno> {
    let sender = Sender { claimant: Claimant::trusted(7), rights };
    let message = Message::parse(text.as_bytes());
    // Numbers with the same tens are one open file.
    let same = |a: &u32, b: &u32| a / 10 == b / 10;
    let heeded = heed(b"web", &message, fds.to_vec(), &sender, same, store, now());
    store.check();
    heeded.refused.first().map(|refused| refused.errno)
}

fn held(store: &Store<u32>) -> Vec<(String, u32)> {
    let mut held: Vec<_> = store.iter().map(|it| (it.id.to_string(), it.fd)).collect();
    held.sort();
    held
}

fn named(held: &[(&str, u32)]) -> Vec<(String, u32)> {
    held.iter().map(|&(name, fd)| (name.to_owned(), fd)).collect()
}

#[test]
fn what_comes_under_one_name_is_told_apart() {
    let (mut store, all) = (Store::new(10), Rights::all());
    assert_eq!(send(&mut store, &all, "FDSTORE=1\nFDNAME=conn", &[10, 20]), None);
    assert_eq!(send(&mut store, &all, "FDSTORE=1\nFDNAME=conn", &[30]), None);
    assert_eq!(send(&mut store, &all, "FDSTORE=1", &[40]), None);
    let all_of_it = [("web/conn", 10), ("web/conn:2", 20), ("web/conn:3", 30), ("web/stored", 40)];
    assert_eq!(held(&store), named(&all_of_it));
    assert_eq!(store.iter().next().unwrap().origin.owner, 7);
    // The same file again, under whatever name.
    assert_eq!(send(&mut store, &all, "FDSTORE=1\nFDNAME=other", &[21]), None);
    assert_eq!(held(&store), named(&all_of_it));
    assert_eq!(send(&mut store, &all, "FDSTOREREMOVE=1\nFDNAME=conn", &[]), None);
    assert_eq!(held(&store), named(&all_of_it[3..]));
    assert_eq!(send(&mut store, &all, "FDSTORE=1\nFDNAME=conn", &[50]), None);
    assert_eq!(held(&store)[0], ("web/conn".to_owned(), 50));
}

#[test]
fn only_what_is_asked_for_is_held() {
    let (mut store, all) = (Store::new(10), Rights::all());
    for text in ["BARRIER=1", "READY=1", "FDSTORE=0", "FDSTOREREMOVE=1", ""] {
        assert_eq!(send(&mut store, &all, text, &[10]), None);
    }
    assert_eq!(held(&store), []);
}

#[test]
fn it_is_held_with_its_peer_unless_it_is_said_otherwise() {
    let (mut store, all) = (Store::new(10), Rights::all());
    send(&mut store, &all, "FDSTORE=1\nFDNAME=a", &[10]);
    send(&mut store, &all, "FDSTORE=1\nFDNAME=b\nFDPOLL=0", &[20]);
    let is_with_peer =
        |name: &str| store.find_held(&id(name)).unwrap().origin.tenure.is_with_peer();
    assert!(is_with_peer("web/a") && !is_with_peer("web/b"));
}

#[test]
fn rights_and_room_decide() {
    let (mut store, all, none) = (Store::new(2), Rights::all(), Rights::default());
    assert_eq!(send(&mut store, &none, "FDSTORE=1\nFDNAME=a", &[10]), Some(Errno::PERM));
    assert_eq!(send(&mut store, &all, "FDSTORE=1\nFDNAME=a", &[10]), None);
    assert_eq!(send(&mut store, &none, "FDSTOREREMOVE=1\nFDNAME=a", &[]), Some(Errno::PERM));
    assert_eq!(send(&mut store, &all, "FDSTORE=1\nFDNAME=a", &[20, 30]), Some(Errno::NFILE));
    assert_eq!(held(&store), named(&[("web/a", 10), ("web/a:2", 20)]));
}

/// Of what ends like a reserved name nothing is reserved, and a colon alone is no number.
#[test]
fn names_that_look_alike_are_names() {
    let (mut store, all) = (Store::new(20), Rights::all());
    for (number, name) in ["status", "notify", "s", "y", "us", "fy"].into_iter().enumerate() {
        let fd = 10 * number as u32; // Six of them.
        assert_eq!(send(&mut store, &all, &format!("FDSTORE=1\nFDNAME={name}"), &[fd]), None);
        let id = id(&format!("web/{name}"));
        assert_eq!(fd_name(b"web", &id), Some(name.as_bytes()));
        assert_eq!(send(&mut store, &all, &format!("FDSTOREREMOVE=1\nFDNAME={name}"), &[]), None);
        assert!(store.find_held(&id).is_none());
    }
    assert_eq!(fd_name(b"web", &id("web/http:")), Some(&b"http:"[..]));
    assert_eq!(fd_name(b"web", &id("web/http:x")), Some(&b"http:x"[..]));
    assert_eq!(fd_name(b"web", &id("web/10")), Some(&b"10"[..]));
    // That of a service within this one is not its own.
    assert_eq!(fd_name(b"web", &id("web/a/.notify")), None);
}

/// Who may not store anything costs nothing.
#[test]
fn nothing_is_compared_for_a_stranger() {
    let (mut store, all, none) = (Store::new(300), Rights::all(), Rights::default());
    let fds: Vec<u32> = (0..200).map(|number| number * 10).collect();
    send(&mut store, &all, "FDSTORE=1\nFDNAME=a", &fds);
    assert_eq!(store.len(), 200);
    let message = Message::parse(b"FDSTORE=1\nFDNAME=a");
    let by = |rights, store: &mut Store<u32>| {
        let sender = Sender { claimant: Claimant::trusted(7), rights };
        heed(b"web", &message, fds.clone(), &sender, |a, b| a == b, store, now())
    };
    let heeded = by(&none, &mut store);
    assert_eq!((heeded.work, heeded.left.len()), (1, 200));
    let heeded = by(&all, &mut store);
    assert_eq!((heeded.work, heeded.left.len()), (1 + 200 * 200, 200));
    // What is refused in the end has cost as much.
    let mut full = Store::new(200);
    send(&mut full, &all, "FDSTORE=1\nFDNAME=a", &fds);
    let sender = Sender { claimant: Claimant::trusted(7), rights: &all };
    let heeded = heed(b"web", &message, fds.clone(), &sender, |_, _| false, &mut full, now());
    assert!(!heeded.refused.is_empty() && heeded.work > 200 * 200, "{}", heeded.work);
}

/// A name is no way to get at anything else.
#[test]
fn names_stay_within_their_service() {
    let (mut store, all) = (Store::new(10), Rights::all());
    let entry = |name: &str, fd| Entry { id: id(name), limit: Limit::never(), fd };
    for (name, fd) in [("web/.notify", 1), ("web/.status", 11), ("other/a", 21), ("web", 31)] {
        store.store(entry(name, fd), 0, now()).answer.unwrap();
    }
    let before = held(&store);
    for name in [".notify", ".status"] {
        let text = format!("FDSTORE=1\nFDNAME={name}");
        assert_eq!(send(&mut store, &all, &text, &[91]), Some(Errno::INVAL));
        assert_eq!(send(&mut store, &all, &format!("FDSTOREREMOVE=1\nFDNAME={name}"), &[]), None);
    }
    let long = "x".repeat(255);
    assert_eq!(
        send(&mut store, &all, &format!("FDSTORE=1\nFDNAME={long}"), &[91]),
        Some(Errno::NAMETOOLONG)
    );
    assert_eq!(send(&mut store, &all, "FDSTOREREMOVE=1\nFDNAME=a", &[]), None);
    assert_eq!(held(&store), before);
    // What only looks alike is something else.
    assert_eq!(send(&mut store, &all, "FDSTORE=1\nFDNAME=../other/a", &[91]), None);
    assert!(store.find_held(&id("web/../other/a")).is_some());
}

#[test]
fn doors_are_known_by_their_identifiers() {
    assert_eq!(service_of(&id("web/.notify")), Some(&b"web"[..]));
    assert_eq!(service_of(&id("a/b/.notify")), Some(&b"a/b"[..]));
    for other in ["/.notify", ".notify", "web/.notify2", "web/notify"] {
        assert_eq!(service_of(&id(other)), None, "{other}");
    }
    assert_eq!(fd_name(b"web", &id("web/conn:2")), Some(&b"conn"[..]));
    assert_eq!(fd_name(b"web", &id("web/.notify")), None);
    assert_eq!(fd_name(b"web", &id("website/conn")), None);
}
