//! The page in a real browser, driven as a person would: look, press, type, wait.
//!
//! Each test has a broker of its own, the real programs, and a browser that nobody has used before.

#[expect(dead_code, reason = "the tests of the system need more of it")]
#[path = "../system/deployment.rs"]
mod deployment;

mod browser;
mod flow;
mod gateway;
mod letters;
mod looks;
mod recovery;
mod strings;
