//! The inputs of the fuzz targets that are worth keeping, on a stable compiler and in every run.

mod checks;

use std::fs;
use std::panic;
use std::path::Path;

/// Runs the check on all that is kept for a target.
fn replay(target: &str, check: fn(&[u8])) {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds").join(target);
    let mut seen = 0;
    for seed in fs::read_dir(seeds).unwrap() {
        let path = seed.unwrap().path();
        let data = fs::read(&path).unwrap();
        if let Err(panic) = panic::catch_unwind(|| check(&data)) {
            eprintln!("it is {}", path.display());
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
fn a_dead_letter_replays_as_the_message_that_it_was() {
    replay("headers", checks::headers);
}

#[test]
fn a_subject_names_one_key_and_an_id_has_one_spelling() {
    replay("subjects", checks::subjects);
}
