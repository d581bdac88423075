//! The replicas of both services and their connections to the brokers, with the faults of both.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::signal::Signal;
use testkit::programs::Programs;
use testkit::proxy::Proxy;
use testkit::service::Service;
use workqueue::{Priority, chain};

use super::clients::MOST_A_SECOND;
use super::plan::{Action, Cast, Fault, FaultTarget, Member};
use crate::event_log::EventLog;
use crate::replica::{Replica, WATCH, share};

/// The delay of a healthy network, in each direction. Without a delay, a kill would hardly ever hit a message on its
/// way, because on one machine an answer takes microseconds.
const LATENCY: Duration = Duration::from_millis(3);

/// The delay of a slow network.
const DELAY: Duration = Duration::from_millis(100);

/// The `ACK_WAIT`, unless the environment sets it. With the default of 30 s a run would take long to end.
const ACK_WAIT: &str = "2s";

/// The settings of all replicas.
#[derive(Debug)]
pub(super) struct ReplicaConfig {
    pub(super) programs: Programs,
    /// The directory of the replicas' logs.
    pub(super) directory: PathBuf,
    /// The ports of the brokers.
    pub(super) brokers: Vec<u16>,
    /// The number of copies of each stream.
    pub(super) copies: usize,
    /// Requests a second, of all requestors together.
    pub(super) rate: requestor::Rate,
}

impl ReplicaConfig {
    /// The rate limit of all generators together: a quarter above the rate of all requests, those of the clients
    /// included, so that it has an effect after each fault. None without such a rate.
    pub(super) fn limit(&self) -> Option<NonZeroU32> {
        match self.rate {
            requestor::Rate::PerSecond(rate) => {
                let limit = ((rate + MOST_A_SECOND) * 1.25).ceil().min(f64::from(u32::MAX));
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "it is within"
                )]
                NonZeroU32::new(limit as u32)
            }
            requestor::Rate::Zero | requestor::Rate::Max => None,
        }
    }

    /// The settings of a process that connects to these addresses.
    fn settings(&self, urls: String) -> [(&'static str, String); 3] {
        let ack_wait = workqueue::variable("ACK_WAIT").unwrap_or_else(|| ACK_WAIT.to_owned());
        [("NATS_URL", urls), ("REPLICAS", self.copies.to_string()), ("ACK_WAIT", ack_wait)]
    }
}

/// All replicas, and their failures.
#[derive(Debug)]
pub(super) struct ChaosEnvironment<'a> {
    config: &'a ReplicaConfig,
    cast: Cast,
    log: &'a EventLog,
    slots: BTreeMap<Member, Slot>,
    /// Requests a second, of each requestor.
    rate: String,
    /// `declare --watch`, which keeps the topology. No fault affects it or its connection.
    pub(super) watch: Replica,
    /// The replicas that were told to stop, and may not have ended yet.
    leaving: Vec<Replica>,
    failures: Vec<String>,
}

/// The slot of a replica and its successors, with proxies of its own to the brokers.
#[derive(Debug)]
struct Slot {
    network: Vec<Proxy>,
    replica: Option<Replica>,
    /// The number of replicas that this slot has had.
    started: u32,
}

impl Slot {
    async fn new(brokers: &[u16]) -> anyhow::Result<Self> {
        let mut network = Vec::new();
        for port in brokers {
            let proxy = Proxy::start(*port).await?;
            proxy.slow(LATENCY);
            network.push(proxy);
        }
        Ok(Self { network, replica: None, started: 0 })
    }
}

impl<'a> ChaosEnvironment<'a> {
    /// Starts all replicas.
    pub(super) async fn start(
        config: &'a ReplicaConfig,
        cast: Cast,
        log: &'a EventLog,
    ) -> anyhow::Result<Self> {
        let rate = share(config.rate, cast.requestors);
        let urls: Vec<String> =
            config.brokers.iter().map(|port| format!("nats://127.0.0.1:{port}")).collect();
        let settings = config.settings(urls.join(","));
        let ReplicaConfig { programs, directory, .. } = config;
        let watch = Replica::start(&programs.decoupled, &WATCH, "declare", directory, settings)?;
        let (slots, leaving, failures) = (BTreeMap::new(), Vec::new(), Vec::new());
        let mut environment = Self { config, cast, log, slots, rate, watch, leaving, failures };
        for service in Service::ALL {
            environment.scale(service, cast.of(service)).await?;
        }
        Ok(environment)
    }

