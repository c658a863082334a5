//! Whether something has come by a descriptor, also if another process has taken it by now.
//!
//! epoll(7) and poll(2) look again before they tell, and miss a client that PROG accepts at once. A
//! poll request of `io_submit(2)` is completed by the wake-up itself. There is no safe interface to it.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr;

/// `IOCB_CMD_POLL` in `linux/aio_abi.h`, since 4.18.
const POLL: u16 = 5;

/// One request, as `linux/aio_abi.h` has it. The fields between are 0 for this kind.
#[repr(C)]
#[derive(Default)]
struct Request {
    data: u64,
    key_and_flags: [u32; 2],
    opcode: u16,
    priority: i16,
    fd: u32,
    /// What to wait for.
    events: u64,
    unused: [u64; 4],
}

/// What has become of a request.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Completed {
    data: u64,
    request: u64,
    results: [i64; 2],
}

/// Descriptors that are watched by their places.
#[derive(Debug)]
pub struct Wakes {
    context: libc::c_ulong,
    count: usize,
}

impl Wakes {
    /// Watches these descriptors.
    ///
    /// # Errors
    ///
    /// Where the kernel, or a filter, does not allow that.
    pub fn of(fds: &[impl AsFd]) -> io::Result<Self> {
        let mut context: libc::c_ulong = 0;
        let room = libc::c_long::try_from(fds.len().max(1)).unwrap_or(libc::c_long::MAX);
        // SAFETY: the kernel writes one number to the place that it is given.
        let made = unsafe { libc::syscall(libc::SYS_io_setup, room, &raw mut context) };
        if made < 0 {
            return Err(io::Error::last_os_error());
        }
        let wakes = Self { context, count: fds.len() };
        (0..fds.len()).try_for_each(|place| wakes.watch(fds, place))?;
        Ok(wakes)
    }

    /// Waits for the next wake-up of one. The kernel keeps it open meanwhile.
    fn watch(&self, fds: &[impl AsFd], place: usize) -> io::Result<()> {
        let mut request = Request {
            data: place as u64,
            opcode: POLL,
            fd: fds[place].as_fd().as_raw_fd().unsigned_abs(),
            events: u64::from(libc::POLLIN.unsigned_abs()),
            ..Request::default()
        };
        let mut requests = [&raw mut request];
        let (context, list) = (self.context, requests.as_mut_ptr());
        // SAFETY: one pointer to one whole request, which the kernel copies before it returns.
        let submitted = unsafe { libc::syscall(libc::SYS_io_submit, context, 1usize, list) };
        if submitted == 1 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }

    /// Whether something has come since the last time. These are the same descriptors as before.
    ///
    /// # Errors
    ///
    /// When one of them is not watched any more.
    pub fn have_come(&self, fds: &[impl AsFd]) -> io::Result<bool> {
        let mut completed = vec![Completed::default(); self.count.max(1)];
        let (room, list) = (completed.len(), completed.as_mut_ptr());
        let none = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the kernel writes as many as there is room for, and reads the time.
        let count = unsafe {
            libc::syscall(libc::SYS_io_getevents, self.context, 0usize, room, list, &raw const none)
        };
        let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
        for one in &completed[..count] {
            let place = usize::try_from(one.data).unwrap_or(usize::MAX);
            if place < fds.len() {
                self.watch(fds, place)?;
            }
        }
        Ok(count > 0)
    }
}

impl Drop for Wakes {
    fn drop(&mut self) {
        // SAFETY: it takes a number, and nothing here uses that any more.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.context, ptr::null::<u8>()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::{UnixListener, UnixStream};

    #[test]
    fn client_that_is_accepted_at_once_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let listeners =
            ["a", "b"].map(|name| UnixListener::bind(folder.path().join(name)).unwrap());
        let wakes = Wakes::of(&listeners).unwrap();
        assert!(!wakes.have_come(&listeners).unwrap());
        for _ in 0..3 {
            let _client = UnixStream::connect(folder.path().join("b")).unwrap();
            drop(listeners[1].accept().unwrap());
            assert!(wakes.have_come(&listeners).unwrap());
            assert!(!wakes.have_come(&listeners).unwrap());
        }
        // One that waits is seen each time.
        let _client = UnixStream::connect(folder.path().join("a")).unwrap();
        assert!(wakes.have_come(&listeners).unwrap());
        assert!(wakes.have_come(&listeners).unwrap());
    }
}
