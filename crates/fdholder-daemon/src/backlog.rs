//! A queue in small pieces: however long it grows, no large piece of memory is asked for.

use crate::limits::MEMORY_PIECE_LEN;
use std::collections::VecDeque;

/// How many stand in one piece.
const PIECE: usize = 1024;

/// What waits, in order. A short one is one piece, which it keeps when nothing waits.
#[derive(Debug)]
pub(crate) struct Backlog<T> {
    /// Whole pieces; of the first some may have gone, but not all.
    pieces: VecDeque<VecDeque<T>>,
    /// What came last.
    last: VecDeque<T>,
    len: usize,
}

impl<T> Default for Backlog<T> {
    fn default() -> Self {
        const { assert!(PIECE * size_of::<T>() <= MEMORY_PIECE_LEN) };
        Self { pieces: VecDeque::new(), last: VecDeque::new(), len: 0 }
    }
}

impl<T> Backlog<T> {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn push_back(&mut self, item: T) {
        if self.last.len() == PIECE {
            self.pieces.push_back(std::mem::take(&mut self.last));
        }
        self.last.push_back(item);
        self.len += 1;
    }

    pub fn front_mut(&mut self) -> Option<&mut T> {
        self.pieces.front_mut().unwrap_or(&mut self.last).front_mut()
    }

    pub fn pop_front(&mut self) -> Option<T> {
        let first = self.pieces.front_mut().unwrap_or(&mut self.last);
        let item = first.pop_front()?;
        if first.is_empty() {
            self.pieces.pop_front();
        }
        self.len -= 1;
        Some(item)
    }

    /// Takes out the first of them, at most so many.
    pub fn drain(&mut self, most: usize) -> impl Iterator<Item = T> + '_ {
        (0..most.min(self.len)).map_while(|_| self.pop_front())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_pushed_comes_out_in_order() {
        let mut backlog = Backlog::default();
        let (mut pushed, mut popped) = (0, 0);
        for (push, pop) in [(1, 1), (3 * PIECE, PIECE), (1, 0), (0, 2 * PIECE), (5, 6), (2, 9)] {
            for _ in 0..push {
                backlog.push_back(pushed);
                pushed += 1;
            }
            for _ in 0..pop {
                let expected = (popped < pushed).then_some(popped);
                assert_eq!(backlog.front_mut().copied(), expected);
                assert_eq!(backlog.pop_front(), expected);
                popped += usize::from(expected.is_some());
            }
            assert_eq!(backlog.len(), pushed - popped);
            assert_eq!(backlog.is_empty(), pushed == popped);
        }
    }

    #[test]
    fn however_many_wait_each_piece_is_small() {
        let mut backlog = Backlog::default();
        (0..100 * PIECE).for_each(|item| backlog.push_back(item));
        assert!(backlog.pieces.iter().all(|piece| piece.capacity() <= PIECE));
        assert!(backlog.last.capacity() <= PIECE);
        assert_eq!(backlog.drain(2 * PIECE).count(), 2 * PIECE);
        assert!(backlog.drain(usize::MAX).eq(2 * PIECE..100 * PIECE));
        assert!(backlog.pieces.is_empty() && backlog.last.capacity() > 0, "the last is kept");
    }
}
