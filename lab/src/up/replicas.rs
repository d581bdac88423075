//! The services that `lab up` runs, each replica a process.

use std::path::Path;

use super::UpSettings;
use crate::broker::Brokers;
use crate::programs::Programs;
use crate::replica::{Replica, Side, share};

/// All replicas of both sides.
#[derive(Debug, Default)]
pub(super) struct Replicas {
    pub(super) requestors: Vec<Replica>,
    pub(super) generators: Vec<Replica>,
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
                    Replica::start(programs, side, name, directory, &settings)
                })
                .collect::<Result<Vec<_>, _>>()
        };
        let generators = start(Side::Generator, generators)?;
        let requestors = start(Side::Requestor, requestors)?;
        Ok(Self { requestors, generators })
    }

    /// Whether all of them understood their settings, which come from the environment, too.
    ///
    /// # Errors
    ///
    /// What one that did not has said. It would only be missed, and nobody know why.
    pub(super) fn all_could_start(&mut self) -> anyhow::Result<()> {
        self.requestors.iter_mut().chain(&mut self.generators).try_for_each(Replica::could_start)
    }

    /// Which replica runs as which process, or has ended.
    pub(super) fn describe(&mut self) -> String {
        let all = self.requestors.iter_mut().chain(&mut self.generators);
        all.map(Replica::describe).collect::<Vec<_>>().join("   ")
    }

    /// Stops the requestors and then the generators, so that what is on its way comes to its end.
    pub(super) async fn stop(&mut self) -> anyhow::Result<()> {
        for side in [&mut self.requestors, &mut self.generators] {
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
