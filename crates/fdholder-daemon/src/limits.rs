//! Every limit of the daemon on what a client can make grow, with its reason. Those of
//! the protocol are in `fdholder::limits`.

use fdholder::limits::{DUMP_ENTRY_LEN_MAX, MESSAGE_FDS_MAX};
use std::time::Duration;

/// Descriptors held at most, by default. s6's default; `-n` changes it.
pub const FDS_MAX_DEFAULT: usize = 1000;

/// Descriptors held at most, whatever is asked for: a list of so many identifiers of 255
/// bytes still fits into one message of 2^28 bytes.
pub const FDS_MAX: usize = 1_000_000;

/// Bytes that one descriptor takes: its entry (80), its place (16), its identifier in the
/// table (9). While a set is put aside and taken it takes 20 more, which are not taken before.
pub const MEMORY_PER_FD: usize = 105;

/// Bytes of memory that are taken at start at most, 160,000 descriptors' worth: who allows
/// for a million seldom has them.
pub const MEMORY_TAKEN_MAX: usize = 16 << 20;

/// Bytes that are set aside for small allocations when there is no memory: several times what
/// one request, with its answer and what followers are told, can take (a message of 253
/// descriptors, some 300 KiB). They are not written to, so that they take address space only.
pub const MEMORY_RESERVE_LEN: usize = 1 << 20;

/// In how many parts: where no large piece is free, small ones can be had again. Each has room for
/// the largest piece that is allocated without being asked for before: a message whose identifiers
/// are as long as may be, where what it was before it grew is still there.
pub const MEMORY_RESERVE_PARTS: usize = 8;

/// Bytes that are allocated in one piece without being asked for before, at most.
pub const MEMORY_PIECE_LEN: usize = MEMORY_RESERVE_LEN / MEMORY_RESERVE_PARTS;

const _: () = {
    let message = MESSAGE_FDS_MAX * DUMP_ENTRY_LEN_MAX;
    assert!(MEMORY_PIECE_LEN >= message + message / 2);
};

/// Bytes that an entry takes at most while a set is taken: what the store looks up and tells of it
/// (150), and what waits for each of four that follow (56).
pub const MEMORY_PER_CHANGE: usize = 512;

/// Bytes that are told at most of what goes: for each of those four its identifier as well (271).
pub const MEMORY_PER_RELEASE: usize = 1536;

/// Bytes of stack that the loop may need: a deeply nested rule takes most, while it is compiled.
pub const STACK_LEN: usize = 1 << 20;

/// Connections at once, by default. A client has one for moments, so this is generous.
/// Who has no share left is told.
pub const CONNECTIONS_MAX_DEFAULT: usize = 256;

/// Connections at once, whatever is asked for.
pub const CONNECTIONS_MAX: usize = 65_536;

/// Connections for which there is a place in memory at the start: what grows while memory is short
/// takes what the reserve was. A place takes no page until it is used.
pub const PEERS_PLACED_MAX: usize = 1024;

/// Connections that nobody but root can take, besides all others, and as many for the daemon's own
/// user: a few tools at once. Who has all others cannot keep an administrator from `list`, `upgrade`
/// or a daemon that takes over.
pub const CONNECTIONS_RESERVED: usize = 8;

/// Of descriptors that are held the last are for the same users: one of so many …
pub const HELD_PER_RESERVED: usize = 64;

/// … and as many at most.
pub const HELD_RESERVED_MAX: usize = 16;

/// How many are reserved of so many. A single one is for anybody.
pub const fn held_reserve(capacity: usize) -> usize {
    let part = capacity / HELD_PER_RESERVED;
    match part {
        0 if capacity > 1 => 1,
        HELD_RESERVED_MAX.. => HELD_RESERVED_MAX,
        _ => part,
    }
}

/// Clients that only wait until something is held, besides those connections: each has a descriptor
/// and some hundred bytes. At boot there is one for each service.
pub const WAITING_MAX: usize = 1024;

/// How long a client may be in the middle of something, by default: far longer than any takes
/// that is not stuck, or means to be.
pub const CLIENT_PATIENCE: Duration = Duration::from_secs(60);

/// How long a connection may be idle and not be let go of when its user wants another and has
/// as many as it may.
pub const IDLE_SAFE: Duration = Duration::from_secs(60);

/// The same for root and the daemon's own user, who must get in: longer than clients rest between two
/// requests. So long one of theirs also waits for another to go, before it is refused.
pub const IDLE_SAFE_TRUSTED: Duration = Duration::from_secs(1);

