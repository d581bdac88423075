//! Reads the settings of a program from its command line and the environment, and makes shell completions and manual
//! pages of its command line.

use std::error::Error;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{self, ExitCode};
use std::sync::mpsc;
use std::time::Duration;
use std::{env, fs, thread};

use anstream::ColorChoice;
use clap::builder::Resettable;
use clap::error::ErrorKind as ClapErrorKind;
use clap::{Arg, ArgMatches, Command, Parser, value_parser};
use clap_complete::Shell;

use crate::error_chain::chain;

/// The time limit for printing the last error of a program.
const TIME_TO_PRINT: Duration = Duration::from_secs(1);

/// The settings of this program. An empty variable counts as not set. Ends the process if the settings are invalid, or
/// if the environment sets a `retired` one, which has a name and a replacement.
#[must_use]
pub fn parse<S: Parser>(retired: &[(&str, &str)]) -> S {
    parse_from(env::args_os(), retired)
}

/// A variable of the environment. An empty one counts as not set.
#[must_use]
pub fn variable(name: &str) -> Option<String> {
    let value = env::var_os(name)?.to_string_lossy().into_owned();
    Some(value).filter(|value| !value.is_empty())
}

/// As [`parse`], from these words.
pub(crate) fn parse_from<S: Parser>(
    words: impl IntoIterator<Item = OsString>,
    retired: &[(&str, &str)],
) -> S {
    let mut command = forget_empty(S::command());
    // A terminal without a name may have no colours. An empty name counts as none.
    if env::var_os("TERM").is_some_and(|name| name.is_empty()) {
        ColorChoice::Never.write_global();
    }
    if let Some(retired_setting) = retired_setting(retired, variable) {
        end(&command.error(ClapErrorKind::UnknownArgument, retired_setting));
    }
    // If another program calls this one, the other one does the completion.
    if command.get_bin_name().is_none() {
        command = command.subcommands(describing());
    }
    let matches = command.try_get_matches_from_mut(words).unwrap_or_else(|error| end(&error));
    if let Some(described) = describe(&mut command, &matches) {
        process::exit(described);
    }
    let settings = S::from_arg_matches(&matches);
    settings.unwrap_or_else(|error| end(&error.format(&mut command)))
}

/// Prints an error or the requested help, and ends the process.
fn end(error: &clap::Error) -> ! {
    let printed = error.print();
    process::exit(if error.use_stderr() { error.exit_code() } else { printed_code(printed) })
}

/// The exit status after printing requested output. A full disk is a failure; a reader that has gone is not.
fn printed_code(printed: io::Result<()>) -> i32 {
    match printed {
        Err(error) if !reader_has_gone(&error) => {
            let _ = writeln!(io::stderr(), "Error: cannot write to the standard output: {error}");
            2
        }
        Ok(()) | Err(_) => 0,
    }
}

/// Whether a write to the standard output failed because its reader has gone: its pipe or its terminal is closed.
#[must_use]
pub fn reader_has_gone(error: &io::Error) -> bool {
    // A failing disk reports the same error as a closed terminal.
    let is_file = || {
        let output = io::stdout().as_fd().try_clone_to_owned().map(File::from);
        output.and_then(|output| output.metadata()).is_ok_and(|output| output.is_file())
    };
    error.kind() == ErrorKind::BrokenPipe || (error.raw_os_error() == Some(EIO) && !is_file())
}

/// "Input/output error", on every Unix.
const EIO: i32 = 5;

/// The subcommands that describe a command line, which every program has.
fn describing() -> [Command; 2] {
    let shell = Arg::new(SHELL).required(true).value_name("SHELL");
    let directory = Arg::new(DIRECTORY).required(true).value_name("DIRECTORY");
    [
        Command::new("completions")
            .about("Prints a completion script for a shell")
            .arg(shell.value_parser(value_parser!(Shell)).help("The shell")),
        Command::new("man")
            .about("Writes the manual pages of this program")
            .arg(directory.value_parser(value_parser!(PathBuf)).help("Where to write them")),
    ]
}

const SHELL: &str = "shell";
const DIRECTORY: &str = "directory";

