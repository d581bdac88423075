//! The requestor: asks for random strings, stores what comes, and says that it is stored.
//!
//! ```text
//! ask       --> [REQUESTS]                           ask, at its pace, through submit
//! store         [RESPONSES] --> [ACKNOWLEDGMENTS]    store
//! end           after REQUEST_TOTAL requests         tally
//! ```
//!
//! [`submit`] is the one way to submit a request; the gateway takes it, too.

mod ask;
mod pace;
mod settings;
mod store;
pub mod submit;
mod tally;

pub use settings::{RETIRED, Rate, Settings};
pub use tally::DeadLettered;

use std::sync::{Arc, Mutex};

use contract::queues::{ACKNOWLEDGMENTS, REQUESTS};
use contract::{Amount, InvalidStrings, facts};
use tokio_util::sync::CancellationToken;
use tracing::info;
use workqueue::{Service, ServiceError};

use ask::Asker;
use pace::Pace;
use store::Store;
use submit::Submitter;
use tally::Tally;

/// Why the requestor ended other than by being told to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Such strings cannot be asked for.
    #[error("STRING_COUNT and STRING_LENGTH ask for {0}")]
    Amount(#[from] InvalidStrings),
    /// The service cannot run.
    #[error(transparent)]
    Service(#[from] ServiceError),
    /// Some of the requests that were asked for will never be stored.
    #[error(
        "{} of {total} requests ended as dead letters:\n{}",
        .dead.len(),
        .dead.iter().map(|dead| format!("{} {}", dead.id, dead.reason)).collect::<Vec<_>>().join("\n")
    )]
    DeadLettered {
        /// How many requests were asked for.
        total: u64,
        /// Those that ended as dead letters.
        dead: Vec<DeadLettered>,
    },
}

/// Runs a requestor until `stop` is cancelled, or until `REQUEST_TOTAL` requests have come to their
/// end.
///
/// # Errors
///
/// See [`Error`].
pub async fn run(settings: Settings, stop: &CancellationToken) -> Result<(), Error> {
    let amount = Amount::new(settings.string_count, settings.string_length)?;
    let Some(mut service) = Service::start("requestor", &settings.service, stop).await? else {
        return Ok(());
    };
    let stop = service.stopping().clone();
    let tally = settings.request_total.map(|_| Arc::new(Tally::default()));
    let asker = Asker {
        submitter: Submitter {
            requests: service.publisher(REQUESTS),
            requested: service.facts(facts::REQUESTED),
        },
        instance: settings.service.instance.clone(),
        amount,
        concurrency: settings.service.concurrency,
        tally: tally.clone(),
        refusals: Mutex::default(),
    };
    let stored = service.facts(facts::STORED);
    service.consume(Store {
        stored: stored.clone(),
        acknowledgments: service.publisher(ACKNOWLEDGMENTS),
        instance: settings.service.instance,
        tally: tally.clone(),
    });
    let nats = service.connection().clone();
    let abandon = service.abandoned().clone();
    let mut dead = Vec::new();
    let own_work = async {
        let pace = Pace::new(settings.request_rate);
        let asking = async {
            asker.run(pace, settings.request_total, &stop, &abandon).await;
            if let Some(tally) = &tally {
                tally.close();
            }
        };
        let ending = async {
            if let Some(tally) = &tally {
                let end = tally.come_to_an_end(&stored, &nats);
                if let Some(ended) = stop.run_until_cancelled(end).await {
                    info!("every request has come to its end");
                    dead = ended;
                    stop.cancel();
                }
            }
        };
        tokio::join!(asking, ending);
    };
    service.run(own_work).await?;
    match settings.request_total {
        Some(total) if !dead.is_empty() => Err(Error::DeadLettered { total, dead }),
        _ => Ok(()),
    }
}
