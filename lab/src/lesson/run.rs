//! Runs the commands of a step, unchanged.

use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::Context as _;
use gateway::lessons::lesson::Step;
use jiff::Timestamp;
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use serde::Serialize;
use serde_json::{Map, Value};
use tokio::process::Command;

use crate::control::{CONTROL_FILE, Control};

/// The address of the gateway in the commands of a lesson.
const USUAL: &str = "127.0.0.1:8080";

/// The environment of the commands: beside this lab, in the root of the repository.
#[derive(Clone, Debug)]
pub(crate) struct Workplace {
    control_file: PathBuf,
    nats_url: String,
    gateway: SocketAddr,
}

/// The result of the commands of a step.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct StepRun {
    /// Their output, with the reason if they failed.
    pub(crate) output: String,
    pub(crate) status: i32,
    /// The values that the check saw, if it holds for the output. A step without a check is done once it has run.
    pub(crate) done: Option<Done>,
}

/// A check that came true.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Done {
    pub(crate) at: Timestamp,
    pub(crate) saw: String,
}

/// The processes of a step, which end when this is dropped.
struct Group(i32);

impl Drop for Group {
    fn drop(&mut self) {
        // Mostly all of them have ended already.
        let _ = signal::killpg(Pid::from_raw(self.0), Signal::SIGKILL);
    }
}

/// A script in the place of cargo: for `cargo lab` it replaces itself by this program, which is built already.
const CARGO: &str = r#"#!/bin/sh
if [ "$1" = lab ]; then shift; exec "$LAB_PROGRAM" "$@"; fi
PATH=${PATH#*:} exec cargo "$@"
"#;

impl Workplace {
    pub(crate) fn of(control: &Control) -> Self {
        let (control_file, nats_url) = (control.file.clone(), control.nats_url.clone());
        Self { control_file, nats_url, gateway: control.gateway }
    }

    /// The `PATH` with this script before cargo.
    fn path(&self) -> anyhow::Result<OsString> {
        let directory = self.control_file.with_file_name("bin");
        let cargo = directory.join("cargo");
        if !cargo.exists() {
            let made = fs::create_dir_all(&directory).and_then(|()| {
                let mut file =
                    File::options().write(true).create_new(true).mode(0o700).open(&cargo)?;
                file.write_all(CARGO.as_bytes())
            });
            made.with_context(|| format!("cannot create {}", cargo.display()))?;
        }
        let path = env::var_os("PATH").unwrap_or_default();
        Ok(env::join_paths([directory].into_iter().chain(env::split_paths(&path)))?)
    }
}

/// Runs the commands of a step.
pub(crate) async fn run(step: &Step, place: &Workplace) -> anyhow::Result<StepRun> {
    let commands = step.commands.lab.as_deref().context("this step has no command for the lab")?;
    // The gateway may listen on another port, if that one is taken.
    let commands = commands.replace(USUAL, &place.gateway.to_string());
    let program = env::current_exe().context("the lab does not find itself")?;
    // Linux adds this once the file was replaced, as by a build since. Then the new one is as good.
    let replaced = program.to_str().and_then(|path| path.strip_suffix(" (deleted)"));
    let program = replaced.map(PathBuf::from).unwrap_or(program);
    let mut shell = Command::new("sh");
    shell.args(["-e", "-c", &commands]).stdin(Stdio::null());
    shell.env("PATH", place.path()?);
    shell.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."));
    shell.env("LAB_PROGRAM", program).env(CONTROL_FILE, &place.control_file);
    shell.env("NATS_URL", &place.nats_url).process_group(0);
    let shell = shell.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let shell = shell.context("cannot run sh")?;
    // Processes that the step has left running end with it.
    let _end = shell.id().and_then(|id| id.try_into().ok()).map(Group);
    let ran = shell.wait_with_output().await.context("cannot wait for sh")?;
    let mut output = String::from_utf8_lossy(&ran.stdout).into_owned();
    let mut done = None;
    if !ran.status.success() {
        output += &String::from_utf8_lossy(&ran.stderr);
    } else if step.check.is_none() {
        done = Some(Done { at: Timestamp::now(), saw: "the command has run".to_owned() });
    } else if step.lab_only {
        let last = output.lines().rev().find_map(|line| serde_json::from_str(line).ok());
        let variables = last.map(|tally: Value| Map::from_iter([("tally".to_owned(), tally)]));
        if let (Some(variables), Some(check)) = (variables, &step.check)
            && check.holds(&variables) == Ok(true)
        {
            done = Some(Done { at: Timestamp::now(), saw: check.saw(&variables) });
        }
    }
    Ok(StepRun { output, status: ran.status.code().unwrap_or(-1), done })
}

/// Whether an output matches the one in a lesson, in which `…` stands for any text within a line, and alone on a line
/// for any lines. The width of a column may differ.
pub(super) fn is_as_shown(shown: &str, output: &str) -> bool {
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    let shown: Vec<String> = shown.lines().map(words).collect();
    let output: Vec<String> = output.trim_end().lines().map(words).collect();
    matches(
        &shown,
        &output,
        |line| line == "…",
        |shown, line| {
            let shown: Vec<char> = shown.chars().collect();
            let line: Vec<char> = line.chars().collect();
            matches(&shown, &line, |it| *it == '…', PartialEq::eq)
        },
    )
}

/// Whether a sequence matches a pattern, in which some items stand for any number of items.
fn matches<T>(
    shown: &[T],
    found: &[T],
    is_any: impl Fn(&T) -> bool + Copy,
    is_like: impl Fn(&T, &T) -> bool + Copy,
) -> bool {
    match (shown.split_first(), found.split_first()) {
        (None, None) => true,
        (Some((any, rest)), _) if is_any(any) => {
            (0..=found.len()).any(|taken| matches(rest, &found[taken..], is_any, is_like))
        }
        (Some((first, rest)), Some((line, lines))) => {
            is_like(first, line) && matches(rest, lines, is_any, is_like)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_may_vary_where_it_is_marked() {
        let shown = "stored …   asked …\n…\nNothing lost.";
        assert!(is_as_shown(shown, "stored 5   asked 7\none\ntwo\nNothing lost.\n"));
        assert!(is_as_shown(shown, "stored 5   asked 7\nNothing lost."));
        assert!(!is_as_shown(shown, "stored 5   asked 7\none\nNothing."));
        assert!(!is_as_shown(shown, "stored 5\nNothing lost."));
        assert!(is_as_shown("a-…    x\nbroker  x", "a-10   x\nbroker x"));
        assert!(is_as_shown("", "") && !is_as_shown("", "x"));
    }
}