    /// Waits until all replicas are ready.
    ///
    /// # Errors
    ///
    /// If one of them has ended, or does not become ready in time.
    pub(super) async fn ready(&mut self) -> anyhow::Result<()> {
        for replica in self.slots.values_mut().filter_map(|slot| slot.replica.as_mut()) {
            replica.ready().await?;
        }
        Ok(())
    }

    /// Begins a fault.
    pub(super) async fn begin(&mut self, fault: &Fault) -> anyhow::Result<()> {
        match (fault.action, fault.to) {
            (Action::Scale, FaultTarget::Service(service)) => {
                self.scale(service, fault.replicas.unwrap_or_default()).await?;
            }
            (Action::Kill, FaultTarget::Replica(member)) => {
                if let Some(mut replica) = self.slot(member)?.replica.take() {
                    replica.process.kill().await?;
                }
            }
            (Action::Stop, FaultTarget::Replica(member)) => self.stop(member)?,
            (Action::Pause, FaultTarget::Replica(member)) => {
                self.slot(member)?.replica.as_ref().map_or(Ok(()), |it| it.process.pause())?;
            }
            (Action::Cut, FaultTarget::Replica(member)) => self.each_proxy(member, Proxy::cut)?,
            (Action::Hang, FaultTarget::Replica(member)) => self.each_proxy(member, Proxy::hang)?,
            (Action::Slow, FaultTarget::Replica(member)) => {
                self.each_proxy(member, |proxy| proxy.slow(DELAY))?;
            }
            (Action::Reset, FaultTarget::Replica(member)) => {
                self.each_proxy(member, Proxy::reset)?;
            }
            // `break_others` sends the poison and pauses queues, `break_brokers` kills the brokers.
            _ => {}
        }
        Ok(())
    }

    /// Ends a fault of [`Self::begin`].
    pub(super) async fn end(&mut self, fault: &Fault) -> anyhow::Result<()> {
        match (fault.action, fault.to) {
            (Action::Scale, FaultTarget::Service(service)) => {
                self.scale(service, self.cast.of(service)).await
            }
            (Action::Kill | Action::Stop, FaultTarget::Replica(member)) => {
                self.launch(member).await
            }
            (Action::Pause, FaultTarget::Replica(member)) => {
                self.slot(member)?.replica.as_ref().map_or(Ok(()), |it| it.process.resume())
            }
            (Action::Cut | Action::Hang | Action::Slow, FaultTarget::Replica(member)) => {
                self.each_proxy(member, |proxy| proxy.slow(LATENCY))
            }
            _ => Ok(()),
        }
    }

    /// Stops the requests, once all replicas are ready again after the faults: replaces the requestors by ones that only
    /// store responses. Returns once the stopped ones have ended.
    pub(super) async fn stop_asking(&mut self) -> anyhow::Result<()> {
        let not_ready = self.ready().await.err();
        self.failures.extend(not_ready.map(|error| chain(&*error)));
        "0".clone_into(&mut self.rate);
        for member in self.cast.members(Service::Requestor) {
            self.stop(member)?;
            self.launch(member).await?;
        }
        self.wait_for_stopping().await;
        Ok(())
    }

    /// Stops all replicas gracefully, and returns their failures. Only a bug causes one.
    pub(super) async fn finish(mut self) -> anyhow::Result<Vec<String>> {
        self.note_ended_replicas()?;
        let members: Vec<Member> = self.slots.keys().copied().collect();
        for member in members {
            self.stop(member)?;
        }
        self.wait_for_stopping().await;
        self.watch.terminate();
        self.failures.extend(ended(&mut self.watch).await.err());
        Ok(self.failures)
    }

    /// Waits until the replicas that were told to stop have ended gracefully.
    async fn wait_for_stopping(&mut self) {
        for mut replica in self.leaving.drain(..) {
            self.failures.extend(ended(&mut replica).await.err());
        }
    }

