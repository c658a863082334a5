//! Time stamps and limits.

use crate::limits::TIMESTAMP_LEN;
use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// TAI − UTC, in seconds, that separates TAI64 labels from Unix time.
///
/// TAI was 10 s ahead of UTC when leap seconds began in 1972 and 27 have been inserted
/// since, the last at the end of 2016: 37 s. The label of a moment is therefore
/// 2^62 + 37 + Unix seconds, and both s6 versions we were measured against write exactly
/// that. The number is a constant here because a holder compares labels that several
/// programs made: all of them must agree on it, and a limit is normally minutes away. No
/// further leap second has been announced (the CGPM resolved in 2022 to stop inserting
/// them by 2035); when IERS Bulletin C announces one, this is the only line to change.
pub const LEAP_SECONDS: u64 = 37;

/// The TAI64 label of 1970-01-01 00:00:00 TAI.
const TAI64_BASE: u64 = 1 << 62;

/// "Never" on the wire is this far away: clients send now + 2^61 s.
const FOREVER_SECS: u64 = 1 << 61;

/// Limits further than half of "forever" count as infinite.
///
/// The peers measure the distance from now; measured from 1970 the difference is half a
/// century in 36 thousand million years, and no clock has to be read to decide.
const NEVER_FROM_LABEL: u64 = TAI64_BASE + FOREVER_SECS / 2;

const NANOS_PER_SEC: u32 = 1_000_000_000;

/// A moment as TAI64N: a TAI64 label (seconds) and nanoseconds within it.
///
/// Ordered; precise to the nanosecond; independent of time zones. Shown in the external
/// format, `@` and 24 hexadecimal digits, which is also what `S6_FDLIMIT_…` carries.
///
/// ```
/// use fdholder::Timestamp;
/// use std::time::{Duration, UNIX_EPOCH};
/// let moment = Timestamp::from_system(UNIX_EPOCH + Duration::from_millis(1_700_000_000_500));
/// assert_eq!(moment.to_string(), "@400000006553f1251dcd6500");
/// assert_eq!("@400000006553f1251dcd6500".parse(), Ok(moment));
/// ```
// Packed: 12 bytes instead of 16 for each descriptor that is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(Rust, packed(4))]
pub struct Timestamp {
    label: u64,
    nanos: u32,
}

/// Why a text or some bytes are not a time stamp.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimestampError(&'static str);

impl Timestamp {
    /// A moment from its TAI64 label and the nanoseconds within that second.
    ///
    /// # Errors
    ///
    /// When `nanos` is a whole second or more.
    pub const fn new(label: u64, nanos: u32) -> Result<Self, TimestampError> {
        if nanos < NANOS_PER_SEC {
            Ok(Self { label, nanos })
        } else {
            Err(TimestampError("nanoseconds must be below 1000000000"))
        }
    }

    /// This moment, by the system's real-time clock.
    pub fn now() -> Self {
        Self::from_system(SystemTime::now())
    }

    /// The moment that `time` means. Moments before 1970 become 1970: no limit needs them.
    pub fn from_system(time: SystemTime) -> Self {
        let unix = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { label: TAI64_BASE + LEAP_SECONDS + unix.as_secs(), nanos: unix.subsec_nanos() }
    }

    /// The same moment for the standard library; `None` before 1970 or out of its range.
    pub fn to_system(self) -> Option<SystemTime> {
        let secs = self.label.checked_sub(TAI64_BASE + LEAP_SECONDS)?;
        UNIX_EPOCH.checked_add(Duration::new(secs, self.nanos))
    }

    /// The TAI64 label: 2^62 + TAI seconds since 1970.
    pub const fn label(self) -> u64 {
        self.label
    }

    /// Nanoseconds within the second, below 10^9.
    pub const fn nanos(self) -> u32 {
        self.nanos
    }

    /// This moment and `span` more; stops at the last label there is.
    #[must_use]
    pub fn saturating_add(self, span: Duration) -> Self {
        let nanos = self.nanos + span.subsec_nanos();
        let carry = u64::from(nanos / NANOS_PER_SEC);
        match self.label.checked_add(span.as_secs()).and_then(|label| label.checked_add(carry)) {
            Some(label) => Self { label, nanos: nanos % NANOS_PER_SEC },
            None => Self { label: u64::MAX, nanos: NANOS_PER_SEC - 1 },
        }
    }

