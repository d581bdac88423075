//! The whole system: real programs, a real broker, and whatever may happen to them.
//!
//! Each test has a broker of its own. None waits for a time to pass, only for a fact to be there.

mod announcing;
mod api;
mod api_faults;
mod api_rules;
mod audit;
mod back_pressure;
mod backup;
mod bad_input;
mod by_hand;
mod cluster;
mod dead_letters;
mod deployment;
mod duplicates;
mod healthcheck;
mod looking;
mod loops;
mod permissions;
mod rejected;
mod seams;
mod stopping;
mod topology;
mod unreadable;
mod watch;
mod work;
