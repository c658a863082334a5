//! Where the programs are, ours and s6's.

use crate::Result;
use std::env;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Whose program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holder {
    Ours,
    S6,
}

/// Both sets of programs.
#[derive(Debug)]
pub struct Programs {
    ours: PathBuf,
    s6_bin: PathBuf,
    /// s6's programs are linked with libraries this system may not have, or not in that
    /// version, so they are started through the loader of their own root.
    loader: PathBuf,
    libraries: PathBuf,
    /// As its package says.
    pub s6_version: String,
}

impl Programs {
    /// Finds s6, and builds ours unless told where it is.
    pub fn find(binary: Option<&Path>) -> Result<Self> {
        let root = peers()?.join("s6-2.13");
        let loader = find_loader(&root).ok_or_else(|| {
            format!("there is no s6 2.13 in {}: run scripts/peers first", root.display())
        })?;
        let libraries = loader.parent().map(Path::to_owned).unwrap_or_default();
        let s6_version = package_version(&root).unwrap_or_else(|| "2.13".to_owned());
        let ours = match binary {
            Some(path) => path.canonicalize().map_err(|error| {
                format!("unable to find the binary {}: {error}", path.display())
            })?,
            None => build()?,
        };
        Ok(Self { ours, s6_bin: root.join("usr/bin"), loader, libraries, s6_version })
    }

    /// A command that runs the program of that (s6) name, without standard streams.
    pub fn command(&self, holder: Holder, name: &str) -> Command {
        let mut command = match holder {
            Holder::Ours => {
                let mut command = Command::new(&self.ours);
                command.arg0(name);
                command
            }
            Holder::S6 => {
                let mut command = Command::new(&self.loader);
                command.arg("--library-path").arg(&self.libraries).arg(self.s6_bin.join(name));
                command
            }
        };
        without_streams(&mut command);
        command
    }

    /// A command that runs ours as a subcommand, which has options that s6's has not.
    pub fn subcommand(&self, name: &str) -> Command {
        let mut command = Command::new(&self.ours);
        command.arg0("fdholder").arg(name);
        without_streams(&mut command);
        command
    }
}

fn without_streams(command: &mut Command) {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
}

/// The folder where scripts/peers puts them.
fn peers() -> Result<PathBuf> {
    if let Some(peers) = env::var_os("FDHOLDER_PEERS") {
        return Ok(peers.into());
    }
    let cache = env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| env::home_dir().map(|home| home.join(".cache")))
        .ok_or("neither FDHOLDER_PEERS, XDG_CACHE_HOME nor HOME says where the peers are")?;
    Ok(cache.join("fdholder/peers"))
}

/// The loader stands in the folder of the architecture's libraries, whatever that is called.
fn find_loader(root: &Path) -> Option<PathBuf> {
    let folders = fs::read_dir(root.join("usr/lib")).ok()?;
    folders.flatten().find_map(|folder| {
        let files = fs::read_dir(folder.path()).ok()?;
        files.flatten().map(|file| file.path()).find(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("ld-linux-") && name.contains(".so.")
        })
    })
}

fn package_version(root: &Path) -> Option<String> {
    let status = fs::read_to_string(root.join("var/lib/dpkg/status")).ok()?;
    let package = status.split("\n\n").find(|text| text.lines().any(|l| l == "Package: s6"))?;
    package.lines().find_map(|line| line.strip_prefix("Version: ")).map(str::to_owned)
}

/// Builds our binary into the target directory that this executable came from.
fn build() -> Result<PathBuf> {
    let own = env::current_exe()?;
    let target = own
        .parent()
        .and_then(Path::parent)
        .ok_or("this executable is not in a target directory: use --binary")?;
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["build", "--release", "--package", "fdholder-cli", "--target-dir"])
        .arg(target)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()?;
    if !status.success() {
        return Err("unable to build fdholder-cli".into());
    }
    let binary = target.join("release/fdholder");
    if !binary.is_file() {
        return Err(format!("the build left no {}: use --binary", binary.display()).into());
    }
    Ok(binary)
}