    /// How long it is from `earlier` to this moment; zero if `earlier` is not earlier.
    pub fn saturating_since(self, earlier: Self) -> Duration {
        let at = |moment: Self| Duration::new(moment.label, moment.nanos);
        at(self).saturating_sub(at(earlier))
    }

    /// The twelve bytes of the wire: label, then nanoseconds, both big-endian.
    pub fn to_wire(self) -> [u8; TIMESTAMP_LEN] {
        let mut bytes = [0; TIMESTAMP_LEN];
        bytes[..8].copy_from_slice(&self.label.to_be_bytes());
        bytes[8..].copy_from_slice(&self.nanos.to_be_bytes());
        bytes
    }

    /// Reads the twelve bytes of the wire.
    ///
    /// # Errors
    ///
    /// When the nanoseconds are a whole second or more.
    pub fn from_wire(bytes: &[u8; TIMESTAMP_LEN]) -> Result<Self, TimestampError> {
        let (mut label, mut nanos) = ([0; 8], [0; 4]);
        label.copy_from_slice(&bytes[..8]);
        nanos.copy_from_slice(&bytes[8..]);
        Self::new(u64::from_be_bytes(label), u32::from_be_bytes(nanos))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "@{:016x}{:08x}", self.label(), self.nanos())
    }
}

impl std::str::FromStr for Timestamp {
    type Err = TimestampError;

    fn from_str(text: &str) -> Result<Self, TimestampError> {
        const FORM: TimestampError =
            TimestampError("a time stamp is @ and 24 hexadecimal digits (external TAI64N)");
        let digits = text.strip_prefix('@').ok_or(FORM)?;
        if digits.len() != 24 || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(FORM);
        }
        let (label, nanos) = digits.split_at(16);
        Self::new(
            u64::from_str_radix(label, 16).map_err(|_| FORM)?,
            u32::from_str_radix(nanos, 16).map_err(|_| FORM)?,
        )
    }
}

impl fmt::Display for TimestampError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for TimestampError {}

/// When a held descriptor expires: at a moment, or never.
///
/// The wire has no flag for "never"; a moment far enough away means it. The moment is
/// kept as the peer sent it, so that a transfer hands on exactly what it received.
#[derive(Debug, Clone, Copy)]
pub struct Limit(Timestamp);

impl Limit {
    /// No expiry.
    ///
    /// The nanoseconds come from the clock: s6's daemon looks limits up by value, and
    /// takes time in proportion to how many equal ones it holds.
    pub fn never() -> Self {
        Self::never_from(Timestamp::now())
    }

    /// [`never`](Self::never) for those who already know what time it is.
    pub fn never_from(now: Timestamp) -> Self {
        Self(now.saturating_add(Duration::from_secs(FOREVER_SECS)))
    }

    /// Expiry at `moment`. A moment that has passed is allowed and expires at once.
    pub const fn at(moment: Timestamp) -> Self {
        Self(moment)
    }

    /// Expiry `span` from now.
    pub fn after(span: Duration) -> Self {
        Self(Timestamp::now().saturating_add(span))
    }

    /// The moment of expiry; `None` when it never comes.
    pub fn moment(self) -> Option<Timestamp> {
        (self.0.label < NEVER_FROM_LABEL).then_some(self.0)
    }

    /// Whether the descriptor has expired at `now`: its limit is not in the future.
    pub fn expired(self, now: Timestamp) -> bool {
        self.0 <= now
    }

    /// The time stamp as it travels.
    pub const fn timestamp(self) -> Timestamp {
        self.0
    }
}

/// Two limits are equal when they mean the same: every "never" equals every other.
impl PartialEq for Limit {
    fn eq(&self, other: &Self) -> bool {
        self.moment() == other.moment()
    }
}

