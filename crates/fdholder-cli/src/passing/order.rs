//! The order of identifiers.

use std::cmp::Ordering;

/// Compares as people count: `web/2` comes before `web/10`. Runs of digits are compared as
/// numbers, everything else byte by byte; what is equal in this way is told apart by its
/// bytes.
pub fn natural(a: &[u8], b: &[u8]) -> Ordering {
    let (mut rest_a, mut rest_b) = (a, b);
    while let (Some(&first_a), Some(&first_b)) = (rest_a.first(), rest_b.first()) {
        let order = if first_a.is_ascii_digit() && first_b.is_ascii_digit() {
            let (number_a, number_b) = (take_number(&mut rest_a), take_number(&mut rest_b));
            // Without zeros before it the longer number is the greater.
            number_a.len().cmp(&number_b.len()).then_with(|| number_a.cmp(number_b))
        } else {
            (rest_a, rest_b) = (&rest_a[1..], &rest_b[1..]);
            first_a.cmp(&first_b)
        };
        if order != Ordering::Equal {
            return order;
        }
    }
    rest_a.len().cmp(&rest_b.len()).then_with(|| a.cmp(b))
}

/// Takes a run of digits off, without the zeros before it.
fn take_number<'a>(bytes: &mut &'a [u8]) -> &'a [u8] {
    let len = bytes.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (number, rest) = bytes.split_at(len);
    *bytes = rest;
    let zeros = number.iter().take_while(|&&byte| byte == b'0').count();
    &number[zeros..]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ids_are_ordered_as_people_count() {
        let mut ids = ["web/10", "web/2", "web", "web/", "web/02", "a10b", "a9c", "web/1"];
        ids.sort_by(|a, b| natural(a.as_bytes(), b.as_bytes()));
        assert_eq!(ids, ["a9c", "a10b", "web", "web/", "web/1", "web/02", "web/2", "web/10"]);
    }

    proptest! {
        #[test]
        fn it_is_an_order(a in "[0-2a/]{0,6}", b in "[0-2a/]{0,6}", c in "[0-2a/]{0,6}") {
            let order = |x: &str, y: &str| natural(x.as_bytes(), y.as_bytes());
            prop_assert_eq!(order(&a, &b), order(&b, &a).reverse());
            prop_assert_eq!(order(&a, &b) == Ordering::Equal, a == b);
            if order(&a, &b).is_lt() && order(&b, &c).is_lt() {
                prop_assert!(order(&a, &c).is_lt());
            }
        }
    }
}
