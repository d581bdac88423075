//! The connection to the broker: made with patience, watched, and its changes logged.

use std::future::{Ready, pending, ready};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::context::ContextBuilder;
use async_nats::{Client, ClientError, ConnectErrorKind, Event, ServerError};
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::{error, info, warn};

use crate::backoff::Backoff;
use crate::chain::chain;
use crate::commands;
use crate::connect_error::ConnectError;
use crate::connect_options::connect_options;
use crate::credentials::Credentials;
use crate::known::KnownStreams;
use crate::log_once::LogOnce;
use crate::servers::{display, servers, without_user};
use crate::settings::NatsSettings;

/// How long an answer to a request may take.
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// The first ceiling of the time between two tries to connect, and the highest.
pub(crate) const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// After a reconnect, how long an answer to something that was asked before it may still take.
const LATE_ANSWER: Duration = Duration::from_millis(250);

/// What the subjects of JetStream's API begin with where no domain is named.
const API_PREFIX: &str = "$JS.API";

/// How a connection stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Link {
    connected: bool,
    /// How many times it has been established.
    times: u64,
}

/// A connection to the broker that re-establishes itself. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Connection(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    client: Client,
    context: Context,
    known: KnownStreams,
    /// What the subjects of JetStream's API begin with.
    api_prefix: String,
    link: watch::Receiver<Link>,
    /// What the broker said the last time that it did not let this user create something.
    refused_creation: watch::Receiver<String>,
    /// What it said the last time that it denied another permission.
    denied: watch::Receiver<String>,
}

/// The client has panicked, and cannot be revived.
#[derive(Debug, thiserror::Error)]
#[error(
    "the NATS client has panicked, most likely over the headers of a message that was published by hand: \
     its message is on the standard error. Run {}, which moves such a message to the dead letters, and start \
     this again",
    commands::reconcile()
)]
pub struct ClientEnded;

impl Connection {
    /// Connects, and tries until it succeeds. `report` is told of each change of the connection,
    /// with whether there is one. A refusal of the credentials is tried again as well: while a password is
    /// changed, a service may have the new one before the broker has it.
    ///
    /// # Errors
    ///
    /// Where a setting makes no sense.
    pub async fn establish_patiently(
        settings: &NatsSettings,
        client_name: &str,
        report: impl Fn(bool) + Send + Sync + 'static,
    ) -> Result<Self, ConnectError> {
        let report = Arc::new(report);
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        let mut logged = LogOnce::default();
        loop {
            match Self::establish_unless_refused(settings, client_name, &report, &mut logged).await
            {
                Err(error @ ConnectError::Refused { .. }) => {
                    if logged.is_first(&error) {
                        error!("{error}; trying again");
                    }
                }
                established => return established,
            }
            backoff.wait().await;
        }
    }

    /// As [`Connection::establish_patiently`], for a program that somebody waits for.
    ///
    /// # Errors
    ///
    /// Where another try would be of no use: a setting makes no sense, or the broker refuses the
    /// credentials. Once connected, a refusal is only reported, and tried again.
    pub async fn establish(
        settings: &NatsSettings,
        client_name: &str,
        report: impl Fn(bool) + Send + Sync + 'static,
    ) -> Result<Self, ConnectError> {
        let (report, mut logged) = (Arc::new(report), LogOnce::default());
        Self::establish_unless_refused(settings, client_name, &report, &mut logged).await
    }

    /// As [`Connection::establish`], and gives up after this time.
    ///
    /// # Errors
    ///
    /// As there, and [`ConnectError::Unreachable`].
    pub async fn establish_within(
        settings: &NatsSettings,
        client_name: &str,
        limit: Duration,
    ) -> Result<Self, ConnectError> {
        let (report, mut logged) = (Arc::new(|_connected| {}), LogOnce::default());
        let connecting =
            Self::establish_unless_refused(settings, client_name, &report, &mut logged);
        match timeout(limit, connecting).await {
            Ok(established) => established,
            Err(_too_long) => Err(ConnectError::Unreachable {
                broker: settings.broker(),
                reason: logged.last().unwrap_or("no answer").to_owned(),
            }),
        }
    }

