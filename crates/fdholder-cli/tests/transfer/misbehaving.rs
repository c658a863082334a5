//! Destinations that misbehave, at each message, by each way; timeouts.

use crate::support::proxy::{Misdeed, Proxy, Seems};
use crate::support::{assert_exit, content_at, eventually, stderr};
use crate::{fill, ids, pair, s6, transferdump, Test};
use rustix::process::Signal;
use std::time::{Duration, Instant};

pub const TESTS: &[Test] = &[
    ("a_fdholder_that_misbehaves", false, || misbehave(Seems::Fdholder, "direct")),
    ("a_fdholder_that_misbehaves_by_relay", false, || misbehave(Seems::Fdholder, "relay")),
    ("an_s6_that_misbehaves", false, || misbehave(Seems::S6, "direct")),
    ("an_s6_that_misbehaves_by_relay", false, || misbehave(Seems::S6, "relay")),
    ("a_part_in_a_real_s6_is_told", true, a_part_in_a_real_s6_is_told),
    ("each_side_has_its_own_time", false, each_side_has_its_own_time),
    ("a_destination_that_stops_reading_times_out", false, a_destination_that_stops_reading),
    ("a_slow_source_is_not_the_destinations_fault", false, a_slow_source),
    ("a_destination_that_dies_half_way", false, a_destination_that_dies_half_way),
    ("a_source_that_dies_half_way", false, a_source_that_dies_half_way),
];

/// 600 descriptors are three messages: the first, a middle one, the last.
const COUNT: u32 = 600;
const BEFORE: [u32; 3] = [0, 253, 506];

fn misbehave(seems: Seems, way: &str) {
    let (_from_folder, from, to_folder, to) = pair(COUNT);
    let (held, open) = (content_at(&from.path), from.open_fds());
    let misdeeds = [
        (Misdeed::Refuses, "Too many open files in system"),
        (Misdeed::Closes, "Broken pipe"),
        (Misdeed::Stalls, "timed out"),
        (Misdeed::AnswersGarbage, "Protocol error"),
        (Misdeed::SendsDescriptors, "Protocol error"),
        (Misdeed::AnswersEarly, "Protocol error"),
    ];
    for (misdeed, says) in misdeeds {
        for at in 0..3 {
            let what = format!("{misdeed:?} at message {at}");
            let proxy = Proxy::new(to_folder.path(), &to.path, seems, misdeed, at);
            let relay: &[&str] = if way == "relay" { &["--relay"] } else { &[] };
            let timeouts: &[&str] = if misdeed == Misdeed::Stalls { &["-t", ":300"] } else { &[] };
            let output = transferdump(&[relay, timeouts].concat(), &from.path, &proxy.path);
            let said = stderr(&output);
            assert_eq!(output.status.code(), Some(2), "{what}: {said}");
            assert!(
                said.starts_with("fdholder transferdump: fatal: unable to set dump: "),
                "{what}: {said}"
            );
            assert_eq!(said.lines().count(), 1, "{what}: {said}");
            assert!(said.contains(says), "{what}: {said}");
            assert!(said.contains(&left(seems, misdeed, at)), "{what}: {said}");
            drop(proxy);
            // What it did not get whole, the holder behind it does not hold.
            assert_eq!(ids(&to), [], "{what}");
            assert_eq!(content_at(&from.path), held, "{what}");
            eventually("the source lets go of the connection", || from.open_fds() == open);
        }
    }
}

/// What the message says is left in the destination.
fn left(seems: Seems, misdeed: Misdeed, at: usize) -> String {
    let known = matches!(misdeed, Misdeed::Refuses | Misdeed::AnswersEarly);
    let of =
        |taken: String| format!("the destination, which is s6's, has taken {taken} of {COUNT}");
    match (seems, BEFORE[at], BEFORE.get(at + 1).unwrap_or(&COUNT)) {
        (Seems::S6, least, _) if known && least > 0 => of(least.to_string()),
        // The message was sent; what became of it was not said.
        (Seems::S6, least, most) if !known => of(format!("{least} to {most}")),
        (Seems::Fdholder, ..) if at == 2 && !known => {
            "whether the destination has taken all or nothing it did not say".to_owned()
        }
        _ => "the destination has taken nothing".to_owned(),
    }
}

/// A holder of s6's that has room for less than comes, behind a proxy that says so late.
fn a_part_in_a_real_s6_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let (_from_folder, from) = crate::serve(&[]);
    fill(&from, COUNT);
    let to = s6(folder.path(), &["-n", "5000"]);
    for relay in [&[][..], &["--relay"]] {
        let proxy = Proxy::new(folder.path(), &to.path, Seems::S6, Misdeed::Closes, 2);
        let output = transferdump(relay, &from.path, &proxy.path);
        assert_exit(&output, 2);
        assert!(stderr(&output).contains("s6's, has taken 506 to 600 of 600"), "{output:?}");
        assert_eq!(ids(&to).len(), 506);
    }
}

