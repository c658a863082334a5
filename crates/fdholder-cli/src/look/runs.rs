//! Services that `run` keeps running, as far as they can be asked by what a holder holds.

use crate::supervisor::control::{Question, Request, SOON};
use crate::supervisor::report::Report;
use fdholder::{Client, Deadline, Errno};
use fdholder_daemon::notify::run_of;
use std::path::Path;
use std::time::Duration;

/// Services that are asked at most: each takes descriptors of this process.
const SERVICES_MAX: usize = 256;

/// A service, and what its `run` says, or why that says nothing.
#[derive(Debug)]
pub struct Run {
    pub name: String,
    pub report: Result<Report, String>,
}

/// Asks the `run` of each service that has registered with a holder. Without the right to list or
/// to retrieve there is nothing to ask.
pub fn runs(path: &Path, deadline: Deadline) -> Vec<Run> {
    let Ok(mut client) = Client::connect(path, deadline) else { return Vec::new() };
    let Ok(mut ids) = client.list(deadline) else { return Vec::new() };
    ids.retain(|id| run_of(id).is_some());
    ids.sort();
    ids.truncate(SERVICES_MAX);
    let mut asked = Vec::new();
    for id in &ids {
        let name = run_of(id).unwrap_or_default().escape_ascii().to_string();
        let question = match client.retrieve(id, deadline) {
            Ok(held) => Question::ask(&held, Request::Status),
            Err(error) => Err(error.errno()),
        };
        asked.push((name, question));
    }
    // All have been asked by now: one that does not answer has nobody else wait.
    let mut patience = SOON;
    let mut answered = Vec::new();
    for (name, question) in asked {
        let answer = question.and_then(|question| question.answer(patience, Some(patience)));
        if answer == Err(Errno::TIMEDOUT) {
            // The others had as much time.
            patience = Duration::from_millis(1);
        }
        answered.push(Run { name, report: read(answer) });
    }
    answered
}

fn read(answer: Result<String, Errno>) -> Result<Report, String> {
    let text = answer.map_err(|errno| match errno {
        Errno::PIPE => "its run has ended".to_owned(),
        Errno::TIMEDOUT => "its run does not answer: is it stopped?".to_owned(),
        Errno::PERM => "you may not ask it".to_owned(),
        errno => fdholder::strerror(errno),
    })?;
    serde_json::from_str(&text).map_err(|_| "its run answers in another way".to_owned())
}
