//! The system that `lab up` runs, and the actions on it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Error, bail, ensure};
use async_nats::jetstream::Context;
use requestor::Rate;
use serde::Serialize;
use testkit::broker::{Broker, Brokers};
use testkit::programs::Programs;
use testkit::service::Service;
use workqueue::variable;

use super::replicas::{ProcessState, Replicas, Settings, Verb};
use super::settings::UpSettings;
use crate::control::{Action, Changes, Target};
use crate::replica::{Replica, WATCH, share};

/// The names of the settings that a person may change while the system runs.
const WORK_TIME: &str = "WORK_TIME";
const FAILURE_RATE: &str = "FAILURE_RATE";

/// The name of the program of a generator of a later release. It is built beside the others.
pub(crate) const NEWER_GENERATOR: &str = "newer-generator";

/// The brokers, the gateway, both services, and `declare --watch`, which keeps the topology.
#[derive(Debug)]
pub(crate) struct System {
    programs: Programs,
    directory: PathBuf,
    pub(super) brokers: Brokers,
    services: [Replicas; 2],
    watch: Replica,
    gateway: Option<Replica>,
    /// Requests a second, of all requestors together.
    rate: Rate,
    /// Settings of all processes, on top of the environment.
    environment: BTreeMap<String, String>,
}

/// The processes and the settings, for people.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct SystemState {
    requestors: Vec<ProcessState>,
    generators: Vec<ProcessState>,
    brokers: Vec<ProcessState>,
    settings: BTreeMap<&'static str, String>,
}

impl System {
    /// Starts the brokers and both services.
    pub(super) async fn start(
        programs: &Programs,
        settings: &UpSettings,
        directory: &Path,
    ) -> anyhow::Result<Self> {
        let brokers = Brokers::start(settings.brokers, Some(directory.to_owned())).await?;
        let environment = settings.environment.clone();
        let rate = settings.rate;
        let watch = watch(programs, directory, &brokers, &environment)?;
        let services =
            Service::ALL.map(|service| Replicas::new(service, programs.of(service), directory));
        let (programs, directory) = (programs.clone(), directory.to_owned());
        let gateway = None;
        let mut system =
            Self { programs, directory, brokers, services, watch, gateway, rate, environment };
        system.scale(Service::Generator, settings.generators)?;
        system.scale(Service::Requestor, settings.requestors)?;
        Ok(system)
    }

    /// Starts the gateway on its usual port or a free one, and returns its address. Its `CONTROL` is on, because this
    /// machine can reach the broker anyway. The page gets the address and the token of `lab`.
    pub(super) async fn start_gateway(&mut self, lab: &str) -> anyhow::Result<SocketAddr> {
        let mut settings = self.settings();
        settings
            .extend([("CONTROL", "on"), ("LAB", lab)].map(|(k, v)| (k.to_owned(), v.to_owned())));
        let gateway =
            Replica::start(&self.programs.gateway, &[], "gateway", &self.directory, settings)?;
        self.gateway.insert(gateway).listens("gateway listens addr=").await
    }

    pub(super) async fn wait_until_declared(&mut self, nats: &Context) -> anyhow::Result<()> {
        self.watch.wait_until_declared(nats).await
    }

