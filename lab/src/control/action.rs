//! The actions with which a person changes the running lab.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde::{Deserialize, Serialize};
use testkit::service::Service;

/// An action on the running lab: a command at a terminal, or the message of a button of the page.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Subcommand)]
#[serde(tag = "action", rename_all = "lowercase", deny_unknown_fields)]
pub enum Action {
    /// Starts the processes of the running lab that were stopped or killed
    Start {
        /// requestors, generators, broker, or a replica such as generator-1
        target: Target,
        /// Start the broker with an empty store, as after the loss of its disk
        #[arg(long)]
        #[serde(default)]
        empty: bool,
    },
    /// Stops requestors, generators, or one of them, such as generator-1, gracefully (SIGTERM)
    Stop {
        /// requestors, generators, or a replica such as generator-1
        target: Target,
    },
    /// Kills requestors, generators, one of them, or the broker (SIGKILL)
    Kill {
        /// requestors, generators, broker, or a replica such as generator-1
        target: Target,
    },
    /// Pauses requestors, generators, or one of them (SIGSTOP)
    Pause {
        /// requestors, generators, or a replica such as generator-1
        target: Target,
    },
    /// Resumes paused requestors, generators, or one of them (SIGCONT)
    Resume {
        /// requestors, generators, or a replica such as generator-1
        target: Target,
    },
    /// Sets the number of replicas of a service
    Scale {
        /// requestors or generators
        target: Target,
        replicas: u32,
    },
    /// Replaces the replicas of a service by new processes, one after another, as a deployment does
    Deploy {
        /// requestors or generators
        target: Target,
        /// Deploy the generator of a later release, which also reads version 2 of a request
        #[arg(long)]
        #[serde(default)]
        newer: bool,
    },
    /// Changes the rate, the work time or the failure rate of the running lab, or several of them at once
    Set(Changes),
}

/// Settings to change; the others stay.
#[derive(Args, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[group(required = true, multiple = true)]
pub struct Changes {
    /// Requests a second, of all requestors together, or max
    #[arg(long, value_parser = valid_rate, value_name = "RATE", allow_hyphen_values = true)]
    pub rate: Option<String>,

    /// How long a string takes to make
    #[arg(long, value_parser = valid_time, value_name = "TIME", allow_hyphen_values = true)]
    pub work_time: Option<String>,

    /// Share of the attempts at making strings that fail, from 0 to 1
    #[arg(long, value_parser = valid_share, value_name = "SHARE", allow_hyphen_values = true)]
    pub failure_rate: Option<String>,
}

impl Changes {
    /// Checks changes that did not come from a command line.
    ///
    /// # Errors
    ///
    /// If a value is invalid. The message names a valid one.
    pub(crate) fn validate(&self) -> Result<(), String> {
        let check = |value: &Option<String>, of: fn(&str) -> Result<String, String>| {
            value.as_deref().map_or(Ok(()), |value| of(value).map(drop))
        };
        check(&self.rate, valid_rate)?;
        check(&self.work_time, valid_time)?;
        check(&self.failure_rate, valid_share)
    }
}

fn valid_rate(text: &str) -> Result<String, String> {
    text.parse::<requestor::Rate>().map(|_| text.to_owned())
}

fn valid_time(text: &str) -> Result<String, String> {
    workqueue::duration(text).map(|_: Duration| text.to_owned())
}

fn valid_share(text: &str) -> Result<String, String> {
    generator::share(text).map(|_| text.to_owned())
}

/// The target of an action.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Target {
    /// All replicas of a service.
    Service(Service),
    /// The broker; in a cluster, the first broker to which the action applies.
    Broker,
    /// A replica: its service and its number.
    Replica(Service, u32),
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "broker" {
            return Ok(Self::Broker);
        }
        for service in Service::ALL {
            match text.strip_prefix(service.name()) {
                Some("s") => return Ok(Self::Service(service)),
                Some(number) => {
                    let number = number.strip_prefix('-').and_then(|number| number.parse().ok());
                    return number.map(|number| Self::Replica(service, number)).ok_or_else(wrong);
                }
                None => {}
            }
        }
        Err(wrong())
    }
}

fn wrong() -> String {
    "write requestors, generators, broker, or the name of a replica, such as generator-1".to_owned()
}

impl TryFrom<String> for Target {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Target> for String {
    fn from(target: Target) -> Self {
        target.to_string()
    }
}

impl fmt::Display for Target {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(service) => write!(formatter, "{service}s"),
            Self::Broker => formatter.write_str("broker"),
            Self::Replica(service, number) => write!(formatter, "{service}-{number}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn target_is_a_service_the_broker_or_a_replica() {
        for name in ["requestors", "generators", "broker", "generator-1", "requestor-12"] {
            assert_eq!(name.parse::<Target>().unwrap().to_string(), name);
        }
        for name in ["", "generator", "generator-", "generator-x", "brokers", "gateway"] {
            let error = name.parse::<Target>().unwrap_err();
            assert!(error.contains("such as generator-1"), "{name}: {error}");
        }
    }

    #[test]
    fn action_is_read_from_json() {
        let read = |value| serde_json::from_value::<Action>(value);
        let scale = Action::Scale { target: Target::Service(Service::Generator), replicas: 3 };
        let written = json!({ "action": "scale", "target": "generators", "replicas": 3 });
        assert_eq!(serde_json::to_value(&scale).unwrap(), written);
        assert_eq!(read(written).unwrap(), scale);
        let set = Changes { rate: Some("50".to_owned()), ..Changes::default() };
        assert_eq!(read(json!({ "action": "set", "rate": "50" })).unwrap(), Action::Set(set));
        for wrong in [
            json!({ "action": "explode", "target": "generators" }),
            json!({ "action": "kill", "target": "gateway" }),
            json!({ "action": "scale", "target": "generators" }),
        ] {
            read(wrong).unwrap_err();
        }
    }

    #[test]
    fn invalid_change_of_a_setting_is_refused() {
        let changes = |rate: &str| Changes { rate: Some(rate.to_owned()), ..Changes::default() };
        assert_eq!(changes("max").validate(), Ok(()));
        assert!(changes("fast").validate().unwrap_err().contains("requests a second"));
        let share = Changes { failure_rate: Some("2".to_owned()), ..Changes::default() };
        assert!(share.validate().unwrap_err().contains("from 0 to 1"));
    }
}
