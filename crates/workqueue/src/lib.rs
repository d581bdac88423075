//! A work queue on NATS `JetStream`: jobs are delivered at least once, and each effect happens once.
//!
//! # The lifecycle of a job
//!
//! A [`Producer`] *submits* a job: it publishes the job to its [`Queue`], a stream on the broker, and
//! repeats that under the same [`JobId`] until the broker has confirmed that the job is stored. While the
//! queue is full, the producer waits: that is back pressure, and nothing is dropped.
//!
//! A [`Service`] *pulls* jobs, from each [`Lane`] of a queue never more than it has slots, and hands each to the
//! [`Handler`] of its kind once there is a free slot. If the service has a rate limit, the job first waits for a
//! permit. All replicas share a fixed number of permits a second. A handler can ask for further permits under its own
//! keys ([`Context::permit`]). The job is now *in flight*. While the handler awaits, the service sends *heartbeats*, so
//! that the broker does not redeliver the job. When the handler publishes or creates through its [`Context`], the call
//! returns only after the broker has confirmed it.
//!
//! The service *acks* the job only after the handler has returned `Ok`; then the broker forgets the job. After a
//! [`Failure`] the broker redelivers the job after a delay (*retry*, *backoff*), as long as the
//! [`RetryPolicy`] of the handler, or of the job, allows another *attempt*. After the last attempt, or at
//! once for [`Failure::Reject`], the job becomes a *dead letter* with its reason ([`dead_letters`]). An
//! operator can replay or discard it. An attempt that takes longer than the policy's time-out fails. A handler that
//! cannot do its job yet returns [`Failure::RetryAfter`] (*snooze*), which spends an attempt unless the policy has
//! `snoozes_count: false`. One pure function, [`settle()`], decides how a delivery is settled.
//!
//! A process may die at any moment, so a job may be handled twice. If an effect has to happen once,
//! create it as a [`Fact`]: the broker accepts one write to its key and refuses all others.
//!
//! With [`Settings::bundle_limit`] above 1, a service publishes several jobs in one message (*bundle*), which saves the
//! broker most of its work. Each job is still handled and settled on its own.
//!
//! On shutdown a service stops pulling, finishes the jobs in flight, gives back those that it cannot finish in
//! time, and ends (*drain*).
//!
//! # Your own job
//!
//! ```no_run
//! use serde::{Deserialize, Serialize};
//! use workqueue::{Context, Failure, Handler, Job, Producer, Queue, Service, Settings};
//!
//! /// Make a thumbnail.
//! #[derive(Serialize, Deserialize)]
//! struct Thumbnail {
//!     image: String,
//!     width: u32,
//! }
//!
//! impl Job for Thumbnail {
//!     const QUEUE: Queue = Queue::new("THUMBNAILS", "thumbnails").consumer("thumbnailer");
//! }
//!
//! struct Thumbnailer;
//!
//! impl Handler for Thumbnailer {
//!     type Job = Thumbnail;
//!
//!     async fn handle(&self, job: Thumbnail, cx: &Context) -> Result<(), Failure> {
//!         let picture = tokio::task::spawn_blocking(move || resize(&job)).await?;
//!         tracing::info!(id = %cx.id(), bytes = picture.len(), "resized");
//!         Ok(()) // only now is the job acked
//!     }
//! }
//! # fn resize(_: &Thumbnail) -> Vec<u8> { Vec::new() }
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let settings = Settings::from_env();
//! let producer = Producer::connect(&settings).await?;
//! producer.submit(&Thumbnail { image: "cat.png".into(), width: 64 }).await?; // stored, not merely sent
//!
//! let stop = workqueue::stop_on_signals()?;
//! Service::new("thumbnailer").consume(Thumbnailer).run(&settings, &stop).await?;
//! # Ok(())
//! # }
//! ```
//!
//! On a queue [with schedules](Queue::with_schedules), a job can be due later, or recur:
//!
//! ```no_run
//! # use std::time::Duration;
//! # use serde::{Deserialize, Serialize};
//! # use workqueue::{Job, Producer, Queue, Recurrence};
//! /// Remind a person.
//! #[derive(Serialize, Deserialize)]
//! struct Remind {
//!     of: String,
//! }
//!
//! impl Job for Remind {
//!     const QUEUE: Queue =
//!         Queue::new("REMINDERS", "due").consumer("reminder").with_schedules("reminders");
//! }
//!
//! # async fn example(producer: &Producer) -> Result<(), Box<dyn std::error::Error>> {
//! let in_an_hour = workqueue::now() + Duration::from_hours(1);
//! let id = producer.submit_later(&Remind { of: "the cake".into() }, in_an_hour).await?;
//! producer.cancel::<Remind>(id).await?; // the cake is out already
//!
//! let weekdays = Recurrence::Cron {
//!     expression: "0 0 9 * * MON-FRI".into(), // seconds first
//!     time_zone: Some("Europe/Berlin".into()),
//! };
//! producer.schedule("standup", &weekdays, &Remind { of: "the standup".into() }).await?;
//! # Ok(())
//! # }
//! ```
//!
//! [`testing`] has a context that records, so that a handler has unit tests without a broker.
//!
//! # The modules
//!
//! | step | module |
//! | --- | --- |
//! | a kind of job, its queue, its message | `job`, `queue`, `priority`, `headers`, `id` |
//! | the work, and its outcome | `handler` |
//! | submit; create and read facts; remove a waiting job | `producer`, on `publisher`, `pub_acks` and `facts`; `remove` |
//! | submit for later, recur | `later`, on [`schedules`] and `recurrence`; `firing` |
//! | pull, run, settle | `consumer`, on `pull`, `slots`, `delivery`, `acks`, `blocking`, `settle`, `snooze`; bound by `lanes` |
//! | several jobs in one message | `bundle` |
//! | limit the rate of a queue or of a key | `slots`, on `rate_limit`, `lease` |
//! | dead-letter, list, replay, discard | [`dead_letters`] |
//! | read some messages of a stream with one request, or all of them | [`batch`], [`reading`] |
//! | start, drain, stop | `service`, `running`, `background`; `signals`, on `held_signals` |
//! | declare, compare with the existing and earlier streams; pause | [`topology`], `declare`, `known_streams` |
//! | keep a topology as declared | `reconciler` |
//! | find messages that no consumer can settle | `sweeper`, `consumer_state` |
//! | connect with patience; ask the broker | `connection`, `connection_events`, `connect_options`, `servers`, `credentials`, `connect_error`, [`api`] |
//! | report | `admin` on [`http`], `health`, `healthcheck`, `metrics`, `announce`, `telemetry` |
//! | trace | `trace`, the context in messages; `spans`, on `span_export` |
//! | settings of a program, hiding the secrets in them, and the commands that its messages name | `settings`, `mask`, `command_line`, `commands` |
//! | unit tests of handlers | [`testing`], `recorder` |
//! | small helpers | `backoff`, `error_chain`, `clock`, `last_message`, `log_once` |

