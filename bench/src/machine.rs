//! What the figures were measured on.

use crate::programs::Programs;
use crate::Result;
use std::fs;
use std::process::Command;

/// The head of the report.
pub fn describe(programs: &Programs, quick: bool) -> Result<String> {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let cpuinfo = fs::read_to_string("/proc/cpuinfo")?;
    // Not every architecture names its model there.
    let cpu = cpuinfo
        .lines()
        .filter(|line| line.starts_with("model name"))
        .find_map(|line| line.split_once(':'))
        .map_or("unknown", |(_, model)| model.trim());
    let cores = std::thread::available_parallelism()?;
    let toolchain = Command::new("rustc").arg("--version").output()?.stdout;
    let quick = if quick { " **Quick run: too few repetitions to quote.**" } else { "" };
    Ok(format!(
        "Whole processes, both sides in the same run and in turns; medians, with the least and \
         the greatest in brackets.{quick}\n\n\
         - Linux {}, {cpu}, {cores} cores\n\
         - s6 {}, as Debian 13 ships it, through its own loader\n\
         - fdholder {}, release build, {}\n",
        kernel.trim(),
        programs.s6_version,
        env!("CARGO_PKG_VERSION"),
        String::from_utf8_lossy(&toolchain).trim(),
    ))
}
