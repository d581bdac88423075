//! Control of the system that `lab up` runs, by commands at a terminal and by buttons on its page. Both use HTTP on
//! loopback, with a token that only they know.

mod action;
mod client;
mod server;

pub use action::{Action, Changes, Target};
pub(crate) use client::{CONTROL_FILE, Lab};
pub(crate) use server::{Control, ControlCommand, ControlRequest, FILE, listen, serve};
