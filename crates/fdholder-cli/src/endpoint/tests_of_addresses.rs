//! Held sockets whose address does not look like the one that was asked for, and is it; and others.

use super::tests_of_held::{differences, endpoint, open, options, settle_by, with_port, BIND};
use super::*;
use rustix::fs::{mkfifoat, OFlags, CWD};
use std::fs::{create_dir, remove_file};
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;

const NOTHING: [&str; 0] = [];

fn connect(held: &OwnedFd, peer: &str) {
    rustix::net::connect(held, &peer.parse::<SocketAddr>().unwrap()).unwrap();
}

/// connect(2) gives it the address of the way to its peer.
#[test]
fn socket_of_any_address_with_a_peer_takes_from_everybody_again() {
    for (any, peer) in [
        ("udp:0.0.0.0:0", "127.0.0.1:9"),
        ("udp:[::]:0", "[::1]:9"),
        ("udp:[::]:0", "[::ffff:127.0.0.1]:9"),
    ] {
        let mut held = open(any);
        let text = with_port(any, &held);
        for chosen_by in ["the kernel", "us"] {
            connect(&held, peer);
            assert_eq!(differences(&text, "", &held), ["connected to one peer"], "{text}");
            let settled = settle_by(&text, "", &held, BIND);
            assert!(matches!(settled, Ok(Settled::Held(_))), "{chosen_by} {text}: {settled:?}");
            assert_eq!(differences(&text, "", &held), NOTHING, "{chosen_by} {text}");
            assert_eq!(with_port(any, &held), text);
            drop(held);
            held = open(&text);
        }
    }
    // One that had a single address before.
    let (single, text) = {
        let free = open("udp:127.0.0.1:0");
        (with_port("udp:127.0.0.1:0", &free), with_port("udp:0.0.0.0:0", &free))
    };
    let held = open(&single);
    connect(&held, "127.0.0.1:9");
    let Err(NotSettled::Differs(what)) = settle_by(&text, "", &held, BIND) else { panic!() };
    assert!(what.starts_with("UDP socket 127.0.0.1:"), "{what}");
    connect(&held, "127.0.0.1:9");
    let policy = Policy { replace: true, ..BIND };
    let Ok(Settled::Replaced(new, _)) = settle_by(&text, "", &held, policy) else { panic!() };
    assert_eq!(differences(&text, "", &new), NOTHING);
}

/// The kernel sets the one with the other.
#[test]
fn priority_that_was_asked_for_outlives_a_change_of_the_type_of_service() {
    for text in ["tcp:127.0.0.1:0", "udp:127.0.0.1:0"] {
        let held = endpoint(text).open(&options("tos = 'low-delay'\npriority = 3")).unwrap();
        let said = "tos = 'throughput'\npriority = 3";
        assert!(matches!(settle_by(text, said, &held, BIND), Ok(Settled::Held(_))));
        assert_eq!(differences(text, said, &held), NOTHING);
    }
}

#[test]
fn mapped_address_is_the_one_that_it_maps() {
    let policy = Policy { replace: true, ..BIND };
    for (is, wanted) in [
        ("tcp:127.0.0.1:0", "tcp:[::ffff:127.0.0.1]:0"),
        ("tcp:[::ffff:127.0.0.1]:0", "tcp:127.0.0.1:0"),
    ] {
        let held = open(is);
        let wanted = with_port(wanted, &held);
        assert!(endpoint(&wanted).is_in_the_way_of(&held), "{wanted}");
        let Ok(Settled::Replaced(new, _)) = settle_by(&wanted, "", &held, policy) else { panic!() };
        assert_eq!(differences(&wanted, "", &new), NOTHING);
    }
}

#[test]
fn port_of_vsock_that_the_kernel_chose_is_any() {
    let any = endpoint("vsock::4294967295");
    let Ok(held) = any.open(&EndpointOptions::default()) else {
        return eprintln!("left out: this kernel has no vsock");
    };
    assert_eq!(differences("vsock::4294967295", "", &held), NOTHING);
    let error = endpoint("vsock:77777:77").open(&EndpointOptions::default()).unwrap_err();
    assert!(error.to_string().contains("77777 is not the CID of this machine"), "{error}");
}

#[test]
fn fifo_that_is_open_at_one_end_alone_is_another() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fifo");
    mkfifoat(CWD, &path, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR).unwrap();
    let text = format!("fifo:{}", path.display());
    let _other_end = open(&text);
    for (flag, is) in [(OFlags::RDONLY, "read-only"), (OFlags::WRONLY, "write-only")] {
        let held = rustix::fs::open(&path, flag, rustix::fs::Mode::empty()).unwrap();
        let Err(NotSettled::Differs(what)) = settle_by(&text, "", &held, BIND) else { panic!() };
        assert!(what.contains(&format!("with access {is}, not read-write")), "{what}");
        let policy = Policy { replace: true, ..BIND };
        assert!(matches!(settle_by(&text, "", &held, policy), Ok(Settled::Replaced(..))));
    }
}

#[test]
fn file_that_was_removed_is_known_by_another_path() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    create_dir(at("run")).unwrap();
    symlink(at("run"), at("var")).unwrap();
    for scheme in ["unix", "unix-dgram", "unix-seqpacket", "fifo"] {
        let text = |name: &str| format!("{scheme}:{}", at(name).display());
        let held = open(&text("run/web"));
        assert_eq!(differences(&text("var/web"), "", &held), NOTHING, "{scheme}");
        remove_file(at("run/web")).unwrap();
        let found = differences(&text("var/web"), "", &held);
        assert_eq!(found, ["its file was removed"], "{scheme}");
        assert_eq!(differences(&text("var/other"), "", &held), ["another address"], "{scheme}");
        let Ok(Settled::Replaced(new, _)) = settle_by(&text("var/web"), "", &held, BIND) else {
            panic!("{scheme}")
        };
        assert_eq!(differences(&text("run/web"), "", &new), NOTHING, "{scheme}");
        remove_file(at("run/web")).unwrap();
    }
}
