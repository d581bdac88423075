#![no_main]

#[path = "../../crates/contract/tests/seeds/checks.rs"]
#[expect(dead_code, reason = "each target runs one of the checks")]
mod checks;

libfuzzer_sys::fuzz_target!(|data: &[u8]| checks::headers(data));
