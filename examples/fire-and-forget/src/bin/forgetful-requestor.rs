//! Publishes requests at a steady rate, and counts the responses. Prints the outcome of each request, and then the
//! tally. Ctrl-C ends the requests, and a second Ctrl-C ends the listening.

use std::collections::HashMap;
use std::io::{Write, stdout};
use std::time::Duration;

use clap::Parser;
use fire_and_forget::{ACKNOWLEDGMENTS, Acknowledgment, REQUESTS, RESPONSES, Request, Response};
use futures_util::StreamExt;
use jiff::SignedDuration;
use serde::Serialize;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep_until};
use uuid::Uuid;

/// Asks for random strings, and counts the responses
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
    /// How many characters each string has
    #[arg(long, env, default_value_t = 64, value_name = "NUMBER")]
    length: u32,
    /// How long to listen on after the last request
    #[arg(long, env, default_value = "2s", value_name = "TIME")]
    timeout: SignedDuration,
}

/// The requests by their outcome.
#[derive(Debug, Default, Serialize)]
struct Tally {
    asked: usize,
    answered: usize,
    /// Never answered: the request or its response had no subscriber.
    lost: usize,
    /// Responses beyond the first.
    doubled: u32,
    longest_wait_ms: f64,
}

/// A request that was published.
struct Asked {
    at: Instant,
    /// The time for its publish.
    held: Duration,
    /// The time until the first answer.
    waited: Option<Duration>,
    answers: u32,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let Settings { nats_url, rate, mut total, length, timeout } = Settings::parse();
    let nats = async_nats::connect(nats_url).await?;
    let mut responses = nats.subscribe(RESPONSES).await?;
    let (mut asked, mut number, started) = (HashMap::new(), 0, Instant::now());
    let mut interrupted = signal(SignalKind::interrupt())?;
    let ms = |time: Duration| (time.as_secs_f64() * 10_000.0).round() / 10.0;
    let tell = |id: &str, Asked { at, held, waited, .. }: &Asked| {
        let outcome = if waited.is_some() { "answered" } else { "lost" };
        let (asked, held, waited) = (ms(*at - started), ms(*held), waited.map(ms));
        let ended = json!({ "id": id, "asked_ms": asked, "held_ms": held, "waited_ms": waited, "outcome": outcome });
        writeln!(stdout(), "{ended}")
    };
    let is_cut_short = loop {
        // The time of the next request, or the end after the last one.
        let next = started + Duration::from_secs(1) * number / rate;
        let end = if number == total { timeout.unsigned_abs() } else { Duration::ZERO };
        tokio::select! {
            () = sleep_until(next + end) => {
                if number == total {
                    break false;
                }
                number += 1;
                let (id, at) = (Uuid::new_v4().to_string(), Instant::now());
                let request = serde_json::to_vec(&Request { id: id.clone(), length })?;
                nats.publish(REQUESTS, request.into()).await?;
                asked.insert(id, Asked { at, held: at.elapsed(), waited: None, answers: 0 });
            }
            Some(response) = responses.next() => {
                let Response { id, .. } = serde_json::from_slice(&response.payload)?;
                let Some(request) = asked.get_mut(&id) else { continue };
                request.answers += 1;
                if request.answers == 1 {
                    request.waited = Some(request.at.elapsed());
                    tell(&id, request)?;
                    let acknowledgment = serde_json::to_vec(&Acknowledgment { id })?;
                    nats.publish(ACKNOWLEDGMENTS, acknowledgment.into()).await?;
                }
            }
            Some(()) = interrupted.recv() => {
                if number == total {
                    break true;
                }
                total = number;
            }
        }
    };
    // Without a broker this does not end by itself.
    tokio::select! {
        flushed = nats.flush(), if !is_cut_short => flushed?,
        Some(()) = interrupted.recv(), if !is_cut_short => {}
        else => {}
    }
    // The requests without an answer.
    for (id, request) in asked.iter().filter(|(_, request)| request.answers == 0) {
        tell(id, request)?;
    }
    let answered = asked.values().filter(|it| it.answers > 0).count();
    let doubled = asked.values().map(|it| it.answers.saturating_sub(1)).sum();
    let longest = asked.values().filter_map(|it| it.waited).max();
    let longest_wait_ms = ms(longest.unwrap_or_default());
    let lost = asked.len() - answered;
    let tally = Tally { asked: asked.len(), answered, lost, doubled, longest_wait_ms };
    writeln!(stdout(), "{}", serde_json::to_string(&tally)?)?;
    Ok(())
}
