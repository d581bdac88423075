//! The baseline: publishes of messages of the same size as ours, each under a subject of its own, with the number of
//! concurrent publishes at which they are fastest.

use std::collections::VecDeque;
use std::time::Duration;

use anyhow::Context as _;
use async_nats::Client;
use async_nats::jetstream::context::{ContextBuilder, PublishAckFuture};
use async_nats::jetstream::stream::Config;
use bytes::Bytes;
use contract::facts::Received;
use contract::queues::{Acknowledgment, Request, Response};
use contract::{Amount, Strings};
use serde::Serialize;
use tokio::time::Instant;
use workqueue::JobId;

use super::round::{Round, WRITES, per_second};

/// The numbers of concurrent publishes. The fastest one counts.
const OUTSTANDING: [usize; 3] = [256, 1024, 4096];

/// The time limit for a confirmation.
const PATIENCE: Duration = Duration::from_secs(30);

/// Measures the baseline for messages of the size of those in a round trip with one string.
pub(super) async fn measure(round: &mut Round<'_>) -> anyhow::Result<f64> {
    let baseline = best(round, false, round.sizes.publishes).await?;
    round.figures.add_rate("baseline", baseline, 1.0);
    Ok(baseline)
}

/// The highest rate, over several numbers of concurrent publishes.
pub(super) async fn best(round: &Round<'_>, sync: bool, publishes: u64) -> anyhow::Result<f64> {
    let body = Bytes::from(vec![b'.'; usual_size()]);
    let mut best = 0.0_f64;
    let broker = round.broker(sync).await?;
    let connection = round.connect(&broker.url()).await?;
    for outstanding in OUTSTANDING {
        let seconds = publish(connection.client(), &body, outstanding, publishes).await?;
        best = best.max(per_second(publishes, seconds));
    }
    Ok(best)
}

/// The time for this many publishes.
async fn publish(
    client: &Client,
    body: &Bytes,
    outstanding: usize,
    publishes: u64,
) -> anyhow::Result<Duration> {
    let context = ContextBuilder::new()
        .ack_timeout(PATIENCE)
        .max_ack_inflight(outstanding)
        .build(client.clone());
    let name = format!("BASELINE_{outstanding}");
    let subjects = vec![format!("baseline.{outstanding}.*")];
    let config = Config { name: name.clone(), subjects, ..Config::default() };
    context.create_stream(config).await.context("cannot create a stream for the baseline")?;
    let mut under_way: VecDeque<PublishAckFuture> = VecDeque::with_capacity(outstanding);
    let started = Instant::now();
    for _ in 0..publishes {
        if under_way.len() == outstanding
            && let Some(oldest) = under_way.pop_front()
        {
            oldest.await.context("a publish was not confirmed")?;
        }
        let subject = format!("baseline.{outstanding}.{}", JobId::new());
        let sent = context.publish(subject, body.clone()).await;
        under_way.push_back(sent.context("cannot publish")?);
    }
    for waiting in under_way {
        waiting.await.context("a publish was not confirmed")?;
    }
    let taken = started.elapsed();
    context.delete_stream(&name).await.context("cannot remove the stream of the baseline")?;
    Ok(taken)
}

/// The mean size in bytes of the writes of a round trip, without headers: three messages and three facts, with one
/// string of 64 characters.
fn usual_size() -> usize {
    let amount = Amount::new(1, 64).expect("it is within the limits");
    let values = Strings::try_from(vec!["a".repeat(64)]).expect("they are within the limits");
    let (at, instance) = (workqueue::now(), "instance-12345");
    let id = JobId::new();
    let request = Request::new(id, amount, instance, at);
    let response = Response {
        id,
        requested_at: at,
        values: values.clone(),
        generator: instance.to_owned(),
        started_at: Some(at),
        generated_at: at,
    };
    let request_size = json_size(&request);
    let response_size = json_size(&response);
    let stored_size = json_size(&Acknowledgment::new(response, instance, at));
    let received = Received { id, values, marked_by: instance.to_owned(), received_at: at };
    // The request and the acknowledgment are each written twice: as a message and as a fact.
    let all = 2 * request_size + response_size + 2 * stored_size + json_size(&received);
    let writes = usize::try_from(WRITES).expect("there are few");
    all / writes
}

fn json_size(value: &impl Serialize) -> usize {
    serde_json::to_vec(value).expect("it becomes JSON").len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usual_size_is_the_mean_size_of_the_writes() {
        let size = usual_size();
        assert!((150..400).contains(&size), "{size}");
    }
}
