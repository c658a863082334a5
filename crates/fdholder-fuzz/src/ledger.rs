//! Descriptors that are numbers, and a book in which each is entered when it is opened and
//! when it is closed.

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;

/// The book of one run.
#[derive(Debug, Clone, Default)]
pub struct Ledger(Rc<RefCell<Book>>);

#[derive(Debug, Default)]
struct Book {
    /// How often each was closed.
    closed: Vec<u8>,
    open: usize,
}

/// A descriptor. Like a real one it cannot be copied, only shared or closed.
pub struct Fd {
    number: u32,
    ledger: Ledger,
}

impl Ledger {
    /// Opens a descriptor, numbered in order from 0.
    pub fn open(&self) -> Fd {
        let mut book = self.0.borrow_mut();
        let number = book.closed.len() as u32; // An input does not open so many.
        book.closed.push(0);
        book.open += 1;
        Fd { number, ledger: self.clone() }
    }

    /// Opens several.
    pub fn open_many(&self, count: usize) -> Vec<Fd> {
        (0..count).map(|_| self.open()).collect()
    }

    /// How many are open.
    pub fn open_count(&self) -> usize {
        self.0.borrow().open
    }

    /// The end: everything has been let go of, so each must have been closed once.
    pub fn settle(&self) {
        let book = self.0.borrow();
        let often = |count: u8| book.closed.iter().position(|&closed| closed != count);
        assert_eq!(often(1), None, "closed so often: {:?}", book.closed);
    }
}

impl Fd {
    pub fn number(&self) -> u32 {
        self.number
    }
}

impl Drop for Fd {
    fn drop(&mut self) {
        // Not the place to panic: it may be dropped because of a panic.
        let mut book = self.ledger.0.borrow_mut();
        let closed = &mut book.closed[self.number as usize];
        *closed = closed.saturating_add(1);
        book.open = book.open.saturating_sub(1);
    }
}

impl PartialEq for Fd {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl fmt::Debug for Fd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fd({})", self.number)
    }
}

/// The numbers of descriptors.
pub fn numbers(fds: &[Fd]) -> Vec<u32> {
    fds.iter().map(Fd::number).collect()
}
