//! Prints the results of commands. A reader that stalls holds up neither a signal nor the connection to the broker.

use std::fmt::Display;
use std::thread;

use anyhow::Context as _;
use serde::Serialize;
use tokio::sync::oneshot;

use crate::terminal;

/// Prints a result, as [`terminal::print`].
pub(crate) async fn print(result: &(impl Serialize + Display), json: bool) -> anyhow::Result<()> {
    say(terminal::text(result, json)?).await
}

/// Prints a line, as [`terminal::say`].
pub(crate) async fn say(text: impl Display) -> anyhow::Result<()> {
    let text = text.to_string();
    let (said, result) = oneshot::channel();
    // Not in a blocking task of the runtime, which would wait for it at the end.
    let thread = thread::Builder::new().spawn(move || said.send(terminal::say(text)));
    thread.context("cannot start a thread for the output")?;
    result.await.context("the thread for the output has panicked")?
}