    /// Applies an action.
    pub(crate) async fn apply(&mut self, action: Action) -> anyhow::Result<()> {
        match action {
            Action::Start { target: Target::Broker, empty } => self.start_broker(empty).await,
            Action::Kill { target: Target::Broker } => self.kill_broker().await,
            Action::Start { target, empty: true } => {
                bail!("only a broker can be started empty, and not {target}")
            }
            Action::Start { target: Target::Service(service), .. } => {
                self.start_replicas(service, None)
            }
            Action::Start { target: Target::Replica(service, number), .. } => {
                self.start_replicas(service, Some(number))
            }
            Action::Stop { target } => self.each(&target, Verb::Stop).await,
            Action::Kill { target } => self.each(&target, Verb::Kill).await,
            Action::Pause { target } => self.each(&target, Verb::Pause).await,
            Action::Resume { target } => self.each(&target, Verb::Resume).await,
            Action::Scale { target: Target::Service(service), replicas } => {
                ensure!(replicas <= 50, "at most 50 replicas run on one machine");
                self.scale(service, replicas)?;
                // The rate is that of all requestors together.
                if service == Service::Requestor { self.deploy(service).await } else { Ok(()) }
            }
            Action::Deploy { target: Target::Service(Service::Requestor), newer: true } => {
                bail!("only the generators have a newer program")
            }
            Action::Deploy { target: Target::Service(service), newer } => {
                let program = self.programs.of(service);
                let program = if newer {
                    program.with_file_name(NEWER_GENERATOR)
                } else {
                    program.to_owned()
                };
                let settings = self.settings_of_each(service);
                self.services[service as usize].deploy(&program, &settings).await
            }
            Action::Scale { target, .. } | Action::Deploy { target, .. } => {
                bail!("{target} is not a service: write requestors or generators")
            }
            Action::Set(changes) => {
                changes.validate().map_err(Error::msg)?;
                let before = (self.rate, self.environment.clone());
                let set = self.set(changes).await;
                if set.is_err() {
                    // A service that does not start with these settings goes on with the earlier ones.
                    (self.rate, self.environment) = before;
                }
                set
            }
        }
    }

    async fn set(&mut self, changes: Changes) -> anyhow::Result<()> {
        let of_generators = [(WORK_TIME, changes.work_time), (FAILURE_RATE, changes.failure_rate)];
        let of_generators: Vec<_> = of_generators
            .into_iter()
            .filter_map(|(name, it)| Some((name.to_owned(), it?)))
            .collect();
        if !of_generators.is_empty() {
            self.environment.extend(of_generators);
            self.deploy(Service::Generator).await?;
        }
        if let Some(rate) = changes.rate {
            self.rate = rate.parse().map_err(Error::msg)?;
            self.deploy(Service::Requestor).await?;
        }
        Ok(())
    }

    /// Replaces all replicas by others with these settings, and returns once they are ready.
    pub(crate) async fn set_scene(&mut self, settings: &UpSettings) -> anyhow::Result<()> {
        self.start_broker(false).await?;
        self.environment.clone_from(&settings.environment);
        self.rate = settings.rate;
        self.watch.terminate();
        self.watch.stopped().await?;
        self.watch = watch(&self.programs, &self.directory, &self.brokers, &self.environment)?;
        for (service, count) in
            [(Service::Generator, settings.generators), (Service::Requestor, settings.requestors)]
        {
            let of_service = self.settings_of(service, count);
            let program = self.programs.of(service);
            self.services[service as usize].restart(program, count, &of_service).await?;
        }
        Ok(())
    }

    /// The settings of each process.
    fn settings(&self) -> Settings {
        settings(&self.brokers, &self.environment)
    }

    fn settings_of(&self, service: Service, count: u32) -> Settings {
        let mut settings = self.settings();
        if service == Service::Requestor {
            settings.push(("REQUEST_RATE".to_owned(), share(self.rate, count)));
        }
        settings
    }

    fn scale(&mut self, service: Service, count: u32) -> anyhow::Result<()> {
        let settings = self.settings_of(service, count);
        self.services[service as usize].scale(count, &settings)
    }

    /// The settings of each replica of a service that has as many as now.
    fn settings_of_each(&self, service: Service) -> Settings {
        self.settings_of(service, self.services[service as usize].count())
    }

    fn start_replicas(&mut self, service: Service, number: Option<u32>) -> anyhow::Result<()> {
        let settings = self.settings_of_each(service);
        self.services[service as usize].start(number, &settings)
    }

    async fn deploy(&mut self, service: Service) -> anyhow::Result<()> {
        let settings = self.settings_of_each(service);
        self.services[service as usize].replace_each(&settings).await
    }

    async fn each(&mut self, target: &Target, verb: Verb) -> anyhow::Result<()> {
        match *target {
            Target::Service(service) => self.services[service as usize].each(None, verb).await,
            Target::Replica(service, number) => {
                self.services[service as usize].each(Some(number), verb).await
            }
            Target::Broker => bail!("a broker can only be killed and started"),
        }
    }

