//! A real broker, real processes, and a network that breaks on command.
//!
//! | for a test or the lab | module |
//! | --- | --- |
//! | a `nats-server`, found or installed, or a cluster of them; both can be killed and restarted | [`broker`] |
//! | a port that is kept free for a server until its restart | [`reserved_ports`] |
//! | the programs of this workspace, and those of its examples, built | [`programs`], [`service`] |
//! | a program as a child process: its log, signals, memory and processor time | [`process`], [`usage`] |
//! | a proxy to the broker that can be cut, slowed, or stopped before a certain message | [`proxy`] |
//! | waiting for a fact instead of a time | [`eventually`] |
//! | requests over HTTP | [`http`] |
//! | the directory for all files | [`target_directory`] |

pub mod broker;
pub mod eventually;
pub mod http;
pub mod process;
pub mod programs;
pub mod proxy;
pub mod reserved_ports;
pub mod service;
pub mod target_directory;
pub mod usage;
