//! One daemon after another: taking over, standing by, what survives and what does not.
#![allow(missing_docs, clippy::unwrap_used)]

mod closing;
mod confined;
mod follower;
mod loans;
mod paused;
mod pieces;
mod s6;
mod second_copy;
mod silent;
mod socket_file;
mod standby;
#[path = "../support/mod.rs"]
mod support;
mod takeover;
mod upgrade;

use fdholder::{Client, Limit};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use support::{content_of, deadline, id, marked_file, Content};

/// Has a holder hold so many marked files.
fn fill(client: &mut Client, folder: &Path, count: usize) -> Vec<PathBuf> {
    let store = |number: usize| {
        let (file, path) = marked_file(folder, &format!("file {number}"));
        client.store(&id(&number.to_string()), Limit::never(), &file, deadline()).unwrap();
        path
    };
    (0..count).map(store).collect()
}

fn content(client: &mut Client) -> Content {
    content_of(&client.getdump(deadline()).unwrap())
}

/// The paths of everything that a process has open.
fn open_paths(pid: u32) -> BTreeSet<PathBuf> {
    support::open_files(pid).into_values().collect()
}
