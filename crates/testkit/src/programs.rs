//! The programs of this workspace, built.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, ensure};
use serde_json::Value;
use tokio::process::Command;

use crate::service::Service;

/// The names of the programs.
const NAMES: [&str; 4] = ["requestor", "generator", "gateway", "decoupled"];

/// The paths of the example programs with which `cargo lab compare` compares the system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Examples {
    /// The requestor of `examples/synchronous`.
    pub coupled_requestor: PathBuf,
    /// Its generator.
    pub coupled_generator: PathBuf,
    /// The requestor of `examples/fire-and-forget`.
    pub forgetful_requestor: PathBuf,
    /// Its generator.
    pub forgetful_generator: PathBuf,
}

/// The paths of the programs of the system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Programs {
    /// The program of the requestor.
    pub requestor: PathBuf,
    /// The program of the generator.
    pub generator: PathBuf,
    /// The program of the gateway.
    pub gateway: PathBuf,
    /// The program of the operator.
    pub decoupled: PathBuf,
}

impl Programs {
    /// The program of a service.
    #[must_use]
    pub fn of(&self, service: Service) -> &Path {
        match service {
            Service::Requestor => &self.requestor,
            Service::Generator => &self.generator,
        }
    }
}

/// Builds the programs of the system, see [`build_all`].
///
/// # Errors
///
/// If cargo cannot be run, or a program cannot be built.
pub async fn build() -> anyhow::Result<Programs> {
    let [requestor, generator, gateway, decoupled] = build_only(NAMES).await?;
    Ok(Programs { requestor, generator, gateway, decoupled })
}

/// Builds the programs of the system and those of the examples in one build, which is faster than two.
///
/// # Errors
///
/// As [`build`].
pub async fn build_with_examples() -> anyhow::Result<(Programs, Examples)> {
    let [requestor, generator, gateway, decoupled] = NAMES;
    let built = build_only([
        requestor,
        generator,
        gateway,
        decoupled,
        "coupled-requestor",
        "coupled-generator",
        "forgetful-requestor",
        "forgetful-generator",
    ]);
    let [
        requestor,
        generator,
        gateway,
        decoupled,
        coupled_requestor,
        coupled_generator,
        forgetful_requestor,
        forgetful_generator,
    ] = built.await?;
    let programs = Programs { requestor, generator, gateway, decoupled };
    let examples =
        Examples { coupled_requestor, coupled_generator, forgetful_requestor, forgetful_generator };
    Ok((programs, examples))
}

/// As [`build_all`], for a fixed number of programs.
///
/// # Errors
///
/// As [`build_all`].
pub async fn build_only<const N: usize>(names: [&str; N]) -> anyhow::Result<[PathBuf; N]> {
    let built = build_all(&names).await?;
    let mut paths = names.map(|_| PathBuf::new());
    paths.iter_mut().zip(built).for_each(|(path, built)| *path = built);
    Ok(paths)
}

/// The profile of the published images.
pub const DIST: &str = "dist";

/// The profile of cargo with which this program was built.
#[must_use]
pub fn profile() -> String {
    if cfg!(debug_assertions) {
        return "dev".to_owned();
    }
    profile_of(&env::current_exe().unwrap_or_default())
}

/// The profile of a program at this path. Cargo names the directory after the profile, and tests are in `deps` there.
fn profile_of(program: &Path) -> String {
    let directories = program.ancestors().skip(1).filter_map(Path::file_name);
    let profile = directories.map(OsStr::to_string_lossy).find(|name| name != "deps");
    profile.unwrap_or_default().into_owned()
}

/// Builds these programs with cargo, unless they are up to date, with the profile of this program. Cargo's progress
/// goes to our standard error.
///
/// # Errors
///
/// If cargo cannot be run, or a program cannot be built.
pub async fn build_all(names: &[&str]) -> anyhow::Result<Vec<PathBuf>> {
    build_with(&profile(), names).await
}

/// As [`build_all`], with this profile.
///
/// # Errors
///
/// As [`build_all`].
pub async fn build_with(profile: &str, names: &[&str]) -> anyhow::Result<Vec<PathBuf>> {
    // With the whole workspace, as the caller was built: for single packages cargo would choose other features of their
    // dependencies, and compile all of them again.
    let mut arguments = vec!["build", "--workspace", "--message-format=json-render-diagnostics"];
    arguments.extend(names.iter().flat_map(|name| ["--bin", name]));
    arguments.extend(["--profile", profile]);
    if profile == "dev" {
        // With a test, cargo chooses the features of the dependencies as in `cargo test`.
        arguments.extend(["--test", "layout"]);
    }
    // Cargo lists libraries that it has already compiled, which looks like a new build without this line.
    eprintln!("Building {}", names.join(", "));
    built(&cargo(&arguments).await?, names)
}

