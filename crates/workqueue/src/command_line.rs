//! Reads the settings of a program, from its command line and the environment.

use std::env;
use std::ffi::OsString;
use std::net::SocketAddr;

use clap::builder::Resettable;
use clap::error::ErrorKind;
use clap::{Command, Parser};

/// The settings of this program. A variable that is empty counts as not set. Ends the process where the
/// settings are wrong, or where the environment sets one that is `retired`: its name, and what to do
/// instead.
#[must_use]
pub fn parse<S: Parser>(retired: &[(&str, &str)]) -> S {
    parse_from(env::args_os(), retired)
}

/// As [`parse`], from these words.
pub(crate) fn parse_from<S: Parser>(
    words: impl IntoIterator<Item = OsString>,
    retired: &[(&str, &str)],
) -> S {
    let mut command = forget_empty(S::command());
    let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty());
    if let Some(refusal) = refusal(retired, set) {
        command.error(ErrorKind::UnknownArgument, refusal).exit();
    }
    let matches = command.try_get_matches_from_mut(words).unwrap_or_else(|error| error.exit());
    let settings = S::from_arg_matches(&matches);
    settings.unwrap_or_else(|error| error.format(&mut command).exit())
}

/// The same command, which reads no variable that is empty.
fn forget_empty(command: Command) -> Command {
    let command = command.mut_args(|arg| match arg.get_env() {
        Some(name) if env::var_os(name).is_some_and(|value| value.is_empty()) => {
            arg.env(Resettable::Reset)
        }
        _ => arg,
    });
    command.mut_subcommands(forget_empty)
}

/// What is wrong with the environment, if it sets a retired setting.
fn refusal(retired: &[(&str, &str)], set: impl Fn(&str) -> Option<OsString>) -> Option<String> {
    let (name, instead) = retired.iter().find(|(name, _)| set(name).is_some())?;
    Some(format!("{name} is set, and is not read any more: {instead}"))
}

/// An address to listen on, such as 127.0.0.1:8080.
///
/// # Errors
///
/// Where the text is no such address, in words for the person who wrote it.
pub fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "write an address and a port, such as 127.0.0.1:8080".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_retired_setting_names_its_successor() {
        const RETIRED: &[(&str, &str)] = &[("OLD", "set NEW"), ("GONE", "remove it")];
        let with =
            |name: &'static str| refusal(RETIRED, move |asked| (asked == name).then(|| "1".into()));
        assert_eq!(with("NEW"), None);
        assert_eq!(with("OLD").unwrap(), "OLD is set, and is not read any more: set NEW");
        assert!(with("GONE").unwrap().ends_with("remove it"));
    }

    #[test]
    fn an_address_has_a_port() {
        assert!(address("127.0.0.1:8080").is_ok() && address("[::]:0").is_ok());
        for wrong in ["", "8080", "localhost:8080", "127.0.0.1"] {
            assert!(address(wrong).is_err(), "{wrong}");
        }
    }
}
