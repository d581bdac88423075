//! The settings that all services share: flags, and environment variables of the same name.

use std::ffi::OsString;
use std::fmt::{self, Display, Write};
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::ops::{Bound, RangeBounds};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Parser, ValueEnum};
use jiff::SignedDuration;

use crate::bundle::MOST_JOBS;
use crate::command_line::{address, parse_from};
use crate::mask::without_users;

/// The highest `CONCURRENCY`.
const MOST_SLOTS: usize = 65_536;

/// The heading of the settings for work, in the help.
const WORK: &str = "Work";

/// Settings of every service.
#[derive(Args, Clone, Debug)]
// So that a program may also have a type with this name.
#[group(skip)]
pub struct Settings {
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would show it as the help of the whole group")]
    pub nats: NatsSettings,

    /// Address of the admin endpoint: /livez, /readyz and /metrics. With port 0 it takes a free
    /// port, and logs it
    #[arg(long, env, default_value = "127.0.0.1:0", value_parser = address, value_name = "HOST:PORT", help_heading = WORK)]
    pub admin_addr: SocketAddr,

    /// Name of this replica, in messages and logs [default: the host's name and the process id]
    #[arg(long, env, default_value_t = default_instance(), hide_default_value = true, value_parser = NonEmptyStringValueParser::new(), value_name = "NAME", help_heading = WORK)]
    pub instance: String,

    /// The most jobs of each queue that a replica works on at a time, and the most messages to each queue that it
    /// publishes at a time
    #[arg(long, env, default_value_t = 256, value_parser = number::<usize>(1..=MOST_SLOTS), value_name = "NUMBER", help_heading = WORK)]
    pub concurrency: usize,

    /// How many attempts a message has before it becomes a dead letter
    #[arg(long, env, default_value_t = 10, value_parser = number::<u64>(1..), value_name = "NUMBER", help_heading = WORK)]
    pub max_attempts: u64,

    /// Time in which a stopping service finishes its jobs in flight. It gives back the rest to the queue
    #[arg(long, env, default_value = "20s", value_parser = duration, value_name = "TIME", help_heading = WORK)]
    pub drain_timeout: Duration,

    /// The most jobs of each queue that all replicas of this service together start in a second. The broker counts them
    /// [default: no limit]
    #[arg(long, env, value_parser = rate_limit, value_name = "NUMBER", help_heading = WORK)]
    pub rate_limit: Option<NonZeroU32>,

    /// The most jobs that this service publishes in one message, a bundle. Jobs that are submitted while the broker
    /// confirms the previous message form a bundle; with 1, each job has a message of its own. The consumer of bundles
    /// needs the permission to publish to its queue
    #[arg(long, env, default_value_t = 1, value_parser = number::<usize>(1..=MOST_JOBS), value_name = "NUMBER", help_heading = WORK)]
    pub bundle_limit: usize,

    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would show it as the help of the whole group")]
    pub limits: Limits,

    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would show it as the help of the whole group")]
    pub telemetry: TelemetrySettings,
}

impl Settings {
    /// The settings from the environment, with their defaults. If one of them is invalid, it prints the reason and
    /// ends the process, like a command line.
    #[must_use]
    pub fn from_env() -> Self {
        #[derive(Parser)]
        struct Environment {
            #[command(flatten)]
            settings: Settings,
        }
        parse_from::<Environment>([OsString::new()], &[]).settings
    }
}

/// The settings that may differ between deployments without breaking a guarantee: the limits of streams, buckets and
/// consumers.
#[derive(Args, Clone, Copy, Debug, PartialEq, Eq)]
#[command(next_help_heading = "Limits (a service sets them only for new streams and consumers)")]
pub struct Limits {
    /// Time without an ack or a heartbeat after which the broker redelivers a message
    #[arg(long, env, default_value = "30s", value_parser = above_zero, value_name = "TIME")]
    pub ack_wait: Duration,

    /// The most messages that a queue holds; its publishers wait while it is full
    #[arg(long, env, default_value_t = 100_000, value_parser = number::<u64>(1..), value_name = "NUMBER")]
    pub queue_limit: u64,

    /// Time for which the guarantees hold after a job is made
    #[arg(long, env, default_value = "24h", value_parser = above_zero, value_name = "TIME")]
    pub facts_max_age: Duration,

    /// How many brokers of a cluster keep each stream: 1, 3 or 5
    #[arg(long, env, default_value_t = 1, value_parser = copies, value_name = "NUMBER")]
    pub replicas: usize,

