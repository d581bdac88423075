//! The program `decoupled`: the operator's tool for any deployment.
//!
//! | command | module |
//! | --- | --- |
//! | `declare`, `declare --watch` | [`declare`], [`watch`] |
//! | `audit` | [`audit`] |
//! | `dead-letters list`, `show`, `replay`, `discard` | [`dead_letters`] |
//! | `queues list`, `pause`, `resume` | [`queues`] |
//! | `schedules list`, `set`, `remove` | [`schedules`] |
//! | `requests list`, `show`, `submit`, `cancel` | [`requests`] |
//! | `backup`, `restore` | [`backup`] |
//!
//! `healthcheck`, `completions` and `man` are in `workqueue`, for all programs. `command` parses the command line,
//! `output` prints the results, and [`terminal`] has the connection, the logs and the messages that the commands share.

pub mod audit;
pub mod backup;
mod command;
pub mod dead_letters;
pub mod declare;
mod output;
pub mod queues;
pub mod requests;
pub mod schedules;
pub mod terminal;
pub mod watch;

pub use command::{Cli, run};