mod acks;
mod admin;
mod announce;
pub mod api;
mod background;
mod backoff;
pub mod batch;
mod blocking;
mod bundle;
mod clock;
mod command_line;
mod commands;
mod connect_error;
mod connect_options;
mod connection;
mod connection_events;
mod consumer;
mod consumer_state;
mod credentials;
pub mod dead_letters;
mod declare;
mod delivery;
mod error_chain;
mod facts;
mod firing;
mod handler;
pub mod headers;
mod health;
mod healthcheck;
mod held_signals;
pub mod http;
mod id;
mod job;
mod known_streams;
mod lanes;
mod last_message;
mod later;
mod lease;
mod log_once;
mod mask;
mod metrics;
mod priority;
mod producer;
mod pub_acks;
mod publisher;
mod pull;
mod queue;
mod rate_limit;
pub mod reading;
mod reconciler;
mod recorder;
mod recurrence;
mod remove;
mod running;
pub mod schedules;
mod servers;
mod service;
mod settings;
mod settle;
mod signals;
mod slots;
mod snooze;
mod span_export;
mod spans;
mod sweeper;
mod telemetry;
pub mod testing;
pub mod topology;
mod trace;

pub use admin::{Report, serve as serve_admin};
pub use backoff::Backoff;
pub use bundle::bundled_ids;
pub use clock::{ClockWatch, compare_clocks, now};
pub use command_line::{address, exit_code, parse, print_error, reader_has_gone, variable};
pub use commands::{Commands, name_commands};
pub use connect_error::{ClientEnded, ConnectError};
pub use connection::Connection;
pub use error_chain::chain;
pub use facts::{Bucket, Creation, Fact, ReadError, read_fact};
pub use handler::{Attempt, Context, Failure, Handler, Rejection, RetryPolicy};
pub use healthcheck::{Command, HealthcheckError, healthcheck};
pub use id::{InvalidId, JobId};
pub use job::{DecodeError, Job, Publication, from_json};
pub use known_streams::KnownStreams;
pub use last_message::last_message;
pub use later::ScheduleOutcome;
pub use log_once::LogOnce;
pub use metrics::{DroppedTelemetry, Metrics};
pub use priority::{InvalidPriority, Priority};
pub use producer::Producer;
pub use publisher::PublishError;
pub use queue::{Lane, Queue};
pub use reconciler::{Progress, Reconciler};
pub use recurrence::{InvalidSchedule, Recurrence};
pub use remove::remove;
pub use running::{Running, ServiceError};
pub use schedules::{DelayedJob, Schedule};
pub use service::Service;
pub use settings::{
    LogFormat, NatsSettings, Settings, TelemetrySettings, above_zero, copies, default_instance,
    duration, number, subject, web_address,
};
pub use settle::{Delay, Outcome, Settlement, settle};
pub use signals::{StopSignals, stop_on_signals};
pub use spans::Span;
pub use sweeper::Swept;
pub use telemetry::{InvalidTelemetry, Logs, init as init_telemetry};
pub use trace::Trace;