/// The packages of the workspace, from `cargo metadata`.
///
/// # Errors
///
/// If cargo cannot be run, or reports no packages.
pub async fn packages() -> anyhow::Result<Vec<Value>> {
    let metadata = cargo(&["metadata", "--no-deps", "--format-version=1"]).await?;
    let mut metadata: Value = serde_json::from_str(&metadata).context("the metadata of cargo")?;
    let packages = metadata["packages"].as_array_mut().context("cargo reports no packages")?;
    Ok(std::mem::take(packages))
}

/// The names of the programs of the workspace.
///
/// # Errors
///
/// As [`packages`].
pub async fn names() -> anyhow::Result<Vec<String>> {
    let packages = packages().await?;
    let targets = packages.iter().filter_map(|package| package["targets"].as_array()).flatten();
    let programs = targets.filter(|target| target["kind"][0] == "bin");
    Ok(programs.filter_map(|program| program["name"].as_str().map(str::to_owned)).collect())
}

/// The output of cargo for these arguments. Its progress goes to our standard error.
async fn cargo(arguments: &[&str]) -> anyhow::Result<String> {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../Cargo.toml");
    // If cargo runs this program, the variable names that cargo.
    let cargo = env::var_os("CARGO").filter(|path| !path.is_empty());
    let cargo = cargo.unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(&cargo);
    command.args(arguments).arg("--manifest-path").arg(manifest);
    // Removes the variables that cargo sets for a program that it runs. With them the build scripts of other packages,
    // such as that of ring, would run again.
    for (name, _) in env::vars_os() {
        let of_a_package = ["CARGO_MANIFEST_", "CARGO_PKG_", "CARGO_BIN_", "CARGO_CRATE_"];
        if name.to_str().is_some_and(|name| of_a_package.iter().any(|it| name.starts_with(it))) {
            command.env_remove(name);
        }
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
    let child = command.spawn().with_context(|| format!("cannot run {}", cargo.display()))?;
    let output = child.wait_with_output().await.context("cannot wait for cargo")?;
    let (status, what) = (output.status, arguments.first().copied().unwrap_or_default());
    ensure!(status.success(), "cargo {what} failed ({status})");
    String::from_utf8(output.stdout).context("cargo prints no UTF-8")
}

/// The paths of the programs with these names, from cargo's messages.
fn built(messages: &str, names: &[&str]) -> anyhow::Result<Vec<PathBuf>> {
    let found = |name: &&str| {
        let found = messages.lines().find_map(|line| executable(line, name));
        found.with_context(|| format!("cargo has built no program {name}"))
    };
    names.iter().map(found).collect()
}

/// The path in one of cargo's messages, if the message is about the program of this name.
fn executable(message: &str, name: &str) -> Option<PathBuf> {
    let message: Value = serde_json::from_str(message).ok()?;
    let target = &message["target"];
    let kinds = target["kind"].as_array()?;
    let is_it = message["reason"] == "compiler-artifact"
        && target["name"] == name
        && kinds.iter().any(|kind| kind == "bin");
    if is_it { message["executable"].as_str().map(PathBuf::from) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESSAGES: &str = r#"
{"reason":"compiler-artifact","target":{"kind":["lib"],"name":"requestor"},"executable":null}
{"reason":"compiler-artifact","target":{"kind":["custom-build"],"name":"build-script-build"},"executable":null}
{"reason":"compiler-artifact","target":{"kind":["bin"],"name":"generator"},"executable":"/somewhere/generator"}
{"reason":"compiler-artifact","target":{"kind":["bin"],"name":"requestor"},"executable":"/elsewhere/requestor"}
{"reason":"compiler-artifact","target":{"kind":["bin"],"name":"gateway"},"executable":"/there/gateway"}
{"reason":"compiler-artifact","target":{"kind":["bin"],"name":"decoupled"},"executable":"/here/decoupled"}
{"reason":"build-finished","success":true}
"#;

    #[test]
    fn paths_of_programs_come_from_cargo() {
        let paths =
            ["/elsewhere/requestor", "/somewhere/generator", "/there/gateway", "/here/decoupled"];
        assert_eq!(built(MESSAGES, &NAMES).unwrap(), paths.map(PathBuf::from));
    }

    #[test]
    fn profile_is_named_by_the_directory() {
        for (program, profile) in [
            ("/target/release/lab", "release"),
            ("/target/dist/lab", "dist"),
            ("/target/release/deps/system-1", "release"),
            ("", ""),
        ] {
            assert_eq!(profile_of(Path::new(program)), profile, "{program}");
        }
    }

    #[test]
    fn program_without_a_message_of_cargo_is_an_error() {
        let error = built(r#"{"reason":"build-finished","success":true}"#, &NAMES).unwrap_err();
        assert_eq!(error.to_string(), "cargo has built no program requestor");
    }
}
