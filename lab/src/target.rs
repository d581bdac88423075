//! Where the lab keeps what it makes: cargo's target directory, for this project alone.

use std::path::{Path, PathBuf};

/// Cargo's target directory.
#[must_use]
pub fn directory() -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let workspace = workspace.canonicalize().unwrap_or(workspace);
    match std::env::var_os("CARGO_TARGET_DIR") {
        // Cargo reads a relative one from where it is called, which is most often here.
        Some(directory) => workspace.join(directory),
        None => workspace.join("target"),
    }
}
