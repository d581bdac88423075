//! The generator: makes the requested strings, and marks stored strings as received.
//!
//! ```text
//! generate    [REQUESTS] --> [RESPONSES]    generate, strings
//! mark        [ACKNOWLEDGMENTS]             mark
//! ```
//!
//! Its flags and environment are in `settings`.

mod generate;
mod mark;
mod settings;
mod strings;

pub use generate::Generate;
pub use settings::{GeneratorSettings, share};

use tokio_util::sync::CancellationToken;
use workqueue::{Handler, Service, ServiceError};

use mark::Mark;

/// Runs a generator until `stop` is cancelled.
///
/// # Errors
///
/// If it cannot run, see [`ServiceError`].
pub async fn run(
    settings: GeneratorSettings,
    stop: &CancellationToken,
) -> Result<(), ServiceError> {
    service(Generate::new(&settings)).run(&settings.service, stop).await
}

/// A generator whose requests this handler handles.
pub fn service(handler: impl Handler) -> Service {
    Service::new("generator").declares(&contract::topology()).consume(handler).consume(Mark)
}
