use std::str::FromStr;

use clap::Parser;
use workqueue::Priority;

/// Settings that no program reads any more, and the instruction for each.
pub const RETIRED: &[(&str, &str)] = &[
    ("API_ADDR", "set GATEWAY_ADDR for the gateway"),
    ("API_HOSTS", "set GATEWAY_HOSTS for the gateway"),
    ("API_URL", "the gateway answers the API itself; remove it"),
    ("VIEWER_ADDR", "set GATEWAY_ADDR for the gateway"),
    ("VIEWER_HOSTS", "set GATEWAY_HOSTS for the gateway"),
    // Settings of the Compose file, which passes them to the gateway.
    ("VIEWER_PASSWORD", "set GATEWAY_PASSWORD"),
    ("VIEWER_PORT", "set GATEWAY_PORT"),
    ("KEEPER_PASSWORD", "set BACKUP_PASSWORD"),
    ("REPLAYER_PASSWORD", "set OPERATOR_PASSWORD"),
    ("REPLAY", "set CONTROL for the gateway"),
    ("REPLAY_USER", "set CONTROL_USER for the gateway"),
    ("REPLAY_PASSWORD", "set CONTROL_PASSWORD for the gateway"),
    ("REPLAY_INBOX_PREFIX", "set CONTROL_INBOX_PREFIX for the gateway"),
];

/// Asks for random strings, and stores them.
///
/// Publishes requests to the queue REQUESTS, takes the responses from the queue RESPONSES, stores
/// their strings in the bucket `stored`, and publishes an acknowledgment to the queue ACKNOWLEDGMENTS.
/// Runs until SIGTERM, SIGINT or SIGHUP. Any number of replicas can run at a time.
///
/// Every setting is a flag, and an environment variable of the same name.
#[derive(Clone, Debug, Parser)]
#[command(
    version,
    max_term_width = 100,
    disable_help_subcommand = true,
    next_help_heading = "Requests"
)]
pub struct RequestorSettings {
    /// Requests a second, such as 0.5 or 1000. With 0 it makes no requests and only stores responses; with max it makes
    /// requests as fast as the queue accepts them
    #[arg(long, env, default_value = "1", value_name = "RATE", allow_hyphen_values = true)]
    pub request_rate: Rate,

    /// Number of requests to make. Then exit: with 0 once the strings of all requests are stored, or with 1 and the ids
    /// of those without a result, such as dead letters and cancelled requests. If it is stopped before, it exits with 1
    /// [default: no end]
    #[arg(long, env, value_parser = workqueue::number::<u64>(0..), value_name = "NUMBER")]
    pub request_total: Option<u64>,

    /// Priority of its requests: high, normal or low
    #[arg(long, env, default_value_t, value_name = "PRIORITY")]
    pub request_priority: Priority,

    /// How many strings each request asks for, 1 to 1000
    #[arg(long, env, default_value_t = 1, value_parser = workqueue::number::<u32>(1..=1000), value_name = "NUMBER")]
    pub string_count: u32,

    /// How many characters each string has, 1 to 1024; at most 65536 in one request
    #[arg(long, env, default_value_t = 64, value_parser = workqueue::number::<u32>(1..=1024), value_name = "NUMBER")]
    pub string_length: u32,

    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would show it as the help of the whole group")]
    pub service: workqueue::Settings,

    #[command(subcommand)]
    #[expect(missing_docs, reason = "clap would show it as the help of the whole group")]
    pub command: Option<workqueue::Command>,
}

/// The lowest rate above zero: one request in thirty years.
const SLOWEST: f64 = 1e-9;

/// The rate of the requests.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rate {
    /// No requests.
    Zero,
    /// This many requests a second, more than zero.
    PerSecond(f64),
    /// As fast as the queue accepts them.
    Max,
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse::<f64>() {
            _ if text == "max" => Ok(Self::Max),
            Ok(0.0) => Ok(Self::Zero),
            Ok(rate) if rate >= SLOWEST && rate.is_finite() => Ok(Self::PerSecond(rate)),
            _ => Err("write requests a second, such as 0.5 or 1000, or 0, or max".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn command_line_is_valid() {
        RequestorSettings::command().debug_assert();
    }

    #[test]
    fn rate_is_a_number_a_second_or_max() {
        assert_eq!("0".parse(), Ok(Rate::Zero));
        assert_eq!("0.5".parse(), Ok(Rate::PerSecond(0.5)));
        assert_eq!("max".parse(), Ok(Rate::Max));
        for wrong in ["-1", "", "fast", "inf", "NaN", "1/s", "1e-20"] {
            assert!(wrong.parse::<Rate>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn negative_rate_is_explained() {
        for words in
            [["requestor", "--request-rate=-1"].as_slice(), &["requestor", "--request-rate", "-1"]]
        {
            let error = RequestorSettings::try_parse_from(words).unwrap_err().to_string();
            assert!(error.contains("'-1' for '--request-rate"), "{error}");
            assert!(error.contains("requests a second"), "{error}");
        }
    }
}
