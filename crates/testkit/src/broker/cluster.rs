//! One broker, or a cluster of several, each of which can be killed and restarted.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use futures_util::future::{join_all, try_join_all};
use serde_json::Value;
use tokio::time::{Instant, sleep, timeout};

use super::ready;
use super::server::{Broker, BrokerOptions, Membership};
use crate::http;

/// The time limit for the members of a cluster to agree. One election takes up to nine seconds, and there may be
/// several.
const LIMIT: Duration = Duration::from_mins(1);

/// The time limit for an answer. A paused server accepts connections, and does not answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

const PAUSE: Duration = Duration::from_millis(50);

/// The most brokers that keep a copy of a stream. With three copies one broker may die.
const MOST_COPIES: usize = 3;

/// A broker, or a cluster of several, all on 127.0.0.1. They are killed when this is dropped.
#[derive(Debug)]
pub struct Brokers {
    brokers: Vec<Broker>,
}

impl From<Broker> for Brokers {
    /// A single broker that runs already, with options of its own.
    fn from(broker: Broker) -> Self {
        Self { brokers: vec![broker] }
    }
}

impl Brokers {
    /// Starts one broker, or a cluster of several, and waits until it accepts messages. Each broker has a directory of
    /// its own in `directory`, or a temporary one, which is removed with the broker.
    ///
    /// A cluster cannot use the store of a single broker, and a single broker cannot use that of a cluster.
    ///
    /// # Errors
    ///
    /// If no program is found, or if within a minute one of the brokers does not answer, or they do not agree.
    pub async fn start(count: u16, directory: Option<PathBuf>) -> anyhow::Result<Self> {
        ensure!(count > 0, "a cluster of no brokers keeps no messages");
        let names: Vec<String> = match count {
            1 => vec!["broker".to_owned()],
            _ => (1..=count).map(|number| format!("broker-{number}")).collect(),
        };
        let prepared = names.iter().map(|name| {
            let directory = directory.as_ref().map(|directory| directory.join(name));
            Broker::prepare(BrokerOptions { directory, ..BrokerOptions::default() })
        });
        let mut brokers = try_join_all(prepared).await?;
        if count > 1 {
            form_cluster(&mut brokers, names)?;
        }
        try_join_all(brokers.iter_mut().map(Broker::launch)).await?;
        let mut started = Self { brokers };
        started.agree().await?;
        Ok(started)
    }

    /// Where clients connect to: the addresses of all brokers, separated by commas.
    #[must_use]
    pub fn url(&self) -> String {
        self.brokers.iter().map(Broker::url).collect::<Vec<_>>().join(",")
    }

    /// The ports for clients. They stay the same over restarts.
    #[must_use]
    pub fn ports(&self) -> Vec<u16> {
        self.brokers.iter().map(Broker::port).collect()
    }

    /// The number of brokers, running or not.
    #[expect(clippy::len_without_is_empty, reason = "there is always one")]
    #[must_use]
    pub fn len(&self) -> usize {
        self.brokers.len()
    }

    /// The brokers, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Broker> {
        self.brokers.iter()
    }

    /// The brokers, in order, to change them or to check whether they run.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Broker> {
        self.brokers.iter_mut()
    }

    /// Kills one of them (SIGKILL), see [`Broker::kill`].
    ///
    /// # Errors
    ///
    /// If there is no such broker, or it does not run.
    pub async fn kill(&mut self, index: usize) -> anyhow::Result<()> {
        self.broker(index)?.kill().await
    }

    /// Starts one of them again, on the same ports and with its store, and waits until it answers. In a cluster it waits
    /// until all running brokers have caught up with each other, if they have a quorum. A running broker is stopped
    /// first.
    ///
    /// # Errors
    ///
    /// As [`Self::start`].
    pub async fn restart(&mut self, index: usize) -> anyhow::Result<()> {
        self.broker(index)?.restart().await?;
        self.agree().await
    }

    /// Stops all running brokers gracefully (SIGTERM), one after the other.
    ///
    /// # Errors
    ///
    /// If one has not ended after 30 seconds.
    pub async fn stop(&mut self) -> anyhow::Result<()> {
        for broker in self.running()? {
            broker.stop().await?;
        }
        Ok(())
    }

    /// The number of copies of each stream.
    #[must_use]
    pub fn copies(&self) -> usize {
        self.len().min(MOST_COPIES)
    }

    /// Parses a number of brokers.
    ///
    /// # Errors
    ///
    /// If there can be no such cluster, with the reason.
    pub fn count(text: &str) -> Result<u16, String> {
        match text.parse() {
            Ok(count @ (1 | 3 | 5)) => Ok(count),
            _ => {
                Err("write 1, 3 or 5: a cluster goes on while more than half of its brokers run, \
                      so that an even number survives no more than the odd one below it"
                    .to_owned())
            }
        }
    }

    /// Whether all of them run: one may have ended by itself.
    ///
    /// # Errors
    ///
    /// If the state of a process cannot be read.
    pub fn all_run(&mut self) -> anyhow::Result<bool> {
        Ok(self.running()?.len() == self.len())
    }

    /// The index of the stream's leader, if there is one. It has to report that itself, because the others may not know
    /// yet that it has died.
    ///
    /// # Errors
    ///
    /// If none of them answers.
    pub async fn leader(&self, stream: &str) -> anyhow::Result<Option<usize>> {
        let mut answers = Vec::new();
        for (index, broker) in self.brokers.iter().enumerate() {
            answers.push(broker.leads(stream).await);
            if let Some(Ok(true)) = answers.last() {
                return Ok(Some(index));
            }
        }
        if answers.iter().any(Result::is_ok) {
            return Ok(None);
        }
        answers.pop().context("there is no broker")?.map(|_| None)
    }

    fn running(&mut self) -> anyhow::Result<Vec<&mut Broker>> {
        let mut running = Vec::new();
        for broker in &mut self.brokers {
            if broker.runs()? {
                running.push(broker);
            }
        }
        Ok(running)
    }

    fn broker(&mut self, index: usize) -> anyhow::Result<&mut Broker> {
        self.brokers.get_mut(index).with_context(|| format!("there is no broker {index}"))
    }

    /// Waits until all running brokers have caught up with each other. Does nothing for a single broker, or without a
    /// quorum.
    async fn agree(&mut self) -> anyhow::Result<()> {
        let count = self.len();
        let running = self.running()?;
        if count == 1 || running.len() <= count / 2 {
            return Ok(());
        }
        let limit = Instant::now() + LIMIT;
        while let Err(missing) = agreed(&running).await {
            if Instant::now() > limit {
                let logs: Vec<String> = running.iter().map(|broker| broker.log_tail()).collect();
                let logs = logs.join("\n\n");
                bail!(
                    "the brokers do not agree within {LIMIT:?}: {missing:#}; their logs:\n{logs}"
                );
            }
            sleep(PAUSE).await;
        }
        Ok(())
    }
}

