//! The programs of this example on a real broker, with `SQLite` and, with the feature `postgres`, with Postgres, and
//! their faults.

#![cfg_attr(
    not(feature = "postgres"),
    allow(dead_code, unused_imports, reason = "the tests with Postgres use it")
)]

mod crash_points;
mod flow;
mod naive;
mod outages;
mod postgres;
mod relays;
mod system;