impl Eq for Limit {}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn labels_carry_the_leap_seconds() {
        let moment = Timestamp::from_system(UNIX_EPOCH + Duration::from_secs(5));
        assert_eq!(moment.label(), (1 << 62) + 37 + 5);
    }

    #[test]
    fn moments_before_1970_have_no_place() {
        let epoch = Timestamp::from_system(UNIX_EPOCH);
        assert_eq!(Timestamp::from_system(UNIX_EPOCH - Duration::from_nanos(1)), epoch);
        assert_eq!(epoch.to_system(), Some(UNIX_EPOCH));
        assert_eq!(Timestamp::new(epoch.label() - 1, 0).unwrap().to_system(), None);
        assert_eq!(Timestamp::new(u64::MAX, 0).unwrap().to_system(), None);
    }

    #[test]
    fn sums_carry_and_stop_at_the_last_label() {
        let at = |label, nanos| Timestamp::new(label, nanos).unwrap();
        let span = Duration::new(3, 600_000_000);
        assert_eq!(at(5, 399_999_999).saturating_add(span), at(8, 999_999_999));
        assert_eq!(at(5, 400_000_000).saturating_add(span), at(9, 0));
        assert_eq!(at(5, 999_999_999).saturating_add(span), at(9, 599_999_999));
        assert_eq!(at(u64::MAX - 3, 0).saturating_add(span), at(u64::MAX, 600_000_000));
        assert_eq!(at(u64::MAX - 3, 400_000_000).saturating_add(span), at(u64::MAX, 999_999_999));
        assert_eq!(at(9, 1).saturating_since(at(5, 400_000_001)), span);
        assert_eq!(at(5, 0).saturating_since(at(9, 0)), Duration::ZERO);
    }

    #[test]
    fn never_is_what_peers_send() {
        let now = Timestamp::now();
        assert_eq!(Limit::never_from(now).moment(), None);
        assert_eq!(Limit::never_from(now).timestamp().label(), now.label() + (1 << 61));
        let last = Timestamp::new(NEVER_FROM_LABEL - 1, 999_999_999).unwrap();
        assert_eq!(Limit::at(last).moment(), Some(last));
        assert_ne!(Limit::at(last), Limit::at(now));
        assert_ne!(Limit::at(last), Limit::never());
        assert_eq!(Limit::at(Timestamp::new(NEVER_FROM_LABEL, 0).unwrap()).moment(), None);
        let in_a_thousand_years = now.saturating_add(Duration::from_secs(1000 * 31_557_600));
        assert_eq!(Limit::at(in_a_thousand_years).moment(), Some(in_a_thousand_years));
        assert_eq!(
            Limit::never(),
            Limit::never_from(
                Timestamp::new(0, 0).unwrap().saturating_add(Duration::from_secs(u64::MAX))
            )
        );
    }

    #[test]
    fn a_limit_expires_at_its_moment_not_before() {
        let moment = Timestamp::new(1 << 62, 5).unwrap();
        assert!(!Limit::at(moment).expired(Timestamp::new(1 << 62, 4).unwrap()));
        assert!(Limit::at(moment).expired(moment));
    }

    #[test]
    fn texts_that_are_no_stamps_are_refused() {
        for text in [
            "",
            "@",
            "400000006553f1251dcd6500",
            "@400000006553f1251dcd650",
            "@400000006553f1251dcd65000",
            "@4000000+6553f1251dcd6500",
            "@40000000655\u{e9}f1251dcd6500",
            "@400000006553f1253b9aca00",
        ] {
            assert!(text.parse::<Timestamp>().is_err(), "{text}");
        }
        let problem = "@".parse::<Timestamp>().unwrap_err().to_string();
        assert!(problem.contains("24 hexadecimal digits"), "{problem}");
    }

    proptest! {
        #[test]
        fn wire_and_text_round_trip(label: u64, nanos in 0..NANOS_PER_SEC) {
            let stamp = Timestamp::new(label, nanos).unwrap();
            prop_assert_eq!(Timestamp::from_wire(&stamp.to_wire()), Ok(stamp));
            prop_assert_eq!(stamp.to_string().parse(), Ok(stamp));
        }

        #[test]
        fn adding_never_wraps(label: u64, nanos in 0..NANOS_PER_SEC, span: Duration) {
            let start = Timestamp::new(label, nanos).unwrap();
            let end = start.saturating_add(span);
            prop_assert!(end >= start);
            prop_assert!(end.nanos() < NANOS_PER_SEC);
        }
    }
}
