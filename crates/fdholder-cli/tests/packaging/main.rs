//! What is in `packaging/`, as it is installed by the package that scripts/package makes. It takes
//! root, what scripts/peers installs, and that package; without, the tests are reported as
//! ignored, unless `FDHOLDER_REQUIRE_PEERS` is set.
#![allow(missing_docs, clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

mod containers;
mod debian;
mod example;
mod first;
mod reloading;
mod services;
mod supervisors;
mod units;
mod watchdog;

use libtest_mimic::{Arguments, Trial};
use std::path::{Path, PathBuf};
use support::system::{package, System};
use support::systemd::Manager;

fn main() {
    let system = |name: &str, run: fn()| trial(name, System::missing(), run);
    let systemd = |name: &str, run: fn()| trial(name, Manager::missing(), run);
    let validator = |name: &str, run: fn()| trial(name, containers::missing(), run);
    let trials = vec![
        system("the_package_is_installed_beside_s6", debian::is_installed_beside_s6),
        system("the_names_of_s6_are_for_whoever_wants_them", debian::names_of_s6),
        system("scripts_have_no_mistake", debian::scripts_have_no_mistake),
        system("s6_runs_it", supervisors::s6),
        system("s6_runs_the_definition_for_s6_rc", supervisors::s6_rc),
        system("runit_runs_it", supervisors::runit),
        system("openrc_runs_it", supervisors::openrc),
        system("s6_restarts_a_service_unnoticed", services::s6),
        system("runit_restarts_a_service_unnoticed", services::runit),
        system("openrc_restarts_a_service_unnoticed", services::openrc),
        system("an_image_is_built_and_run", containers::an_image_is_built_and_run),
        system("run_is_the_first_process_of_a_container", first::of_its_own_socket),
        system("the_next_container_goes_on_with_a_held_socket", first::of_a_held_socket),
        validator("the_dockerfile_has_no_mistake", containers::dockerfile),
        validator("the_manifests_are_as_kubernetes_wants_them", containers::manifests),
        systemd("the_units_have_no_mistake", units::verified),
        systemd("the_unit_is_safe", units::is_safe),
        systemd("the_unit_lets_it_confine_itself", units::is_confined),
        systemd("the_unit_survives_what_it_says", units::survives),
        systemd("the_unit_becomes_another_program", units::reloads),
        systemd("the_socket_starts_it", units::socket),
        systemd("a_new_socket_counts_more_than_a_kept_one", units::new_socket),
        systemd("systemd_socket_activate_starts_it", units::systemd_socket_activate),
        systemd("a_loop_that_goes_round_is_left_alone", watchdog::a_loop_that_goes_round),
        systemd("a_loop_that_hangs_is_ended", watchdog::a_loop_that_hangs),
        systemd("a_promoted_standby_is_watched", watchdog::a_promoted_standby),
    ];
    let trials = trials.into_iter().chain(reloading::trials()).collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

fn trial(name: &str, missing: Option<String>, run: impl FnOnce() + Send + 'static) -> Trial {
    let no_package = || package().is_none().then(|| "scripts/package".to_owned());
    support::trial::trial(name.to_owned(), missing.or_else(no_package), run)
}

/// A file of `packaging/`, or of the repository by `../`.
fn file(name: &str) -> PathBuf {
    let packaging = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging");
    packaging.canonicalize().unwrap().join(name)
}

/// A system with the package installed.
fn installed() -> System {
    let system = System::start();
    std::fs::copy(package().unwrap(), system.share().join("fdholder.deb")).unwrap();
    system.run("dpkg --install /srv/fdholder.deb");
    system
}
