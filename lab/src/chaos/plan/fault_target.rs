//! The target of a fault, and its form in a plan.

use std::fmt;
use std::str::FromStr;

use anyhow::Context as _;
use contract::{facts, queues};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use testkit::service::Service;
use workqueue::dead_letters;

/// The target of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultTarget {
    /// One replica, such as `generator-1`.
    Replica(Member),
    /// All replicas of a service: `requestors` or `generators`.
    Service(Service),
    /// One broker, such as `broker-1`.
    Broker(u16),
    /// The broker that leads a stream at the time of the fault, such as `leader of REQUESTS`.
    Leader(&'static str),
    /// A queue, such as `REQUESTS`.
    Queue(workqueue::Queue),
}

/// One replica of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Member {
    /// Its service.
    pub service: Service,
    /// Its number, from 1.
    pub number: u32,
}

/// All streams, each of which a broker leads.
pub(super) fn streams() -> impl Iterator<Item = &'static str> {
    let queues = queues::ALL.into_iter().map(|queue| queue.stream);
    let facts = facts::ALL.into_iter().map(|bucket| bucket.stream);
    queues.chain(facts).chain([dead_letters::STREAM])
}

impl fmt::Display for FaultTarget {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Replica(member) => member.fmt(formatter),
            Self::Service(service) => write!(formatter, "{service}s"),
            Self::Broker(number) => write!(formatter, "broker-{number}"),
            Self::Leader(stream) => write!(formatter, "leader of {stream}"),
            Self::Queue(queue) => formatter.write_str(queue.stream),
        }
    }
}

impl fmt::Display for Member {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}-{}", self.service, self.number)
    }
}

impl FromStr for FaultTarget {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        if let Some(name) = text.strip_prefix("leader of ") {
            let stream = streams().find(|stream| *stream == name);
            return Ok(Self::Leader(stream.with_context(|| format!("there is no stream {name}"))?));
        }
        let mut whole =
            queues::ALL.map(Self::Queue).into_iter().chain(Service::ALL.map(Self::Service));
        if let Some(target) = whole.find(|target| target.to_string() == text) {
            return Ok(target);
        }
        let numbered = text.split_once('-').and_then(|(name, number)| {
            if name == "broker" {
                return Some(Self::Broker(number.parse().ok()?));
            }
            let service = Service::ALL.into_iter().find(|service| service.name() == name)?;
            Some(Self::Replica(Member { service, number: number.parse().ok()? }))
        });
        numbered.with_context(|| {
            format!(
                "{text} is no target; write something like generator-1, requestors, broker-1, \
                 leader of REQUESTS, or the name of a queue"
            )
        })
    }
}

impl Serialize for FaultTarget {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for FaultTarget {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}