    /// Checks that no replica has ended by itself.
    pub(super) fn note_ended_replicas(&mut self) -> anyhow::Result<()> {
        for (member, slot) in &mut self.slots {
            let Some(replica) = &mut slot.replica else { continue };
            if replica.process.try_wait()?.is_some() {
                let failure = format!("{member} ended by itself: {}", replica.describe());
                self.log.note(&failure);
                self.failures.push(failure);
                slot.replica = None;
            }
        }
        Ok(())
    }

    /// Scales a service to this many replicas.
    async fn scale(&mut self, service: Service, count: u32) -> anyhow::Result<()> {
        for number in 1..=count {
            self.launch(Member { service, number }).await?;
        }
        let surplus: Vec<Member> = self
            .slots
            .keys()
            .filter(|member| member.service == service && member.number > count)
            .copied()
            .collect();
        for member in surplus {
            self.stop(member)?;
        }
        Ok(())
    }

    /// Starts a replica in its slot, unless there is one.
    async fn launch(&mut self, member: Member) -> anyhow::Result<()> {
        if !self.slots.contains_key(&member) {
            self.slots.insert(member, Slot::new(&self.config.brokers).await?);
        }
        let config = self.config;
        let rate = self.rate.clone();
        let slot = self.slot(member)?;
        if slot.replica.is_some() {
            return Ok(());
        }
        slot.started += 1;
        let name = format!("{member}.{}", slot.started);
        let urls = slot.network.iter().map(Proxy::url).collect::<Vec<_>>().join(",");
        // So that each lane has requests. The first requestor uses the normal priority, as most do.
        let lane = (member.number as usize) % Priority::ALL.len();
        let priority = Priority::ALL[lane].to_string();
        let settings = config.settings(urls).into_iter();
        let limit = config.limit().filter(|_| member.service == Service::Generator);
        let limit = limit.map(|limit| ("RATE_LIMIT", limit.to_string()));
        // Every other replica sends bundles, unless the environment sets the limit for all.
        let is_free = workqueue::variable("BUNDLE_LIMIT").is_none();
        let bundles = is_free && member.number.is_multiple_of(2);
        let bundles = bundles.then(|| ("BUNDLE_LIMIT", "8".to_owned()));
        let settings = settings.chain([("REQUEST_RATE", rate), ("REQUEST_PRIORITY", priority)]);
        let settings = settings.chain(limit).chain(bundles);
        let ReplicaConfig { programs, directory, .. } = config;
        let program = programs.of(member.service);
        slot.replica = Some(Replica::start(program, &[], name, directory, settings)?);
        Ok(())
    }

    /// Tells a replica to stop, if there is one, and does not wait for it. It may have much work to finish, and its
    /// successor starts meanwhile, as in a rollout.
    fn stop(&mut self, member: Member) -> anyhow::Result<()> {
        if let Some(replica) = self.slot(member)?.replica.take() {
            replica.terminate();
            self.leaving.push(replica);
        }
        Ok(())
    }

    /// Calls `action` for each proxy between this replica and a broker.
    fn each_proxy(&mut self, member: Member, action: impl Fn(&Proxy)) -> anyhow::Result<()> {
        self.slot(member)?.network.iter().for_each(action);
        Ok(())
    }

    fn slot(&mut self, member: Member) -> anyhow::Result<&mut Slot> {
        self.slots.get_mut(&member).with_context(|| format!("there is no {member}"))
    }
}

/// Waits until a replica that was told to stop has ended. Returns the failure if it did not end gracefully.
async fn ended(replica: &mut Replica) -> Result<(), String> {
    match replica.stopped().await {
        Ok(status) if status.success() => Ok(()),
        // It got the signal before it handled signals, and before it did any work.
        Ok(status)
            if status.signal() == Some(Signal::SIGTERM as i32)
                && replica.process.log_text().is_empty() =>
        {
            Ok(())
        }
        Ok(status) => Err(format!("{}: {status}", replica.describe())),
        Err(error) => Err(chain(&*error)),
    }
}
