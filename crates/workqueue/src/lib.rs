//! How a service takes messages from a queue, and does what they ask for without losing or
//! doubling anything. One implementation for every consumer of both sides.
//!
//! A service is a [`Service`] and a few [`Handler`]s. What happens to a message:
//!
//! ```text
//! pull      as many as there are free slots          consumer::pull
//! give      to a task that has nothing to do         Crew
//! handle    decode, check the age, do the work       consumer, Handler
//!   publish   until the broker has confirmed         Publisher
//!   create    a fact, once                           Facts
//! settle    ack, nak or dead letter                  settle, delivery
//! ```
//!
//! Only this crate settles a delivery, and it does so only after the effect is durable.

mod admin;
mod announce;
mod backoff;
mod clock;
mod command_line;
mod connection;
mod consumer;
mod crew;
mod delivery;
mod facts;
mod health;
mod healthcheck;
pub mod http;
mod last_message;
mod metrics;
mod producer;
mod publisher;
mod said;
mod service;
mod settings;
mod settle;
mod signals;
mod telemetry;

pub use admin::{Report, serve as serve_admin};
pub use backoff::Backoff;
pub use clock::now;
pub use command_line::{address, parse};
pub use connection::{ConnectError, Connection};
pub use consumer::{Handler, HandlerError};
pub use crew::{Crew, Work};
pub use facts::{Creation, Facts, ReadError, read_fact};
pub use healthcheck::{Command, HealthcheckError, healthcheck};
pub use last_message::last_message;
pub use metrics::Metrics;
pub use producer::Producer;
pub use publisher::{Confirmation, PublishError, Publisher, Refusal};
pub use said::Said;
pub use service::{Service, ServiceError};
pub use settings::{
    LimitSettings, LogFormat, NatsSettings, ServiceSettings, TelemetrySettings, default_instance,
    duration,
};
pub use settle::{Attempt, Delay, Outcome, Settlement, settle};
pub use signals::stop_on_signals;
pub use telemetry::init as init_telemetry;
