//! A rate limit over several processes: whether it holds, how much of it is used, and its cost.

use anyhow::{Context as _, ensure};
use contract::queues::REQUESTS;
use futures_util::{FutureExt, StreamExt};
use tokio::task::unconstrained;
use tokio::time::Instant;
use workqueue::Priority;

use super::deployment::BenchDeployment;
use super::priorities::{ask, producer};
use super::round::{Round, real};
use crate::starts_by_second;

/// The limit, and the number of generators that share it.
const LIMIT: (u64, &str) = (1000, "1000");
const GENERATORS: usize = 5;

/// Measures while several generators work off a backlog.
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
    let mut asked = 0;
    // Without tokio's budget: once it is used up, the channel would seem empty.
    while let Some(Some(_)) = unconstrained(questions.next()).now_or_never() {
        asked += 1;
    }
    let seconds = starts_by_second(&deployment.connection).await?;
    let highest = *seconds.values().max().context("nothing was started")?;
    round.figures.add("rate_exceeded_by", real(highest.saturating_sub(LIMIT.0)));
    round.figures.add("rate_highest_second", real(highest));
    // Without the first second, in which some generators started, and the last one, in which too few requests were
    // left. A second without a start is not in the map.
    let (first, last) = seconds.keys().next().zip(seconds.keys().next_back()).unwrap_or((&0, &0));
    let whole = first + 1..*last;
    ensure!(!whole.is_empty(), "there was not enough to do for three seconds");
    let rate = real(seconds.range(whole.clone()).map(|(_, starts)| starts).sum())
        / real((whole.end - whole.start).try_into()?);
    round.figures.add("rate_used", rate * 100.0 / real(LIMIT.0));
    round.figures.add("rate_questions", real(asked) * 100.0 / real(backlog));
    Ok(())
}
