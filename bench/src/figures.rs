//! What was measured, and how it is told.

use crate::programs::Holder;
use std::fmt;

/// The same of ours and of s6.
#[derive(Debug, Default)]
pub struct Both<T> {
    pub ours: T,
    pub s6: T,
}

impl<T> Both<T> {
    pub fn of(&self, holder: Holder) -> &T {
        match holder {
            Holder::Ours => &self.ours,
            Holder::S6 => &self.s6,
        }
    }
}

/// Measurements of one thing, in one unit.
#[derive(Debug, Default)]
pub struct Sample(Vec<f64>);

impl Sample {
    pub fn push(&mut self, value: f64) {
        let place = self.0.partition_point(|&other| other < value);
        self.0.insert(place, value);
    }

    /// `None` when nothing could be measured.
    pub fn median(&self) -> Option<f64> {
        let middle = self.0.len() / 2;
        let upper = self.0.get(middle)?;
        if self.0.len() % 2 == 1 {
            return Some(*upper);
        }
        Some(f64::midpoint(self.0[middle - 1], *upper)) // Even and not 0: there is one before.
    }

    /// The median with the least and the greatest, as milliseconds.
    pub fn milliseconds(&self) -> String {
        self.short("ms")
    }

    /// The same as microseconds.
    pub fn microseconds(&self) -> String {
        self.short("µs")
    }

    fn short(&self, unit: &str) -> String {
        match (self.median(), self.0.first(), self.0.last()) {
            (Some(median), Some(least), Some(greatest)) => {
                let [median, least, greatest] = [median, *least, *greatest].map(short);
                format!("{median} {unit} ({least}–{greatest})")
            }
            _ => NOTHING.to_owned(),
        }
    }

    /// The median alone, as so many percent.
    pub fn percent(&self) -> String {
        self.median().map_or_else(|| NOTHING.to_owned(), |median| format!("{median:.0} %"))
    }

    /// The median with the least and the greatest, as kilobytes.
    pub fn kilobytes(&self) -> String {
        match (self.median(), self.0.first(), self.0.last()) {
            (Some(median), Some(least), Some(greatest)) => {
                format!("{} kB ({}–{})", Thousands(median), Thousands(least), Thousands(greatest))
            }
            _ => NOTHING.to_owned(),
        }
    }

    /// The median with the least and the greatest, as so many a second.
    pub fn rate(&self) -> String {
        match (self.median(), self.0.as_slice()) {
            (Some(median), [_]) => format!("{}/s", Thousands(median)),
            (Some(median), [least, .., greatest]) => {
                format!("{}/s ({}–{})", Thousands(median), Thousands(*least), Thousands(*greatest))
            }
            _ => NOTHING.to_owned(),
        }
    }
}

/// One median over another, if both were measured.
pub fn ratio(above: &Sample, below: &Sample) -> Option<f64> {
    Some(above.median()? / below.median()?)
}

/// One median over the sum of two, if all were measured.
pub fn ratio_to_sum(above: &Sample, below: [&Sample; 2]) -> Option<f64> {
    let [one, other] = below.map(Sample::median);
    Some(above.median()? / (one? + other?))
}

/// What a ratio has to keep.
#[derive(Debug, Clone, Copy)]
pub enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

impl Bound {
    /// The bound, the ratio, and whether it kept it. `text` says of what.
    pub fn verdict(self, text: &str, ratio: Option<f64>) -> String {
        let (met, told) = match self {
            Self::AtLeast(bound) => (ratio.map(|ratio| ratio >= bound), times(ratio)),
            Self::AtMost(bound) => (ratio.map(|ratio| ratio <= bound), times_up(ratio)),
        };
        format!("{} ({told})", target(text, met))
    }
}

/// A ratio that has to be great, as it is printed. Cut off, not rounded: what misses its
/// target by a hair must not look as if it met it.
pub fn times(ratio: Option<f64>) -> String {
    hundredths(ratio.map(|ratio| (ratio * 100.0).floor()))
}

/// A ratio that has to be small, as it is printed: rounded up, for the same reason.
pub fn times_up(ratio: Option<f64>) -> String {
    hundredths(ratio.map(|ratio| (ratio * 100.0).ceil()))
}

fn hundredths(ratio: Option<f64>) -> String {
    ratio.map_or_else(|| NOTHING.to_owned(), |ratio| format!("{:.2} ×", ratio / 100.0))
}

/// A target and whether it was met.
pub fn target(text: &str, met: Option<bool>) -> String {
    let verdict = match met {
        Some(true) => "met",
        Some(false) => "**NOT MET**",
        None => "**not measured**",
    };
    format!("{text}: {verdict}")
}

const NOTHING: &str = "—";

/// A number with decimals only where they tell something.
fn short(value: f64) -> String {
    if value < 100.0 {
        format!("{value:.2}")
    } else {
        Thousands(value).to_string()
    }
}

/// A number, cut into groups of three digits.
pub struct Thousands<T>(pub T);

impl<T: fmt::Display> fmt::Display for Thousands<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = format!("{:.0}", self.0);
        let mut text = String::new();
        for (place, digit) in digits.chars().enumerate() {
            if place > 0 && (digits.len() - place).is_multiple_of(3) {
                text.push(',');
            }
            text.push(digit);
        }
        f.write_str(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(values: &[f64]) -> Sample {
        let mut sample = Sample::default();
        for &value in values {
            sample.push(value);
        }
        sample
    }

    #[test]
    fn a_median_is_the_middle_whatever_the_order() {
        assert_eq!(sample(&[]).median(), None);
        assert_eq!(sample(&[3.0, 1.0, 2.0]).median(), Some(2.0));
        assert_eq!(sample(&[4.0, 1.0, 2.0, 3.0]).median(), Some(2.5));
        assert_eq!(sample(&[3.0, 1.0]).milliseconds(), "2.00 ms (1.00–3.00)");
        assert_eq!(sample(&[4865.02]).milliseconds(), "4,865 ms (4,865–4,865)");
    }

    #[test]
    fn a_ratio_is_never_rounded_in_its_favour() {
        assert_eq!(times(Some(1.999)), "1.99 ×");
        assert_eq!(times_up(Some(1.601)), "1.61 ×");
        assert_eq!(times(None), "—");
    }

    #[test]
    fn a_bound_is_shown_with_what_it_is_held_against() {
        let least = Bound::AtLeast(2.0);
        assert_eq!(least.verdict("at least 2 ×", Some(2.0)), "at least 2 ×: met (2.00 ×)");
        assert_eq!(least.verdict("at least 2 ×", Some(1.9)), "at least 2 ×: **NOT MET** (1.90 ×)");
        let most = Bound::AtMost(1.5);
        assert_eq!(most.verdict("within 1.5 ×", Some(1.5)), "within 1.5 ×: met (1.50 ×)");
        assert_eq!(most.verdict("within 1.5 ×", None), "within 1.5 ×: **not measured** (—)");
    }

    #[test]
    fn digits_come_in_groups_of_three() {
        assert_eq!(Thousands(1).to_string(), "1");
        assert_eq!(Thousands(253).to_string(), "253");
        assert_eq!(Thousands(19_000).to_string(), "19,000");
        assert_eq!(Thousands(1_234_567.4).to_string(), "1,234,567");
    }
}