    async fn establish_unless_refused(
        settings: &NatsSettings,
        client_name: &str,
        report: &Arc<impl Fn(bool) + Send + Sync + 'static>,
        logged: &mut LogOnce,
    ) -> Result<Self, ConnectError> {
        let servers = servers(&settings.nats_url)?;
        let broker = display(&servers);
        let credentials = Credentials::new(settings, &servers)?;
        // The client logs the addresses that it is given.
        let servers = servers.into_iter().map(without_user).collect::<Result<Vec<_>, _>>()?;
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        loop {
            let (link_sender, mut link) = watch::channel(Link::default());
            let (creation_sender, refused_creation) = watch::channel(String::new());
            let (denial_sender, denied) = watch::channel(String::new());
            let options = connect_options(settings, client_name, credentials.clone())?;
            let options = options.event_callback(watcher(
                broker.clone(),
                link_sender,
                creation_sender,
                denial_sender,
                report,
            ));
            let failure = match options.connect(servers.as_slice()).await {
                Ok(client) => {
                    let _ = link.wait_for(|link| link.connected).await;
                    let api_prefix = api_prefix(settings.nats_domain.as_deref());
                    let builder = ContextBuilder::new().timeout(ANSWER_TIMEOUT);
                    let context = builder.api_prefix(&api_prefix).build(client.clone());
                    return Ok(Self(Arc::new(Inner {
                        client,
                        context,
                        known: KnownStreams::default(),
                        api_prefix,
                        link,
                        refused_creation,
                        denied,
                    })));
                }
                Err(failure) => failure,
            };
            match failure.kind() {
                ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication => {
                    return Err(ConnectError::Refused { broker, who: credentials.to_string() });
                }
                _ => {
                    let error = &failure as &dyn std::error::Error;
                    let mut error = chain(error);
                    // As the TLS library puts it.
                    if error.ends_with("InvalidContentType") {
                        error.push_str(", so it speaks no TLS");
                    }
                    if logged.is_first(&error) {
                        warn!(error, broker, "cannot connect to the broker yet; trying again");
                    }
                }
            }
            backoff.wait().await;
        }
    }

    /// The client, for what is not JetStream.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.0.client
    }

    /// The JetStream context.
    #[must_use]
    pub fn context(&self) -> &Context {
        &self.0.context
    }

    /// The streams that were declared, or found as declared, over this connection.
    #[must_use]
    pub fn known(&self) -> &KnownStreams {
        &self.0.known
    }

    /// A JetStream context of its own, for at most `capacity` publishes at a time.
    pub(crate) fn publishing_context(&self, capacity: usize) -> Context {
        ContextBuilder::new()
            .timeout(ANSWER_TIMEOUT)
            // For an answer that is no longer waited for, which holds a place until then.
            .ack_timeout(LATE_ANSWER)
            .max_ack_inflight(capacity)
            .api_prefix(&self.0.api_prefix)
            .build(self.0.client.clone())
    }

    /// Where to publish what is stored under this subject. A leaf node keeps the keys of buckets to itself,
    /// and passes on what is addressed to the API of a domain.
    pub(crate) fn address_of(&self, subject: String) -> String {
        if self.0.api_prefix != API_PREFIX && subject.starts_with("$KV.") {
            return [&self.0.api_prefix, ".", &subject].concat();
        }
        subject
    }

    /// Whether there is a connection at this moment.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.0.link.borrow().connected
    }

    /// How many times the connection has been established.
    pub(crate) fn times_connected(&self) -> u64 {
        self.0.link.borrow().times
    }

    /// Waits until the broker does not let this user create something, and gives its words. It sends no
    /// other answer, so that who asked would wait for one.
    pub(crate) async fn creation_refused(&self) -> String {
        let mut refused = self.0.refused_creation.clone();
        refused.mark_unchanged();
        match refused.changed().await {
            Ok(()) => refused.borrow_and_update().clone(),
            // The client has ended, and nothing will come any more.
            Err(_) => pending().await,
        }
    }

    /// The broker's words whenever it denies this user a permission, but for creating something. It sends no
    /// other answer, so that a request without an answer may have been denied.
    #[must_use]
    pub fn denied(&self) -> watch::Receiver<String> {
        let mut denied = self.0.denied.clone();
        denied.mark_unchanged();
        denied
    }

    /// Whether the client has ended, see [`Connection::ended`].
    pub(crate) fn has_ended(&self) -> bool {
        self.0.link.has_changed().is_err()
    }

    /// Waits until the client has ended, which it does only by a panic: over a carriage return within
    /// a header, for one, which brokers let through (nats-io/nats.rs#1612). Nothing reaches the
    /// broker after that, and there is no way to revive it.
    pub async fn ended(&self) -> ClientEnded {
        let mut link = self.0.link.clone();
        while link.changed().await.is_ok() {}
        ClientEnded
    }

    /// Waits until the connection has been established more than `times` times.
    pub(crate) async fn reconnected(&self, times: u64) {
        let mut link = self.0.link.clone();
        if link.wait_for(|link| link.connected && link.times > times).await.is_err() {
            // The client is gone, so there is nothing to wait for.
            pending::<()>().await;
        }
    }

    /// Asks the broker for something once there is a connection. Gives `None` where that
    /// connection was lost and another established before the answer came: what was asked, or the
    /// answer, is most likely lost with it.
    pub async fn ask<F: Future>(&self, question: Pin<&mut F>) -> Option<F::Output> {
        let mut link = self.0.link.clone();
        let times = match link.wait_for(|link| link.connected).await {
            Ok(link) => link.times,
            Err(_) => return None,
        };
        let lost = async {
            if link.wait_for(|link| link.connected && link.times > times).await.is_err() {
                // The client is gone, so there is nothing to wait for.
                pending::<()>().await;
            }
            tokio::time::sleep(LATE_ANSWER).await;
        };
        tokio::select! {
            // Most answers come before anything becomes of the connection.
            biased;
            answer = question => Some(answer),
            () = lost => None,
        }
    }
}

