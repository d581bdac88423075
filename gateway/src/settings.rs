use std::net::SocketAddr;

use clap::builder::NonEmptyStringValueParser;
use clap::{Parser, ValueEnum};
use serde::Serialize;
use workqueue::topology::Limits;
use workqueue::{NatsSettings, TelemetrySettings, address};

/// The headings of the gateway's settings, in its help.
const GATEWAY: &str = "Gateway";
const CONTROL: &str = "Control";

/// The placeholder for the id in the address of a trace.
pub(crate) const TRACE_ID: &str = "{trace_id}";

const TRACE_URL_HELP: &str = "Address of a trace, to which the page links, with {trace_id} in the place of its id, such as \
                              http://127.0.0.1:16686/trace/{trace_id} [default: none]";

/// The HTTP API and the web page, on one port.
///
/// Publishes requests to the queue REQUESTS, answers with their states, and shows the queues, the
/// replicas and the facts as a page. It uses only the broker, so it works while either service, or both, are
/// down. Runs until SIGTERM, SIGINT or SIGHUP. Any number of replicas can run at a time.
///
/// Every setting is a flag, and an environment variable of the same name.
#[derive(Clone, Debug, Parser)]
#[command(version, max_term_width = 100, disable_help_subcommand = true)]
#[expect(missing_docs, reason = "clap would show it as the help of a whole group of settings")]
pub struct GatewaySettings {
    /// Address of the page and the HTTP API. They have no authentication: restrict who can reach them.
    /// With port 0 it takes a free port, and logs it [default: 127.0.0.1:8080, or a free port if
    /// 8080 is taken]
    #[arg(long, env, value_parser = address, value_name = "HOST:PORT", help_heading = GATEWAY)]
    pub gateway_addr: Option<SocketAddr>,

    /// Host names of the gateway, separated by commas, besides addresses and localhost. It refuses requests under any
    /// other name, so that no other site can pose as the gateway [default: none]
    #[arg(long, env, value_delimiter = ',', value_parser = host_name, value_name = "NAMES", help_heading = GATEWAY)]
    pub gateway_hosts: Vec<String>,

    /// Address of a trace, to which the page links [default: none]
    #[arg(long, env, value_parser = trace_url, help = TRACE_URL_HELP, value_name = "URL", help_heading = GATEWAY)]
    pub trace_url: Option<String>,

    /// The most requests that the audit button of the page reads. Each needs time, and some 400 bytes of memory.
    /// `decoupled audit` has no limit
    #[arg(long, env, default_value_t = 250_000, value_parser = workqueue::number::<u64>(0..), value_name = "NUMBER", help_heading = GATEWAY)]
    pub audit_limit: u64,

    /// Address of the admin endpoint: /livez, /readyz and /metrics. With port 0 it takes a free
    /// port, and logs it
    #[arg(long, env, default_value = "127.0.0.1:0", value_parser = address, value_name = "HOST:PORT", help_heading = GATEWAY)]
    pub admin_addr: SocketAddr,

    /// Name of this replica, in messages and logs [default: the host's name and the process id]
    #[arg(long, env, default_value_t = workqueue::default_instance(), hide_default_value = true, value_parser = NonEmptyStringValueParser::new(), value_name = "NAME", help_heading = GATEWAY)]
    pub instance: String,

    /// Whether the page and the API may pause and resume queues, and replay and discard dead letters. There is no
    /// authentication: with `on`, each client that reaches the gateway may do it
    #[arg(long, env, value_enum, default_value_t = Switch::Off, value_name = "SWITCH", help_heading = CONTROL)]
    pub control: Switch,

    /// User of the broker for these actions [default: the user of the gateway]
    #[arg(long, env, value_name = "USER", help_heading = CONTROL)]
    pub control_user: Option<String>,

    /// Password of that user
    #[arg(long, env, requires = "control_user", value_name = "PASSWORD", hide_env_values = true, help_heading = CONTROL)]
    pub control_password: Option<String>,

    /// Prefix of the inboxes of that user
    #[arg(long, env, default_value = "_INBOX_operator", value_parser = workqueue::subject, value_name = "PREFIX", help_heading = CONTROL)]
    pub control_inbox_prefix: String,

