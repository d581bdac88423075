//! The events of a connection: logs them, reports them, and updates the state that other tasks wait for.

use std::future::{Ready, ready};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use async_nats::{ClientError, ConnectErrorKind, Event, ServerError};
use tokio::sync::watch;
use tracing::{error, info, warn};

use crate::connect_error::ConnectError;
use crate::log_once::LogOnce;

/// The state of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) connected: bool,
    /// How many times it has been established.
    pub(crate) times: u64,
    /// When it was established the last time.
    pub(crate) since: Option<Instant>,
}

/// Logs and reports the events of the connection, and keeps `link` current.
pub(crate) fn watcher(
    broker: String,
    refusal: ConnectError,
    link: watch::Sender<Link>,
    refused_creation: watch::Sender<String>,
    denied: watch::Sender<String>,
    report: &Arc<impl Fn(Result<(), &ConnectError>) + Send + Sync + 'static>,
) -> impl Fn(Event) -> Ready<()> + Send + Sync + 'static {
    let report = Arc::clone(report);
    // The reasons logged since the connection was last established or lost: without a connection the client retries
    // continually, and with one the broker may send an error for each message.
    let logged = Mutex::new(LogOnce::default());
    move |event| {
        let away = |reason| ConnectError::Unreachable { broker: broker.clone(), reason };
        let mut logged = logged.lock().expect("nothing panics while it holds this lock");
        match &event {
            Event::Connected => {
                link.send_modify(|link| {
                    let since = Some(Instant::now());
                    *link = Link { connected: true, times: link.times + 1, since };
                });
                report(Ok(()));
                logged.forget();
                info!("connected to the broker");
            }
            Event::Disconnected => {
                link.send_modify(|link| link.connected = false);
                report(Err(&away("the connection is lost".to_owned())));
                logged.forget();
                warn!("lost the connection to the broker; trying to restore it");
            }
            Event::LameDuckMode => {
                info!("the broker is about to stop, and asks its clients to leave");
            }
            event if is_refusal(event) => {
                report(Err(&refusal));
                if logged.is_first(&refusal) {
                    error!("{refusal}; trying again");
                }
            }
            Event::ServerError(ServerError::Other(words)) if is_of_creation(words) => {
                refused_creation.send_replace(words.clone());
            }
            Event::ServerError(complaint) => {
                let words = complaint.to_string();
                if words.contains("Permissions Violation") {
                    denied.send_replace(words);
                }
                if logged.is_first(complaint) {
                    error!(%complaint, "the broker reports an error");
                }
            }
            Event::ClientError(error) => {
                // The library reports only the kind of error here.
                report(Err(&away(error.to_string())));
                if logged.is_first(error) {
                    warn!(%error, broker, "cannot connect to the broker yet; trying again");
                }
            }
            Event::SlowConsumer(_) => warn!("slow consumer: messages were dropped"),
            Event::Draining | Event::Closed => {}
        }
        ready(())
    }
}

/// Whether the broker refuses the credentials, of an existing connection or of a new one.
fn is_refusal(event: &Event) -> bool {
    match event {
        Event::ServerError(error) => *error == ServerError::AuthorizationViolation,
        Event::ClientError(ClientError::Other(reason)) => {
            *reason == ConnectErrorKind::AuthorizationViolation.to_string()
        }
        _ => false,
    }
}

/// Whether this error of the broker means that this user may not create a stream or a consumer.
fn is_of_creation(words: &str) -> bool {
    // The domain, if there is one, stands between `$JS` and `API`.
    words.contains("Violation for Publish to \"$JS.")
        && ["API.STREAM.CREATE.", "API.CONSUMER.CREATE."].iter().any(|call| words.contains(call))
}
