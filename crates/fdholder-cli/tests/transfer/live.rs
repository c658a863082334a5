//! Transfers while the world goes on.

use crate::support::{assert_exit, content_at, deadline, id};
use crate::{ids, transferdump, Test};
use fdholder::{Client, Entry, Limit};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::Arc;

pub const TESTS: &[Test] = &[
    ("a_service_serves_throughout", false, a_service_serves_throughout),
    ("what_arrives_existed_at_one_instant", false, || one_instant(&[])),
    ("what_arrives_by_relay_existed_at_one_instant", false, || one_instant(&["--relay"])),
    ("what_is_chosen_existed_at_one_instant", false, || one_instant(&["--prefix", "live"])),
    ("what_is_chosen_by_relay_existed_at_one_instant", false, || {
        one_instant(&["--relay", "--prefix", "live"]);
    }),
];

/// A listener is moved to and fro, and used from where it is, while clients connect.
fn a_service_serves_throughout() {
    let (_here_folder, here) = crate::serve(&[]);
    let (_there_folder, there) = crate::serve(&[]);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    here.client().store(&id("web"), Limit::never(), &listener, deadline()).unwrap();
    let server = std::thread::spawn(move || {
        let mut served = 0;
        for visitor in listener.incoming() {
            let mut visitor = visitor.unwrap();
            let mut asked = [0];
            visitor.read_exact(&mut asked).unwrap();
            visitor.write_all(&asked).unwrap();
            served += 1;
            if asked == *b"q" {
                break;
            }
        }
        served
    });
    let visit = move |say: u8| {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(&[say]).unwrap();
        let mut answer = [0];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(answer, [say]);
    };
    let (done, visits) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
    let visitor = {
        let (done, visits) = (Arc::clone(&done), Arc::clone(&visits));
        std::thread::spawn(move || {
            while !done.load(Ordering::Relaxed) {
                visit(b'x');
                visits.fetch_add(1, Ordering::Relaxed);
            }
        })
    };
    for _ in 0..10 {
        let before = visits.load(Ordering::Relaxed);
        assert_exit(&transferdump(&["--move", "--verify"], &here.path, &there.path), 0);
        assert_exit(&transferdump(&["--move", "--relay"], &there.path, &here.path), 0);
        crate::support::eventually("visitors come", || visits.load(Ordering::Relaxed) > before + 5);
    }
    done.store(true, Ordering::Relaxed);
    visitor.join().unwrap();
    // The descriptor that came back is the same listener.
    let held = here.client().retrieve(&id("web"), deadline()).unwrap();
    let moved = TcpListener::from(held);
    assert_eq!(moved.local_addr().unwrap(), address);
    visit(b'q');
    assert_eq!(server.join().unwrap(), visits.load(Ordering::Relaxed) + 1);
}

/// Clients replace, in one set, one half of what is held by the other, again and again, and
/// store and delete besides. Whatever a transfer brings is from one generation, whole.
fn one_instant(options: &[&str]) {
    const GENERATION: u32 = 600;
    let (_from_folder, from) = crate::serve(&["-n", "6000"]);
    let done = Arc::new(AtomicBool::new(false));
    let hour = std::time::Duration::from_secs(3600);
    let generation = |client: &mut Client, limit: Limit, null: &File| {
        let entry = |n: u32| Entry { id: id(&format!("live{n}")), limit, fd: null.as_fd() };
        let set: Vec<_> = (0..GENERATION).map(entry).collect();
        client.setdump(&set, deadline()).unwrap();
    };
    let null = File::open("/dev/null").unwrap();
    generation(&mut from.client(), Limit::after(hour), &null);
    let writer = {
        let (path, done) = (from.path.clone(), Arc::clone(&done));
        std::thread::spawn(move || {
            let mut client = Client::connect(path, deadline()).unwrap();
            let null = File::open("/dev/null").unwrap();
            // Each generation has its own limit.
            let mut number = 0;
            while !done.load(Ordering::Relaxed) {
                number += 1;
                generation(&mut client, Limit::after(hour + hour * number), &null);
                let other = id(&format!("other{}", number % 7));
                let _ = client.store(&other, Limit::never(), &null, deadline());
                let _ = client.delete(&id(&format!("other{}", (number + 3) % 7)), deadline());
            }
        })
    };
    for _ in 0..20 {
        let (_to_folder, to) = crate::serve(&["-n", "6000"]);
        assert_exit(&transferdump(options, &from.path, &to.path), 0);
        let content = content_at(&to.path);
        let live = content.iter().filter(|(id, _)| id.as_bytes().starts_with(b"live"));
        let limits: Vec<_> = live.map(|(_, (_, limit))| limit.timestamp()).collect();
        assert_eq!(limits.len(), GENERATION as usize);
        assert_eq!(limits.iter().collect::<BTreeSet<_>>().len(), 1, "of several generations");
        if !options.is_empty() && options.contains(&"--prefix") {
            assert_eq!(ids(&to).len(), GENERATION as usize);
        }
    }
    done.store(true, Ordering::Relaxed);
    writer.join().unwrap();
}
