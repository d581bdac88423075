//! The client of the commands: finds the running lab, and sends it actions.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context as _, bail};
use cli::terminal::tell;
use nix::sys::signal;
use nix::unistd::Pid;
use serde_json::{Value, json};
use testkit::http;
use testkit::target_directory;

use super::action::Action;
use super::server::{Control, FILE};

/// The environment variable with the lab's file, for processes that the lab starts.
pub(crate) const CONTROL_FILE: &str = "LAB_CONTROL_FILE";

/// A running lab.
pub(crate) struct Lab {
    pub(crate) control: Control,
}

impl Lab {
    /// The running lab. If there are several, it is the one that was started last, and its address is printed.
    pub(crate) fn find() -> anyhow::Result<Self> {
        let files = match workqueue::variable(CONTROL_FILE) {
            Some(file) => vec![PathBuf::from(file)],
            None => files(&target_directory::directory().join("lab")),
        };
        let mut running = files.iter().filter_map(|file| read(file));
        let control = running.next().context(
            "no lab runs: start one with `cargo lab up` in another terminal, and wait for its page",
        )?;
        if running.next().is_some() {
            tell(format_args!(
                "Several labs run; this is the one with http://{}/",
                control.gateway
            ));
        }
        Ok(Self { control })
    }

    /// Sends an action, and returns the resulting state.
    pub(crate) async fn apply(&self, action: &Action) -> anyhow::Result<Value> {
        let Control { addr, token, .. } = &self.control;
        let authorization = format!("Bearer {token}");
        let headers =
            [("Authorization", authorization.as_str()), ("Content-Type", "application/json")];
        let answer =
            http::ask(*addr, "POST", "/actions", &headers, &json!(action).to_string()).await;
        let answer = answer.with_context(|| format!("the lab does not answer at {addr}"))?;
        if answer.status != 200 {
            let detail = answer.json()["detail"].as_str().map(str::to_owned);
            bail!("{}", detail.unwrap_or(answer.body));
        }
        Ok(answer.json())
    }
}

/// The files of all labs, the newest first.
fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let files = entries.map(|entry| entry.path().join(FILE));
    let mut files: Vec<(SystemTime, PathBuf)> =
        files.filter_map(|file| Some((fs::metadata(&file).ok()?.modified().ok()?, file))).collect();
    files.sort();
    files.into_iter().rev().map(|(_, file)| file).collect()
}

/// The content of the file, if its lab still runs.
fn read(file: &Path) -> Option<Control> {
    let control: Control = serde_json::from_slice(&fs::read(file).ok()?).ok()?;
    let pid = Pid::from_raw(control.pid.try_into().ok()?);
    signal::kill(pid, None).is_ok().then_some(control)
}
