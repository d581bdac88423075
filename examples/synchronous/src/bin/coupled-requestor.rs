//! Asks the generator for random strings at a steady rate, with a time-out, retries and, with `--breaker`, a circuit
//! breaker. Prints the outcome of each request, and then the tally. Ctrl-C ends the requests.

use std::io::{Write, stdout};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use backon::{ExponentialBuilder, Retryable};
use clap::Parser;
use jiff::SignedDuration;
use recloser::{AsyncRecloser, Error, Recloser};
use reqwest::Client;
use serde::Serialize;
use serde_json::json;
use synchronous::{Answer, Ask};
use tokio::signal::ctrl_c;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use uuid::Uuid;

/// Asks for random strings over HTTP, and waits for each
#[derive(Clone, Debug, Parser)]
#[command(version)]
struct Settings {
    /// Where the generator is
    #[arg(long, env, default_value = "http://127.0.0.1:8084", value_name = "URL")]
    generator_url: String,
    /// Requests a second
    #[arg(long, env, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..), value_name = "NUMBER")]
    rate: u32,
    /// How many requests
    #[arg(long, env, default_value_t = 100, value_name = "NUMBER")]
    total: u32,
    /// How many characters each string is to have
    #[arg(long, env, default_value_t = 64, value_name = "NUMBER")]
    length: u32,
    /// How long to wait for an answer at each attempt
    #[arg(long, env, default_value = "1s", value_name = "TIME")]
    timeout: SignedDuration,
    /// How often to try again
    #[arg(long, env, default_value_t = 3, value_name = "NUMBER")]
    retries: usize,
    /// Fail at once for a while after half of the last calls have failed
    #[arg(long, env)]
    breaker: bool,
}

/// The requests by their outcome.
#[derive(Debug, Default, Serialize)]
struct Tally {
    asked: u32,
    /// Answered at the first attempt.
    answered: u32,
    /// Answered at a later attempt.
    answered_on_retry: u32,
    /// Failed at each attempt.
    failed: u32,
    /// Rejected by the breaker.
    rejected: u32,
    /// Calls to the generator.
    calls: u32,
    longest_wait_ms: f64,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let settings = Arc::new(Settings::parse());
    let caller = Arc::new(Caller::new(&settings)?);
    let (mut calls, mut tally, started) = (JoinSet::new(), Tally::default(), Instant::now());
    tokio::pin! { let stop = ctrl_c(); }
    while tally.asked < settings.total {
        tokio::select! {
            () = sleep_until(started + Duration::from_secs(1) * tally.asked / settings.rate) => {}
            _ = &mut stop => break,
        }
        tally.asked += 1;
        let caller = Arc::clone(&caller);
        calls.spawn(async move { caller.ask(started).await });
    }
    for (outcome, calls, waited_ms) in calls.join_all().await {
        tally.calls += calls;
        tally.longest_wait_ms = tally.longest_wait_ms.max(waited_ms);
        *match outcome {
            "answered" if calls == 1 => &mut tally.answered,
            "answered" => &mut tally.answered_on_retry,
            "rejected" => &mut tally.rejected,
            _ => &mut tally.failed,
        } += 1;
    }
    Ok(writeln!(stdout(), "{}", serde_json::to_string(&tally)?)?)
}

/// Calls the generator.
struct Caller {
    client: Client,
    settings: Arc<Settings>,
    breaker: Option<AsyncRecloser>,
}

impl Caller {
    fn new(settings: &Arc<Settings>) -> reqwest::Result<Self> {
        let client = Client::builder().timeout(settings.timeout.unsigned_abs()).build()?;
        // Opens once half of the last twenty calls have failed. After a second it lets a few calls through as a test.
        let breaker = Recloser::custom()
            .error_rate(0.5)
            .closed_len(20)
            .half_open_len(5)
            .open_wait(Duration::from_secs(1));
        let breaker = settings.breaker.then(|| AsyncRecloser::from(breaker.build()));
        Ok(Self { client, settings: Arc::clone(settings), breaker })
    }

    /// Repeats a request until it is answered, rejected, or the last attempt has failed. Returns the outcome, the
    /// number of calls, and the time that they took.
    async fn ask(&self, started: Instant) -> (&'static str, u32, f64) {
        let (asked, calls) = (Instant::now(), AtomicU32::new(0));
        let ask = Ask { id: Uuid::new_v4().to_string(), length: self.settings.length };
        let call = async || {
            let attempt = async {
                calls.fetch_add(1, Ordering::Relaxed);
                let url = format!("{}/strings", self.settings.generator_url);
                let answer = self.client.post(url).json(&ask).send().await?;
                answer.error_for_status()?.json::<Answer>().await
            };
            match &self.breaker {
                Some(breaker) => breaker.call(attempt).await,
                None => attempt.await.map_err(Error::Inner),
            }
        };
        // With jitter, so that calls that failed at the same moment are not repeated at the same moment.
        let backoff = ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(100))
            .with_max_times(self.settings.retries)
            .with_jitter();
        let outcome = match call.retry(backoff).when(|it| matches!(it, Error::Inner(_))).await {
            Ok(_) => "answered",
            Err(Error::Inner(_)) => "failed",
            Err(Error::Rejected) => "rejected",
        };
        let ms = |time: Duration| (time.as_secs_f64() * 10_000.0).round() / 10.0;
        let (id, asked_ms, waited_ms) = (ask.id, ms(asked - started), ms(asked.elapsed()));
        let ended =
            json!({ "id": id, "asked_ms": asked_ms, "waited_ms": waited_ms, "outcome": outcome });
        // The reader of the output may have gone.
        let _ = writeln!(stdout(), "{ended}");
        (outcome, calls.into_inner(), waited_ms)
    }
}
