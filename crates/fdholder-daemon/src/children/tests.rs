use super::*;
use crate::limits::KILL_PATIENCE;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

fn start(launcher: &Launcher, words: &[&str]) -> (Child, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let arguments = words.iter().map(Into::into).collect();
    let launch = Launch { program: words[0].into(), arguments };
    (launcher.start_child(launch, &theirs.into()).unwrap(), ours)
}

fn wait<T>(mut what: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + 10 * KILL_PATIENCE;
    loop {
        if let Some(it) = what() {
            return it;
        }
        assert!(Instant::now() < until);
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn child_end_is_reported_with_its_reason() {
    let launcher = Launcher::start().unwrap();
    for (script, how) in [("exit 3", "exit status: 3"), ("kill -9 $$", "signal: 9")] {
        let (child, mut link) = start(&launcher, &["/bin/sh", "-c", script]);
        // Nobody else has the other end.
        assert_eq!(link.read(&mut [0]).unwrap(), 0);
        assert_eq!(wait(|| child.ended()), how);
    }
    let (child, mut link) = start(&launcher, &["/no/such/program"]);
    assert_eq!(link.read(&mut [0]).unwrap(), 0);
    assert!(wait(|| child.ended()).contains("No such file"), "{child:?}");
}

#[test]
fn child_is_killed_when_dropped() {
    let launcher = Launcher::start().unwrap();
    let (child, mut link) = start(&launcher, &["/bin/cat"]);
    drop(child);
    assert_eq!(link.read(&mut [0]).unwrap(), 0);
}

#[test]
fn child_has_its_connection_and_no_other_descriptor() {
    use std::os::fd::AsRawFd;
    let mut launcher = Launcher::start().unwrap();
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    // Not close-on-exec: only a table of its own keeps it from the child.
    let number = writer.as_raw_fd();
    let script = format!("[ -e /proc/self/fd/{number} ] && exit 5; [ -S /dev/fd/0 ] || exit 6");
    let (child, _link) = start(&launcher, &["/bin/sh", "-c", &script]);
    assert_eq!(wait(|| child.ended()), "exit status: 0");
    launcher.hear();
    drop((reader, writer));
}
