//! The directory for the files of tests and of the lab: cargo's target directory, for this project alone.

use std::io::{ErrorKind, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, ensure};

/// A script that removes the directory `$0` once its standard input ends, unless there is a line in it. It ignores the
/// signals of the terminal.
const REMOVER: &str = r#"
    trap '' HUP INT QUIT TERM
    read -r keep && exit
    for try in 1 2 3 4 5 6 7 8 9 10; do rm -rf -- "$0" && exit; sleep 1; done
"#;

/// Cargo's target directory.
#[must_use]
pub fn directory() -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let workspace = workspace.canonicalize().unwrap_or(workspace);
    match std::env::var_os("CARGO_TARGET_DIR") {
        // Cargo resolves a relative path from its working directory, which most often is the workspace.
        Some(directory) if !directory.is_empty() => workspace.join(directory),
        _ => workspace.join("target"),
    }
}

/// A directory below it for the files of one run of a command. It is removed with the process, however that ends, unless
/// it is kept.
#[derive(Debug)]
pub struct RunDirectory {
    path: PathBuf,
    /// The process that removes the directory, because this one may be killed.
    remover: Child,
}

impl RunDirectory {
    /// Creates the directory.
    ///
    /// # Errors
    ///
    /// If the operating system refuses.
    pub fn make(command: &str) -> anyhow::Result<Self> {
        let all = directory().join("lab");
        std::fs::create_dir_all(&all)
            .with_context(|| format!("cannot create {}", all.display()))?;
        let mut path = all.join(format!("{command}-{}", std::process::id()));
        // A directory that an earlier process of the same id has kept stays as it is.
        let mut number = 1;
        while let Err(error) = std::fs::create_dir(&path) {
            ensure!(
                error.kind() == ErrorKind::AlreadyExists,
                "cannot create {}: {error}",
                path.display()
            );
            number += 1;
            path.set_extension(number.to_string());
        }
        let mut remover = Command::new("sh");
        remover.args(["-c", REMOVER]).arg(&path).process_group(0);
        remover.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let remover = remover.spawn().context("cannot run sh")?;
        Ok(Self { path, remover })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Keeps the directory with the logs in it, unless it is empty.
    pub fn keep(mut self) {
        let is_empty = std::fs::read_dir(&self.path).is_ok_and(|mut files| files.next().is_none());
        if !is_empty {
            self.tell_to_keep();
        }
    }

    fn tell_to_keep(&mut self) {
        if let Some(input) = &mut self.remover.stdin {
            // If the remover was killed, the directory stays anyway.
            let _ = input.write_all(b"keep\n");
        }
    }
}

impl Drop for RunDirectory {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.tell_to_keep();
        }
        drop(self.remover.stdin.take());
        let _ = self.remover.wait();
    }
}

/// A path relative to the working directory, as a person would type it.
#[must_use]
pub fn from_here(path: &Path) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    path.strip_prefix(here).unwrap_or(path).display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directory_of_a_run_is_removed_unless_it_is_kept() {
        let runs = ["gone", "kept", "empty"].map(|name| RunDirectory::make(name).unwrap());
        let paths = runs.each_ref().map(|run| run.path().to_owned());
        for path in &paths[..2] {
            std::fs::write(path.join("file"), "").unwrap();
        }
        let [gone, kept, empty] = runs;
        drop(gone);
        kept.keep();
        empty.keep();
        assert_eq!([false, true, false], paths.each_ref().map(|path| path.exists()));
        std::fs::remove_dir_all(&paths[1]).unwrap();
    }
}
