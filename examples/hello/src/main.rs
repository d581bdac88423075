//! One kind of job, its handler, and both programs.
//!
//! The worker: `cargo run --package hello`. A job for it: `cargo run --package hello -- Ada`.

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
        println!("Hello, {}! (job {}, attempt {})", job.name, cx.id(), cx.attempt().number());
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
            println!("job {id} is stored");
        }
    }
    Ok(())
}