/// How long not to look at all clients again: there may be thousands.
pub const SWEEP_PAUSE: Duration = Duration::from_millis(100);

/// Descriptors that may have come and are not held yet, besides as many as can be held: so many
/// messages that ten users who each keep as many half-sent as they may leave one to the next. In
/// a process that may open less it is less, but one message.
pub const ARRIVING_SPARE: usize = 64 * MESSAGE_FDS_MAX;

/// Bytes that nobody but root can take, and as many for the daemon's own user, for each descriptor that can be
/// held: a list of the longest identifiers, with all that is told of them …
pub const BYTES_RESERVED_PER_FD: usize = 320;

/// … and for what is always there.
pub const BYTES_RESERVED: usize = READ_LEN;

/// Bytes that wait in requests and replies of all clients, whatever is held …
pub const BYTES_BASE: usize = 32 << 20;

/// … and for each descriptor that can be held: room for several lists of long identifiers.
pub const BYTES_PER_FD: usize = 1024;

/// Bytes that a daemon takes at least in a control group whose memory is limited: the program, its
/// stacks, its buffers. Measured: 3 MiB.
pub const MEMORY_BASE: usize = 4 << 20;

/// Bytes that a client may bring although there is no room for the longest request: more than any
/// takes but one that gives a set.
pub const SHORT_REQUEST_LEN: usize = 512;

/// Descriptors that are lent at once, to clients who are to have them alone: before each
/// request it is looked whether they were taken.
pub const LOANS_MAX: usize = 256;

/// The same for root, and for the daemon's own user, besides.
pub const LOANS_RESERVED: usize = 8;

/// Replies that wait for one client to read them. With so many unread, its further
/// requests stay in the socket. A client that waits for its replies has one.
pub const REPLIES_PENDING_MAX: usize = 16;

/// Bytes of replies that wait for one client to read them before its further requests stay
/// in the socket. A list alone may be longer; no second one is made then.
pub const REPLY_BYTES_PENDING_MAX: usize = 256 * 1024;

/// Requests of one client that are carried out in one turn of the loop, so that the others
/// are not kept waiting by one that sends thousands at once.
pub const REQUESTS_PER_TURN: usize = 128;

/// How long those users who ask for more than can be done at once are served in one turn of the
/// loop, all together, each with all its clients, before those whom it has answered may have the
/// processor and others are served first; and how long others are accepted. Whoever has
/// asked for little does not wait for those who ask for much, over however many connections.
pub const TURN_LEN: Duration = Duration::from_micros(100);

/// Entries of the store that one request may have to do with and still count as one: a list
/// of thousands counts as many.
pub const WORK_PER_REQUEST: usize = 256;

/// Descriptors that have expired and are released in one turn of the loop: thousands may at once,
/// and each takes half a microsecond. Those that wait for the next turn nobody sees.
pub const EXPIRED_PER_TURN: usize = 64;

/// The same without such haste, as somebody else is about to hold all, or the clock was set back: so
/// many are told of together.
pub const EXPIRED_AT_ONCE: usize = 1024;

/// Messages sent to one client in one turn, for the same reason: one that reads as fast as
/// it is sent a dump would otherwise have the daemon to itself.
pub const MESSAGES_PER_TURN: usize = 128;

/// How long a delivery waits for a destination that takes nothing, although its client
/// does, who may be gone without our noticing: it may have handed us the other end of its
/// own connection. An honest destination that stands still so long is one that hangs.
pub const DELIVERY_PATIENCE: Duration = Duration::from_secs(600);

/// Couriers at once: each is a thread. Who wants one more carries the descriptors itself.
pub const COURIERS_MAX: usize = 16;

/// Bytes of a courier's stack: it has a control message and a few small things on it.
pub const COURIER_STACK_LEN: usize = 128 * 1024;

/// Bytes of the stack of a thread that starts child processes: it has paths on it, and what the
/// standard library needs to start one.
pub const CHILD_STACK_LEN: usize = 128 * 1024;

/// Threads that close what clients have given: one closes, one stands by, and more while some
/// are kept waiting by sockets that linger or file servers that do not answer. That many users
/// of bad will, each with its part, hold up the closing of others' descriptors, and nothing else.
pub const CLOSERS_MAX: usize = 32;

/// Closers that one user can keep waiting.
pub const CLOSERS_PER_USER: usize = 2;

/// How often it is looked whether somebody accepts from held listeners, while there are any.
pub const LISTENERS_LOOKED_AT_EVERY: Duration = Duration::from_secs(10);

