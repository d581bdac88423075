//! A real broker, or a cluster of several, which can be killed and restarted on the same store.

mod cluster;
mod find;
mod port;
mod ready;
mod server;

pub use cluster::{Brokers, answering};
pub use find::{VARIABLE, find};
pub use server::{Broker, BrokerOptions};
