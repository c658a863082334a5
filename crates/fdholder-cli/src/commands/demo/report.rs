//! What the demo shows at its end.

use super::client::Connections;
use crate::look::describe::Description;
use fdholder::{Limit, Timestamp};
use serde_json::json;
use std::fmt::Write;
use std::time::Duration;

/// One descriptor that was to be carried over.
pub struct Carried {
    pub id: String,
    pub what: Description,
    pub limit: Limit,
    pub identity: Option<(u64, u64)>,
    /// The second holder has the very same open file, under the same limit, and it works.
    pub arrived: bool,
}

pub struct Report {
    pub carried: Vec<Carried>,
    pub transfer_time: Duration,
    pub connections: Connections,
    pub by_first_server: u32,
}

impl Report {
    pub fn is_good(&self) -> bool {
        self.connections.refused == 0 && self.carried.iter().all(|item| item.arrived)
    }

    fn longest_gap_ms(&self) -> f64 {
        self.connections.longest_gap.as_secs_f64() * 1000.0
    }

    pub fn json(&self) -> String {
        let carried: Vec<_> = self
            .carried
            .iter()
            .map(|item| {
                json!({
                    "id": item.id,
                    "kind": item.what.kind,
                    "address": item.what.address,
                    "expires": item.limit.moment().map(|moment| moment.to_string()),
                    "arrived": item.arrived,
                })
            })
            .collect();
        let value = json!({
            "transferred": carried,
            "transfer_ms": self.transfer_time.as_secs_f64() * 1000.0,
            "connections_made": self.connections.made,
            "connections_refused": self.connections.refused,
            "longest_gap_ms": self.longest_gap_ms(),
            "good": self.is_good(),
        });
        format!("{value}\n")
    }

    pub fn table(&self) -> String {
        let mut rows = vec![["ID", "KIND", "ADDRESS", "EXPIRES", ""].map(str::to_owned)];
        rows.extend(self.carried.iter().map(|item| {
            [
                item.id.clone(),
                item.what.kind.clone(),
                short(&item.what.address),
                expires(item.limit),
                if item.arrived { "arrived" } else { "LOST" }.to_owned(),
            ]
        }));
        let widths: [usize; 5] = std::array::from_fn(|column| {
            rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0)
        });
        let mut text = String::from("A service went from one holder to another while in use.\n\n");
        for row in &rows {
            let mut line = String::from("  ");
            for (cell, width) in row.iter().zip(widths) {
                // Writing to a string does not fail.
                let _ = write!(line, "{cell:width$}  ");
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        let Connections { made, refused, .. } = self.connections;
        let _ = write!(
            text,
            "\n  transferred in       {:.1} ms; then the first holder and its server ended\n  \
             connections made     {} ({} before, {} after)\n  \
             connections refused  {}\n  \
             longest gap          {:.1} ms\n",
            self.transfer_time.as_secs_f64() * 1000.0,
            grouped(made),
            grouped(self.by_first_server),
            grouped(made.saturating_sub(self.by_first_server)),
            grouped(refused),
            self.longest_gap_ms(),
        );
        text
    }
}

/// An address that fits into a table: the end of a long one says most.
fn short(address: &str) -> String {
    const WIDTH: usize = 20;
    let len = address.chars().count();
    if len == 0 {
        "-".to_owned()
    } else if len <= WIDTH {
        address.to_owned()
    } else {
        std::iter::once('…').chain(address.chars().skip(len - WIDTH + 1)).collect()
    }
}

fn expires(limit: Limit) -> String {
    match limit.moment() {
        None => "never".to_owned(),
        Some(moment) => {
            let secs = moment.saturating_since(Timestamp::now()).as_secs();
            format!("in {} min", secs.div_ceil(60))
        }
    }
}

/// 12345 as 12,345.
fn grouped(number: u32) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        assert_eq!([0, 999, 1000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
    }

    #[test]
    fn one_lost_descriptor_or_refused_connection_is_not_good() {
        let report = |arrived, refused| Report {
            carried: vec![Carried {
                id: "x".into(),
                what: Description { kind: "pipe".into(), ..Description::default() },
                limit: Limit::never(),
                identity: None,
                arrived,
            }],
            transfer_time: Duration::ZERO,
            connections: Connections { made: 10, refused, longest_gap: Duration::ZERO },
            by_first_server: 5,
        };
        assert!(report(true, 0).is_good());
        assert!(!report(false, 0).is_good());
        assert!(!report(true, 1).is_good());
        assert!(report(false, 0).table().contains("LOST"));
    }
}
