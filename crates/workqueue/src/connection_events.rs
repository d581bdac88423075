//! What becomes of a connection: logged, reported, and noted for all that wait for it.

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

/// Says what becomes of the connection, and keeps `link` current.
pub(crate) fn watcher(
    broker: String,
    refusal: ConnectError,
    link: watch::Sender<Link>,
    refused_creation: watch::Sender<String>,
    denied: watch::Sender<String>,
    report: &Arc<impl Fn(Result<(), &ConnectError>) + Send + Sync + 'static>,
) -> impl Fn(Event) -> Ready<()> + Send + Sync + 'static {
    let report = Arc::clone(report);
    // Since the connection was last made or lost: without one the client tries again and again, and with
    // one the broker may complain of each message.
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
                info!("the broker is about to stop, and asks its clients to leave")
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
                // The library tells only the kind of error here.
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

/// Whether the broker refuses the credentials: one that breaks off, or one that takes no connection.
fn is_refusal(event: &Event) -> bool {
    match event {
        Event::ServerError(error) => *error == ServerError::AuthorizationViolation,
        Event::ClientError(ClientError::Other(reason)) => {
            *reason == ConnectErrorKind::AuthorizationViolation.to_string()
        }
        _ => false,
    }
}

/// Whether these words of the broker say that this user may not create a stream or a consumer.
fn is_of_creation(words: &str) -> bool {
    // The domain, where there is one, stands between `$JS` and `API`.
    words.contains("Violation for Publish to \"$JS.")
        && ["API.STREAM.CREATE.", "API.CONSUMER.CREATE."].iter().any(|call| words.contains(call))
}