/// The number of brokers that greet a client on these ports in time, even if a person has restarted them by hand. A
/// paused broker accepts connections, and does not greet.
pub async fn answering(ports: &[u16], limit: Duration) -> usize {
    let greetings = ports.iter().map(|port| timeout(limit, ready::info(*port)));
    let greetings = join_all(greetings).await;
    greetings.iter().filter(|greeting| matches!(greeting, Ok(Ok(_)))).count()
}

/// Writes the addresses of the others into the configuration of each broker.
fn form_cluster(brokers: &mut [Broker], names: Vec<String>) -> anyhow::Result<()> {
    let routes: Vec<u16> =
        brokers.iter_mut().map(Broker::prepare_route).collect::<Result<_, _>>()?;
    for (index, (broker, name)) in brokers.iter_mut().zip(names).enumerate() {
        let mut routes = routes.clone();
        routes.remove(index);
        broker.membership = Some(Membership { name, routes });
    }
    Ok(())
}

/// Succeeds if all of these brokers are healthy, their leader knows it, and they have all routes to each other. While a
/// route is missing, the messages that it should carry are lost, and so are answers to clients.
async fn agreed(brokers: &[&mut Broker]) -> anyhow::Result<()> {
    let mut known = 0;
    for broker in brokers {
        let health = broker.ask("/healthz").await?;
        ensure!(health["status"] == "ok", "{} says {health}", broker.name());
        let server = broker.ask("/varz").await?;
        // The system account has a route of its own besides the pool.
        let each = 1 + server["cluster"]["pool_size"].as_u64().unwrap_or_default();
        let routes = server["routes"].as_u64().unwrap_or_default();
        let all = each * (brokers.len() as u64 - 1);
        ensure!(routes == all, "{} has {routes} routes, and should have {all}", broker.name());
        let cluster = broker.ask("/jsz").await?["meta_cluster"].take();
        if cluster["leader"] == broker.name() {
            let members = cluster["replicas"].as_array().map(Vec::as_slice).unwrap_or_default();
            let current = |member: &&Value| member["current"] == true && member["offline"] != true;
            known = 1 + members.iter().filter(current).count();
        }
    }
    ensure!(known >= brokers.len(), "their leader knows of {known} of {}", brokers.len());
    Ok(())
}

impl Broker {
    /// Its name in the cluster.
    #[must_use]
    pub fn name(&self) -> &str {
        self.membership.as_ref().map_or("broker", |membership| &membership.name)
    }

    /// The answer of its monitor for a path such as `/healthz`.
    async fn ask(&self, path: &str) -> anyhow::Result<Value> {
        let what = || format!("the monitor of {} says nothing to {path}", self.name());
        let addr = (Ipv4Addr::LOCALHOST, self.ports.monitor).into();
        // An unhealthy broker answers with another status, and with the reason in the body.
        let answer = timeout(ANSWER_LIMIT, http::get(addr, path)).await;
        let (_status, body) = answer.with_context(what)?.with_context(what)?;
        serde_json::from_str(&body).with_context(|| format!("{}, but: {body}", what()))
    }

    /// Whether it leads this stream, by its own account. A single broker leads all of its streams.
    async fn leads(&self, stream: &str) -> anyhow::Result<bool> {
        let answer = self.ask("/jsz?accounts=true&streams=true").await?;
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let accounts = list(&answer["account_details"]);
        let mut streams = accounts.iter().flat_map(|account| list(&account["stream_detail"]));
        Ok(streams.any(|detail| {
            let alone = self.membership.is_none();
            detail["name"] == stream && (alone || detail["cluster"]["leader"] == self.name())
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cluster_has_an_odd_number_of_brokers() {
        assert_eq!(["1", "3", "5"].map(Brokers::count), [Ok(1), Ok(3), Ok(5)]);
        for wrong in ["0", "2", "4", "7", "-1", "many", ""] {
            assert!(Brokers::count(wrong).unwrap_err().starts_with("write 1, 3 or 5"), "{wrong}");
        }
    }
}