    /// The most bytes that each stream holds, for an account that requires a limit [default: none]
    #[arg(long, env, value_parser = number::<u64>(1..), value_name = "BYTES")]
    pub max_bytes: Option<u64>,
}

/// The address of the broker, and the credentials.
#[derive(Args, Clone)]
#[command(next_help_heading = "Broker")]
pub struct NatsSettings {
    /// Address of the broker; for a cluster, several addresses, separated by commas. A user and password in the address
    /// are used if no other setting names a user
    #[arg(
        long,
        env,
        default_value = "nats://127.0.0.1:4222",
        value_name = "URL",
        hide_env_values = true
    )]
    pub nats_url: String,

    /// User to connect as
    #[arg(long, env, value_name = "USER")]
    pub nats_user: Option<String>,

    /// Password of that user. If the broker refuses it, a service logs that once, is not ready, and tries again; a
    /// command fails
    #[arg(long, env, value_name = "PASSWORD", hide_env_values = true)]
    pub nats_password: Option<String>,

    /// Token, instead of user and password
    #[arg(long, env, value_name = "TOKEN", hide_env_values = true)]
    pub nats_token: Option<String>,

    // The setting may contain the content of the file by mistake, which the help must not show.
    /// File with the seed of a user's nkey, instead of user and password. It is read at each connect
    #[arg(long, env, value_name = "FILE", hide_env_values = true)]
    pub nats_nkey: Option<PathBuf>,

    /// File with the credentials of a user (JWT and seed), instead of user and password. It is read at
    /// each connect
    #[arg(long, env, value_name = "FILE", hide_env_values = true)]
    pub nats_creds: Option<PathBuf>,

    /// File with the certificates (PEM) of the authorities that sign the broker's certificate; enables TLS
    #[arg(long, env, value_name = "FILE", hide_env_values = true)]
    pub nats_ca: Option<PathBuf>,

    /// File with the certificate (PEM) of this client
    #[arg(long, env, value_name = "FILE", hide_env_values = true)]
    pub nats_cert: Option<PathBuf>,

    /// File with the key (PEM) of that certificate
    #[arg(long, env, value_name = "FILE", hide_env_values = true)]
    pub nats_key: Option<PathBuf>,

    /// Domain of JetStream, if this broker is a leaf node of the broker that stores the streams [default: the domain of
    /// this broker]
    #[arg(long, env, value_parser = token, value_name = "DOMAIN")]
    pub nats_domain: Option<String>,

    /// Prefix of the subjects for answers to this client. Use a different one for each user
    #[arg(long, env, default_value = "_INBOX", value_parser = subject, value_name = "PREFIX")]
    pub nats_inbox_prefix: String,
}

/// The address of the broker, without secrets.
impl fmt::Debug for NatsSettings {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = formatter.debug_struct("NatsSettings");
        debug.field("nats_url", &self.broker()).field("nats_user", &self.nats_user);
        debug.finish_non_exhaustive()
    }
}

impl NatsSettings {
    /// The addresses of the broker, without the users, passwords and tokens that they may have.
    #[must_use]
    pub fn broker(&self) -> String {
        without_users(&self.nats_url)
    }

    /// The settings for a broker at this address that asks for no credentials.
    #[must_use]
    pub fn at(nats_url: impl Into<String>) -> Self {
        Self {
            nats_url: nats_url.into(),
            nats_user: None,
            nats_password: None,
            nats_token: None,
            nats_nkey: None,
            nats_creds: None,
            nats_ca: None,
            nats_cert: None,
            nats_key: None,
            nats_domain: None,
            nats_inbox_prefix: "_INBOX".to_owned(),
        }
    }
}

/// The settings of logs and traces.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Logs (on standard error)")]
pub struct TelemetrySettings {
    /// Level of the logs, or levels for each module
    // The connection logs the errors of the connector once, instead of at each try.
    #[arg(
        long,
        env,
        default_value = "info,async_nats=warn,async_nats::connector=off",
        value_name = "FILTER"
    )]
    pub rust_log: String,

    /// Format of the logs [default: pretty on a terminal, json elsewhere]
    #[arg(long, env, value_enum, value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,

    /// Address of the collector of traces, by OTLP over HTTP [default: none]
    #[arg(long, env, hide_env_values = true, value_parser = web_address, value_name = "URL")]
    pub otel_exporter_otlp_endpoint: Option<String>,
}

