//! Lines as they arrive at whoever listens, and how many.

use super::*;
use fdholder::extension::OnConflict;
use fdholder::{Entry, Limit, Tenure};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Metadata, Subscriber};

/// Collects what there is in each line.
#[derive(Clone, Default)]
struct Listener(Arc<Mutex<Vec<BTreeMap<&'static str, String>>>>);

struct Fields<'a>(&'a mut BTreeMap<&'static str, String>);

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.insert(field.name(), format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name(), value.to_owned());
    }
}

impl Subscriber for Listener {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        let mut line = BTreeMap::from([("target", event.metadata().target().to_owned())]);
        event.record(&mut Fields(&mut line));
        self.0.lock().unwrap().push(line);
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// What is said meanwhile, each line as `key=value …`.
fn said(what: impl FnOnce()) -> Vec<String> {
    let listener = Listener::default();
    tracing::subscriber::with_default(listener.clone(), what);
    let lines = std::mem::take(&mut *listener.0.lock().unwrap());
    let line = |line: BTreeMap<_, String>| {
        assert_eq!(line["target"], TARGET);
        let fields = line.into_iter().filter(|(key, _)| *key != "target");
        fields.map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(" ")
    };
    lines.into_iter().map(line).collect()
}

fn id(text: &str) -> Identifier {
    Identifier::new(text).unwrap()
}

const SOMEBODY: Who = Who { uid: 7, gid: Some(8), pid: Some(9) };

fn event(uid: u32, id: &Identifier) -> Event<'_> {
    let who = Who { uid, ..SOMEBODY };
    Event { who, operation: Operation::Store, id: Some(id), verdict: Verdict::Done }
}

#[test]
fn a_line_says_who_and_what_and_how_it_ended() {
    let (mut auditor, now) = (Auditor::new(true), Instant::now());
    let hostile = Identifier::new(b"a\n\x1b]0;\xff\"").unwrap();
    let reason = "this user holds 5 already";
    let events = [
        (Operation::Store, Some(&hostile), Verdict::Done),
        (Operation::Delete, Some(&hostile), Verdict::Denied(Errno::PERM)),
        (Operation::Setdump, None, Verdict::DeniedAs(Errno::NFILE, &reason)),
        (Operation::Connect, None, Verdict::TurnedAway(&reason)),
        (Operation::Retrieve, Some(&hostile), Err(Errno::NOENT).into()),
    ];
    let lines = said(|| {
        for (operation, id, verdict) in events {
            auditor.note(&Event { who: SOMEBODY, operation, id, verdict }, now);
        }
        let who = Who::owner(5);
        let (operation, id) = (Operation::HangUp, Some(&hostile));
        auditor.note(&Event { who, operation, id, verdict: Ok(()).into() }, now);
    });
    let expected = [
        r#"gid=8 id=a\n\0x1b]0;\0xff" op=store pid=9 result=ok uid=7"#,
        r#"gid=8 id=a\n\0x1b]0;\0xff" op=delete pid=9 result=EPERM uid=7"#,
        "gid=8 op=setdump pid=9 reason=this user holds 5 already result=ENFILE uid=7",
        "gid=8 op=connect pid=9 reason=this user holds 5 already result=refused uid=7",
        r#"gid=8 id=a\n\0x1b]0;\0xff" op=retrieve pid=9 result=ENOENT uid=7"#,
        r#"id=a\n\0x1b]0;\0xff" op=hang_up result=ok uid=5"#,
    ];
    assert_eq!(lines, expected);
}

/// Nobody is told that somebody has looked.
#[test]
fn what_only_reads_is_told_when_it_is_refused() {
    use Operation::{Connect, Deliver, Getdump, Inspect, List, Retrieve, Snapshot, Status};
    let (mut auditor, now) = (Auditor::new(true), Instant::now());
    for operation in [Connect, Deliver, Getdump, Inspect, List, Retrieve, Snapshot, Status] {
        let mut note = |verdict| {
            auditor.note(&Event { who: SOMEBODY, operation, id: None, verdict }, now);
        };
        assert_eq!(said(|| note(Verdict::Done)).len(), 0);
        assert_eq!(said(|| note(Verdict::Denied(Errno::PERM))).len(), 1);
    }
}

/// Says how often it was put into words.
struct Costly(Cell<u32>);

impl fmt::Display for Costly {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.set(self.0.get() + 1);
        Ok(())
    }
}

