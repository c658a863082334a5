//! A listening socket that is of no use any more.

use crate::support::{content_at, listeners_of};
use crate::{Service, KEPT, UNIT};
use fdholder::Limit;
use rustix::net::{shutdown, Shutdown};

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
