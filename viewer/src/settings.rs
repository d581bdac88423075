use std::net::SocketAddr;

use axum::http::Uri;
use clap::{Parser, ValueEnum};
use workqueue::{NatsSettings, TelemetrySettings};

/// The headings of what the viewer does, in its help.
const PAGE: &str = "Page";
const REPLAY: &str = "Replay";

/// Shows the queues, the replicas and the facts as a page, for as many browsers as you like.
///
/// Reads all of it from the broker alone, so that it goes on while either side is down, or both. It
/// changes nothing, save where REPLAY allows to replay dead letters. Runs until it is told to stop
/// (SIGTERM or SIGINT).
///
/// Every setting is a flag, and an environment variable of the same name.
#[derive(Clone, Debug, Parser)]
#[command(version, max_term_width = 100, disable_help_subcommand = true)]
pub struct Settings {
    /// Address of the page. Who reaches it sees all there is: let only them reach it who may
    #[arg(long, env, default_value = "127.0.0.1:8085", value_name = "HOST:PORT", help_heading = PAGE)]
    pub viewer_addr: SocketAddr,

    /// Names under which browsers reach the page, separated by commas; addresses and localhost always
    /// do. Under any other name it shows nothing, so that no other site can be it
    #[arg(long, env, value_delimiter = ',', value_name = "NAMES", help_heading = PAGE)]
    pub viewer_hosts: Vec<String>,

    /// Address of the requestor's API, for the form that asks for strings [default: none, and the
    /// form says so]
    #[arg(long, env, value_parser = api_url, value_name = "URL", help_heading = PAGE)]
    pub api_url: Option<Uri>,

    /// The most requests that the button for the whole audit reads; of more it would take long, and
    /// some 400 bytes of memory each. `decoupled audit` has no limit
    #[arg(long, env, default_value_t = 250_000, value_name = "NUMBER", help_heading = PAGE)]
    pub audit_limit: u64,

    /// Address of the admin endpoint: /livez, /readyz and /metrics. With port 0 it takes a free
    /// port, and logs which
    #[arg(long, env, default_value = "127.0.0.1:0", value_name = "HOST:PORT", help_heading = PAGE)]
    pub admin_addr: SocketAddr,

    /// Whether the page may replay dead letters
    #[arg(long, env, value_enum, default_value_t = Switch::Off, value_name = "SWITCH", help_heading = REPLAY)]
    pub replay: Switch,

    /// User to replay as [default: the one that reads]
    #[arg(long, env, value_name = "USER", help_heading = REPLAY)]
    pub replay_user: Option<String>,

    /// Password of that user
    #[arg(long, env, value_name = "PASSWORD", hide_env_values = true, help_heading = REPLAY)]
    pub replay_password: Option<String>,

    /// What the subjects of answers to that user begin with
    #[arg(long, env, default_value = "_INBOX_replayer", value_name = "PREFIX", help_heading = REPLAY)]
    pub replay_inbox_prefix: String,

    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would show it as the help of the whole group")]
    pub nats: NatsSettings,

    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would show it as the help of the whole group")]
    pub telemetry: TelemetrySettings,

    #[command(subcommand)]
    #[expect(missing_docs, reason = "clap would show it as the help of the whole group")]
    pub command: Option<workqueue::Command>,
}

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// It may.
    On,
    /// It may not.
    Off,
}

impl Settings {
    /// How to connect in order to replay, if that is allowed.
    pub(crate) fn replay_nats(&self) -> Option<NatsSettings> {
        if self.replay == Switch::Off {
            return None;
        }
        let nats = self.nats.clone();
        let Some(user) = self.replay_user.clone().filter(|user| !user.is_empty()) else {
            return Some(nats);
        };
        Some(NatsSettings {
            nats_user: Some(user),
            nats_password: self.replay_password.clone(),
            nats_creds: None,
            nats_inbox_prefix: self.replay_inbox_prefix.clone(),
            ..nats
        })
    }
}

/// An address that can be asked in plain HTTP.
fn api_url(text: &str) -> Result<Uri, String> {
    let help = || "write an address such as http://127.0.0.1:8000".to_owned();
    let uri: Uri = text.parse().map_err(|_| help())?;
    if uri.scheme_str() == Some("http") && uri.host().is_some() && uri.query().is_none() {
        Ok(uri)
    } else {
        Err(help())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Settings::command().debug_assert();
    }

    #[test]
    fn the_api_is_asked_in_plain_http() {
        assert!(api_url("http://requestor:8000").is_ok());
        for wrong in ["", "requestor:8000", "https://requestor", "http://a/?b", "ftp://a"] {
            assert!(api_url(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn nobody_replays_unless_it_is_allowed() {
        let settings = |arguments: &[&str]| {
            Settings::parse_from(["viewer", "--nats-user", "viewer"].iter().chain(arguments))
        };
        let user =
            |arguments: &[&str]| settings(arguments).replay_nats().map(|nats| nats.nats_user);
        assert_eq!(user(&["--replay-user", "replayer"]), None);
        assert_eq!(user(&["--replay", "on"]), Some(Some("viewer".to_owned())));
        let own = ["--replay", "on", "--replay-user", "replayer"];
        assert_eq!(user(&own), Some(Some("replayer".to_owned())));
    }
}
