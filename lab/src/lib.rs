//! The whole system on one machine: runs it ([`up`]), breaks it on purpose ([`chaos`]), and measures it
//! ([`mod@bench`]). All run its programs as `replica` does; `command` is the command line.

pub mod bench;
pub mod chaos;
mod command;
mod replica;
pub mod up;

pub use command::{LabCli, run};
