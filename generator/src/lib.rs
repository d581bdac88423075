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
pub use mark::Mark;
pub use settings::{GeneratorSettings, share};

use tokio_util::sync::CancellationToken;
use workqueue::{Service, ServiceError};

/// Runs a generator until `stop` is cancelled.
///
/// # Errors
///
/// If it cannot run, see [`ServiceError`].
pub async fn run(
    settings: GeneratorSettings,
    stop: &CancellationToken,
) -> Result<(), ServiceError> {
    service(&settings).run(&settings.service, stop).await
}

/// A function of its own, because the program compiles the body of `run` a second time.
fn service(settings: &GeneratorSettings) -> Service {
    Service::new("generator")
        .declares(&contract::topology())
        .consume(Generate::new(settings))
        .consume(Mark)
}
