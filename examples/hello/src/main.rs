//! One kind of job, its handler, and both programs.
//!
//! The worker: `cargo run --package hello`. A job for it: `cargo run --package hello -- Ada`.

use std::io::{Write, stdout};

use serde::{Deserialize, Serialize};
use workqueue::{Context, Failure, Handler, Job, Producer, Queue, Service, Settings};

/// Say hello.
#[derive(Serialize, Deserialize)]
struct Greet {
    name: String,
}

impl Job for Greet {
    const QUEUE: Queue = Queue::new("GREETINGS", "greetings").consumer("greeter");
}

struct Greeter;

impl Handler for Greeter {
    type Job = Greet;

    async fn handle(&self, job: Greet, cx: &Context) -> Result<(), Failure> {
        let (Greet { name }, id, attempt) = (job, cx.id(), cx.attempt().number());
        // println! panics if its reader has gone, as in `hello | head`, and the job would fail.
        let _ = writeln!(stdout(), "Hello, {name}! (job {id}, attempt {attempt})");
        Ok(()) // only now is the job acked
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let settings = Settings::from_env();
    let _logs = workqueue::init_telemetry(&settings.telemetry)?;
    match std::env::args().nth(1) {
        None => {
            let stop = workqueue::stop_on_signals()?;
            Service::new("greeter").consume(Greeter).run(&settings, &stop).await?;
        }
        Some(name) => {
            let producer = Producer::connect(&settings).await?;
            let id = producer.submit(&Greet { name }).await?; // stored, not merely sent
            let _ = writeln!(stdout(), "job {id} is stored");
        }
    }
    Ok(())
}
