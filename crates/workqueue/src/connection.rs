//! The connection to the broker: made with patience, watched, and its changes logged.

use std::future::{Ready, pending, ready};
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::context::ContextBuilder;
use async_nats::{
    Client, ClientError, ConnectErrorKind, ConnectOptions, Event, ServerAddr, ServerError,
};
use rustls_pki_types::pem::{self, PemObject};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::{error, info, warn};

use crate::backoff::{self, Backoff};
use crate::chain::chain;
use crate::commands;
use crate::connect_error::{ConnectError, setting};
use crate::credentials::Credentials;
use crate::known::KnownStreams;
use crate::log_once::LogOnce;
use crate::settings::{NatsSettings, without_users};

/// How often the broker is asked for a sign of life. A connection on which two of these stay
/// without an answer is taken for lost.
const PING_INTERVAL: Duration = Duration::from_secs(5);

/// How long an answer to a request may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// The first ceiling of the time between two tries to connect, and the highest.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

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
            let options = options(settings, client_name, credentials.clone())?;
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

fn options(
    settings: &NatsSettings,
    name: &str,
    credentials: Credentials,
) -> Result<ConnectOptions, ConnectError> {
    let prove = move |nonce: Vec<u8>| ready(credentials.prove(&nonce));
    let mut options = ConnectOptions::with_auth_callback(prove)
        .name(name)
        .custom_inbox_prefix(&settings.nats_inbox_prefix)
        .ping_interval(PING_INTERVAL)
        .request_timeout(Some(ANSWER_TIMEOUT))
        .reconnect_delay_callback(|tries| {
            let doublings = u32::try_from(tries).unwrap_or(u32::MAX);
            backoff::jittered(backoff::ceiling(RETRY.0, RETRY.1, doublings))
        });
    if let Some(file) = &settings.nats_ca {
        check_certificates("NATS_CA", file)?;
        options = options.add_root_certificates(file.to_owned()).require_tls(true);
    }
    match (&settings.nats_cert, &settings.nats_key) {
        (Some(cert), Some(key)) => {
            check_certificates("NATS_CERT", cert)?;
            PrivateKeyDer::from_pem_file(key)
                .map_err(|error| setting("NATS_KEY", key, format!("it has no key: {error}")))?;
            options = options.add_client_certificate(cert.to_owned(), key.to_owned());
        }
        (None, None) => {}
        (Some(file), None) => {
            return Err(setting("NATS_CERT", file, "NATS_KEY has to name its key"));
        }
        (None, Some(file)) => {
            return Err(setting("NATS_KEY", file, "NATS_CERT has to name its certificate"));
        }
    }
    Ok(options)
}

/// Refuses a file without a certificate, of which the client says only that it trusts no broker then.
fn check_certificates(name: &'static str, file: &Path) -> Result<(), ConnectError> {
    let refuse = |error| setting(name, file, format!("it has no certificate: {error}"));
    let mut certificates = CertificateDer::pem_file_iter(file).map_err(refuse)?;
    let first = certificates.next().unwrap_or(Err(pem::Error::NoItemsFound));
    first.map(|_| ()).map_err(refuse)
}

/// The same address, without user and password.
fn without_user(server: ServerAddr) -> Result<ServerAddr, ConnectError> {
    let mut url = server.into_inner();
    let stripped = url.set_username("").and_then(|()| url.set_password(None));
    let stripped = stripped.ok().and_then(|()| ServerAddr::from_url(url).ok());
    stripped.ok_or_else(|| ConnectError::Setting {
        setting: "NATS_URL",
        value: "***".to_owned(),
        reason: "it is no address".to_owned(),
    })
}

/// The addresses of the brokers. An error shows none of what may be secret in them.
fn servers(urls: &str) -> Result<Vec<ServerAddr>, ConnectError> {
    const EXAMPLE: &str = "write something like nats://127.0.0.1:4222";
    let each = || urls.split(',').map(str::trim).filter(|url| !url.is_empty());
    let wrong = |reason: &str| ConnectError::Setting {
        setting: "NATS_URL",
        value: without_users(urls),
        reason: reason.to_owned(),
    };
    let parse = |url: &str| match url.parse::<ServerAddr>() {
        _ if url
            .split_once("://")
            .is_some_and(|(scheme, _)| !["nats", "tls"].contains(&scheme)) =>
        {
            Err(wrong(&format!("its scheme has to be nats or tls; {EXAMPLE}")))
        }
        Ok(server) if server.host().is_empty() => {
            Err(wrong(&format!("it names no host; {EXAMPLE}")))
        }
        Ok(server) if server.port() == 0 => Err(wrong(&format!("its port is 0; {EXAMPLE}"))),
        Ok(server) => {
            let url = server.clone().into_inner();
            if !["", "/"].contains(&url.path()) || url.query().or(url.fragment()).is_some() {
                return Err(wrong(&format!("something follows its port; {EXAMPLE}")));
            }
            Ok(server)
        }
        Err(_) if url.contains('@') => Err(wrong(
            "it is no address, or its port is none; in a user or password, write / as %2F, # as %23, ? as %3F, @ as %40, and a comma as %2C",
        )),
        Err(_) => Err(wrong(&format!("it is no address, or its port is none; {EXAMPLE}"))),
    };
    if each().next().is_none() {
        return Err(wrong(&format!("it names no broker; {EXAMPLE}")));
    }
    each().map(parse).collect()
}

/// The brokers without the passwords that their addresses may have.
fn display(servers: &[ServerAddr]) -> String {
    let names: Vec<String> =
        servers.iter().map(|server| format!("{}:{}", server.host(), server.port())).collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_brokers_are_separated_by_commas() {
        let servers = servers("nats://one:1, two:2,").unwrap();
        assert_eq!(display(&servers), "one:1, two:2");
    }

    #[test]
    fn an_address_that_makes_no_sense_is_named() {
        let urls = [
            "",
            ",",
            "nats://",
            "http://one",
            "ws://one:1",
            "one:port",
            "one:0",
            "one:1/sub",
            "one?a",
        ];
        for url in urls {
            let error = servers(url).unwrap_err().to_string();
            assert!(error.starts_with(&format!("NATS_URL is '{url}': ")), "{error}");
            assert!(error.ends_with("write something like nats://127.0.0.1:4222"), "{error}");
        }
    }

    #[test]
    fn a_password_in_an_address_is_not_shown() {
        let servers = servers("nats://user:secret@one:1").unwrap();
        assert_eq!(display(&servers), "one:1");
    }

    #[test]
    fn error_shows_no_secret_of_an_address() {
        for url in
            ["nats://bob:a/b#c@one", "nats://bob:a?b@one:port", "ws://token@one", "bob:@a b@"]
        {
            let error = servers(&format!("nats://x:s3cret@two,{url}")).unwrap_err().to_string();
            // One without a scheme may be the rest of the password before it.
            let first = if url.contains("://") { "nats://***@two" } else { "***" };
            assert!(error.starts_with(&format!("NATS_URL is '{first},")), "{error}");
            for secret in ["bob", "s3cret", "a/b", "b#c", "token", "@a b"] {
                assert!(!error.contains(secret), "{error}");
            }
        }
        let error = servers("nats://bob:s3cret,t@o@one").unwrap_err().to_string();
        assert!(error.starts_with("NATS_URL is '***,nats://***@one'"), "{error}");
    }
}