/// How long clients may wait at a held listener from which nobody is seen to accept before that
/// is logged: longer than a service takes to restart.
pub const LISTENER_PATIENCE: Duration = Duration::from_secs(30);

/// Listeners whose queue is told: a reply fits into a message.
pub const LISTENERS_TOLD_MAX: usize = 1000;

/// Descriptors of which it is found out in one turn of the loop whether they listen, which takes
/// a system call each: a daemon that takes over has all to look at.
pub const LISTENERS_SOUGHT_PER_TURN: usize = 256;

/// How long the answer to a client that asks how the holder is waits for the queues of listeners;
/// then it is told what was known.
pub const MEASURE_PATIENCE: Duration = Duration::from_millis(500);

/// Bytes of the stack of the thread that watches terminals: as a closer's.
pub const WATCHER_STACK_LEN: usize = 64 * 1024;

/// Bytes of a closer's stack: it has next to nothing on it.
pub const CLOSER_STACK_LEN: usize = 64 * 1024;

/// How long all closers may be busy before one more begins: far longer than most closes take,
/// and short enough for whoever waits.
pub const CLOSE_SLOW: Duration = Duration::from_millis(2);

/// How long the answer to a request waits until what it has dropped is closed, by followers as
/// well. Then it leaves all the same, and that to a delete says so (EINPROGRESS).
pub const CLOSE_PATIENCE: Duration = Duration::from_secs(1);

/// Descriptors of one user that wait to be closed, here or in a process that follows, before no
/// more is read from it: they take places in the table of descriptors.
pub const CLOSING_PER_USER_MAX: usize = 256;

/// The same of all users before doors of services are not read: who has sent what comes through
/// them is not known before.
pub const CLOSING_MAX: usize = 512;

/// Changes that wait for a follower which is still being given its copy; answers wait when
/// there are more. Descriptors that are not held any more are kept open by them.
pub const MIRROR_BACKLOG_MAX: usize = 4096;

/// Changes that may wait for a follower when there is no memory: with the longest identifiers a third
/// of the reserve.
pub const MIRROR_BACKLOG_SHORT: usize = 1024;

/// Descriptors that systemd is to keep at most: it compares each new one with all it has, so
/// that 4,000 take it ten seconds and 19,000 four minutes, in which it does nothing else; and
/// their names must fit into a variable of 128 KiB.
pub const FDSTORE_FDS_MAX: usize = 4000;

/// Numbers that are left out when a daemon goes on where another was lost, as that may have
/// given some that nobody knows of: more than one has changes under way.
pub const SERIALS_SKIPPED: u64 = 1 << 20;

/// How many a follower remembers of what went last: more than a primary has on its way to
/// systemd.
pub const DROPPED_REMEMBERED: usize = 1024;

/// Processes that follow at once: a standby, one that takes over, and one to spare.
pub const FOLLOWERS_MAX: usize = 3;

/// Listening sockets that are kept beside the one whose file was made again last: their owner may
/// have renamed it and use it by that name. The oldest is closed, and its clients are served.
pub const FORMER_LISTENERS_MAX: usize = 4;

/// How long a follower may take nothing while answers wait for it, or say nothing while it is
/// handed everything and nobody is served. One that stands still so long hangs; it is killed,
/// or given up.
pub const FOLLOWER_PATIENCE: Duration = Duration::from_secs(2);

/// How long a daemon that has taken over serves nobody until its standby has everything. Most have
/// it within some tens of milliseconds; clients wait meanwhile.
pub const SETTLE_PATIENCE: Duration = Duration::from_secs(5);

/// How long a child that has hung up may take to end, before its end is reported without a reason.
pub const CHILD_END_GRACE: Duration = Duration::from_millis(20);

/// How long one that was killed may take to end before the next one is started beside it, or, for
/// the keeper of an upgrade that failed, before it is left to serve.
pub const KILL_PATIENCE: Duration = Duration::from_secs(2);

/// How long clients may go on with what they have begun before they are cut off for a
/// daemon that takes over.
pub const HANDOVER_GRACE: Duration = Duration::from_secs(1);

/// How long a new program may take to start and follow, and then to come for what is kept
/// for it.
pub const KEEP_PATIENCE: Duration = Duration::from_secs(10);

/// Messages to one follower in one turn of the loop: 253 descriptors each take some 50 to
/// 100 microseconds, and clients must not wait for much longer than a millisecond.
pub const MIRROR_MESSAGES_PER_TURN: usize = 6;

/// How long to wait before descriptors are sent again that had no room in flight
/// (ETOOMANYREFS): nothing tells when they do.
pub const SEND_PAUSE: Duration = Duration::from_millis(2);

