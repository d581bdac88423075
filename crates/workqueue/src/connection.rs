//! The connection to the broker: established with retries, watched, and its changes logged.

use std::future::pending;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::jetstream::Context;
use async_nats::jetstream::context::ContextBuilder;
use async_nats::{Client, ConnectErrorKind};
use tokio::sync::{OnceCell, watch};
use tokio::time::{sleep, timeout};
use tracing::{error, warn};

use crate::acks::Acks;
use crate::backoff::Backoff;
use crate::connect_error::{ClientEnded, ConnectError};
use crate::connect_options::{ANSWER_TIMEOUT, RETRY, connect_options};
use crate::connection_events::{Link, watcher};
use crate::credentials::Credentials;
use crate::error_chain::chain;
use crate::known_streams::KnownStreams;
use crate::log_once::LogOnce;
use crate::pub_acks::PubAcks;
use crate::servers::{display, servers, without_user};
use crate::settings::NatsSettings;

/// The longest time after a reconnect in which an answer to an earlier request may still arrive.
const LATE_ANSWER: Duration = Duration::from_millis(250);

/// The prefix of the subjects of JetStream's API without a domain.
const API_PREFIX: &str = "$JS.API";

/// A connection to the broker that re-establishes itself. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Connection(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    client: Client,
    context: Context,
    /// Set at the first publish.
    pub_acks: OnceCell<PubAcks>,
    acks: Acks,
    known: KnownStreams,
    /// The prefix of the subjects of JetStream's API.
    api_prefix: String,
    link: watch::Receiver<Link>,
    /// The broker's last refusal to let this user create a stream or consumer.
    refused_creation: watch::Receiver<String>,
    /// The broker's last denial of another permission.
    denied: watch::Receiver<String>,
}

impl Connection {
    /// Connects, and retries until it succeeds. Calls `report` each time that the connection is established, and, with
    /// the error, each time that a try fails or the connection is lost. It also retries if the broker refuses the
    /// credentials: while a password is changed, a service may have the new one before the broker has it.
    ///
    /// # Errors
    ///
    /// If a setting is invalid from the start. A file that becomes unreadable later is most likely being rewritten,
    /// and is read again.
    pub async fn establish_patiently(
        settings: &NatsSettings,
        client_name: &str,
        report: impl Fn(Result<(), &ConnectError>) + Send + Sync + 'static,
    ) -> Result<Self, ConnectError> {
        let mut logged = LogOnce::default();
        Self::keep_trying(settings, client_name, report, &mut logged, true).await
    }

    /// As [`Connection::establish_patiently`], for a program that a person waits for.
    ///
    /// # Errors
    ///
    /// If a retry does not help: a setting is invalid, or the broker refuses the credentials. Once connected, a
    /// refusal is only reported, and retried.
    pub async fn establish(
        settings: &NatsSettings,
        client_name: &str,
        report: impl Fn(Result<(), &ConnectError>) + Send + Sync + 'static,
    ) -> Result<Self, ConnectError> {
        let mut logged = LogOnce::default();
        Self::keep_trying(settings, client_name, report, &mut logged, false).await
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
        let mut logged = LogOnce::default();
        let connecting =
            Self::keep_trying(settings, client_name, |_connected| {}, &mut logged, false);
        match timeout(limit, connecting).await {
            Ok(established) => established,
            Err(_too_long) => Err(ConnectError::Unreachable {
                broker: settings.broker(),
                reason: logged.last().unwrap_or("no answer").to_owned(),
            }),
        }
    }

    async fn keep_trying(
        settings: &NatsSettings,
        client_name: &str,
        report: impl Fn(Result<(), &ConnectError>) + Send + Sync + 'static,
        logged: &mut LogOnce,
        refusals_pass: bool,
    ) -> Result<Self, ConnectError> {
        let report = Arc::new(report);
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        let mut is_first = true;
        loop {
            let error = match Self::try_once(settings, client_name, &report).await {
                Err(error) => error,
                established => return established,
            };
            match &error {
                ConnectError::Setting { .. } if is_first => return Err(error),
                ConnectError::Refused { .. } if !refusals_pass => return Err(error),
                ConnectError::Unreachable { broker, reason } => {
                    if logged.is_first(reason) {
                        warn!(
                            error = reason,
                            broker, "cannot connect to the broker yet; trying again"
                        );
                    }
                }
                error => {
                    if logged.is_first(error) {
                        error!("{error}; trying again");
                    }
                }
            }
            report(Err(&error));
            is_first = false;
            backoff.wait().await;
        }
    }

