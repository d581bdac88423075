//! Prints the results of commands. A reader of the standard output that stalls holds up neither a signal nor the
//! connection to the broker.

use std::fmt::Display;

use anyhow::Context as _;
use serde::Serialize;
use tokio::task::spawn_blocking;

use crate::terminal;

/// Prints a result, as [`terminal::print`].
pub(crate) async fn print(result: &(impl Serialize + Display), json: bool) -> anyhow::Result<()> {
    say(terminal::text(result, json)?).await
}

/// Prints a line, as [`terminal::say`].
pub(crate) async fn say(text: impl Display) -> anyhow::Result<()> {
    let text = text.to_string();
    spawn_blocking(move || terminal::say(text)).await.context("cannot print")?
}
