//! The page in a real browser, used as a person uses it: look, press, type, wait.
//!
//! Each test has a broker of its own, the real programs, and a fresh browser.

#[expect(dead_code, reason = "the tests of the system need more of it")]
#[path = "../system/deployment.rs"]
mod deployment;

mod accessibility;
mod addresses;
mod browser;
mod dead_letters;
mod flow;
mod gateway;
mod lessons;
mod recovery;
mod strings;
mod sub_path;
