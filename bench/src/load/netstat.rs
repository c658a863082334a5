//! The kernel's counters of full accept queues.

use crate::Result;
use std::fs;

/// Counts for the whole network namespace since it exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListenQueues {
    /// A connection found the queue of its listening socket full.
    pub overflows: u64,
    /// A SYN was dropped, for that or another reason.
    pub drops: u64,
}

impl ListenQueues {
    pub fn read() -> Result<Self> {
        Self::parse(&fs::read_to_string("/proc/net/netstat")?)
    }

    /// The counts since an earlier reading.
    pub fn since(self, earlier: Self) -> Self {
        Self {
            overflows: self.overflows.saturating_sub(earlier.overflows),
            drops: self.drops.saturating_sub(earlier.drops),
        }
    }

    /// A line of names is followed by a line of values.
    fn parse(text: &str) -> Result<Self> {
        let mut lines = text.lines().filter_map(|line| line.strip_prefix("TcpExt:"));
        let names = lines.next().unwrap_or_default().split_whitespace();
        let values = lines.next().unwrap_or_default().split_whitespace();
        let pairs: Vec<_> = names.zip(values).collect();
        let value = |wanted| -> Result<u64> {
            let pair = pairs.iter().find(|(name, _)| *name == wanted);
            let (_, value) = pair.ok_or_else(|| format!("/proc/net/netstat has no {wanted}"))?;
            Ok(value.parse()?)
        };
        Ok(Self { overflows: value("ListenOverflows")?, drops: value("ListenDrops")? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_by_name() {
        let text = "TcpExt: SyncookiesSent ListenOverflows ListenDrops\nTcpExt: 1 20 300\n\
                    IpExt: InNoRoutes\nIpExt: 7\n";
        let read = ListenQueues::parse(text).unwrap();
        assert_eq!(read, ListenQueues { overflows: 20, drops: 300 });
        assert_eq!(
            read.since(ListenQueues { overflows: 5, drops: 300 }),
            ListenQueues { overflows: 15, drops: 0 }
        );
    }

    #[test]
    fn kernel_has_these_counters() {
        ListenQueues::read().unwrap();
    }

    #[test]
    fn missing_counter_is_an_error() {
        assert!(ListenQueues::parse("TcpExt: ListenDrops\nTcpExt: 1\n").is_err());
    }
}
