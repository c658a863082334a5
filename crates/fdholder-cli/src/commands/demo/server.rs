//! The server of the demo: answers on the listener that is its standard input, until
//! SIGTERM; a client it has accepted is always answered.

use crate::failure::Failure;
use fdholder_daemon::signals::Signals;
use rustix::event::{poll, PollFd, PollFlags};
use std::io::Write;
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::process::ExitCode;

pub fn answer_on_stdin() -> Result<ExitCode, Failure> {
    serve().map(|()| ExitCode::SUCCESS).map_err(|error| Failure::system("serve", error))
}

fn serve() -> std::io::Result<()> {
    let listener = TcpListener::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    let signals = Signals::take()?;
    let term = signals.term();
    loop {
        let mut ready = [PollFd::new(&listener, PollFlags::IN), PollFd::new(&term, PollFlags::IN)];
        match poll(&mut ready, None) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(errno) => return Err(errno.into()),
        }
        let [wanted, told_to_end] = ready.map(|fd| !fd.revents().is_empty());
        if told_to_end {
            return Ok(());
        }
        if wanted {
            let (mut connection, _) = listener.accept()?;
            // A client that has gone does not mind.
            let _ = connection.write_all(b"hello\n");
        }
    }
}
