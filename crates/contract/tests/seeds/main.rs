//! Runs the checks of the fuzz targets on their seeds, with a stable compiler, in every run of the tests.

mod checks;

use std::fs;
use std::panic;
use std::path::Path;

/// Runs the check on each seed of a target.
fn replay(target: &str, check: fn(&[u8])) {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds").join(target);
    let mut seen = 0;
    for seed in fs::read_dir(seeds).unwrap() {
        let path = seed.unwrap().path();
        let data = fs::read(&path).unwrap();
        if let Err(panic) = panic::catch_unwind(|| check(&data)) {
            eprintln!("the seed is {}", path.display());
            panic::resume_unwind(panic);
        }
        seen += 1;
    }
    assert!(seen > 0, "there are no seeds of {target}");
}

#[test]
fn body_encodes_to_the_value_that_it_decoded_to() {
    replay("bodies", checks::bodies);
}

#[test]
fn replay_of_a_dead_letter_is_the_original_message() {
    replay("headers", checks::headers);
}

#[test]
fn subject_has_one_key_and_an_id_has_one_spelling() {
    replay("subjects", checks::subjects);
}
