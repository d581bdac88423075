//! The replicas that `lab up` runs beside the brokers, each a process.

use std::path::Path;

use testkit::broker::Brokers;
use testkit::programs::Programs;
use testkit::side::Side;

use super::settings::UpSettings;
use crate::replica::{Replica, WATCH, share};

/// All replicas of both sides, and `declare --watch`, which keeps the topology.
#[derive(Debug)]
pub(super) struct Replicas {
    pub(super) requestors: Vec<Replica>,
    pub(super) generators: Vec<Replica>,
    pub(super) watch: Replica,
}

impl Replicas {
    /// Starts so many requestors, which together ask at this rate, and so many generators.
    pub(super) fn start(
        programs: &Programs,
        settings: &UpSettings,
        brokers: &Brokers,
        directory: &Path,
    ) -> anyhow::Result<Self> {
        let UpSettings { requestors, generators, rate, .. } = *settings;
        let (url, copies) = (brokers.url(), brokers.copies().to_string());
        let share = share(rate, requestors);
        let settings =
            [("NATS_URL", url.as_str()), ("REPLICAS", &copies), ("REQUEST_RATE", &share)];
        let start = |side: Side, count: u32| {
            (1..=count)
                .map(|number| {
                    let name = format!("{side}-{number}");
                    Replica::start(programs.of(side), &[], name, directory, settings)
                })
                .collect::<Result<Vec<_>, _>>()
        };
        let generators = start(Side::Generator, generators)?;
        let requestors = start(Side::Requestor, requestors)?;
        let watch = Replica::start(&programs.decoupled, &WATCH, "declare", directory, settings)?;
        Ok(Self { requestors, generators, watch })
    }

    /// Whether all of them understood their settings, which come from the environment, too.
    ///
    /// # Errors
    ///
    /// The log of a replica that did not. Otherwise it would be missing without a reason.
    pub(super) fn all_could_start(&mut self) -> anyhow::Result<()> {
        let all = self.requestors.iter_mut().chain(&mut self.generators).chain([&mut self.watch]);
        all.into_iter().try_for_each(Replica::could_start)
    }

    /// Which replica runs as which process, or has ended.
    pub(super) fn describe(&mut self) -> Vec<String> {
        let all = self.requestors.iter_mut().chain(&mut self.generators);
        all.map(Replica::describe).collect()
    }

    /// Stops the requestors and then the generators, so that messages in flight come to their end.
    pub(super) async fn stop(&mut self) -> anyhow::Result<()> {
        let watch = std::slice::from_mut(&mut self.watch);
        for side in [self.requestors.as_mut_slice(), &mut self.generators, watch] {
            for replica in side.iter() {
                replica.terminate();
            }
            for replica in side {
                replica.stopped().await?;
            }
        }
        Ok(())
    }
}
