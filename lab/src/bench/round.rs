//! One round of all measurements, and what they share.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use testkit::broker::{Broker, BrokerOptions};
use testkit::programs::Programs;
use workqueue::{Connection, NatsSettings};

use super::figures::Figures;
use super::settings::Sizes;

/// How many durable writes a round trip has: three messages, and three facts.
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
    /// Where the brokers and the logs are.
    pub(super) directory: &'a Path,
    pub(super) figures: &'a mut Figures,
    /// The most memory that each had in any part so far, in kB.
    pub(super) peak: Each<u64>,
}

impl Round<'_> {
    /// A broker of its own.
    pub(super) async fn broker(&self, sync_always: bool) -> anyhow::Result<Broker> {
        let directory = tempfile::Builder::new().prefix("broker-").tempdir_in(self.directory);
        let directory = directory.context("cannot create a directory for the broker")?.keep();
        let options =
            BrokerOptions { directory: Some(directory), sync_always, ..Default::default() };
        Broker::start(options).await
    }

    pub(super) async fn connect(&self, broker: &Broker) -> anyhow::Result<Connection> {
        observe::connect(&NatsSettings::at(broker.url()), "lab bench").await
    }

    pub(super) fn note_peak(&mut self, peak: Each<u64>) {
        self.peak.broker = self.peak.broker.max(peak.broker);
        self.peak.requestor = self.peak.requestor.max(peak.requestor);
        self.peak.generator = self.peak.generator.max(peak.generator);
    }
}

/// How many of something there are in a second.
pub(super) fn per_second(count: u64, taken: Duration) -> f64 {
    real(count) / taken.as_secs_f64()
}

#[expect(clippy::cast_precision_loss, reason = "nothing is counted up to that many")]
pub(super) fn real(count: u64) -> f64 {
    count as f64
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "rates are moderate")]
pub(super) fn whole(count: f64) -> u64 {
    count.round() as u64
}