    /// How the page speaks to the lab that runs this gateway: its address, `#` and its token
    #[arg(long, env, value_parser = lab, hide = true)]
    pub lab: Option<LabAddress>,

    #[command(flatten)]
    pub nats: NatsSettings,

    #[command(flatten)]
    pub limits: Limits,

    #[command(flatten)]
    pub telemetry: TelemetrySettings,

    #[command(subcommand)]
    pub command: Option<workqueue::Command>,
}

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// Allowed.
    On,
    /// Not allowed.
    Off,
}

/// The address of a lab, and the proof that the page may use it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LabAddress {
    /// Where it listens, such as `http://127.0.0.1:4321`.
    pub url: String,
    /// The token that the lab expects.
    pub token: String,
}

fn lab(text: &str) -> Result<LabAddress, String> {
    let address = |text: &str| {
        let (url, token) = text.split_once('#')?;
        let addr: SocketAddr = url.strip_prefix("http://")?.parse().ok()?;
        let (url, token) = (format!("http://{addr}"), token.to_owned());
        addr.ip().is_loopback().then_some(LabAddress { url, token })
    };
    address(text).ok_or_else(|| "only `cargo lab` sets this".to_owned())
}

/// The name of a host, or nothing.
fn host_name(text: &str) -> Result<String, String> {
    let name = text.trim();
    if name.contains([':', '/']) {
        return Err("write names without a scheme and a port: gateway.example".to_owned());
    }
    Ok(name.to_owned())
}

fn trace_url(text: &str) -> Result<String, String> {
    let is_one =
        text.contains(TRACE_ID) && workqueue::web_address(&text.replace(TRACE_ID, "0")).is_ok();
    let help = || format!("write an address such as http://127.0.0.1:16686/trace/{TRACE_ID}");
    if is_one { Ok(text.to_owned()) } else { Err(help()) }
}

impl GatewaySettings {
    /// The settings of the connection for control, if `CONTROL` is on.
    pub(crate) fn control_nats(&self) -> Option<NatsSettings> {
        if self.control == Switch::Off {
            return None;
        }
        let nats = self.nats.clone();
        let Some(user) = self.control_user.clone().filter(|user| !user.is_empty()) else {
            return Some(nats);
        };
        Some(NatsSettings {
            nats_user: Some(user),
            nats_password: self.control_password.clone(),
            nats_token: None,
            nats_nkey: None,
            nats_creds: None,
            nats_inbox_prefix: self.control_inbox_prefix.clone(),
            ..nats
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn command_line_is_valid() {
        GatewaySettings::command().debug_assert();
    }

    #[test]
    fn address_of_a_lab_is_on_this_machine() {
        let address = lab("http://127.0.0.1:4321#token").unwrap();
        assert_eq!((&*address.url, &*address.token), ("http://127.0.0.1:4321", "token"));
        for wrong in
            ["http://192.0.2.1:4321#token", "http://127.0.0.1:4321", "127.0.0.1:1#token", ""]
        {
            assert!(lab(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn name_of_a_host_has_no_scheme_and_no_port() {
        let hosts = |text| GatewaySettings::try_parse_from(["gateway", "--gateway-hosts", text]);
        let named = hosts("a.example, b.example").unwrap().gateway_hosts;
        assert_eq!(named, ["a.example", "b.example"]);
        for wrong in ["a.example:8080", "http://a.example"] {
            assert!(hosts(wrong).unwrap_err().to_string().contains("gateway.example"), "{wrong}");
        }
    }

    #[test]
    fn control_is_off_by_default() {
        let settings = |arguments: &[&str]| {
            GatewaySettings::parse_from(
                ["gateway", "--nats-user", "gateway"].iter().chain(arguments),
            )
        };
        let user =
            |arguments: &[&str]| settings(arguments).control_nats().map(|nats| nats.nats_user);
        assert_eq!(user(&["--control-user", "operator"]), None);
        assert_eq!(user(&["--control", "on"]), Some(Some("gateway".to_owned())));
        let own = ["--control", "on", "--control-user", "operator"];
        assert_eq!(user(&own), Some(Some("operator".to_owned())));
    }
}
