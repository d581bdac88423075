//! How the client connects: as which user, over which certificates, and how often it tries.

use std::future::ready;
use std::path::Path;
use std::time::Duration;

use async_nats::ConnectOptions;
use rustls_pki_types::pem::{self, PemObject};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::backoff;
use crate::connect_error::{ConnectError, setting};
use crate::credentials::Credentials;
use crate::settings::NatsSettings;

/// The time limit for an answer to a request.
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// The first ceiling of the time between two tries to connect, or to do one of the first steps after it, and the
/// highest.
pub(crate) const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// The interval of the pings to the broker. A connection counts as lost when two of them have no answer.
const PING_INTERVAL: Duration = Duration::from_secs(5);

/// The options of a connection with this name, or the error of the settings.
pub(crate) fn connect_options(
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
                .map_err(|error| setting("NATS_KEY", key, unusable("key", error)))?;
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

/// Refuses a file without a certificate. The client would only report that it trusts no broker.
fn check_certificates(name: &'static str, file: &Path) -> Result<(), ConnectError> {
    let refuse = |error| setting(name, file, unusable("certificate", error));
    let mut certificates = CertificateDer::pem_file_iter(file).map_err(refuse)?;
    let first = certificates.next().unwrap_or(Err(pem::Error::NoItemsFound));
    first.map(|_| ()).map_err(refuse)
}

/// The error of a file that should contain this.
fn unusable(item: &str, error: pem::Error) -> String {
    match error {
        pem::Error::Io(error) => error.to_string(),
        error => format!("it has no {item}: {error}"),
    }
}
