//! What a panic ends, which is a mistake in this program: the thread that it is in, and nothing else,
//! unless that is the thread that serves.

#[cfg(panic = "abort")]
compile_error!("a panic in a thread that closes or sends must not end the daemon: let it unwind");

use rustix::thread::gettid;
use std::panic::{set_hook, PanicHookInfo};
use tracing::error;

/// From now on a panic is logged. In the calling thread it ends the process at once, so that nothing
/// is dropped in passing: a standby would be killed in place of serving.
pub fn end_only_their_threads() {
    let serving = gettid();
    set_hook(Box::new(move |panic| {
        let (what, place) = (message(panic), place(panic));
        if gettid() == serving {
            error!("this is a bug in fdholder, and ends it: {what}{place}");
            std::process::abort();
        }
        error!("this is a bug in fdholder, and ends one of its threads: {what}{place}");
    }));
}

fn message<'a>(panic: &'a PanicHookInfo<'_>) -> &'a str {
    let payload = panic.payload();
    let owned = || payload.downcast_ref::<String>().map(String::as_str);
    payload.downcast_ref().copied().or_else(owned).unwrap_or("it does not say why")
}

fn place(panic: &PanicHookInfo<'_>) -> String {
    panic.location().map_or_else(String::new, |place| format!(" ({place})"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::thread::spawn;
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, ExitStatus};
    use std::sync::mpsc::channel;

    const WHERE: &str = "FDHOLDER_TEST_PANIC";

    /// The end of a process in which this test is run.
    fn panics(place: &str) -> ExitStatus {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "panics::tests::be_another"]).env(WHERE, place);
        command.output().unwrap().status
    }

    /// No test, but what that process does.
    #[test]
    fn be_another() {
        let Some(place) = std::env::var_os(WHERE) else { return };
        end_only_their_threads();
        assert!(place != "here", "a test says so");
        let (tell, hear) = channel::<()>();
        spawn(64 << 10, move || {
            let _dropped_at_its_end = tell;
            panic!("a test says so");
        })
        .unwrap();
        assert!(hear.recv().is_err(), "its end is seen");
        std::process::exit(7);
    }

    #[test]
    fn panic_ends_its_thread_unless_that_serves() {
        assert_eq!(panics("there").code(), Some(7));
        assert_eq!(panics("here").signal(), Some(6), "SIGABRT");
    }
}
