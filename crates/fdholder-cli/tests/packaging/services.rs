//! The example service, which `run` keeps running, under supervisors beside systemd.

use crate::example::{pid_from, served_by, Clients, Server, COMPLAINT};
use crate::installed;
use crate::supervisors::{self, Supervisor};
use crate::support::system::System;
use crate::support::{deadline, eventually, id};
use fdholder::Client;
use serde_json::Value;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;

/// As README.md says it. The port is any that is free.
const PREPARE: &str = "
    mkdir -p /etc/fdholder/rules/uid/33/env
    touch /etc/fdholder/rules/uid/33/allow
    echo '^web(/|$)' > /etc/fdholder/rules/uid/33/env/S6_FDHOLDER_STORE_REGEX
    echo '^web(/|$)' > /etc/fdholder/rules/uid/33/env/S6_FDHOLDER_RETRIEVE_REGEX
    cp -r /usr/share/doc/fdholder/examples /srv/examples
    cd /srv/examples
    sed -i s/:8080/:0/ openrc/example-web s6/example-web/run runit/example-web/run";

const STATUS: &str = "fdholder status --json /run/fdholder/holder";
const RESTART: &str = "fdholder restart /run/fdholder/holder web";

/// How a supervisor is told about the service.
struct Service {
    holder: Supervisor,
    install: &'static str,
    /// Returns once the service is ready.
    start: &'static str,
    /// Succeeds when the supervisor knows that it is ready.
    is_ready: &'static str,
    reload: &'static str,
    /// Whether that waits for the outcome, and fails if it does.
    reload_reports: bool,
    stop: &'static str,
}

pub fn s6() {
    let s6 = Service {
        holder: supervisors::S6,
        install: "cp -r /srv/examples/s6/example-web /run/service/
                  touch /run/service/example-web/down
                  s6-svscanctl -a /run/service
                  until s6-svok /run/service/example-web; do sleep 0.01; done",
        start: "s6-svc -wU -T 60000 -u /run/service/example-web",
        is_ready: "test $(s6-svstat -o ready /run/service/example-web) = true",
        reload: "s6-svc -h /run/service/example-web",
        reload_reports: false,
        stop: "s6-svc -wD -d /run/service/example-web",
    };
    s6.is_restarted_unnoticed();
}

pub fn runit() {
    let runit = Service {
        holder: supervisors::RUNIT,
        install: "cp -r /srv/examples/runit/example-web /etc/sv/
                  touch /etc/sv/example-web/down
                  ln -s /etc/sv/example-web /run/sv/
                  until test -p /etc/sv/example-web/supervise/ok; do sleep 0.01; done",
        start: "SVDIR=/run/sv sv -w 60 start example-web",
        is_ready: "/etc/sv/example-web/check",
        reload: "SVDIR=/run/sv sv hup example-web",
        reload_reports: false,
        stop: "SVDIR=/run/sv sv -w 60 down example-web",
    };
    runit.is_restarted_unnoticed();
}

pub fn openrc() {
    let openrc = Service {
        holder: supervisors::OPENRC,
        install: "cp /srv/examples/openrc/example-web /etc/init.d/
                  echo 'error_logger=\"cat >>/srv/log\"' >/etc/conf.d/example-web",
        start: "rc-service example-web start",
        is_ready: "test -e /run/openrc/started/example-web",
        reload: "rc-service example-web reload",
        reload_reports: true,
        stop: "rc-service example-web stop",
    };
    openrc.is_restarted_unnoticed();
}

impl Service {
    fn is_restarted_unnoticed(&self) {
        let system = installed();
        system.run(PREPARE);
        system.run(self.holder.start);
        system.run(self.install);
        let path = system.at("usr/local/lib/example-web.py");
        let server = Server::install(path, &system.share(), Path::new("/srv"));
        let before = system.pids("fdholder").len();

        self.start_waits_until_it_is_ready(&system, &server);
        let address = address(&system);
        let clients = Clients::of(address);
        self.reload_changes_the_server(&system, &clients);
        self.reload_to_a_bad_version_leaves_the_old_one(&system, &server, address);
        server.good();
        kill_of_run_is_not_noticed(&system, &clients);
        clients.all_were_served();

        system.run(self.stop);
        assert!(system.pids("python3").is_empty(), "{}", system.log());
        eventually("nothing of it is left", || system.pids("fdholder").len() == before);
        assert!(!system.log().contains("does not stop"), "{}", system.log());
        // A client that comes while nothing serves waits.
        let waits = TcpStream::connect(address).unwrap();
        system.run(self.start);
        assert_eq!(pid_from(waits).unwrap(), Run::of(&system).server());
        system.run(self.stop);
    }

