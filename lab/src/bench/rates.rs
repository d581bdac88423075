//! Whether a rate limit holds over several processes, is used, and what it costs.

use std::collections::BTreeMap;

use anyhow::{Context as _, ensure};
use contract::facts::{STORED, Stored};
use contract::queues::REQUESTS;
use futures_util::{FutureExt, StreamExt};
use tokio::task::unconstrained;
use tokio::time::Instant;
use workqueue::{Fact, Priority, reading};

use super::deployment::BenchDeployment;
use super::priorities::{ask, producer};
use super::round::{Round, real};

/// The limit, and the number of generators that share it.
const LIMIT: (u64, &str) = (1000, "1000");
const GENERATORS: usize = 5;

/// Measures a backlog that several generators work off.
pub(super) async fn measure(round: &mut Round<'_>) -> anyhow::Result<()> {
    let backlog = round.sizes.limited;
    let mut deployment = BenchDeployment::new(round, false).await?;
    ask(&producer(&deployment).await?, Priority::Normal, backlog).await?;
    let client = deployment.connection.client().clone();
    let mut questions = client.subscribe(format!("rates.{}.*", REQUESTS.stream)).await?;
    client.flush().await?;
    deployment.start_requestor(&[("REQUEST_RATE", "0")])?;
    for _ in 0..GENERATORS {
        deployment.start_generator(&[("RATE_LIMIT", LIMIT.1)])?;
    }
    deployment.ready(Instant::now()).await?;
    deployment.received(backlog, round).await?;
    let (mut asked, mut totals) = (0, BTreeMap::<i64, u64>::new());
    // Without tokio's budget, after which nothing seems to be there.
    while let Some(Some(question)) = unconstrained(questions.next()).now_or_never() {
        asked += 1;
        let second = question.subject.rsplit('.').next().and_then(|second| second.parse().ok());
        let headers = question.headers.as_ref();
        let count = headers.and_then(|headers| headers.get("Nats-Incr")?.as_str().parse().ok());
        let (second, count): (i64, u64) = second.zip(count).context("it is no question")?;
        *totals.entry(second).or_default() += count;
    }
    let seconds = answered(&deployment).await?;
    // By the counters, until the end of each second: an answer may come later than its permission.
    let beyond = seconds.keys().map(|second| {
        let done: u64 = seconds.range(..=*second).map(|(_, jobs)| jobs).sum();
        let permitted: u64 = totals.range(..=*second).map(|(_, total)| *total.min(&LIMIT.0)).sum();
        done.saturating_sub(permitted)
    });
    round.figures.add("rate_exceeded_by", real(beyond.max().unwrap_or_default()));
    let highest = seconds.values().max().context("nothing was answered")?;
    round.figures.add("rate_highest_second", real(*highest));
    // In the first second some of them started, and in the last there was not enough to do.
    let mut whole: Vec<u64> = seconds.into_values().skip(1).collect();
    whole.pop();
    ensure!(!whole.is_empty(), "there was not enough to do for three seconds");
    let rate = real(whole.iter().sum()) / real(whole.len().try_into()?);
    round.figures.add("rate_used", rate * 100.0 / real(LIMIT.0));
    round.figures.add("rate_questions", real(asked) * 100.0 / real(backlog));
    Ok(())
}

/// How many requests were answered in each second.
async fn answered(deployment: &BenchDeployment) -> anyhow::Result<BTreeMap<i64, u64>> {
    let mut answered = BTreeMap::new();
    let nats = deployment.connection.context();
    reading::each(nats, STORED.stream, &STORED.subjects(), |_sequence, message| {
        if let Ok(Stored::Strings(stored)) = Stored::from_body(&message.payload) {
            *answered.entry(stored.generated_at.as_second()).or_default() += 1;
        }
    })
    .await?;
    Ok(answered)
}
