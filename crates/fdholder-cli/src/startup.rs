//! What this process inherited and Rust's runtime changes before `main`: the disposition of
//! SIGPIPE, and standard streams that are closed. A program that this one becomes gets both back,
//! and the signals that were ignored or blocked.
//!
//! Only a constructor runs before the runtime; that, and signal dispositions, are C interfaces.
#![allow(unsafe_code)]

use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The signals that were ignored, a bit for each.
static IGNORED: AtomicU64 = AtomicU64::new(0);

/// Which standard streams were closed.
static CLOSED: [AtomicBool; 3] = [const { AtomicBool::new(false) }; 3];

// SAFETY: the loader calls what is in this section once, before `main` and any other thread.
// `look` takes no arguments, which every C library allows, and needs nothing of the runtime.
#[used]
#[link_section = ".init_array"]
static LOOK: extern "C" fn() = look;

extern "C" fn look() {
    let mut ignored = 0;
    for signal in SIGNALS {
        let mut action = MaybeUninit::<libc::sigaction>::uninit();
        // SAFETY: without a new action sigaction(2) only writes the old one, unless it fails.
        let action = unsafe {
            let looked = libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr());
            (looked == 0).then(|| action.assume_init().sa_sigaction)
        };
        if action == Some(libc::SIG_IGN) {
            ignored |= bit(signal);
        }
    }
    IGNORED.store(ignored, Ordering::Relaxed);
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

/// All signals that Linux has.
const SIGNALS: std::ops::RangeInclusive<libc::c_int> = 1..=64;

fn bit(signal: libc::c_int) -> u64 {
    1 << (signal - 1)
}

/// The signals that were ignored when this process started, a bit for each.
pub fn ignored_signals() -> u64 {
    IGNORED.load(Ordering::Relaxed)
}

/// Has the program that this process becomes ignore these, and no others.
pub fn set_ignored_signals(ignored: u64) {
    IGNORED.store(ignored, Ordering::Relaxed);
}

/// The signals that this thread blocks, a bit for each.
pub fn blocked_signals() -> u64 {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: without a new mask pthread_sigmask(3) only writes the old one.
    let set = unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, std::ptr::null(), set.as_mut_ptr());
        set.assume_init()
    };
    // SAFETY: the set was written, and the signals are valid.
    SIGNALS
        .filter(|signal| unsafe { libc::sigismember(&raw const set, *signal) } == 1)
        .fold(0, |blocked, signal| blocked | bit(signal))
}

/// Has this thread, and what it starts, block these, and no others.
pub fn block_signals(blocked: u64) {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: the set is made empty before anything is added.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in SIGNALS.filter(|signal| blocked & bit(*signal) != 0) {
            libc::sigaddset(set.as_mut_ptr(), signal);
        }
        libc::pthread_sigmask(libc::SIG_SETMASK, set.as_ptr(), std::ptr::null_mut());
    }
}

/// Has the next program find signals ignored as this process did: to be called right before exec.
pub fn restore_signals() {
    let ignored = ignored_signals();
    for signal in SIGNALS.filter(|signal| ignored & bit(*signal) != 0) {
        // SAFETY: no handler is set.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
    if ignored & bit(libc::SIGPIPE) == 0 {
        // SAFETY: no handler is set, only the default.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    }
}

/// Ignores SIGPIPE again, as the runtime does: exec has failed, and that is still to be said.
pub fn ignore_sigpipe() {
    // SAFETY: no handler is set.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}
