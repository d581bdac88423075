use std::time::Duration;

use clap::Parser;

/// Makes random strings, and marks the stored strings as received.
///
/// Takes requests from the queue REQUESTS, makes the strings, and publishes them to the queue
/// RESPONSES. Takes acknowledgments from the queue ACKNOWLEDGMENTS, and marks their strings as
/// received in the bucket `received`. Runs until SIGTERM, SIGINT or SIGHUP. Any number of replicas can
/// run at a time.
///
/// Every setting is a flag, and an environment variable of the same name.
#[derive(Clone, Debug, Parser)]
#[command(
    version,
    max_term_width = 100,
    disable_help_subcommand = true,
    next_help_heading = "For experiments"
)]
pub struct GeneratorSettings {
    /// Time to make one string
    #[arg(long, env, default_value = "0s", value_parser = workqueue::duration, value_name = "TIME")]
    pub work_time: Duration,

    /// Share of the attempts at making strings that fail, from 0 to 1
    #[arg(long, env, default_value_t = 0.0, value_parser = share, value_name = "SHARE", allow_hyphen_values = true)]
    pub failure_rate: f64,

    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would show it as the help of the whole group")]
    pub service: workqueue::Settings,

    #[command(subcommand)]
    #[expect(missing_docs, reason = "clap would show it as the help of the whole group")]
    pub command: Option<workqueue::Command>,
}

/// Parses a share, a number from 0 to 1.
///
/// # Errors
///
/// If the text is not such a number.
pub fn share(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err("write a share from 0 to 1, such as 0.1".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn command_line_is_valid() {
        GeneratorSettings::command().debug_assert();
    }

    #[test]
    fn share_is_a_number_from_0_to_1() {
        assert_eq!(share("0"), Ok(0.0));
        assert_eq!(share("1"), Ok(1.0));
        for wrong in ["-0.1", "1.1", "NaN", "half", ""] {
            assert!(share(wrong).is_err(), "{wrong}");
        }
    }
}
