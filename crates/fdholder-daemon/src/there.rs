//! Whether a file is there, asked at start: only some errors say that it is not.

use crate::clock;
use rustix::io::Errno;
use std::io;
use std::time::Duration;

/// How often something is tried that must not fail because descriptors or memory ran out for a
/// moment, and how long to wait in between. A start does not take longer than a second for that.
const ATTEMPTS: usize = 5;
const PAUSE: Duration = Duration::from_millis(50);

/// `None` if nothing is there, or nothing that this user can reach.
///
/// # Errors
///
/// What says neither, such as ENFILE: the file may well be there.
pub(crate) fn if_there<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    let absent = [Errno::NOENT, Errno::NOTDIR, Errno::ACCESS, Errno::LOOP, Errno::NAMETOOLONG];
    match result {
        Ok(there) => Ok(Some(there)),
        Err(error) if Errno::from_io_error(&error).is_some_and(|it| absent.contains(&it)) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Tries several times, unless an error is final.
pub(crate) fn retried<T, E>(
    mut what: impl FnMut() -> Result<T, E>,
    is_final: impl Fn(&E) -> bool,
) -> Result<T, E> {
    for _ in 1..ATTEMPTS {
        match what() {
            Err(error) if !is_final(&error) => clock::pause(PAUSE),
            result => return result,
        }
    }
    what()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_errors_that_say_so_mean_absent() {
        let ask = |errno: Errno| if_there::<()>(Err(errno.into()));
        for errno in [Errno::NOENT, Errno::NOTDIR, Errno::ACCESS, Errno::LOOP, Errno::NAMETOOLONG] {
            assert!(ask(errno).unwrap().is_none(), "{errno}");
        }
        for errno in [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::INTR, Errno::IO] {
            assert!(ask(errno).is_err(), "{errno}");
        }
    }

    #[test]
    fn failure_that_passes_is_retried() {
        let tries = |failures: usize, is_final: bool| {
            let mut count = 0;
            let mut what = || {
                count += 1;
                if count > failures {
                    Ok(())
                } else {
                    Err(())
                }
            };
            let result = retried(&mut what, |()| is_final);
            (result.is_ok(), count)
        };
        assert_eq!(tries(1, false), (true, 2));
        assert_eq!(tries(ATTEMPTS, false), (false, ATTEMPTS));
        assert_eq!(tries(1, true), (false, 1));
    }
}
