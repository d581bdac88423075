//! Runs the whole system on one machine, breaks it on purpose, and audits it.

pub mod backup;
pub mod bench;
pub mod broker;
pub mod chaos;
pub mod dead_letters;
pub mod declare;
pub mod eventually;
pub mod http;
pub mod process;
pub mod programs;
pub mod proxy;
pub mod replica;
pub mod target;
pub mod up;
pub mod usage;

pub use observe::{audit, connect};