    async fn kill_broker(&mut self) -> anyhow::Result<()> {
        let Some(index) = self.broker(true)? else { bail!("no broker runs") };
        self.brokers.kill(index).await
    }

    async fn start_broker(&mut self, empty: bool) -> anyhow::Result<()> {
        ensure!(!empty || self.broker(false)?.is_some(), "all brokers run: kill one first");
        while let Some(index) = self.broker(false)? {
            if empty && let Some(broker) = self.brokers.iter_mut().nth(index) {
                broker.wipe()?;
            }
            self.brokers.restart(index).await?;
        }
        Ok(())
    }

    /// The first broker that runs, or the first one that does not.
    fn broker(&mut self, runs: bool) -> anyhow::Result<Option<usize>> {
        for (index, broker) in self.brokers.iter_mut().enumerate() {
            if broker.runs()? == runs {
                return Ok(Some(index));
            }
        }
        Ok(None)
    }

    /// # Errors
    ///
    /// If a replica has not accepted its settings. The error has its log.
    pub(super) fn all_could_start(&mut self) -> anyhow::Result<()> {
        self.services.iter_mut().try_for_each(Replicas::all_could_start)?;
        self.watch.could_start()
    }

    /// The states of all processes.
    pub(super) fn describe(&mut self) -> [Vec<String>; 2] {
        let describe = |broker: &mut Broker| match (broker.runs(), broker.id()) {
            (Ok(true), Some(id)) => format!("{} (pid {id})", broker.name()),
            _ => format!("{} (ended)", broker.name()),
        };
        let brokers = self.brokers.iter_mut().map(describe).collect();
        [brokers, self.services.iter_mut().flat_map(Replicas::describe).collect()]
    }

    pub(crate) fn state(&mut self) -> anyhow::Result<SystemState> {
        let brokers = self.brokers.iter_mut().map(|broker| {
            let state = if broker.runs()? { "running" } else { "ended" };
            let (name, pid) = (broker.name().to_owned(), broker.id().unwrap_or_default());
            Ok(ProcessState { name, pid, state })
        });
        let brokers = brokers.collect::<anyhow::Result<_>>()?;
        let [requestors, generators] = self.services.each_mut().map(Replicas::state);
        let setting = |name: &str, default: &str| {
            let set = self.environment.get(name).cloned();
            set.or_else(|| variable(name)).unwrap_or_else(|| default.to_owned())
        };
        let settings = BTreeMap::from([
            ("rate", share(self.rate, 1)),
            ("work_time", setting(WORK_TIME, "0s")),
            ("failure_rate", setting(FAILURE_RATE, "0")),
        ]);
        Ok(SystemState { requestors: requestors?, generators: generators?, brokers, settings })
    }

    /// Stops the requestors and then the generators, so that messages in flight are finished.
    pub(super) async fn stop(&mut self) -> anyhow::Result<()> {
        for service in &mut self.services {
            service.stop().await?;
        }
        self.watch.terminate();
        self.watch.stopped().await.map(drop)
    }

    /// Ends the rest, and returns whether all brokers ran to the end.
    pub(crate) async fn end(&mut self) -> anyhow::Result<bool> {
        if let Some(gateway) = &mut self.gateway {
            // It has no work to finish.
            gateway.process.kill().await?;
        }
        // A person who has killed a broker may have started it again by hand, on the same files.
        let all_run = self.brokers.all_run()?;
        self.brokers.stop().await?;
        Ok(all_run)
    }
}

fn settings(brokers: &Brokers, environment: &BTreeMap<String, String>) -> Settings {
    let ours = [("NATS_URL", brokers.url()), ("REPLICAS", brokers.copies().to_string())];
    let ours = ours.map(|(name, value)| (name.to_owned(), value));
    ours.into_iter().chain(environment.clone()).collect()
}

fn watch(
    programs: &Programs,
    directory: &Path,
    brokers: &Brokers,
    environment: &BTreeMap<String, String>,
) -> anyhow::Result<Replica> {
    let settings = settings(brokers, environment);
    Replica::start(&programs.decoupled, &WATCH, "declare", directory, settings)
}
