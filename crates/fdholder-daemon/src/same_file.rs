//! Whether two descriptors are one open file description: kcmp(2), by the C library.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd};

/// `KCMP_FILE` in linux/kcmp.h.
const KCMP_FILE: libc::c_long = 0;

/// Whether these share everything: offset, flags, the end of a pipe; `None` where the kernel
/// does not tell.
pub fn are_one(a: impl AsFd, b: impl AsFd) -> Option<bool> {
    let own = libc::c_long::from(rustix::process::getpid().as_raw_nonzero().get());
    let number = |fd: &dyn AsFd| libc::c_long::from(fd.as_fd().as_raw_fd());
    // SAFETY: kcmp takes five numbers, and only compares what they name.
    let order =
        unsafe { libc::syscall(libc::SYS_kcmp, own, own, KCMP_FILE, number(&a), number(&b)) };
    match order {
        0 => Some(true),
        1.. => Some(false), // Orders of what is not equal.
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn a_copy_is_one_with_its_original() {
        let file = File::open("/dev/null").unwrap();
        assert_eq!(are_one(&file, file.try_clone().unwrap()), Some(true));
        assert_eq!(are_one(&file, File::open("/dev/null").unwrap()), Some(false));
        let (a, b) = std::os::unix::net::UnixStream::pair().unwrap();
        assert_eq!(are_one(&a, &b), Some(false));
    }
}
