//! The whole system on one machine: runs it ([`up`]), breaks it on purpose ([`chaos`]), and measures it
//! ([`mod@bench`]).

pub mod bench;
pub mod chaos;
mod command;
mod replica;
pub mod up;

pub use command::{LabCli, run};
