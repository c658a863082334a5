//! Faults of the peers that a scenario runs into, each by its name. What a fault makes
//! impossible is asserted to be impossible still: when a peer is mended, the test says so.

use crate::support::{stderr, Suite};
use crate::Pair;
use std::process::Output;

/// s6 2.11 believes that a message may carry 255 descriptors, where the kernel allows 253:
/// it counts messages by that number and refuses a peer that counts otherwise, and the
/// messages it makes of more than 253 descriptors cannot be sent.
pub fn counts_with_255(suite: Suite) -> bool {
    suite == Suite::S6V211
}

/// How many messages s6 2.11 expects for so many descriptors.
pub fn messages_by_255(count: usize) -> usize {
    count.div_ceil(255)
}

/// s6's receiver has room for the descriptors of one message. When the next message's
/// arrive before it has taken those, it fails with ENOBUFS: its getdump of several
/// messages sometimes does.
pub fn room_for_one_message(pair: &Pair, count: usize) -> bool {
    pair.client != Suite::Ours && count > 253
}

/// Whether a program failed in that way.
pub fn lacked_room(output: &Output) -> bool {
    output.status.code() == Some(1) && stderr(output).contains("No buffer space available")
}

/// s6's transferdump exits 1 when the destination denies; its page says 2.
pub fn exits_1_for_the_destination(suite: Suite) -> bool {
    suite != Suite::Ours
}

/// s6's daemon refuses a setdump that would fit because it replaces what is held already.
pub fn counts_replaced_ones(suite: Suite) -> bool {
    suite != Suite::Ours
}
