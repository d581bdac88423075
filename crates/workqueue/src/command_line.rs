//! Reads the settings of a program, from its command line and the environment.

use std::env;
use std::error::Error;
use std::ffi::OsString;
use std::io::{self, ErrorKind, Write};
use std::net::{SocketAddr, ToSocketAddrs};
use std::process::{self, ExitCode};

use clap::builder::Resettable;
use clap::error::ErrorKind as ClapErrorKind;
use clap::{Command, Parser};

use crate::chain::chain;

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
    if let Some(retired_setting) = retired_setting(retired, set) {
        end(&command.error(ClapErrorKind::UnknownArgument, retired_setting));
    }
    let matches = command.try_get_matches_from_mut(words).unwrap_or_else(|error| end(&error));
    let settings = S::from_arg_matches(&matches);
    settings.unwrap_or_else(|error| end(&error.format(&mut command)))
}

/// Prints an error, or the help that was asked for, and ends the process: with 2 after an error, and where
/// help cannot be written, unless its reader has gone.
fn end(error: &clap::Error) -> ! {
    let code = match error.print() {
        Err(failure) if failure.kind() != ErrorKind::BrokenPipe && error.exit_code() == 0 => {
            let _ = writeln!(io::stderr(), "Error: cannot write to the standard output: {failure}");
            2
        }
        _ => error.exit_code(),
    };
    process::exit(code)
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
fn retired_setting(
    retired: &[(&str, &str)],
    set: impl Fn(&str) -> Option<OsString>,
) -> Option<String> {
    let (name, instead) = retired.iter().find(|(name, _)| set(name).is_some())?;
    Some(format!("{name} is set, and is not read any more: {instead}"))
}

/// The exit status of a program that ended so. It prints an error as [`print_error`] does.
#[must_use]
pub fn exit_code(result: Result<(), Box<dyn Error + Send + Sync>>) -> ExitCode {
    let Err(error) = result else { return ExitCode::SUCCESS };
    print_error(&*error);
    ExitCode::FAILURE
}

/// Prints an error on the standard error, with its causes, each once.
pub fn print_error(error: &(dyn Error + 'static)) {
    // Where that cannot be written, the exit status still says it.
    let _ = writeln!(io::stderr(), "Error: {}", chain(error));
}

/// An address to listen on, such as 127.0.0.1:8080 or localhost:8080.
///
/// # Errors
///
/// Where the text is no such address, in words for the person who wrote it.
pub fn address(text: &str) -> Result<SocketAddr, String> {
    let help = || "write an address and a port, such as 127.0.0.1:8080".to_owned();
    match text.to_socket_addrs() {
        Ok(mut addresses) => addresses.next().ok_or_else(help),
        Err(error) if error.kind() == ErrorKind::InvalidInput => Err(help()),
        Err(error) => Err(format!("no address is known for that name ({error}); {}", help())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_retired_setting_names_its_successor() {
        const RETIRED: &[(&str, &str)] = &[("OLD", "set NEW"), ("GONE", "remove it")];
        let with = |name: &'static str| {
            retired_setting(RETIRED, move |asked| (asked == name).then(|| "1".into()))
        };
        assert_eq!(with("NEW"), None);
        assert_eq!(with("OLD").unwrap(), "OLD is set, and is not read any more: set NEW");
        assert!(with("GONE").unwrap().ends_with("remove it"));
    }

    #[test]
    fn an_address_has_a_port() {
        for right in ["127.0.0.1:8080", "[::]:0", "localhost:8080"] {
            assert!(address(right).is_ok(), "{right}");
        }
        for wrong in
            ["", "8080", "127.0.0.1", "localhost:", "127.0.0.1:65536", "no.such.invalid:80"]
        {
            assert!(address(wrong).is_err(), "{wrong}");
        }
    }
}