/// An address of http or https.
///
/// # Errors
///
/// If the text is not such an address. The message names a valid one.
pub fn web_address(text: &str) -> Result<String, String> {
    let uri = text.parse::<hyper::Uri>().ok();
    let is_web = |uri: &hyper::Uri| {
        matches!(uri.scheme_str(), Some("http" | "https"))
            && uri.host().is_some_and(|it| !it.is_empty())
    };
    match uri {
        Some(uri) if is_web(&uri) => Ok(text.to_owned()),
        _ => Err("write an address such as http://127.0.0.1:4318".to_owned()),
    }
}

/// The form of a line in the logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Pretty,
    /// For programs.
    Json,
}

/// The default name of a replica: the host's name and the process id.
#[must_use]
pub fn default_instance() -> String {
    format!("{}-{}", gethostname::gethostname().to_string_lossy(), std::process::id())
}

/// A time with its unit, such as 250ms, 30s, 5m or 24h.
///
/// # Errors
///
/// If the text is not such a time. The message names valid ones.
pub fn duration(text: &str) -> Result<Duration, String> {
    let help = || "write a number with a unit, such as 250ms, 30s, 5m or 24h".to_owned();
    let duration: SignedDuration = text.parse().map_err(|_| help())?;
    duration.try_into().map_err(|_| help())
}

/// A time above zero, as [`duration`].
///
/// # Errors
///
/// If the text is not such a time. The message names valid ones.
pub fn above_zero(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("write a time above zero, such as 30s".to_owned()),
        duration => Ok(duration),
    }
}

/// A subject that can be published to.
///
/// # Errors
///
/// If the text is not a subject. The message describes one.
pub fn subject(text: &str) -> Result<String, String> {
    if text.split('.').all(|word| token(word).is_ok()) {
        Ok(text.to_owned())
    } else {
        Err("write words without spaces, * and >, separated by dots".to_owned())
    }
}

/// A word of a subject.
fn token(text: &str) -> Result<String, String> {
    if text.is_empty() || text.contains(['*', '>', '.']) || text.contains(char::is_whitespace) {
        Err("write a word without spaces, dots, * and >".to_owned())
    } else {
        Ok(text.to_owned())
    }
}

/// Reads a whole number within these limits.
///
/// # Errors
///
/// The returned function fails if the text is not such a number. The message names the limits.
pub fn number<T: FromStr + PartialOrd + Display>(
    limits: impl RangeBounds<T> + Clone,
) -> impl Fn(&str) -> Result<T, String> + Clone {
    move |text| match text.parse() {
        Ok(number) if limits.contains(&number) => Ok(number),
        _ => {
            let mut help = "write a whole number".to_owned();
            if let Bound::Included(least) = limits.start_bound() {
                let _ = write!(help, " from {least}");
            }
            if let Bound::Included(most) = limits.end_bound() {
                let _ = write!(help, " to {most}");
            }
            Err(help)
        }
    }
}

/// Jobs a second.
fn rate_limit(text: &str) -> Result<NonZeroU32, String> {
    text.parse().map_err(|_| "write a whole number of jobs a second from 1, such as 100".to_owned())
}

/// How many brokers of a cluster keep a stream.
///
/// # Errors
///
/// If the text is not 1, 3 or 5.
pub fn copies(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(copies @ (1 | 3 | 5)) => Ok(copies),
        _ => Err("write 1, 3 or 5".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_has_a_unit() {
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(duration("24h"), Ok(Duration::from_hours(24)));
        assert_eq!(duration("0s"), Ok(Duration::ZERO));
        for wrong in ["30", "-1s", "soon", "", "s"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
        assert!(above_zero("0s").is_err());
    }

    #[test]
    fn inbox_prefix_is_a_subject() {
        assert_eq!(subject("_INBOX.requestor"), Ok("_INBOX.requestor".to_owned()));
        for wrong in ["", ".", "a..b", "a.*", "a.>", "a b"] {
            assert!(subject(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn number_has_limits() {
        assert_eq!(number(1..)("1"), Ok(1_u64));
        assert_eq!(
            number(1..=9)("10"),
            Err::<u8, _>("write a whole number from 1 to 9".to_owned())
        );
        for wrong in ["0", "-1", "1.5", "many", ""] {
            let help = Err("write a whole number from 1".to_owned());
            assert_eq!(number::<u64>(1..)(wrong), help, "{wrong}");
        }
    }
}
