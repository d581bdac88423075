//! The whole system on one machine: runs it ([`up`]), breaks it on purpose ([`chaos`]), measures it
//! ([`mod@bench`]), and teaches with it (`lesson`). `control` lets commands and the page change what `up` runs, and `exec`
//! runs programs beside it. All run the programs as `replica` does; `starts` counts what a rate limit counts; `command` is
//! the command line.

pub mod bench;
pub mod chaos;
mod command;
mod control;
mod exec;
mod lesson;
mod replica;
mod starts;
pub mod up;

pub use command::{LabCli, run};
pub use starts::starts_by_second;
