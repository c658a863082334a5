//! What followers say of what they have not closed, and who waits for that.

use crate::follower::RawFollower;
use crate::support::{deadline, id, Family};
use fdholder::link::{Dropped, Fed, Heard, Mirrored};
use fdholder::{Client, Errno, Identifier, Limit};
use std::fs::File;
use std::path::Path;
use std::thread::{spawn, JoinHandle};

/// Has something held; returns its number.
fn store(client: &mut Client, follower: &mut RawFollower, id: &Identifier) -> Dropped {
    let null = File::open("/dev/null").unwrap();
    client.store(id, Limit::never(), &null, deadline()).unwrap();
    follower.next(|frame| match Fed::parse(frame) {
        Ok(Fed::Changes { changes, .. }) => match &changes[..] {
            [Mirrored::Held { origin, .. }] => (*origin).into(),
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    })
}

/// Has it deleted; returns what is answered, once it is, and up to where a follower is to be then.
fn delete(
    path: &Path,
    follower: &mut RawFollower,
    id: Identifier,
) -> (JoinHandle<Result<(), Errno>>, Heard) {
    let mut client = Client::connect(path, deadline()).unwrap();
    let delete = move || client.delete(&id, deadline()).map_err(|error| error.errno());
    let answer = spawn(delete);
    let up_to = follower.next(|frame| match Fed::parse(frame) {
        Ok(Fed::Changes { up_to, .. }) => Heard::UpTo(up_to),
        other => panic!("{other:?}"),
    });
    (answer, up_to)
}

/// The answer to a delete waits until a follower has closed what it is about. Nobody else waits
/// for that, not even with a delete.
#[test]
fn each_waits_for_its_own() {
    let family = Family::with(&[]);
    let (mut follower, _place) = RawFollower::new(&family.path);
    follower.hear_until(|fed| matches!(fed, Fed::Synced));
    follower.say(Heard::Synced);
    let mut client = family.client();
    let [long, short, old] =
        ["long", "short", "old"].map(|name| store(&mut client, &mut follower, &id(name)));
    assert!(long < short && short < old);
    let (long_answer, up_to) = delete(&family.path, &mut follower, id("long"));
    follower.say(Heard::Closing(vec![long]));
    follower.say(up_to);
    let (short_answer, up_to) = delete(&family.path, &mut follower, id("short"));
    follower.say(Heard::Closing(vec![short]));
    follower.say(up_to);
    follower.say(Heard::Closed(vec![short]));
    assert_eq!(short_answer.join().unwrap(), Ok(()));
    // A follower that does not know of this only says what it has carried out.
    let (old_answer, up_to) = delete(&family.path, &mut follower, id("old"));
    assert!(client.list(deadline()).unwrap().is_empty(), "that waits for nothing");
    follower.say(up_to);
    assert_eq!(old_answer.join().unwrap(), Ok(()));
    assert_eq!(long_answer.join().unwrap(), Err(Errno::INPROGRESS));
    follower.say(Heard::Closed(vec![long]));
    assert!(client.list(deadline()).unwrap().is_empty());
}