#[test]
fn what_is_left_out_is_not_put_into_words() {
    let (now, costly) = (Instant::now(), Costly(Cell::new(0)));
    let (who, operation, verdict) = (SOMEBODY, Operation::Store, Verdict::TurnedAway(&costly));
    let lines = said(|| {
        let mut off = Auditor::default();
        off.note(&Event { who, operation, id: None, verdict }, now);
        assert_eq!(costly.0.get(), 0);
        let mut auditor = Auditor::new(true);
        for _ in 0..19_000 {
            auditor.note(&Event { who, operation, id: None, verdict }, now);
        }
    });
    assert_eq!(lines.len() as u32, AUDIT_PER_USER.burst);
    assert_eq!(costly.0.get(), AUDIT_PER_USER.burst);
}

#[test]
fn what_is_left_out_is_told_of() {
    let (mut auditor, start, id) = (Auditor::new(true), Instant::now(), id("x"));
    let burst = AUDIT_PER_USER.burst;
    let flood = |auditor: &mut Auditor, at| {
        said(|| (0..burst + 5).for_each(|_| auditor.note(&event(7, &id), at)))
    };
    assert_eq!(flood(&mut auditor, start).len() as u32, burst);
    // By the next one that passes,
    let later = start + AUDIT_PER_USER.interval;
    let lines = said(|| auditor.note(&event(7, &id), later));
    assert_eq!(lines, ["gid=8 id=x left_out=5 op=store pid=9 result=ok uid=7"]);
    let later = later + AUDIT_PER_USER.interval;
    let lines = said(|| auditor.note(&event(7, &id), later));
    assert_eq!(lines, ["gid=8 id=x op=store pid=9 result=ok uid=7"]);
    // or when none has come.
    let mut auditor = Auditor::new(true);
    assert_eq!(flood(&mut auditor, later).len() as u32, burst);
    let due = auditor.due().unwrap();
    assert_eq!(due, later + AUDIT_PER_USER.span());
    assert_eq!(said(|| auditor.tend(due.checked_sub(Duration::from_nanos(1)).unwrap())).len(), 0);
    assert_eq!(said(|| auditor.tend(due)), ["left_out=5 uid=7"]);
    assert_eq!(auditor.due(), None);
}

#[test]
fn changes_are_told_of_with_those_whose_they_are() {
    let mut store: Store<u32> = Store::new(10);
    let (mut auditor, now) = (Auditor::new(true), Timestamp::now());
    let at = Instant::now();
    let soon = now.saturating_add(Duration::from_secs(1));
    let entry = |name: &str, limit| Entry { id: id(name), limit, fd: 1 };
    let mut changed = |operation, changes: &[Change<u32>], store: &Store<u32>, now| {
        said(|| auditor.changed(SOMEBODY, operation, changes, store, now, at))
    };
    let held = store.store(entry("a", Limit::at(soon)), 5, now).changes;
    let line = |rest| vec![format!("gid=8 id={rest} pid=9 result=ok uid=7")];
    assert_eq!(changed(Operation::Store, &held, &store, now), line("a op=store"));
    assert_eq!(changed(Operation::Notify, &held, &store, now), line("a op=notify_store"));
    let staged = ["b", "c"].map(|name| {
        let tenure = Tenure::from(now);
        store.stage(entry(name, Limit::never()), 7, tenure)
    });
    let set = store.setdump(staged.into(), OnConflict::Replace, 7, now).changes;
    let lines = changed(Operation::Setdump, &set, &store, now);
    assert_eq!(lines, [line("b op=setdump"), line("c op=setdump")].concat());
    // One that expires is its owner's, whoever has done what.
    let stillborn = store.store(entry("d", Limit::at(now)), 5, soon).changes;
    let lines = changed(Operation::Store, &stillborn, &store, soon);
    let expired = vec!["id=d op=expire result=ok uid=5".to_owned()];
    assert_eq!(lines, [line("d op=store"), expired].concat());
    let gone = store.delete(&id("b"), soon).changes;
    assert_eq!(changed(Operation::Delete, &gone, &store, soon), line("b op=delete"));
    assert_eq!(changed(Operation::Notify, &gone, &store, soon), line("b op=notify_remove"));
}

#[test]
fn warnings_say_how_many_there_were_not() {
    let (mut throttle, start) = (Throttle::default(), Instant::now());
    let said: Vec<_> = (0..100).filter_map(|_| throttle.admit(Some(7), start)).collect();
    assert_eq!(said.len() as u32, WARNINGS_BURST);
    assert!(said.iter().all(|unsaid| unsaid.to_string().is_empty()));
    let unsaid = throttle.admit(Some(7), start + Duration::from_secs(1)).unwrap();
    assert_eq!(unsaid.to_string(), " (90 warnings before it were left out)");
    // Nobody else is concerned.
    assert!(throttle.admit(Some(8), start).is_some() && throttle.admit(None, start).is_some());
}

const WARNINGS_BURST: u32 = crate::limits::WARNINGS_PER_USER.burst;