/// Says what becomes of the connection, and keeps `link` current.
fn watcher(
    broker: String,
    link: watch::Sender<Link>,
    refused_creation: watch::Sender<String>,
    denied: watch::Sender<String>,
    report: &Arc<impl Fn(bool) + Send + Sync + 'static>,
) -> impl Fn(Event) -> Ready<()> + Send + Sync + 'static {
    let report = Arc::clone(report);
    // Since the connection was last made or lost: without one the client tries again and again, and with
    // one the broker may complain of each message.
    let logged = Mutex::new(LogOnce::default());
    let violation = ConnectErrorKind::AuthorizationViolation.to_string();
    let refused = |logged: &mut LogOnce| {
        if logged.is_first(ServerError::AuthorizationViolation) {
            error!("the broker refuses the credentials; trying again");
        }
    };
    move |event| {
        let mut logged = logged.lock().expect("nothing panics while it holds this lock");
        match &event {
            Event::Connected => {
                link.send_modify(|link| {
                    *link = Link { connected: true, times: link.times + 1 };
                });
                report(true);
                logged.forget();
                info!("connected to the broker");
            }
            Event::Disconnected => {
                link.send_modify(|link| link.connected = false);
                report(false);
                logged.forget();
                warn!("lost the connection to the broker; trying to restore it");
            }
            Event::LameDuckMode => info!("the broker is about to stop, and asks to leave it"),
            // From a broker that breaks off, or from one that takes no connection.
            Event::ServerError(ServerError::AuthorizationViolation) => refused(&mut logged),
            Event::ClientError(ClientError::Other(reason)) if *reason == violation => {
                refused(&mut logged);
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
                    error!(%complaint, "the broker complains");
                }
            }
            Event::ClientError(error) => {
                // The library tells only the kind of error here.
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

/// Whether these words of the broker say that this user may not create a stream or a consumer.
fn is_of_creation(words: &str) -> bool {
    // The domain, where there is one, stands between `$JS` and `API`.
    words.contains("Violation for Publish to \"$JS.")
        && ["API.STREAM.CREATE.", "API.CONSUMER.CREATE."].iter().any(|call| words.contains(call))
}

fn api_prefix(domain: Option<&str>) -> String {
    domain.map_or_else(|| API_PREFIX.to_owned(), |domain| format!("$JS.{domain}.API"))
}
