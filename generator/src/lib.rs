//! The generator: makes the strings that are asked for, and marks those that were stored.
//!
//! ```text
//! answer    [REQUESTS] --> [RESPONSES]    answer
//! mark      [ACKNOWLEDGMENTS]             mark
//! ```

mod answer;
mod mark;
mod settings;
mod strings;

pub use settings::Settings;

use contract::facts;
use contract::queues::RESPONSES;
use tokio_util::sync::CancellationToken;
use workqueue::{Service, ServiceError};

use answer::Answer;
use mark::Mark;

/// Runs a generator until `stop` is cancelled.
///
/// # Errors
///
/// Where it cannot run, see [`ServiceError`].
pub async fn run(settings: Settings, stop: &CancellationToken) -> Result<(), ServiceError> {
    let Some(mut service) = Service::start("generator", &settings.service, stop).await? else {
        return Ok(());
    };
    let instance = settings.service.instance;
    service.consume(Answer {
        responses: service.publisher(RESPONSES),
        instance: instance.clone(),
        work_time: settings.work_time,
        failure_rate: settings.failure_rate,
    });
    service.consume(Mark { received: service.facts(facts::RECEIVED), instance });
    service.run(std::future::ready(())).await
}
