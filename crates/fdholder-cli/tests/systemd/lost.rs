//! What systemd keeps and is of no use any more: a listening socket, and a roll of a daemon whose place
//! another one has.

use crate::support::{assert_exit, content_at, deadline, id, listeners_of, suite};
use crate::{Service, KEPT, UNIT};
use fdholder::Limit;
use rustix::net::{shutdown, Shutdown};
use std::io::Read;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// systemd keeps it, too; what is held is served on another one.
pub fn a_socket_is_made_anew() {
    let service = Service::start("--fdstore", KEPT);
    let mut client = service.client();
    for number in 0..5 {
        service.store(&mut client, &number.to_string(), Limit::never());
    }
    let before = content_at(&service.path);
    for _ in 0..2 {
        let main = service.main_pid();
        shutdown(listeners_of(main).pop().unwrap(), Shutdown::Read).unwrap();
        service.manager.successor(UNIT, main);
        assert_eq!(content_at(&service.path), before);
    }
    let output = service.manager.output();
    assert_eq!(output.matches("the listening socket is lost: it was shut down").count(), 2);
}

fn eventually_ends(other: &mut Child) -> bool {
    let until = Instant::now() + Duration::from_secs(20);
    while Instant::now() < until {
        if other.try_wait().unwrap().is_some() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    other.kill().unwrap();
    false
}

/// A daemon that systemd does not know takes over, and becomes another program: the lock by which it
/// would be seen has gone with the last program. It is alive, and has what is held.
pub fn an_heir_serves() {
    let service = Service::start("--fdstore", &format!("ExecStartPre=sleep 1\n{KEPT}"));
    service.store(&mut service.client(), "a", Limit::never());
    let main = service.main_pid();
    let mut other = suite::fdholder(["serve", "-1"]);
    let mut other = other.arg(&service.path).stdout(Stdio::piped()).spawn().unwrap();
    assert_eq!(other.stdout.take().unwrap().read(&mut [0]).unwrap(), 1);
    service.store(&mut service.client(), "b", Limit::never());
    let upgraded = suite::fdholder(["upgrade", service.path.to_str().unwrap()]).output();
    assert_exit(&upgraded.unwrap(), 0);
    service.manager.successor(UNIT, main);
    let held = service.client().list(deadline()).unwrap();
    assert!(held.contains(&id("a")) && held.contains(&id("b")), "{held:?}");
    let has_ended = eventually_ends(&mut other);
    assert!(has_ended, "it was taken over from");
}
