//! A server on a socket that is held, and its restarts under load.

use crate::load::{ask, Ask, Load};
use crate::support::family::signal;
use crate::support::{assert_exit, deadline, eventually, id, suite, Family, Installed};
use rustix::process::{kill_process_group, Pid, Signal};
use std::ffi::OsStr;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};

const RESTARTS: usize = 4;

/// Clients that are answered between two restarts, at least.
const IN_BETWEEN: usize = 100;

/// A holder with a listening socket.
pub struct Site {
    family: Family,
    installed: Installed,
    pub address: SocketAddr,
    /// How clients ask.
    pub ask: Ask,
}

impl Site {
    /// What is held is bound with these options, under the identifier "web".
    pub fn new(options: &[&str]) -> Self {
        let mut family = Family::new();
        let installed = Installed::in_folder(family.folder.path());
        family.serve_by(&installed.path, &[]);
        let path = family.path.to_str().unwrap();
        let bind = [&["bind"], options, &[path, "web", "tcp:127.0.0.1:0"]].concat();
        assert_exit(&suite::fdholder(bind).output().unwrap(), 0);
        let listener: TcpListener =
            family.client().retrieve(&id("web"), deadline()).unwrap().into();
        let address = listener.local_addr().unwrap();
        Self { family, installed, address, ask }
    }

    pub fn folder(&self) -> &Path {
        self.family.folder.path()
    }

    /// Starts a server by `fdholder exec` with these options.
    fn start<S: AsRef<OsStr>>(&self, options: &[&str], server: &[S]) -> Server {
        let mut command = suite::fdholder(["exec", "--fd"]);
        command.args(options).arg(&self.family.path).arg("--").args(server);
        Server::start(&mut command, self.folder())
    }

    /// Restarts a server again and again under load, as a supervisor would, and upgrades the
    /// holder in the middle of it. Nobody is refused, or left without an answer.
    pub fn restarts<S: AsRef<OsStr>>(&self, options: &[&str], server: &[S], stop: Signal) {
        let mut running = self.start(options, server);
        let load = Load::on(self.address, self.ask);
        load.wait_for(IN_BETWEEN);
        for number in 0..RESTARTS {
            if number == RESTARTS / 2 {
                self.upgrade();
            }
            running.stop(stop);
            running = self.start(options, server);
            load.wait_for(IN_BETWEEN);
        }
        load.finish();
        running.stop(stop);
    }

    /// The same, but clients come only while the server runs.
    pub fn starts_again<S: AsRef<OsStr>>(&self, options: &[&str], server: &[S], stop: Signal) {
        for _ in 0..RESTARTS {
            let mut running = self.start(options, server);
            let load = Load::on(self.address, self.ask);
            load.wait_for(IN_BETWEEN);
            load.finish();
            running.stop(stop);
        }
    }

    fn upgrade(&self) {
        self.installed.replace();
        let path = self.family.path.to_str().unwrap();
        assert_exit(&suite::fdholder(["upgrade", path]).output().unwrap(), 0);
    }
}

/// A running server. It and all it started are killed when dropped.
struct Server {
    child: Child,
    group: Pid,
}

impl Server {
    fn start(command: &mut Command, folder: &Path) -> Self {
        let log =
            std::fs::File::options().create(true).append(true).open(folder.join("server.log"));
        let log = log.unwrap();
        command.current_dir(folder).process_group(0).stdin(Stdio::null());
        let child = command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        let group = Pid::from_child(&child);
        Self { child, group }
    }

    /// Has it stop, and waits until it has.
    fn stop(&mut self, by: Signal) {
        signal(self.child.id(), by);
        let mut ended = None;
        eventually("the server stops", || {
            ended = self.child.try_wait().unwrap();
            ended.is_some()
        });
        // uvicorn ends by the signal that it was stopped by, once it is done.
        let ended = ended.unwrap();
        assert!(ended.success() || ended.signal() == Some(by.as_raw()), "{ended:?}");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = kill_process_group(self.group, Signal::KILL);
        let _ = self.child.wait();
    }
}
