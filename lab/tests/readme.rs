//! What the README names and shows is there.

use std::fs;
use std::path::Path;

fn read(path: impl AsRef<Path>) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn readme_shows_the_example_as_it_is() {
    let shown = format!("```rust\n{}```", read("../examples/hello/src/main.rs"));
    assert!(read("../README.md").contains(&shown), "it shows other code");
}

#[test]
fn every_test_that_the_readme_names_is_there() {
    let readme = read("../README.md");
    let table = readme.split_once("## Test it").unwrap().1.split_once("\n## ").unwrap().0;
    let chaos = read("tests/chaos.rs");
    let mut named = 0;
    for row in table.lines().filter(|line| line.starts_with("| ")).skip(2) {
        let tests = row.trim_end_matches([' ', '|']).rsplit(" | ").next().unwrap();
        let file = match tests.split_once("`: ") {
            Some((module, _)) => read(format!("tests/system/{}.rs", module.trim_matches('`'))),
            None => chaos.clone(),
        };
        let before = named;
        for name in tests.split('`').filter(|word| word.contains('_') && !word.contains('/')) {
            let is_there = file.contains(&format!("fn {name}("));
            assert!(is_there || tests.starts_with(&format!("`{name}`:")), "{name}: {row}");
            named += usize::from(is_there);
        }
        assert!(named > before, "this row names no test: {row}");
    }
    assert!(named >= 20, "only {named} tests are named");
}
