//! Makes a random string for each call, and prints the id of its request. If the first answer came too late or got lost,
//! the id is printed twice.

use std::io::{Write, stdout};
use std::net::SocketAddr;

use axum::extract::State;
use axum::routing::post;
use axum::{Json, Router};
use clap::Parser;
use jiff::SignedDuration;
use rand::distr::{Alphanumeric, SampleString};
use synchronous::{Answer, Ask};
use tokio::net::TcpListener;
use tokio::time::sleep;

/// Makes random strings for clients that ask over HTTP
#[derive(Debug, Parser)]
#[command(version)]
struct Settings {
    /// Where to listen; port 0 is any that is free
    #[arg(long, env, default_value = "127.0.0.1:8084", value_name = "ADDRESS")]
    listen_addr: SocketAddr,
    /// How long a string takes to make, such as 50ms
    #[arg(long, env, default_value = "0s", value_name = "TIME")]
    work_time: SignedDuration,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let Settings { listen_addr, work_time } = Settings::parse();
    let listener = TcpListener::bind(listen_addr).await?;
    writeln!(stdout(), "listens on {}", listener.local_addr()?)?;
    let routes = Router::new().route("/strings", post(make)).with_state(work_time);
    Ok(axum::serve(listener, routes).await?)
}

async fn make(State(work_time): State<SignedDuration>, Json(ask): Json<Ask>) -> Json<Answer> {
    // In a task of its own: like most work, it continues after the caller has timed out.
    let work = tokio::spawn(async move {
        sleep(work_time.unsigned_abs()).await;
        let value = Alphanumeric.sample_string(&mut rand::rng(), ask.length as usize);
        // The reader of the output may have gone.
        let _ = writeln!(stdout(), "made {}", ask.id);
        Answer { value }
    });
    Json(work.await.expect("it does not panic"))
}
