//! Real servers that restart behind a holder without refusing anybody, and the guides that
//! tell how. `scripts/peers` installs them; a test whose server is missing is reported as
//! ignored, unless `FDHOLDER_REQUIRE_PEERS` is set.
#![allow(missing_docs, clippy::unwrap_used)]

mod fastcgi;
mod guides;
mod load;
mod restarts;
#[path = "../support/mod.rs"]
mod support;

use libtest_mimic::{Arguments, Trial};
use restarts::Site;
use rustix::process::Signal;
use std::fs;
use std::path::{Path, PathBuf};
use support::suite::peers;
use support::Suite;

fn main() {
    let trials = vec![
        trial("nginx", &["nginx"], nginx),
        trial("haproxy", &["haproxy"], haproxy),
        trial("gunicorn", &["gunicorn"], gunicorn),
        trial("gunicorn_asgi", &["gunicorn"], gunicorn_asgi),
        trial("gunicorn_without_application", &["gunicorn"], gunicorn_without_application),
        trial("gunicorn_behind_a_wrapper", &["gunicorn"], gunicorn_behind_a_wrapper),
        trial("uvicorn", &["uvicorn"], uvicorn),
        trial("uvicorn_by_its_variable", &["uvicorn"], uvicorn_by_its_variable),
        trial("unicorn", &["unicorn"], unicorn),
        trial("puma", &["puma"], puma),
        trial("php_fpm", &["php-fpm"], php_fpm),
        trial("node", &["node"], node),
        trial("rust_listenfd", &["listenfd"], rust_listenfd),
        trial("go", &["go"], go),
        trial("python_listen_fds", &["python3"], python_listen_fds),
        trial("guide_nginx", &["nginx", "curl"], guide_nginx),
        trial("guide_haproxy", &["haproxy", "curl"], guide_haproxy),
        trial("guide_gunicorn_uvicorn", &["gunicorn", "uvicorn", "curl"], guide_gunicorn_uvicorn),
        trial("guide_node", &["node", "curl"], guide_node),
        trial("guide_rust_listenfd", &["listenfd", "curl"], guide_rust_listenfd),
        trial("guide_go_listen_fds", &["go", "curl"], guide_go_listen_fds),
        trial("guide_run", &["python3", "curl"], guide_run),
        trial("guide_established_connections", &["python3"], guide_established_connections),
        trial("readme", &["nginx", "curl"], readme),
        s6_trial("guide_from_s6_2_11", Suite::S6V211),
        s6_trial("guide_from_s6_2_13", Suite::S6V213),
        root_trial("guide_containers", &["ip", "unshare", "python3", "curl"], guide_containers),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

fn trial(name: &str, programs: &[&str], run: impl FnOnce() + Send + 'static) -> Trial {
    let missing = programs.iter().find(|name| program(name).is_none());
    let missing = missing.map(|name| format!("{name}: scripts/peers"));
    support::trial::trial(name.to_owned(), missing, run)
}

fn root_trial(name: &str, programs: &[&str], run: impl FnOnce() + Send + 'static) -> Trial {
    if rustix::process::geteuid().is_root() {
        return trial(name, programs, run);
    }
    support::trial::trial(name.to_owned(), Some("root".to_owned()), run)
}

fn s6_trial(name: &str, suite: Suite) -> Trial {
    let missing = (!suite.is_installed()).then(|| format!("{suite}: scripts/peers"));
    support::trial::trial(name.to_owned(), missing, move || guide_from_s6(suite))
}

/// Where programs are besides `PATH`: what scripts/peers installs with pip, what cargo builds
/// beside the tests, and what Debian has for root.
fn folders() -> Vec<PathBuf> {
    let binary = Path::new(env!("CARGO_BIN_EXE_fdholder")).parent().unwrap();
    let mut folders = vec![binary.to_owned(), binary.join("examples"), peers().join("python/bin")];
    let path = std::env::var_os("PATH").unwrap_or_default();
    folders.extend(std::env::split_paths(&path));
    folders.push("/usr/sbin".into());
    folders
}

fn program(name: &str) -> Option<PathBuf> {
    let is_it = |path: &PathBuf| path.is_file();
    let found = folders().into_iter().map(|folder| folder.join(name)).find(is_it);
    found.or_else(|| with_version(name))
}

/// A program whose name ends in its version: Debian has php-fpm8.2.
fn with_version(name: &str) -> Option<PathBuf> {
    let files = folders().into_iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten();
    let is_it = |path: &PathBuf| {
        let version = path.file_name().and_then(|it| it.to_str()?.strip_prefix(name));
        version.is_some_and(|it| it.parse::<f32>().is_ok()) && path.is_file()
    };
    files.flatten().map(|file| file.path()).find(is_it)
}

fn found(name: &str) -> String {
    program(name).unwrap().to_str().unwrap().to_owned()
}

/// A file of `examples`.
fn example(name: &str) -> String {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples");
    examples.join(name).canonicalize().unwrap().to_str().unwrap().to_owned()
}

fn nginx() {
    let site = Site::new(&["--nonblock"]);
    let configuration = fs::read_to_string(example("nginx/nginx.conf")).unwrap();
    let configuration = configuration.replace("127.0.0.1:18080", &site.address.to_string());
    fs::write(site.folder().join("nginx.conf"), configuration).unwrap();
    let server = [&found("nginx"), "-e", "stderr", "-p", ".", "-c", "nginx.conf"];
    site.restarts(&["web", "--env-style", "nginx"], &server, Signal::QUIT);
    let log = fs::read_to_string(site.folder().join("server.log")).unwrap();
    assert!(log.contains("using inherited sockets from"), "{log}");
}

fn haproxy() {
    let site = Site::new(&[]);
    let configuration = "\
defaults
    mode http
    timeout client 10s
frontend web
    bind fd@3
    http-request return status 200 content-type text/plain string \"hello\\n\"
";
    fs::write(site.folder().join("haproxy.cfg"), configuration).unwrap();
    let server = [&found("haproxy"), "-db", "-f", "haproxy.cfg"];
    site.restarts(&["web"], &server, Signal::USR1);
}

fn gunicorn() {
    let server = gunicorn_with(&["app:wsgi"]);
    Site::new(&[]).restarts(&["web"], &server, Signal::TERM);
}

/// That worker may drop whoever it has just accepted when it is told to stop, so nobody asks
/// it meanwhile.
fn gunicorn_asgi() {
    let server = gunicorn_with(&["--worker-class", "asgi", "app:asgi"]);
    Site::new(&[]).starts_again(&["web"], &server, Signal::TERM);
}

/// gunicorn sends READY=1 before it loads the application. A version that cannot be loaded must not
/// take the place of the one that serves.
fn gunicorn_without_application() {
    let script = "
        cp examples/python/app.py .
        (fdholder serve -1 ./holder &) | read _
        fdholder run --name web --bind web=tcp:127.0.0.1:18091 --ready-after 5000 ./holder -- \
            gunicorn --no-control-socket app:wsgi &
        curl -sS --retry 9 --retry-connrefused http://127.0.0.1:18091/
        echo 'raise RuntimeError' > app.py
        if fdholder restart ./holder web; then exit 1; fi
        curl -sS http://127.0.0.1:18091/
        cp examples/python/app.py .
    ";
    assert_said(&guides::Script::start(Suite::S6V213, script).succeeds(&[18091]), &["hello"; 2]);
}

/// A shell that does not exec: `LISTEN_PID` is its own, and gunicorn opens another port.
fn gunicorn_behind_a_wrapper() {
    let script = "
        cp examples/python/app.py .
        fdholder run --bind web=tcp:127.0.0.1:18092 -- sh -c \
            'gunicorn --no-control-socket --pid gunicorn.pid --bind 127.0.0.1:0 app:wsgi; :' &
        until grep -q 'gunicorn) listens on TCP port .* opened itself' stderr; do sleep 0.1; done
        kill $(cat gunicorn.pid)
    ";
    guides::Script::start(Suite::S6V213, script).succeeds(&[]);
}

/// Without a control socket: it would be where the user has others. With one worker: another that
/// has just been forked while the first one answers does not hear that it is to stop, and is killed
/// half a minute later in the middle of an answer (3 of 240 stops of gunicorn 27.0.1 by itself).
fn gunicorn_with(arguments: &[&str]) -> Vec<String> {
    let (program, folder) = (found("gunicorn"), example("python"));
    let server = [program.as_str(), "--no-control-socket", "--workers", "1", "--chdir", &folder];
    [&server, arguments].concat().into_iter().map(str::to_owned).collect()
}

fn uvicorn() {
    let python = found("uvicorn").replace("/uvicorn", "/python");
    let server = [&python, &example("python/serve_uvicorn.py"), "app:asgi"];
    Site::new(&[]).restarts(&["web"], &server, Signal::TERM);
}

/// uvicorn by itself reads the variable; but it sends away who has just been accepted when it
/// is told to stop, so nobody asks it meanwhile.
fn uvicorn_by_its_variable() {
    let server = [&found("uvicorn"), "--app-dir", &example("python"), "app:asgi"];
    Site::new(&[]).starts_again(&["web", "--env-style", "uvicorn-fd"], &server, Signal::TERM);
}

/// An application of Ruby's Rack, as unicorn and Puma serve it.
fn rack(site: &Site) {
    let app = "run ->(_) { [200, { 'content-type' => 'text/plain' }, [\"hello\\n\"]] }\n";
    fs::write(site.folder().join("config.ru"), app).unwrap();
}

fn log(site: &Site) -> String {
    fs::read_to_string(site.folder().join("server.log")).unwrap()
}

fn unicorn() {
    let site = Site::new(&[]);
    rack(&site);
    let server = [&found("unicorn"), "--no-default-middleware", "config.ru"];
    site.restarts(&["web", "--env-style", "unicorn"], &server, Signal::QUIT);
    let says = format!("addr={} fd=3", site.address);
    assert!(log(&site).contains(&says), "{says} in {}", log(&site));
}

fn puma() {
    let site = Site::new(&[]);
    rack(&site);
    let bind = format!("tcp://{}", site.address);
    let server = [&found("puma"), "--bind", &bind, "config.ru"];
    site.restarts(&["web", "--env-style", "puma"], &server, Signal::TERM);
    let says = format!("Inherited {bind}");
    assert!(log(&site).contains(&says), "{says} in {}", log(&site));
}

fn php_fpm() {
    let mut site = Site::new(&[]);
    site.ask = fastcgi::ping;
    let user = if rustix::process::geteuid().is_root() { "user = nobody\n" } else { "" };
    let pool = format!(
        "[global]\nerror_log = /proc/self/fd/2\nprocess_control_timeout = 10s\n[web]\n{user}\
         listen = {}\npm = static\npm.max_children = 2\nping.path = /ping\n\
         ping.response = hello\n",
        site.address
    );
    fs::write(site.folder().join("fpm.conf"), pool).unwrap();
    let server = [&found("php-fpm"), "--nodaemonize", "--fpm-config", "fpm.conf"];
    site.restarts(&["web", "--env-style", "php-fpm"], &server, Signal::QUIT);
    let says = format!("using inherited socket fd=3, \"{}\"", site.address);
    assert!(log(&site).contains(&says), "{says} in {}", log(&site));
}

fn node() {
    let server = [found("node"), example("node/server.js")];
    Site::new(&[]).restarts(&["web"], &server, Signal::TERM);
}

fn rust_listenfd() {
    Site::new(&[]).restarts(&["web"], &[found("listenfd")], Signal::TERM);
}

fn go() {
    let site = Site::new(&[]);
    let server = site.folder().join("server");
    let mut build = std::process::Command::new(found("go"));
    build.arg("build").arg("-o").arg(&server).arg(example("go/server.go"));
    assert!(build.status().unwrap().success());
    site.restarts(&["web"], &[server], Signal::TERM);
}

fn python_listen_fds() {
    let server = [found("python3"), example("python/listen_fds.py")];
    Site::new(&[]).restarts(&["web"], &server, Signal::TERM);
}

/// What the servers of a guide answer around restarts; how long these took is left out.
fn assert_said(said: &str, expected: &[&str]) {
    let without_time = |line: &str| line.split(" after ").next().unwrap_or_default().to_owned();
    let lines: Vec<_> = said.lines().map(without_time).collect();
    assert_eq!(lines, expected, "{said}");
}

fn guide_nginx() {
    assert_said(&guides::follow("nginx", &[18081]), &BAD_VERSION_BETWEEN);
}

fn guide_haproxy() {
    assert_said(&guides::follow("haproxy", &[18082]), &BAD_VERSION_BETWEEN);
}

/// A restart, a version that does not start, and the one before again.
const BAD_VERSION_BETWEEN: [&str; 5] =
    ["hello", "web: generation 2 is ready", "hello", "hello", "web: generation 4 is ready"];

const ONE_RESTART: [&str; 3] = ["hello", "web: generation 2 is ready", "hello"];

fn guide_gunicorn_uvicorn() {
    let said = guides::follow("gunicorn-uvicorn", &[18083, 18084]);
    assert_said(
        &said,
        &[&ONE_RESTART[..], &["hello", "api: generation 2 is ready", "hello"]].concat(),
    );
}

fn guide_node() {
    assert_said(&guides::follow("node", &[18085]), &ONE_RESTART);
}

fn guide_rust_listenfd() {
    assert_said(&guides::follow("rust-listenfd", &[18086]), &ONE_RESTART);
}

fn guide_go_listen_fds() {
    assert_said(&guides::follow("go-listen-fds", &[18087]), &ONE_RESTART);
}

fn guide_run() {
    let restarts = ["hello", "web: generation 2 is ready", "web: generation 4 is ready", "hello"];
    assert_said(&guides::follow("run", &[18088]), &restarts);
}

fn guide_established_connections() {
    let said = guides::follow("established-connections", &[]);
    assert_eq!(said, "50 lines, 5 restarts, one connection\n");
}

fn guide_from_s6(suite: Suite) {
    let said = guides::follow_with(suite, "from-s6", &[]);
    let (report, lists) = said.split_once("it fits\n").unwrap();
    assert!(report.contains("uid/self"), "{said}");
    let mut lists: Vec<_> = lists.lines().collect();
    lists.sort_unstable();
    let ids = ["tcp:443", "tcp:80", "udp:53"].map(|id| [id; 3]).concat();
    assert_eq!(lists, ids, "{said}");
}

/// Clients are in another network namespace: those of the guide itself have to do.
fn guide_containers() {
    // One that failed may have left its namespace.
    let mut clean = std::process::Command::new("ip");
    let _ = clean.args(["netns", "del", "fdholder-guide"]).output();
    let said = guides::follow("containers", &[]);
    let restarts = [&ONE_RESTART[..], &["web: generation 3 is ready", "hello", "refused"]].concat();
    assert_said(&said, &restarts);
}

/// From a fresh clone to nginx that restarts while clients come, in four commands at most.
fn readme() {
    let readme = guides::document("README.md");
    let block = readme.split("<!-- nginx: begin").nth(1).unwrap();
    let script = guides::shell_blocks(block.split("<!-- nginx: end").next().unwrap());
    let joined = script.replace("\\\n", "");
    let commands = joined.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    assert!(commands.count() <= 4, "{script}");
    // run says to standard error, which is a file of this name, what it does.
    let next = "until grep -q 'generation 2 is ready' stderr; do sleep 0.01; done\n\
        curl -sS http://127.0.0.1:18080/\n";
    let script = script + next;
    assert_eq!(guides::Script::start(Suite::S6V213, &script).succeeds(&[18080]), "hello\nhello\n");
}