/// How long to wait before something is tried again for which a user, or the kernel, has no
/// room at the moment.
pub const ROOM_PAUSE: Duration = Duration::from_millis(20);

/// Bytes of a service's datagram, as with systemd (`PIPE_BUF`). A longer one is dropped.
pub const NOTIFY_LEN_MAX: usize = 4096;

/// Bytes of what a service says of itself that are kept: a line or two to look at.
pub const NOTIFY_STATUS_LEN_MAX: usize = 512;

/// Datagrams of one service that are carried out in one turn of the loop, so that one that
/// sends all the time does not keep clients waiting.
pub const NOTIFIED_PER_TURN: usize = 16;

/// Descriptors that are compared in one turn with what is held for a service, for the same
/// reason: each takes half a microsecond.
pub const NOTIFY_WORK_PER_TURN: usize = 4096;

/// Datagrams whose descriptors wait to be closed until followers have been told what they
/// changed. With more, none is read.
pub const NOTIFY_LEAVING_MAX: usize = 64;

/// Services whose status is told: a reply fits into a message, and on a screen.
pub const SERVICES_TOLD_MAX: usize = 1000;

/// Clients accepted in one turn of the loop, so that a flood of them does not keep those
/// already here from being served.
pub const ACCEPTS_PER_TURN: usize = 64;

/// Messages of a set read from one client in one turn, for the same reason.
pub const READS_PER_TURN: usize = 8;

/// Bytes read from one client at once, for the same reason.
pub const READ_LEN: usize = 64 * 1024;

/// Descriptors kept free beside those held and one for each connection: standard streams,
/// listener, epoll, timer, signals (about 24), files read for rules, followers and their roll,
/// systemd, connections that are reserved, three for each courier, and a full message of
/// descriptors that has been received but not yet stored or refused.
pub const FDS_RESERVED: usize = 48 + 2 * CONNECTIONS_RESERVED + 3 * COURIERS_MAX + MESSAGE_FDS_MAX;

/// Bytes of a file in a rules folder, as s6 reads them. A longer file is an error: cut
/// short, a regular expression means something else.
pub const RULE_FILE_LEN_MAX: usize = 4095;

/// Items of a regular expression of a rule, its repetitions written out: to compile one of as
/// many takes the C library some 10 ms and a few megabytes, with stars in stars a second; one of
/// `((a{250}){250}){250}` takes all memory there is. Twice what a file has bytes.
pub const PATTERN_LEN_MAX: usize = 8192;

/// Bytes of a cdb of rules; the file is read into memory.
pub const RULES_FILE_LEN_MAX: u64 = 64 << 20;

/// Bytes of each part of a record in a cdb of rules, by its format.
pub const RULES_RECORD_PART_MAX: usize = 4096;

/// Files of a rules folder among which links are looked for when a daemon starts, so that it
/// does not take long to.
pub const RULES_LOOKED_AT_MAX: usize = 20_000;

/// Users whose rights are remembered. Each is a few hundred bytes and a compiled regular
/// expression; when more come, all are forgotten and read again.
pub const RIGHTS_CACHED_MAX: usize = 1024;

/// So many lines at once, and then one after each interval.
#[derive(Debug, Clone, Copy)]
pub struct Rate {
    /// How many at once.
    pub burst: u32,
    /// How long until there may be one more.
    pub interval: Duration,
}

impl Rate {
    /// How long it takes until there may be as many again as at first.
    pub const fn span(self) -> Duration {
        self.interval.saturating_mul(self.burst)
    }
}

/// Lines of the audit that one user can cause: as many at once as a pipe, or the queue of a
/// datagram socket, has room for while nobody reads; and then what can still be read by people.
pub const AUDIT_PER_USER: Rate = Rate { burst: 200, interval: Duration::from_millis(50) };

/// The same of all users together: in 30 seconds fewer than the 10,000 from which on the
/// journal leaves out what a service says.
pub const AUDIT_IN_ALL: Rate = Rate { burst: 1000, interval: Duration::from_millis(5) };

/// Warnings that one user can cause: the first tell what is wrong.
pub const WARNINGS_PER_USER: Rate = Rate { burst: 10, interval: Duration::from_secs(1) };

/// The same of all users together.
pub const WARNINGS_IN_ALL: Rate = Rate { burst: 100, interval: Duration::from_millis(100) };

/// Users whose lines are counted apart. Each is 40 bytes; more than so many at the same time
/// share what is one user's.
pub const RATED_USERS_MAX: usize = 256;
