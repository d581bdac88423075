//! Publishes requests at a steady rate, and counts what it hears: then says what has become of them.

use std::collections::HashMap;
use std::io::{Write, stdout};
use std::time::Duration;

use clap::Parser;
use fire_and_forget::{ACKNOWLEDGMENTS, Acknowledgment, REQUESTS, RESPONSES, Request, Response};
use futures_util::StreamExt;
use jiff::SignedDuration;
use serde::Serialize;
use tokio::time::{Instant, sleep_until};
use uuid::Uuid;

/// Asks for random strings, and hears what comes
#[derive(Debug, Parser)]
#[command(version)]
struct Settings {
    /// Where the broker is
    #[arg(long, env, default_value = "nats://127.0.0.1:4222", value_name = "URL")]
    nats_url: String,
    /// Requests a second
    #[arg(long, env, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..), value_name = "NUMBER")]
    rate: u32,
    /// How many requests
    #[arg(long, env, default_value_t = 100, value_name = "NUMBER")]
    total: u32,
    /// How many characters each string is to have
    #[arg(long, env, default_value_t = 64, value_name = "NUMBER")]
    length: u32,
    /// How long to listen on after the last request
    #[arg(long, env, default_value = "2s", value_name = "TIME")]
    patience: SignedDuration,
}

/// What has become of the requests.
#[derive(Debug, Default, Serialize)]
struct Tally {
    asked: usize,
    answered: usize,
    /// Never answered: nobody heard the request, or its response.
    lost: usize,
    /// Responses beyond the first.
    doubled: u32,
    longest_wait_ms: u128,
}

/// A request that was published.
struct Asked {
    at: Instant,
    answers: u32,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let Settings { nats_url, rate, total, length, patience } = Settings::parse();
    let nats = async_nats::connect(nats_url).await?;
    let mut responses = nats.subscribe(RESPONSES).await?;
    let (mut asked, mut longest) = (HashMap::new(), Duration::ZERO);
    let (started, mut number) = (Instant::now(), 0);
    loop {
        // The next request; after the last one the end.
        let next = started + Duration::from_secs(1) * number / rate;
        let end = if number == total { patience.unsigned_abs() } else { Duration::ZERO };
        tokio::select! {
            () = sleep_until(next + end) => {
                if number == total {
                    break;
                }
                number += 1;
                let id = Uuid::new_v4().to_string();
                let request = serde_json::to_vec(&Request { id: id.clone(), length })?;
                asked.insert(id, Asked { at: Instant::now(), answers: 0 });
                nats.publish(REQUESTS, request.into()).await?;
            }
            Some(response) = responses.next() => {
                let Response { id, .. } = serde_json::from_slice(&response.payload)?;
                let Some(Asked { at, answers }) = asked.get_mut(&id) else { continue };
                *answers += 1;
                if *answers == 1 {
                    longest = longest.max(at.elapsed());
                    let acknowledgment = serde_json::to_vec(&Acknowledgment { id })?;
                    nats.publish(ACKNOWLEDGMENTS, acknowledgment.into()).await?;
                }
            }
        }
    }
    nats.flush().await?;
    let answered = asked.values().filter(|it| it.answers > 0).count();
    let doubled = asked.values().map(|it| it.answers.saturating_sub(1)).sum();
    let longest_wait_ms = longest.as_millis();
    let lost = asked.len() - answered;
    let tally = Tally { asked: asked.len(), answered, lost, doubled, longest_wait_ms };
    writeln!(stdout(), "{}", serde_json::to_string(&tally)?)?;
    Ok(())
}
