//! What this process inherited and Rust's runtime changes before `main`: the disposition of
//! SIGPIPE, and standard streams that are closed. A program that this one becomes gets both back.
//!
//! Only a constructor runs before the runtime; that, and signal dispositions, are C interfaces.
#![allow(unsafe_code)]

use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether SIGPIPE was ignored.
static PIPE_IS_IGNORED: AtomicBool = AtomicBool::new(false);

/// Which standard streams were closed.
static CLOSED: [AtomicBool; 3] = [const { AtomicBool::new(false) }; 3];

// SAFETY: the loader calls what is in this section once, before `main` and any other thread.
// `look` takes no arguments, which every C library allows, and needs nothing of the runtime.
#[used]
#[link_section = ".init_array"]
static LOOK: extern "C" fn() = look;

extern "C" fn look() {
    let mut action = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: without a new action sigaction(2) only writes the old one, unless it fails.
    let action = unsafe {
        let looked = libc::sigaction(libc::SIGPIPE, std::ptr::null(), action.as_mut_ptr());
        (looked == 0).then(|| action.assume_init().sa_sigaction)
    };
    PIPE_IS_IGNORED.store(action == Some(libc::SIG_IGN), Ordering::Relaxed);
    for (stream, closed) in (libc::STDIN_FILENO..).zip(&CLOSED) {
        // SAFETY: fcntl(2) asks for flags of a number, which may be of no descriptor.
        if unsafe { libc::fcntl(stream, libc::F_GETFD) } == -1 {
            closed.store(true, Ordering::Relaxed);
            occupy();
        }
    }
}

/// Whether that is the number of a standard stream that was closed: what is there now
/// nobody has passed on.
pub fn was_closed(number: u32) -> bool {
    CLOSED.get(number as usize).is_some_and(|closed| closed.load(Ordering::Relaxed))
}

/// Takes the lowest free number, which is that of a closed stream, until the next exec. The runtime
/// would leave /dev/null there to the next program, and abort where there is none.
fn occupy() {
    // SAFETY: they are given strings of C, and numbers; what they open nothing here owns.
    unsafe {
        if libc::open(c"/dev/null".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC) == -1 {
            let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
            let empty = libc::memfd_create(c"closed".as_ptr(), flags);
            // What is written there must not take memory.
            libc::fcntl(empty, libc::F_ADD_SEALS, libc::F_SEAL_GROW);
        }
    }
}

/// Gives SIGPIPE the disposition that this process inherited: to be called right before exec.
pub fn restore_sigpipe() {
    if !PIPE_IS_IGNORED.load(Ordering::Relaxed) {
        // SAFETY: no handler is set, only the default.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    }
}

/// Ignores SIGPIPE again, as the runtime does: exec has failed, and that is still to be said.
pub fn ignore_sigpipe() {
    // SAFETY: no handler is set.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}
