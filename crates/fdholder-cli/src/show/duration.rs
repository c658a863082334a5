//! Spans of time for people.

use std::time::Duration;

/// A span in its largest unit: `5 s`, `12 min`, `3 h`, `8 d`.
pub fn brief(span: Duration) -> String {
    let secs = span.as_secs();
    match secs {
        0..120 => format!("{secs} s"),
        120..7_200 => format!("{} min", secs / 60),
        7_200..172_800 => format!("{} h", secs / 3_600),
        _ => format!("{} d", secs / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_have_one_unit() {
        let brief = |secs| brief(Duration::from_secs(secs));
        assert_eq!(brief(0), "0 s");
        assert_eq!(brief(119), "119 s");
        assert_eq!(brief(120), "2 min");
        assert_eq!(brief(7_199), "119 min");
        assert_eq!(brief(7_200), "2 h");
        assert_eq!(brief(172_799), "47 h");
        assert_eq!(brief(172_800), "2 d");
    }
}
