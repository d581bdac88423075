//! The directory for the files of tests and of the lab: cargo's target directory, for this project alone.

use std::path::{Path, PathBuf};

use anyhow::Context;

/// Cargo's target directory.
#[must_use]
pub fn directory() -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let workspace = workspace.canonicalize().unwrap_or(workspace);
    match std::env::var_os("CARGO_TARGET_DIR") {
        // Cargo reads a relative one from where it is called, which is most often here.
        Some(directory) => workspace.join(directory),
        None => workspace.join("target"),
    }
}

/// Makes a directory there for the files of one run of a command.
///
/// # Errors
///
/// Where the operating system refuses.
pub fn make(command: &str) -> anyhow::Result<PathBuf> {
    let directory = directory().join("lab").join(format!("{command}-{}", std::process::id()));
    std::fs::create_dir_all(&directory)
        .with_context(|| format!("cannot create {}", directory.display()))?;
    Ok(directory)
}

/// A path as one would type it here.
#[must_use]
pub fn from_here(path: &Path) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    path.strip_prefix(here).unwrap_or(path).display().to_string()
}
