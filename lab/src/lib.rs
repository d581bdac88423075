//! The whole system on one machine: runs it ([`up`]), breaks it on purpose ([`chaos`]), measures it ([`mod@bench`]),
//! compares it with the usual first designs ([`mod@compare`]), and teaches with it (`lesson`). With `control`, commands
//! and the page change the system that `up` runs, and `exec` runs programs beside it. `replica` runs one program,
//! `event_log` prints the events of a run, `stored_facts` reads its facts, and `command` is the command line.

pub mod bench;
pub mod chaos;
mod command;
pub mod compare;
mod control;
mod event_log;
mod exec;
mod lesson;
mod replica;
mod stored_facts;
mod theme;
mod times;
pub mod up;

pub use command::{LabCli, run};
pub use event_log::LoggedEvent;
pub use stored_facts::starts_by_second;
