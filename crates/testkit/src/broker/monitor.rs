//! Asks a broker about itself.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::Context;
use serde_json::Value;
use tokio::time::timeout;

use crate::http;

/// How long an answer may take. A paused server takes connections, and says nothing.
const LIMIT: Duration = Duration::from_secs(5);

/// What the server that monitors itself on this port answers to a question such as `/healthz`.
pub(super) async fn get(port: u16, path: &str) -> anyhow::Result<Value> {
    let what = || format!("its monitor says nothing to {path}");
    let answer = timeout(LIMIT, http::get((Ipv4Addr::LOCALHOST, port).into(), path)).await;
    // One that is not well says so with another status, and in the body why.
    let (_status, body) = answer.with_context(what)?.with_context(what)?;
    serde_json::from_str(&body).with_context(|| format!("{}, but: {body}", what()))
}
