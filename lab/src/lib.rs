//! The whole system on one machine: runs it ([`up`]), breaks it on purpose ([`chaos`]), measures it ([`mod@bench`]),
//! compares it with what most build first ([`mod@compare`]), and teaches with it (`lesson`). `control` lets commands and the
//! page change what `up` runs, and `exec` runs programs beside it. All run the programs as `replica` does, and tell what
//! happens as `event_log` does; `starts` counts what a rate limit counts; `command` is the command line.

pub mod bench;
pub mod chaos;
mod command;
pub mod compare;
mod control;
mod event_log;
mod exec;
mod lesson;
mod replica;
mod starts;
mod theme;
mod times;
pub mod up;

pub use command::{LabCli, run};
pub use event_log::LoggedEvent;
pub use starts::starts_by_second;
