//! Unknown words, and which known one was probably meant.

/// How alike a word must be for it to be what was meant.
const ALIKE: f64 = 0.75;

/// How alike two words are that differ by one letter, or by two that changed places. For words as
/// short as `tcp` the measure for longer ones finds them too different.
const ALIKE_BUT_FOR_A_LETTER: f64 = 0.95;

/// The shortest word that is compared letter by letter.
const LEN_MIN: usize = 3;

/// The known word that was probably meant: each pair is a word to compare, and the one to say.
pub fn nearest<'a>(unknown: &str, known: &[(&str, &'a str)]) -> Option<&'a str> {
    let best = known.iter().max_by(|a, b| alike(unknown, a.0).total_cmp(&alike(unknown, b.0)))?;
    (alike(unknown, best.0) >= ALIKE).then_some(best.1)
}

/// Says that a word is unknown, and which was meant, or which there are.
pub fn unknown(kind: &str, word: &str, known: &[(&str, &str)]) -> String {
    if let Some(meant) = nearest(word, known) {
        return format!("unknown {kind} '{word}': did you mean '{meant}'?");
    }
    let mut names: Vec<_> = known.iter().map(|(_, name)| *name).collect();
    names.dedup();
    format!("unknown {kind} '{word}': there are {}", names.join(", "))
}

fn alike(a: &str, b: &str) -> f64 {
    let plain = |word: &str| word.to_lowercase().replace('_', "-");
    let (a, b) = (plain(a), plain(b));
    let differs_by_a_letter = b.len() >= LEN_MIN && strsim::osa_distance(&a, &b) <= 1;
    let least = if differs_by_a_letter { ALIKE_BUT_FOR_A_LETTER } else { 0.0 };
    strsim::jaro_winkler(&a, &b).max(least)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mistyped_word_is_found_among_known_ones() {
        let known = ["tcp", "udp", "unix", "unix-dgram", "backlog"].map(|word| (word, word));
        for (word, meant) in [
            ("tpc", Some("tcp")),
            ("tcp6", Some("tcp")),
            ("UDP", Some("udp")),
            ("unx", Some("unix")),
            ("unix_dgram", Some("unix-dgram")),
            ("baklog", Some("backlog")),
            ("http", None),
            ("x", None),
            ("", None),
        ] {
            assert_eq!(nearest(word, &known), meant, "{word}");
        }
        assert_eq!(unknown("key", "x", &known[..2]), "unknown key 'x': there are tcp, udp");
    }
}
