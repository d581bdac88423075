//! The program `decoupled`: the operator's tool for any deployment.
//!
//! | command | module |
//! | --- | --- |
//! | `declare`, `declare --watch` | [`declare`], [`watch`] |
//! | `audit` | [`audit`] |
//! | `dead-letters list`, `show`, `replay`, `discard` | [`dead_letters`] |
//! | `queues list`, `pause`, `resume` | [`queues`] |
//! | `requests list`, `show`, `submit` | [`requests`] |
//! | `backup`, `restore` | [`backup`] |
//!
//! `completions` and `man` are those of every program, in `workqueue`. `command` is the command line,
//! [`terminal`] what all of them say on it.

pub mod audit;
pub mod backup;
mod command;
pub mod dead_letters;
pub mod declare;
pub mod queues;
pub mod requests;
pub mod schedules;
pub mod terminal;
pub mod watch;

pub use command::{Cli, run};
