//! The whole system on one machine: runs it ([`up`]), breaks it on purpose ([`chaos`]), and measures it
//! ([`mod@bench`]). All run its programs as `replica` does; `starts` counts what a rate limit counts; `command` is the
//! command line.

pub mod bench;
pub mod chaos;
mod command;
mod replica;
mod starts;
pub mod up;

pub use command::{LabCli, run};
pub use starts::starts_by_second;
