use std::collections::BTreeMap;
use std::time::Duration;

use clap::Args;
use testkit::broker::Brokers;

/// Settings of `lab up`.
#[derive(Args, Clone, Debug)]
pub struct UpSettings {
    /// How many brokers to run: 1, or 3 or 5 as a cluster
    #[arg(long, default_value_t = 1, value_parser = Brokers::count, value_name = "NUMBER")]
    pub brokers: u16,

    /// How many requestors to run
    #[arg(long, default_value_t = 1, value_parser = workqueue::number::<u32>(0..), value_name = "NUMBER")]
    pub requestors: u32,

    /// How many generators to run
    #[arg(long, default_value_t = 2, value_parser = workqueue::number::<u32>(0..), value_name = "NUMBER")]
    pub generators: u32,

    /// Requests a second, of all requestors together, or max
    #[arg(long, default_value = "10", value_name = "RATE", allow_hyphen_values = true)]
    pub rate: requestor::Rate,

    /// Run the programs of an example instead, such as word-count or orders, beside a broker
    #[arg(long, value_name = "NAME", conflicts_with_all = ["requestors", "generators", "rate"])]
    pub example: Option<String>,

    /// Stop after that time [default: at Ctrl-C]
    #[arg(long = "for", value_name = "TIME", value_parser = workqueue::duration)]
    pub duration: Option<Duration>,

    /// Settings of the services, on top of the environment.
    #[arg(skip)]
    pub(crate) environment: BTreeMap<String, String>,
}