    async fn try_once(
        settings: &NatsSettings,
        client_name: &str,
        report: &Arc<impl Fn(Result<(), &ConnectError>) + Send + Sync + 'static>,
    ) -> Result<Self, ConnectError> {
        let servers = servers(&settings.nats_url)?;
        let broker = display(&servers);
        let credentials = Credentials::new(settings, &servers)?;
        let refusal =
            ConnectError::Refused { broker: broker.clone(), who: credentials.to_string() };
        // The client logs the addresses that it is given.
        let servers = servers.into_iter().map(without_user).collect::<Result<Vec<_>, _>>()?;
        let (link_sender, mut link) = watch::channel(Link::default());
        let (creation_sender, refused_creation) = watch::channel(String::new());
        let (denial_sender, denied) = watch::channel(String::new());
        let options = connect_options(settings, client_name, credentials)?;
        let options = options.event_callback(watcher(
            broker.clone(),
            refusal.clone(),
            link_sender,
            creation_sender,
            denial_sender,
            report,
        ));
        let client = match options.connect(servers.as_slice()).await {
            Ok(client) => client,
            Err(failure) => {
                use ConnectErrorKind::{Authentication, AuthorizationViolation};
                if matches!(failure.kind(), Authentication | AuthorizationViolation) {
                    return Err(refusal);
                }
                let mut reason = chain(&failure);
                // As the TLS library puts it.
                if reason.ends_with("InvalidContentType") {
                    reason.push_str(", so it speaks no TLS");
                }
                return Err(ConnectError::Unreachable { broker, reason });
            }
        };
        let _ = link.wait_for(|link| link.connected).await;
        let api_prefix = api_prefix(settings.nats_domain.as_deref());
        let builder = ContextBuilder::new().timeout(ANSWER_TIMEOUT);
        let context = builder.api_prefix(&api_prefix).build(client.clone());
        let known = KnownStreams::default();
        Ok(Self(Arc::new(Inner {
            acks: Acks::new(client.clone()),
            client,
            context,
            pub_acks: OnceCell::new(),
            known,
            api_prefix,
            link,
            refused_creation,
            denied,
        })))
    }

    /// The client, for core NATS.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.0.client
    }

    /// The JetStream context.
    #[must_use]
    pub fn context(&self) -> &Context {
        &self.0.context
    }

    /// The acks of the deliveries that came over this connection.
    pub(crate) fn acks(&self) -> &Acks {
        &self.0.acks
    }

    /// The streams that were declared, or found as declared, over this connection.
    #[must_use]
    pub fn known(&self) -> &KnownStreams {
        &self.0.known
    }

    /// The publisher that awaits acks, once there is a connection, and the number of connections so far. `None` if the
    /// client has ended.
    pub(crate) async fn pub_acks(&self) -> Option<(&PubAcks, u64)> {
        let times = self.established().await?;
        let Inner { pub_acks, client, link, .. } = &*self.0;
        let subscribing = || PubAcks::subscribe(client, link.clone());
        Some((pub_acks.get_or_try_init(subscribing).await.ok()?, times))
    }

    /// Waits until there is a connection, and returns the number of connections so far. `None` if the client has ended.
    async fn established(&self) -> Option<u64> {
        let link = *self.0.link.borrow();
        if link.connected {
            return Some(link.times);
        }
        let mut link = self.0.link.clone();
        link.wait_for(|link| link.connected).await.ok().map(|link| link.times)
    }

    /// The subject to publish to, for a message that is stored under `subject`. A leaf node does not forward the
    /// subjects of buckets, but it forwards those of the API of a domain.
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

    /// Waits until the broker refuses to let this user create a stream or consumer, and returns the refusal. The broker
    /// sends no other answer, so the caller would wait for one.
    pub(crate) async fn creation_refused(&self) -> String {
        let mut refused = self.0.refused_creation.clone();
        refused.mark_unchanged();
        match refused.changed().await {
            Ok(()) => refused.borrow_and_update().clone(),
            // The client has ended, and nothing will come any more.
            Err(_) => pending().await,
        }
    }

    /// The broker's messages when it denies this user a permission other than creating. The broker sends no other
    /// answer, so a request without an answer may have been denied.
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

    /// Waits until the client has ended, which happens only by a panic, such as for a carriage return within a header,
    /// which brokers accept (nats-io/nats.rs#1612). After that nothing reaches the broker, and the client cannot be
    /// revived.
    pub async fn ended(&self) -> ClientEnded {
        let mut link = self.0.link.clone();
        while link.changed().await.is_ok() {}
        ClientEnded
    }

    /// Waits until there is a connection, and returns when it was established.
    pub(crate) async fn connected_since(&self) -> Instant {
        let mut link = self.0.link.clone();
        let since = link.wait_for(|link| link.connected).await.ok().and_then(|link| link.since);
        match since {
            Some(since) => since,
            // The client is gone, so there is nothing to wait for.
            None => pending().await,
        }
    }

    /// Waits until the connection has been established more than `times` times.
    pub(crate) async fn reconnected(&self, times: u64) {
        let mut link = self.0.link.clone();
        if link.wait_for(|link| link.connected && link.times > times).await.is_err() {
            // The client is gone, so there is nothing to wait for.
            pending::<()>().await;
        }
    }

    /// Sends a request to the broker once there is a connection. Returns `None` if that connection was lost and
    /// another was established before the answer arrived: the request, or its answer, is most likely lost.
    pub async fn ask<F: Future>(&self, question: Pin<&mut F>) -> Option<F::Output> {
        let times = self.established().await?;
        tokio::select! {
            // Most answers arrive before the connection changes.
            biased;
            answer = question => Some(answer),
            _ = lost(self.0.link.clone(), times) => None,
        }
    }
}

/// Waits until the connection with this number was lost, and the next one has existed so long that no answer over the
/// first one arrives any more. Returns the number of the new connection.
pub(crate) async fn lost(mut link: watch::Receiver<Link>, times: u64) -> u64 {
    let times = link.wait_for(|link| link.connected && link.times > times).await;
    let Ok(times) = times.map(|link| link.times) else {
        // The client is gone, so there is nothing to wait for.
        return pending().await;
    };
    sleep(LATE_ANSWER).await;
    times
}

fn api_prefix(domain: Option<&str>) -> String {
    domain.map_or_else(|| API_PREFIX.to_owned(), |domain| format!("$JS.{domain}.API"))
}
