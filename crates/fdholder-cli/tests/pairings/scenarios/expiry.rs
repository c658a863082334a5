//! Limits.

use crate::support::{assert_exit, content_at, eventually, id, stdout};
use crate::Pair;
use fdholder::Timestamp;
use std::time::Duration;

pub fn expiry(pair: &Pair) {
    let daemon = pair.start("holder", &[]);
    let path = daemon.path.to_str().unwrap();
    let day = Duration::from_secs(86_400);
    let before = Timestamp::now();
    assert_exit(&pair.run("store", &["-T", "86400000", path, "day"]), 0);
    let after = Timestamp::now();
    assert_exit(&pair.run("store", &[path, "never"]), 0);
    assert_exit(&pair.run("store", &["-T", "50", path, "soon"]), 0);

    // Both sides agree on what time it is, leap seconds included.
    let held = content_at(&daemon.path);
    let limit = held[&id("day")].1.moment().expect("a limit");
    assert!(limit >= before.saturating_add(day) && limit <= after.saturating_add(day));
    assert_eq!(held[&id("never")].1.moment(), None);
    eventually("it expires", || {
        // s6 looks at limits when nothing happens for a while, so it is asked rarely.
        std::thread::sleep(Duration::from_millis(50));
        !stdout(&pair.run("list", &[path])).contains("soon")
    });
    assert_exit(&pair.run("retrieve", &[path, "soon", "true"]), 1);
    assert_exit(&pair.run("store", &[path, "soon"]), 0);
    let list = stdout(&pair.run("list", &[path]));
    assert!(list.contains("day") && list.contains("never"), "{list}");
}
