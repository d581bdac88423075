//! The whole system: real programs, a real broker, and their faults; and `cargo lab` as a program.
//!
//! Each test has a broker of its own. None waits for a fixed time, only for a fact.

mod announcements;
mod api;
mod api_faults;
mod api_lists;
mod api_rules;
mod audit;
mod back_pressure;
mod backup;
mod cancelling;
mod chaos;
mod clocks;
mod cluster;
mod compare;
mod control;
mod crash_points;
mod dead_letters;
mod deployment;
mod domain;
mod duplicates;
mod foreign_messages;
mod gateway_user;
mod healthcheck;
mod later;
mod lessons;
mod output;
mod page_trouble;
mod permissions;
mod priorities;
mod queues;
mod rates;
mod rejected;
mod replaced;
mod round_trips;
mod startup;
mod stopping;
mod topology;
mod traces;
mod unreadable;
mod up;
mod watch;
mod work;
