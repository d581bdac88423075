use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

/// Settings of `lab compare`.
#[derive(Args, Clone, Debug)]
pub struct CompareSettings {
    /// How long to make requests
    #[arg(long = "for", default_value = "60s", value_name = "TIME", value_parser = long_enough)]
    pub duration: Duration,

    /// Requests a second, of each of the four requestors
    #[arg(long, default_value_t = 20, value_name = "NUMBER", value_parser = workqueue::number::<u32>(1..))]
    pub rate: u32,

    /// How long a string takes to make
    #[arg(long, default_value = "50ms", value_name = "TIME", value_parser = workqueue::duration)]
    pub work_time: Duration,

    /// Seed of the outages: the same seed makes the same outages [default: a random seed]
    #[arg(long, value_parser = workqueue::number::<u64>(0..), value_name = "NUMBER")]
    pub seed: Option<u64>,

    /// Print the report as JSON; events are printed to the standard error
    #[arg(long)]
    pub json: bool,

    /// Draw the results over time into this file, as SVG
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
}

impl CompareSettings {
    /// The number of requests of each requestor.
    pub(super) fn total(&self) -> u64 {
        let total = u128::from(self.rate) * self.duration.as_millis() / 1000;
        u64::try_from(total).unwrap_or(u64::MAX)
    }
}

/// The shortest run. In a shorter one the outages would be too short for a program to start between them.
const SHORTEST: Duration = Duration::from_secs(5);

fn long_enough(text: &str) -> Result<Duration, String> {
    match workqueue::duration(text)? {
        duration if duration < SHORTEST => Err("it takes 5s or more".to_owned()),
        duration => Ok(duration),
    }
}
