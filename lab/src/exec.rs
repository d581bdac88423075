//! Runs a program beside a running lab, and sends a message that no producer would send.

use std::env;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use async_nats::HeaderMap;
use async_nats::header::{HeaderName, HeaderValue};
use contract::queues;
use testkit::programs;
use workqueue::NatsSettings;

use crate::control::{CONTROL_FILE, Lab};

/// Replaces this process by the program, with the address of the lab's broker in its environment. A program of this
/// workspace is built first.
///
/// # Errors
///
/// If no lab runs, or there is no such program.
pub(crate) async fn exec(words: &[OsString]) -> anyhow::Result<()> {
    let lab = Lab::find()?;
    let (program, arguments) = words.split_first().context("name a program")?;
    let names = programs::names().await?;
    let path = match names.iter().find(|ours| program == ours.as_str()) {
        Some(ours) => {
            let [path] = programs::build_only([ours]).await?;
            path
        }
        None => PathBuf::from(program),
    };
    let mut command = std::process::Command::new(&path);
    command.args(arguments).env("NATS_URL", &lab.control.nats_url);
    command.env(CONTROL_FILE, &lab.control.file);
    command.env("GATEWAY_URL", format!("http://{}", lab.control.gateway));
    let failed = command.exec();
    bail!(
        "cannot run {}: {failed}; programs of this project are {}",
        path.display(),
        names.join(", ")
    )
}

/// Replaces this process by the lab with the profile of the published images, unless it has that profile, or is not
/// optimised, as in tests. The services have the profile of the lab.
///
/// # Errors
///
/// If the lab cannot be built or run.
pub(crate) async fn become_dist() -> anyhow::Result<()> {
    if cfg!(debug_assertions) || programs::profile() == programs::DIST {
        return Ok(());
    }
    let path = programs::build_with(programs::DIST, &["lab"]).await?.remove(0);
    let failed = std::process::Command::new(&path).args(env::args_os().skip(1)).exec();
    bail!("cannot run {}: {failed}", path.display())
}

/// Publishes a message to a queue without any check, and prints its subject and sequence.
///
/// # Errors
///
/// If no lab runs, there is no such queue, or the broker refuses the message.
pub(crate) async fn send(queue: &str, headers: &[String], body: String) -> anyhow::Result<String> {
    let lab = Lab::find()?;
    let names = queues::ALL.map(|queue| queue.stream).join(", ");
    let found = queues::ALL.into_iter().find(|it| it.stream.eq_ignore_ascii_case(queue));
    let queue =
        found.with_context(|| format!("there is no queue {queue}; the queues are {names}"))?;
    let mut map = HeaderMap::new();
    for header in headers {
        let (name, value) = header.split_once(':').with_context(|| {
            format!("{header} is not a header: write a name, a colon and a value, such as Message-Version: 2")
        })?;
        let name: HeaderName = name.trim().parse().context("this is not a name for a header")?;
        let value: HeaderValue =
            value.trim().parse().context("this is not a value for a header")?;
        map.append(name, value);
    }
    let body = body.replace("{now}", &workqueue::now().to_string());
    let new = uuid::Uuid::now_v7().to_string();
    let body = body.replace("{id}", &new);
    let id = serde_json::from_str::<serde_json::Value>(&body).ok();
    let id = id.and_then(|body| body["id"].as_str().map(str::to_owned)).unwrap_or(new);
    let subject = queue.subject_of(&id);
    let connection = observe::connect(&NatsSettings::at(&lab.control.nats_url), "lab send").await?;
    let nats = connection.context();
    let sent = nats.publish_with_headers(subject.clone(), map, body.into()).await?.await;
    let sent = sent.with_context(|| format!("the broker does not accept it as {subject}"))?;
    let again = if sent.duplicate { ", which was there already" } else { "" };
    Ok(format!("{subject} is message {} of {}{again}", sent.sequence, sent.stream))
}
