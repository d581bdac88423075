//! The requestor: asks for random strings, stores the responses, and acknowledges the stored strings.
//!
//! ```text
//! ask     --> [REQUESTS]                           producer, rate_limiter; tally counts
//! due         [SCHEDULES] --> [REQUESTS]           due
//! store       [RESPONSES] --> [ACKNOWLEDGMENTS]    store
//! cancel                                           cancel
//! ```
//!
//! Its flags and environment are in `settings`.

mod cancel;
mod due;
mod producer;
mod rate_limiter;
mod settings;
mod store;
mod tally;

pub use cancel::{DiscardError, cancel, discard};
pub use producer::{record, submit};
pub use rate_limiter::next_due;
pub use settings::{RETIRED, Rate, RequestorSettings};
pub use tally::GivenUp;

use std::sync::{Arc, Mutex};

use contract::{Amount, InvalidStrings};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::info;
use workqueue::{Running, Service, ServiceError};

use due::Due;
use producer::RequestProducer;
use rate_limiter::RateLimiter;
use store::Store;
use tally::Tally;

/// The reason for which the requestor ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum RequestorError {
    /// The count or length of the strings exceeds the limits.
    #[error("STRING_COUNT and STRING_LENGTH ask for {0}")]
    Amount(#[from] InvalidStrings),
    /// It would wait forever for requests that it never makes.
    #[error(
        "REQUEST_TOTAL is {0}, but with a REQUEST_RATE of 0 no request is made; set a rate, such as 10 or max"
    )]
    NoRate(u64),
    /// The service cannot run.
    #[error(transparent)]
    Service(#[from] ServiceError),
    /// It was stopped before all requests had ended.
    #[error("stopped before it knew the end of {outstanding} of {total} requests")]
    Stopped {
        /// The number of requests.
        total: u64,
        /// Those that were not made, or whose end was not known yet.
        outstanding: u64,
    },
    /// Some of the requests will never be stored.
    #[error(
        "{} of {total} requests have no result:\n{}",
        .given_up.len(),
        .given_up.iter().map(|it| format!("{} {}", it.id, it.reason)).collect::<Vec<_>>().join("\n")
    )]
    GivenUp {
        /// The number of requests.
        total: u64,
        /// Those that have no result.
        given_up: Vec<GivenUp>,
    },
}

/// Runs a requestor until `stop` is cancelled, or until `REQUEST_TOTAL` requests have ended.
///
/// # Errors
///
/// See [`RequestorError`].
pub async fn run(
    settings: RequestorSettings,
    stop: &CancellationToken,
) -> Result<(), RequestorError> {
    let amount = Amount::new(settings.string_count, settings.string_length)?;
    let total = settings.request_total;
    if let Some(total) = total.filter(|total| *total > 0 && settings.request_rate == Rate::Zero) {
        return Err(RequestorError::NoRate(total));
    }
    let tally = total.map(|total| Arc::new(Tally::new(total)));
    let work = async |Running { producer, connection, stopping, abandoned, .. }: Running| {
        let producer = Arc::new(RequestProducer {
            producer,
            instance: settings.service.instance.clone(),
            amount,
            priority: settings.request_priority,
            concurrency: settings.service.concurrency,
            tally: tally.clone(),
            rejections: Mutex::default(),
        });
        // On a task of its own, so that an answer of the broker wakes this task alone.
        let mut task = JoinSet::new();
        let limiter = RateLimiter::new(settings.request_rate);
        task.spawn(producer.run(limiter, total, stopping.clone(), abandoned));
        let asking = async {
            task.join_all().await;
            if let Some(tally) = &tally {
                tally.close();
            }
        };
        let ending = async {
            let Some(tally) = &tally else { return };
            let end = tally.come_to_an_end(&connection);
            if stopping.run_until_cancelled(end).await.is_some() {
                info!("every request has ended");
                stopping.cancel();
            }
        };
        tokio::join!(asking, ending);
    };
    service(Store { tally: tally.clone() }).run_with(&settings.service, stop, work).await?;
    tally.map_or(Ok(()), |tally| tally.result())
}

/// A function of its own, because the program compiles the body of `run` a second time.
fn service(store: Store) -> Service {
    Service::new("requestor").declares(&contract::topology()).consume(store).consume(Due)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[tokio::test]
    async fn total_without_a_rate_is_refused() {
        let words = ["requestor", "--request-total", "7", "--request-rate", "0"];
        let settings = RequestorSettings::parse_from(words);
        let refused = run(settings, &CancellationToken::new()).await;
        assert!(matches!(refused, Err(RequestorError::NoRate(7))), "{refused:?}");
    }

    #[tokio::test]
    async fn stop_before_the_first_request_is_no_success() {
        let words = ["requestor", "--request-total", "7", "--nats-url", "nats://127.0.0.1:1"];
        let stop = CancellationToken::new();
        stop.cancel();
        let stopped = run(RequestorSettings::parse_from(words), &stop).await;
        let outstanding = matches!(stopped, Err(RequestorError::Stopped { outstanding: 7, .. }));
        assert!(outstanding, "{stopped:?}");
    }
}
