//! Makes a random string for each request that it receives, and prints the ids of these requests, and of those that are
//! acknowledged.

use std::io::{Write, stdout};

use clap::Parser;
use fire_and_forget::{ACKNOWLEDGMENTS, Acknowledgment, REQUESTS, RESPONSES, Request, Response};
use futures_util::StreamExt;
use jiff::SignedDuration;
use rand::distr::{Alphanumeric, SampleString};
use tokio::time::sleep;

/// Makes random strings for the requests that it receives
#[derive(Debug, Parser)]
#[command(version)]
struct Settings {
    /// Where the broker is
    #[arg(long, env, default_value = "nats://127.0.0.1:4222", value_name = "URL")]
    nats_url: String,
    /// How long a string takes to make, such as 50ms
    #[arg(long, env, default_value = "0s", value_name = "TIME")]
    work_time: SignedDuration,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let Settings { nats_url, work_time } = Settings::parse();
    let nats = async_nats::connect(nats_url).await?;
    let mut requests = nats.subscribe(REQUESTS).await?;
    let mut acknowledgments = nats.subscribe(ACKNOWLEDGMENTS).await?;
    // After this the broker has the subscriptions.
    nats.flush().await?;
    writeln!(stdout(), "listening")?;
    loop {
        tokio::select! {
            Some(request) = requests.next() => {
                let Request { id, length } = serde_json::from_slice(&request.payload)?;
                let nats = nats.clone();
                tokio::spawn(async move {
                    sleep(work_time.unsigned_abs()).await;
                    let value = Alphanumeric.sample_string(&mut rand::rng(), length as usize);
                    // The reader of the output may have gone.
                    let _ = writeln!(stdout(), "made {id}");
                    let response = serde_json::to_vec(&Response { id, value })?;
                    // Nothing confirms that a subscriber gets it.
                    nats.publish(RESPONSES, response.into()).await?;
                    anyhow::Ok(())
                });
            }
            Some(acknowledgment) = acknowledgments.next() => {
                let Acknowledgment { id } = serde_json::from_slice(&acknowledgment.payload)?;
                writeln!(stdout(), "marked {id}")?;
            }
            else => return Ok(()),
        }
    }
}
