//! `metrics`: how a holder is, for Prometheus.

mod runs;

use crate::connect::deadline;
use crate::failure::{exit, Failure};
use crate::look::runs::runs;
use crate::look::status::{look, Known};
use crate::options::{path_operand, timeout_option, EXIT_CODES};
use crate::program::{Invocation, Program};
use crate::show::output::print;
use clap::{Arg, Command};
use fdholder::{Deadline, Errno, Listening, Standby, Status};
use std::collections::BTreeMap;
use std::fmt::{Display, Write as _};
use std::fs;
use std::io::{self, ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

pub const PROGRAM: Program =
    Program { subcommand: "metrics", s6_name: "", s6_usage: "", define, run };

fn define(command: Command) -> Command {
    command
        .about("Show how a holder is as metrics for Prometheus")
        .after_help(format!(
            "For the textfile collector of the node exporter, from a timer:\n  \
             fdholder metrics --output /var/lib/node_exporter/fdholder.prom /run/holder\n\n\
             fdholder_up is 0 when the holder cannot be reached or does not answer, and 1 when it \
             answers no; the exit code is not 0 then. Of s6's daemon only how much it holds is \
             told. For users that may list or take a dump.\n\n{EXIT_CODES}"
        ))
        .arg(
            Arg::new("output")
                .short('o')
                .long("output")
                .value_name("FILE")
                .value_parser(clap::value_parser!(PathBuf))
                .help("Write to FILE, which is replaced in one step"),
        )
        .arg(timeout_option())
        .arg(path_operand())
}

fn run(invocation: &Invocation) -> Result<ExitCode, Failure> {
    let path: PathBuf = invocation.required("path")?;
    let known = look(&path, deadline(invocation));
    let text = match &known {
        Ok(known) => told(known, &path, deadline(invocation)),
        Err(failure) => Metrics::of(&path).up(failure.is_refusal()).0,
    };
    match invocation.optional::<PathBuf>("output") {
        Some(file) => replace(&file, &text)?,
        None => print(&text)?,
    }
    match known? {
        Known::LittleOf { held: Err(failure), .. } => Err(failure),
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// Nobody ever reads a part of it.
fn replace(file: &Path, text: &str) -> Result<(), Failure> {
    // Not with the name of a file that nobody knows of.
    let failed = |error: io::Error| {
        let errno = match error.kind() {
            ErrorKind::NotFound => Some(Errno::NOENT),
            ErrorKind::PermissionDenied => Some(Errno::ACCESS),
            ErrorKind::StorageFull => Some(Errno::NOSPC),
            ErrorKind::ReadOnlyFilesystem => Some(Errno::ROFS),
            _ => None,
        };
        let error = errno.map_or(error, io::Error::from);
        Failure::system(format!("write {}", file.display()), error)
    };
    // Not a device, nor anything else that would be lost.
    if fs::symlink_metadata(file).is_ok_and(|meta| !meta.is_file()) {
        let problem = format!("unable to write {}: it is there, and no file", file.display());
        return Err(Failure::new(exit::SYSTEM, problem));
    }
    let folder = file.parent().filter(|folder| *folder != Path::new(""));
    let mut new = tempfile::Builder::new()
        .prefix(".fdholder-")
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .tempfile_in(folder.unwrap_or(Path::new(".")))
        .map_err(failed)?;
    new.write_all(text.as_bytes()).map_err(failed)?;
    new.persist(file).map_err(|error| failed(error.error))?;
    Ok(())
}

fn told(known: &Known, path: &Path, deadline: Deadline) -> String {
    let metrics = Metrics::of(path).up(true).runs(&runs(path, deadline));
    match known {
        Known::All(status) => metrics.status(status).0,
        Known::LittleOf { held, .. } => match held {
            Ok(held) => metrics.gauge("held_fds", HELD, held).0,
            Err(_) => metrics.0,
        },
    }
}

const HELD: &str = "Descriptors that are held.";

/// Text in the exposition format, and the labels that each metric has.
struct Metrics(String, String);

impl Metrics {
    fn of(path: &Path) -> Self {
        Self(String::new(), format!("path=\"{}\"", escaped(&path.display().to_string())))
    }

    fn up(self, is_up: bool) -> Self {
        self.gauge("up", "Whether the holder answers.", u8::from(is_up))
    }

    fn head(&mut self, name: &str, help: &str, kind: &str) {
        // Writing to a string does not fail.
        let _ = writeln!(self.0, "# HELP fdholder_{name} {help}\n# TYPE fdholder_{name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &str, value: impl Display) {
        let own = &self.1;
        let _ = writeln!(self.0, "fdholder_{name}{{{own}{labels}}} {value}");
    }

    fn gauge(mut self, name: &str, help: &str, value: impl Display) -> Self {
        self.head(name, help, "gauge");
        self.sample(name, "", value);
        self
    }

    fn counter(mut self, name: &str, help: &str, value: u64) -> Self {
        self.head(name, help, "counter");
        self.sample(name, "", value);
        self
    }

    fn status(mut self, status: &Status) -> Self {
        let version = format!(",version=\"{}\"", escaped(&status.version));
        self.head("build_info", "The version of the holder.", "gauge");
        self.sample("build_info", &version, 1);
        let has_standby = matches!(status.standby, Standby::Ready(_));
        let count = |name: &str| status.counts.get(name).copied().unwrap_or(0);
        let mut metrics = self
            .gauge("start_time_seconds", "When its process began to serve.", status.started)
            .gauge("held_fds", HELD, status.held)
            .gauge("held_fds_max", "Descriptors that can be held.", status.capacity)
            .gauge("connections", "Clients that are connected.", status.connections)
            .gauge("connections_max", "Clients that can be.", status.connections_max)
            .gauge("waiting", "Clients that wait for ids that are not held.", status.waiting)
            .gauge("standby_ready", "Whether a standby has everything.", u8::from(has_standby))
            .gauge("fdstore", "Whether systemd keeps a copy.", u8::from(status.fdstore))
            .counter("expired_fds_total", "Descriptors that have expired.", count("expired"));
        let mut by_result = |name: &str, help: &str, of: &[(&str, &str)]| {
            metrics.head(name, help, "counter");
            for (prefix, labels) in of {
                for result in ["ok", "refused"] {
                    let labels = format!(",{labels}result=\"{result}\"");
                    metrics.sample(name, &labels, count(&format!("{prefix}.{result}")));
                }
            }
        };
        by_result("connections_total", "Clients, let in or not.", &[("connections", "")]);
        let help = "Datagrams of services, heeded or not.";
        by_result("notifications_total", help, &[("notify", "")]);
        let others = ["connections", "notify"];
        let names: BTreeMap<_, _> = status
            .counts
            .keys()
            .filter_map(|name| name.strip_suffix(".ok"))
            .filter(|name| !others.contains(name))
            .map(|name| (name, format!("operation=\"{}\",", escaped(name))))
            .collect();
        let names: Vec<_> = names.iter().map(|(name, labels)| (*name, labels.as_str())).collect();
        by_result("requests_total", "What clients have asked, and whether it was done.", &names);
        if !status.services.is_empty() {
            metrics.head("service_ready", "Whether a service has said READY=1.", "gauge");
            for service in &status.services {
                let name = format!(",service=\"{}\"", escaped(&service.name));
                metrics.sample("service_ready", &name, u8::from(service.ready));
            }
        }
        let mut by_listener = |name: &str, help: &str, value: fn(&Listening) -> u64| {
            if !status.listeners.is_empty() {
                metrics.head(name, help, "gauge");
            }
            for listener in &status.listeners {
                let id = format!(",id=\"{}\"", escaped(&listener.id));
                metrics.sample(name, &id, value(listener));
            }
        };
        let help = "Clients that wait to be accepted.";
        by_listener("listener_queue", help, |it| it.queue.into());
        let help = "Clients that may wait.";
        by_listener("listener_queue_max", help, |it| it.queue_max.into());
        let help = "How long clients have waited and no process accepted any.";
        by_listener("listener_waiting_seconds", help, |it| it.waiting);
        metrics
    }
}

/// The value of a label.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
