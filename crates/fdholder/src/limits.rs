//! Every limit on what a peer can make grow, with its reason.
//!
//! The first group belongs to the protocol and cannot change without ceasing to
//! speak it; the second is what our programs accept, which is less wherever no
//! honest peer needs more.

/// Bytes in an identifier at most: its length travels as one byte.
pub const ID_LEN_MAX: usize = 255;

/// Descriptors in one message at most: the kernel's `SCM_MAX_FD`; `sendmsg` answers
/// EINVAL above it (s6 before skalibs 2.14 believes in 255 and runs into that).
pub const MESSAGE_FDS_MAX: usize = 253;

/// Payload bytes in one message at most, by the protocol: 2^28.
pub const PAYLOAD_MAX: usize = 1 << 28;

/// Bytes of a message's header.
pub const HEADER_LEN: usize = 6;

/// Bytes of a time stamp on the wire.
pub const TIMESTAMP_LEN: usize = 12;

/// Bytes that one entry of a dump takes at most: time stamp, length, identifier, NUL.
pub const DUMP_ENTRY_LEN_MAX: usize = TIMESTAMP_LEN + 1 + ID_LEN_MAX + 1;

/// Payload bytes of the largest request there is: a full message of setdump data.
///
/// A daemon refuses a longer one as soon as its header has arrived, so that no client
/// makes it reserve more than this.
pub const REQUEST_PAYLOAD_MAX: usize = 1 + MESSAGE_FDS_MAX * DUMP_ENTRY_LEN_MAX;

/// Runs of positions in one request at most: with 8 bytes each, they fit into a request.
pub const RUNS_MAX: usize = 8000;

/// Descriptors that one request releases at most: a holder looks up its rules for each and
/// closes them, while its other clients wait.
pub const RELEASE_FDS_MAX: usize = 4096;

/// Payload bytes that a client accepts in a reply: a list may be as long as the
/// protocol allows. Memory is taken as the bytes arrive, not as the header promises.
pub const REPLY_PAYLOAD_MAX: usize = PAYLOAD_MAX;

/// Descriptors in a dump that a client accepts: more than any process can have open
/// (`fs.nr_open` defaults to 2^20), so a higher count is a lie.
pub const DUMP_FDS_MAX: u32 = 1 << 24;

/// How many messages it takes to carry `count` descriptors.
///
/// ```
/// use fdholder::limits::messages_for;
/// assert_eq!([0, 1, 253, 254, 506].map(messages_for), [0, 1, 1, 2, 2]);
/// ```
pub const fn messages_for(count: u32) -> u32 {
    count.div_ceil(MESSAGE_FDS_MAX as u32)
}
