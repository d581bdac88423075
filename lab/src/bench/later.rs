//! The delay of requests of which many are due at the same moment.

use std::time::Duration;

use anyhow::ensure;
use contract::Amount;
use contract::queues::{DueRequest, Request};
use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::time::Instant;
use workqueue::{Metrics, Producer, Settings, now};

use super::deployment::BenchDeployment;
use super::round::{Round, milliseconds};
use crate::stored_facts::each_fact;

/// The number of requests that are submitted at a time.
const AT_A_TIME: usize = 64;

/// The time until they are due, in which all of them have to be submitted.
const SUBMITTING: Duration = Duration::from_secs(20);

/// Measures the delay with which the last of many requests is submitted, all of which are due at the same moment.
pub(super) async fn measure(round: &mut Round<'_>) -> anyhow::Result<()> {
    let count = round.sizes.due;
    let mut deployment = BenchDeployment::new(round, false).await?;
    deployment.start_requestor(&[("REQUEST_RATE", "0")])?;
    deployment.start_generator(&[])?;
    deployment.ready(Instant::now()).await?;
    let metrics = Metrics::new("bench");
    let limits = Settings::from_env().limits;
    let producer = Producer::new(&deployment.connection, limits, AT_A_TIME, &metrics);
    let at = now() + SUBMITTING.mul_f64(if count < 1000 { 0.1 } else { 1.0 });
    let due = DueRequest { not_before: Some(at), ..DueRequest::new(Amount::new(1, 64)?, "bench") };
    let submitting = stream::iter(0..count).map(async |_| producer.submit_later(&due, at).await);
    let ids: Vec<_> = submitting.buffer_unordered(AT_A_TIME).try_collect().await?;
    ensure!(now() < at, "{} were not submitted before they were due", ids.len());
    deployment.received(count, round).await?;
    let mut last = at;
    each_fact::<Request>(&deployment.connection, |_, asked| last = last.max(asked)).await?;
    let late: Duration = last.duration_since(at).try_into().unwrap_or_default();
    round.figures.add("due_at_once", milliseconds(late));
    Ok(())
}
