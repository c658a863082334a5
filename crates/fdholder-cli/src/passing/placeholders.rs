//! `{ID}` in PROG's arguments: the number of the descriptor that is passed on under that id.

use super::Passed;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// What may stand between braces, and the number for it. Of several alike the first counts.
pub type Known = Vec<(Vec<u8>, u32)>;

/// The ids, and behind them the names that `--fd` gave.
pub fn known<F>(passed: &[Passed<F>], numbers: &[u32]) -> Known {
    let each = || passed.iter().zip(numbers.iter().copied());
    let ids = each().map(|(one, number)| (one.id.as_bytes().to_vec(), number));
    let names = each().filter(|(one, _)| one.is_named);
    ids.chain(names.map(|(one, number)| (one.name.clone().into_bytes(), number))).collect()
}

/// The words of a command line, with numbers in its arguments. The program itself stays.
pub fn fill_in(words: Vec<OsString>, known: &Known) -> Vec<OsString> {
    let one = |(at, word): (usize, OsString)| match at {
        0 => word,
        _ => OsString::from_vec(filled_in(word.as_bytes(), known)),
    };
    words.into_iter().enumerate().map(one).collect()
}

/// `{ID}` becomes a number; `{{ID}}` becomes `{ID}`, and more braces lose a pair as well, so that
/// everything can be said. Behind `$`, where shells have variables, and between braces that no
/// known id fills, all stays as it is.
fn filled_in(text: &[u8], known: &Known) -> Vec<u8> {
    let mut filled = Vec::with_capacity(text.len());
    let mut at = 0;
    while at < text.len() {
        let run = text[at..].iter().take_while(|byte| **byte == b'{').count();
        if run == 0 {
            filled.push(text[at]);
            at += 1;
            continue;
        }
        let is_variable = at.checked_sub(1).is_some_and(|before| text[before] == b'$');
        // An id may begin with a brace itself.
        let mut places = at + 1..=at + run;
        let found = places.find_map(|begin| Some((begin, named(&text[begin..], known)?)));
        let Some((begin, (key, number))) = found.filter(|_| !is_variable) else {
            filled.extend_from_slice(&text[at..at + run]);
            at += run;
            continue;
        };
        let end = begin + key.len();
        let has_pair_more = begin > at + 1 && text[end..].starts_with(b"}}");
        if has_pair_more {
            filled.extend_from_slice(&text[at + 1..=end]);
            at = end + 2;
        } else {
            filled.extend_from_slice(&text[at..begin - 1]);
            filled.extend_from_slice(number.to_string().as_bytes());
            at = end + 1;
        }
    }
    filled
}

/// What a text names up to its first closing brace that ends a known id.
fn named<'a>(text: &[u8], known: &'a Known) -> Option<(&'a [u8], u32)> {
    let is_it = |(key, _): &&(Vec<u8>, u32)| {
        text.strip_prefix(&key[..]).is_some_and(|rest| rest.first() == Some(&b'}'))
    };
    known.iter().find(is_it).map(|(key, number)| (&key[..], *number))
}

#[cfg(test)]
mod tests {
    use super::super::stand_in;
    use super::*;
    use fdholder::Identifier;
    use proptest::prelude::*;

    fn passed(id: &str, name: Option<&str>) -> Passed<()> {
        Passed {
            fd: (),
            id: Identifier::new(id).unwrap(),
            name: name.map_or_else(|| stand_in(id.as_bytes()), str::to_owned),
            is_named: name.is_some(),
            number: None,
        }
    }

    fn of(text: &str) -> String {
        let passed = [
            passed("web", None),
            passed("tcp:80", None),
            passed("api", Some("http")),
            passed("web", Some("again")),
            passed("http", None),
            passed("a}b", None),
            passed("{x", None),
        ];
        let known = known(&passed, &[3, 4, 17, 5, 0, 6, 9]);
        String::from_utf8(filled_in(text.as_bytes(), &known)).unwrap()
    }

    #[test]
    fn ids_and_names_that_were_given_stand_for_numbers() {
        for (text, expected) in [
            ("{web}", "3"),
            ("fd@{web}", "fd@3"),
            ("--fd={web},{api}", "--fd=3,17"),
            ("{tcp:80}{tcp:80}", "44"),
            ("{again}", "5"),
            // An id before a name.
            ("{http}", "0"),
            ("{a}b}", "6"),
            ("{{x}", "9"),
            // JSON has its own braces, one side or the other.
            ("{\"fd\":{web}}", "{\"fd\":3}"),
            ("{{web}, 1}", "{3, 1}"),
            ("{{web}}", "{web}"),
            ("{{{web}}}", "{{web}}"),
            ("{{{web}}", "{{web}"),
        ] {
            assert_eq!(of(text), expected, "{text}");
        }
    }

    #[test]
    fn other_braces_stay() {
        for text in [
            "{}",
            "{",
            "}",
            "{web",
            "web}",
            "{ web }",
            "{we}",
            "{webs}",
            "{WEB}",
            "{tcp%3A80}",
            "${web}",
            "${{web}}",
            "{web:-x}",
            "{web,api}",
            "{{}}",
            "awk '{print $1}'",
            "{\"web\":1}",
            "x{2,3}",
        ] {
            assert_eq!(of(text), text);
        }
    }

    #[test]
    fn the_program_itself_stays() {
        let words = ["{web}", "{web}"].map(OsString::from).to_vec();
        assert_eq!(fill_in(words, &vec![(b"web".to_vec(), 3)]), ["{web}", "3"]);
    }

    proptest! {
        #[test]
        fn nothing_changes_without_an_id_between_braces(
            text in prop::collection::vec(prop_oneof![Just(b'{'), Just(b'}'), Just(b'a'), any::<u8>()], 0..40),
            ids in prop::collection::vec("[ab}{]{1,3}", 0..4),
        ) {
            let known: Known = ids.iter().map(|id| (id.clone().into_bytes(), 7)).collect();
            let has = |id: &String| {
                let braced = format!("{{{id}}}").into_bytes();
                text.windows(braced.len()).any(|part| part == braced)
            };
            let filled = filled_in(&text, &known);
            if !ids.iter().any(has) {
                prop_assert_eq!(&filled, &text);
            }
            prop_assert_eq!(filled_in(&text, &Known::new()), text);
        }

        /// Every text can be had: each known id in braces gets one pair more.
        #[test]
        fn everything_can_be_said(parts in prop::collection::vec(("[{}a$ ]{0,3}", 1..4_usize), 0..6)) {
            let known = vec![(b"web".to_vec(), 7)];
            let with = |more: usize| -> String {
                let part = |(between, pairs): &(String, usize)| {
                    let (open, close) = ("{".repeat(pairs + more), "}".repeat(pairs + more));
                    // Other braces beside them would be theirs.
                    let between = between.replace(['{', '}', '$'], ".");
                    format!("{between}.{open}web{close}.")
                };
                parts.iter().map(part).collect()
            };
            let (wanted, text) = (with(0), with(1));
            prop_assert_eq!(filled_in(text.as_bytes(), &known), wanted.into_bytes());
        }
    }
}
