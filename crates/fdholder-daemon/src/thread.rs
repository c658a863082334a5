//! Threads that are started while the daemon serves: failing to start one ends nothing.
//!
//! A thread of the standard library maps an alternative signal stack when it runs already, and
//! panics when there is no memory for it, which ends the process.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::io;
use std::mem::MaybeUninit;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::ptr;

/// Starts a detached thread with a stack of at least this many bytes. Nothing is left to do in
/// it that could fail before `work` runs. `work` is dropped when the thread cannot be started.
///
/// `work` must not register a thread-local destructor: the C library ends the process when it
/// has no memory for that.
///
/// # Errors
///
/// EAGAIN: there is no memory for the stack, or the user may have no more threads. EINVAL: a
/// stack of that size cannot be.
pub(crate) fn spawn<W>(stack_len: usize, work: W) -> io::Result<()>
where
    W: FnOnce() + Send + 'static,
{
    let mut attributes = MaybeUninit::uninit();
    // SAFETY: the pointer is to memory for one pthread_attr_t, which this initialises.
    check(unsafe { libc::pthread_attr_init(attributes.as_mut_ptr()) })?;
    let started = start(attributes.as_mut_ptr(), stack_len, Box::new(work));
    // SAFETY: they were initialised above, and pthread_create(3) keeps no pointer to them.
    unsafe { libc::pthread_attr_destroy(attributes.as_mut_ptr()) };
    started
}

/// `attributes` are initialised.
fn start<W>(attributes: *mut libc::pthread_attr_t, stack_len: usize, work: Box<W>) -> io::Result<()>
where
    W: FnOnce() + Send + 'static,
{
    let page_len = rustix::param::page_size();
    let stack_len = stack_len
        .max(libc::PTHREAD_STACK_MIN)
        .checked_next_multiple_of(page_len)
        .ok_or(io::ErrorKind::InvalidInput)?;
    // SAFETY: the caller has initialised the attributes.
    check(unsafe { libc::pthread_attr_setstacksize(attributes, stack_len) })?;
    // SAFETY: as above.
    check(unsafe { libc::pthread_attr_setdetachstate(attributes, libc::PTHREAD_CREATE_DETACHED) })?;
    let work = Box::into_raw(work);
    let mut thread = MaybeUninit::uninit();
    // SAFETY: the attributes are initialised; `run` gets the pointer that it expects, exactly once,
    // and what is behind it may go to another thread (`Send`) and live as long ('static).
    let created = check(unsafe {
        libc::pthread_create(thread.as_mut_ptr(), attributes, run::<W>, work.cast())
    });
    if created.is_err() {
        // SAFETY: it comes from `into_raw`, and no thread has begun that would take it.
        drop(unsafe { Box::from_raw(work) });
    }
    created
}

/// What the thread does.
extern "C" fn run<W: FnOnce()>(work: *mut c_void) -> *mut c_void {
    // SAFETY: `start` has made this pointer of a box, and nobody else takes it.
    let work = unsafe { Box::from_raw(work.cast::<W>()) };
    // Where panics unwind, that of a thread is told, and its thread ends.
    let _ = catch_unwind(AssertUnwindSafe(work));
    ptr::null_mut()
}

fn check(error: libc::c_int) -> io::Result<()> {
    match error {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn thread_runs_its_work_and_drops_it() {
        for stack_len in [0, 1, 64 * 1024, 128 * 1024 + 1] {
            let (tell, told) = channel();
            spawn(stack_len, move || tell.send(stack_len).unwrap()).unwrap();
            assert_eq!(told.recv(), Ok(stack_len));
            assert!(told.recv().is_err(), "its work is dropped");
        }
    }

    #[test]
    fn thread_that_cannot_start_drops_its_work() {
        for stack_len in [usize::MAX, usize::MAX / 2] {
            let (tell, told) = channel();
            spawn(stack_len, move || tell.send(()).unwrap()).unwrap_err();
            assert!(told.recv().is_err());
        }
    }

    #[test]
    fn thread_that_panics_ends_alone() {
        let (tell, told) = channel::<()>();
        // Enough for the standard library to write a backtrace.
        spawn(1 << 20, move || {
            let _tell = tell;
            panic!("a test says so");
        })
        .unwrap();
        assert!(told.recv().is_err());
    }
}