/// A daemon that is stopped answers nobody.
fn each_side_has_its_own_time() {
    let (_from_folder, from, _to_folder, to) = pair(3);
    let stalled = |timeouts: &str, code: i32, says: &str| {
        let start = Instant::now();
        let output = transferdump(&["-t", timeouts], &from.path, &to.path);
        assert_exit(&output, code);
        assert!(stderr(&output).contains(says), "{output:?}");
        assert!(start.elapsed() >= Duration::from_millis(100), "{output:?}");
    };
    from.signal(Signal::STOP);
    stalled("100:", 1, "unable to get dump: Connection timed out");
    stalled("100", 1, "unable to get dump: Connection timed out");
    stalled("100:60000", 1, "unable to get dump: Connection timed out");
    from.signal(Signal::CONT);
    to.signal(Signal::STOP);
    stalled(":100", 2, "unable to set dump: Connection timed out");
    stalled("60000:100", 2, "unable to set dump: Connection timed out");
    stalled("0:100", 2, "unable to set dump: Connection timed out");
    to.signal(Signal::CONT);
    for forms in [":", "60000", "0:0", "60000:60000", ":60000", "60000:"] {
        assert_exit(&transferdump(&["-t", forms], &from.path, &to.path), 0);
    }
    assert_eq!(ids(&to).len(), 3);
}

/// So much is sent that the source has to wait for the destination, which is the one to
/// blame then.
fn a_destination_that_stops_reading() {
    let (_from_folder, from, to_folder, to) = pair(12_000);
    let misdeed = Misdeed::StopsReading;
    let proxy = Proxy::new(to_folder.path(), &to.path, Seems::Fdholder, misdeed, 1);
    let output = transferdump(&["-t", "60000:300"], &from.path, &proxy.path);
    assert_exit(&output, 2);
    assert!(stderr(&output).contains("unable to set dump: Connection timed out"), "{output:?}");
    assert!(stderr(&output).contains("the destination has taken nothing"), "{output:?}");
    assert_eq!(ids(&to), []);
    assert_eq!(ids(&from).len(), 12_000);
}

fn a_destination_that_dies_half_way() {
    let (_from_folder, from, to_folder, mut to) = pair(12_000);
    let held = content_at(&from.path);
    let proxy = Proxy::new(to_folder.path(), &to.path, Seems::Fdholder, Misdeed::Stalls, 9);
    let transfer = {
        let (from, to) = (from.path.clone(), proxy.path.clone());
        std::thread::spawn(move || transferdump(&[], &from, &to))
    };
    eventually("half of it is there", || {
        proxy.asked.lock().unwrap().iter().any(|asked| asked.len() > 9)
    });
    to.signal(Signal::KILL);
    to.wait();
    drop(proxy);
    let output = transfer.join().unwrap();
    assert_exit(&output, 2);
    assert!(stderr(&output).contains("the destination has taken nothing"), "{output:?}");
    assert_eq!(content_at(&from.path), held);
}

fn a_source_that_dies_half_way() {
    let (_from_folder, mut from, to_folder, to) = pair(12_000);
    let misdeed = Misdeed::StopsReading;
    let proxy = Proxy::new(to_folder.path(), &to.path, Seems::Fdholder, misdeed, 9);
    let transfer = {
        let (from, to) = (from.path.clone(), proxy.path.clone());
        std::thread::spawn(move || transferdump(&[], &from, &to))
    };
    eventually("half of it is there", || {
        proxy.asked.lock().unwrap().iter().any(|asked| asked.len() > 9)
    });
    from.signal(Signal::KILL);
    from.wait();
    let output = transfer.join().unwrap();
    assert_exit(&output, 1);
    assert!(stderr(&output).contains("unable to get dump: Broken pipe"), "{output:?}");
    assert!(stderr(&output).contains("the destination has taken nothing"), "{output:?}");
    drop(proxy);
    assert_eq!(ids(&to), []);
}

/// A source, s6's as it seems, that takes its time may, however little the destination is
/// allowed.
fn a_slow_source() {
    use crate::support::{deadline, id};
    use fdholder::{reply, transport, Limit};
    use std::io::Read;
    use std::os::fd::AsFd;
    let (folder, to) = crate::serve(&[]);
    let path = folder.path().join("slow");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let source = std::thread::spawn(move || {
        let mut stream = loop {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 7];
            stream.read_exact(&mut request).unwrap();
            if request[6] == b'?' {
                break stream;
            }
        };
        let null = std::fs::File::open("/dev/null").unwrap();
        let (name, never) = (id("x"), Limit::never());
        let head = reply::getdump_head(1);
        let data = reply::getdump_data(std::iter::once((&name, never, null.as_fd())));
        transport::send(&stream, head.bytes(), head.fds(), transport::Wait::Yes).unwrap();
        // Longer than the destination is given in all.
        std::thread::sleep(Duration::from_millis(700));
        transport::send(&stream, data.bytes(), data.fds(), transport::Wait::Yes).unwrap();
        let _ = stream.read(&mut [0]);
    });
    assert_exit(&transferdump(&["-t", ":500"], &path, &to.path), 0);
    source.join().unwrap();
    assert_eq!(to.client().list(deadline()), Ok(vec![id("x")]));
}