    fn start_waits_until_it_is_ready(&self, system: &System, server: &Server) {
        server.gated();
        let mut starting = system.command(self.start).spawn().unwrap();
        eventually("the server is starting", || {
            Run::find(system).is_some_and(|run| run.is_starting())
        });
        assert!(!system.try_run(self.is_ready).status.success(), "{}", system.log());
        assert_eq!(starting.try_wait().unwrap(), None, "{}", system.log());
        server.open_gate();
        assert!(starting.wait().unwrap().success(), "{}", system.log());
        system.run(self.is_ready);
        assert!(!Run::of(system).is_starting());
        server.good();
    }

    fn reload_changes_the_server(&self, system: &System, clients: &Clients) {
        let before = Run::of(system);
        let mut server = before.server();
        for _ in 0..3 {
            system.run(self.reload);
            server = clients.wait_for_successor(server);
            eventually("the new server is the ready one", || Run::of(system).server() == server);
            assert_eq!(Run::of(system).pid, before.pid);
            clients.wait_for_more();
        }
    }

    fn reload_to_a_bad_version_leaves_the_old_one(
        &self,
        system: &System,
        server: &Server,
        address: SocketAddr,
    ) {
        let before = Run::of(system);
        let complained = || system.log().matches(COMPLAINT).count();
        server.bad();
        let reloaded = system.try_run(self.reload);
        assert_eq!(reloaded.status.success(), !self.reload_reports, "{reloaded:?}");
        eventually("it was tried", || Run::of(system).last_result == "exited");
        assert_eq!(complained(), 1, "{}", system.log());
        let restarted = system.try_run(RESTART);
        assert_eq!(restarted.status.code(), Some(1), "{restarted:?}");
        let said = String::from_utf8_lossy(&restarted.stderr).into_owned();
        assert!(said.contains("exited with code 1") && said.contains(COMPLAINT), "{said}");
        let after = Run::of(system);
        assert_eq!((after.pid, after.server()), (before.pid, before.server()));
        assert_eq!(served_by(address), before.server());
    }
}

fn kill_of_run_is_not_noticed(system: &System, clients: &Clients) {
    for _ in 0..2 {
        let before = Run::of(system);
        system.run(&format!("kill -9 {}", before.pid));
        clients.wait_for_successor(before.server());
        eventually("only the next server is left", || {
            let is_next = Run::find(system).is_some_and(|run| run.pid != before.pid);
            is_next && system.pids("python3").len() == 1
        });
        clients.wait_for_more();
    }
}

/// What `status` says of the service.
struct Run {
    pid: u64,
    /// Number, pid and state.
    generations: Vec<(u64, u64, String)>,
    last_result: String,
}

impl Run {
    /// None while the holder knows of none, or its process has ended.
    fn find(system: &System) -> Option<Self> {
        let status: Value = serde_json::from_str(&system.run(STATUS)).unwrap();
        let run = status["runs"].as_array().unwrap().first()?;
        let generation = |it: &Value| {
            let state = it["state"].as_str().unwrap().to_owned();
            (it["number"].as_u64().unwrap(), it["pid"].as_u64().unwrap(), state)
        };
        Some(Self {
            pid: run["pid"].as_u64()?,
            generations: run["generations"].as_array()?.iter().map(generation).collect(),
            last_result: run["last_restart"]["result"].as_str().unwrap_or_default().to_owned(),
        })
    }

    fn of(system: &System) -> Self {
        Self::find(system).unwrap_or_else(|| panic!("no service: {}", system.log()))
    }

    fn is_starting(&self) -> bool {
        self.generations.iter().any(|(_, _, state)| state == "starting")
    }

    /// The process that serves.
    fn server(&self) -> u32 {
        let ready = self.generations.iter().find(|(_, _, state)| state == "ready");
        let (_, pid, _) = ready.unwrap_or_else(|| panic!("none is ready: {:?}", self.generations));
        u32::try_from(*pid).unwrap()
    }
}

fn address(system: &System) -> SocketAddr {
    let mut client = Client::connect(system.at("run/fdholder/holder"), deadline()).unwrap();
    let web = client.retrieve(&id("web"), deadline()).unwrap();
    TcpListener::from(web).local_addr().unwrap()
}