/// Prints completions or manual pages, if the command line asks for them. Returns the exit status then.
fn describe(command: &mut Command, matches: &ArgMatches) -> Option<i32> {
    match matches.subcommand()? {
        ("completions", given) => {
            let name = command.get_name().to_owned();
            let mut script = Vec::new();
            clap_complete::generate(*given.get_one::<Shell>(SHELL)?, command, name, &mut script);
            Some(printed_code(io::stdout().write_all(&script)))
        }
        ("man", given) => {
            let directory: &PathBuf = given.get_one(DIRECTORY)?;
            Some(match write_manual(command, directory) {
                Ok(()) => 0,
                Err(error) => {
                    let directory = directory.display();
                    let _ = writeln!(io::stderr(), "Error: cannot write into {directory}: {error}");
                    2
                }
            })
        }
        _ => None,
    }
}

fn write_manual(command: &Command, directory: &Path) -> io::Result<()> {
    fn without_help(command: Command) -> Command {
        command.disable_help_subcommand(true).mut_subcommands(without_help)
    }

    fs::create_dir_all(directory)?;
    clap_mangen::generate_to(without_help(command.clone()), directory)
}

/// The same command, without its empty variables.
fn forget_empty(command: Command) -> Command {
    let command = command.mut_args(|arg| match arg.get_env() {
        Some(name) if env::var_os(name).is_some_and(|value| value.is_empty()) => {
            arg.env(Resettable::Reset)
        }
        _ => arg,
    });
    command.mut_subcommands(forget_empty)
}

/// The error of an environment that sets a retired setting.
fn retired_setting(
    retired: &[(&str, &str)],
    set: impl Fn(&str) -> Option<String>,
) -> Option<String> {
    let (name, instead) = retired.iter().find(|(name, _)| set(name).is_some())?;
    Some(format!("{name} is set, and is not read any more: {instead}"))
}

/// The exit status for this result of a program. Prints an error as [`print_error`] does.
#[must_use]
pub fn exit_code(result: Result<(), Box<dyn Error + Send + Sync>>) -> ExitCode {
    let Err(error) = result else { return ExitCode::SUCCESS };
    print_error(&*error);
    ExitCode::FAILURE
}

/// Prints an error on the standard error, with its causes, each once.
pub fn print_error(error: &(dyn Error + 'static)) {
    let line = format!("Error: {}\n", chain(error));
    let (printed, is_printed) = mpsc::channel();
    // In a separate thread: if the reader stalls, this would wait for the logs, which wait for the reader. If the error
    // cannot be written, the exit status still shows it.
    let printing = thread::Builder::new().spawn(move || {
        let _ = io::stderr().write_all(line.as_bytes());
        let _ = printed.send(());
    });
    if printing.is_ok() {
        let _ = is_printed.recv_timeout(TIME_TO_PRINT);
    }
}

/// An address to listen on, such as 127.0.0.1:8080 or localhost:8080.
///
/// # Errors
///
/// If the text is no such address, in words for the person who wrote it.
pub fn address(text: &str) -> Result<SocketAddr, String> {
    let help = || "write an address and a port, such as 127.0.0.1:8080".to_owned();
    match text.to_socket_addrs() {
        // No name is looked up for it on any system.
        _ if text.starts_with(':') => Err(help()),
        Ok(mut addresses) => addresses.next().ok_or_else(help),
        Err(error) if error.kind() == ErrorKind::InvalidInput => Err(help()),
        Err(error) => Err(format!("no address is known for that name ({error}); {}", help())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retired_setting_names_its_successor() {
        const RETIRED: &[(&str, &str)] = &[("OLD", "set NEW"), ("GONE", "remove it")];
        let with = |name: &'static str| {
            retired_setting(RETIRED, move |asked| (asked == name).then(|| "1".into()))
        };
        assert_eq!(with("NEW"), None);
        assert_eq!(with("OLD").unwrap(), "OLD is set, and is not read any more: set NEW");
        assert!(with("GONE").unwrap().ends_with("remove it"));
    }

    #[test]
    fn address_has_a_port() {
        for right in ["127.0.0.1:8080", "[::]:0", "localhost:8080"] {
            assert!(address(right).is_ok(), "{right}");
        }
        for wrong in
            ["", "8080", "127.0.0.1", "localhost:", "127.0.0.1:65536", "no.such.invalid:80"]
        {
            assert!(address(wrong).is_err(), "{wrong}");
        }
        let error = address(":8080").unwrap_err();
        assert!(error.starts_with("write an address and a port"), "{error}");
    }
}
