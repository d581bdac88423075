//! The directory for the files of tests and of the lab: cargo's target directory, for this project alone.

use std::io::{ErrorKind, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, ensure};

/// Removes the directory that it is given once its standard input ends, unless it can read a line there. No
/// signal of the terminal ends it.
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
        // Cargo reads a relative one from where it is called, which is most often here.
        Some(directory) if !directory.is_empty() => workspace.join(directory),
        _ => workspace.join("target"),
    }
}

/// A directory there for the files of one run of a command. It goes with the process, however that ends, unless
/// it is to be kept.
#[derive(Debug)]
pub struct RunDirectory {
    path: PathBuf,
    /// A process that is killed removes nothing, so another one waits for its end.
    remover: Child,
}

impl RunDirectory {
    /// Makes it.
    ///
    /// # Errors
    ///
    /// If the operating system refuses.
    pub fn make(command: &str) -> anyhow::Result<Self> {
        let all = directory().join("lab");
        std::fs::create_dir_all(&all)
            .with_context(|| format!("cannot create {}", all.display()))?;
        let mut path = all.join(format!("{command}-{}", std::process::id()));
        // One that was kept by an earlier process of this id stays as it is.
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

    /// Keeps it, unless there is nothing in it: its logs are of use where something went wrong.
    pub fn keep(mut self) {
        let is_empty = std::fs::read_dir(&self.path).is_ok_and(|mut files| files.next().is_none());
        if !is_empty {
            self.tell_to_keep();
        }
    }

    fn tell_to_keep(&mut self) {
        if let Some(input) = &mut self.remover.stdin {
            // Where the remover was killed, the directory stays.
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

/// A path as one would type it here.
#[must_use]
pub fn from_here(path: &Path) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    path.strip_prefix(here).unwrap_or(path).display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_of_a_run_goes_unless_it_is_kept() {
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
