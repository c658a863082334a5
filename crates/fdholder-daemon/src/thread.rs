//! Threads.
use std::io;
pub(crate) fn spawn(stack_len: usize, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new().stack_size(stack_len).spawn(work).map(drop)
}
