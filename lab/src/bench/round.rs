//! One round of all measurements, with their shared parts.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use testkit::broker::{Broker, BrokerOptions, Brokers};
use testkit::programs::Programs;
use workqueue::{Connection, NatsSettings};

use super::curves::Curves;
use super::figures::Figures;
use super::settings::Sizes;

/// The number of durable writes of a round trip: three messages, and three facts.
pub(super) const WRITES: u64 = 6;

/// The usage of each of the three parts, in the order of the flow through them.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Each<T> {
    pub(super) broker: T,
    pub(super) requestor: T,
    pub(super) generator: T,
}

/// One round, and its figures.
pub(super) struct Round<'a> {
    pub(super) programs: &'a Programs,
    pub(super) sizes: Sizes,
    /// The directory of the brokers and the logs.
    pub(super) directory: &'a Path,
    pub(super) figures: &'a mut Figures,
    pub(super) curves: &'a mut Curves,
    /// The largest memory of each in any part so far, in kB.
    pub(super) peak: Each<u64>,
}

impl Round<'_> {
    /// A new broker.
    pub(super) async fn broker(&self, sync_always: bool) -> anyhow::Result<Broker> {
        let directory = Some(self.broker_directory()?);
        Broker::start(BrokerOptions { directory, sync_always, ..Default::default() }).await
    }

    /// A new cluster.
    pub(super) async fn cluster(&self, brokers: u16) -> anyhow::Result<Brokers> {
        Brokers::start(brokers, Some(self.broker_directory()?)).await
    }

    fn broker_directory(&self) -> anyhow::Result<PathBuf> {
        let directory = tempfile::Builder::new().prefix("broker-").tempdir_in(self.directory);
        Ok(directory.context("cannot create a directory for the broker")?.keep())
    }

    pub(super) async fn connect(&self, url: &str) -> anyhow::Result<Connection> {
        observe::connect(&NatsSettings::at(url), "lab bench").await
    }

    pub(super) fn note_peak(&mut self, peak: Each<u64>) {
        self.peak.broker = self.peak.broker.max(peak.broker);
        self.peak.requestor = self.peak.requestor.max(peak.requestor);
        self.peak.generator = self.peak.generator.max(peak.generator);
    }
}

/// The rate of this count in this time, in numbers a second.
pub(super) fn per_second(count: u64, taken: Duration) -> f64 {
    real(count) / taken.as_secs_f64()
}

pub(super) fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

#[expect(clippy::cast_precision_loss, reason = "nothing is counted up to that many")]
pub(super) fn real(count: u64) -> f64 {
    count as f64
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "rates are moderate")]
pub(super) fn whole(count: f64) -> u64 {
    count.round() as u64
}
