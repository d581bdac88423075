//! The README and the pages of `docs/` agree with the code.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use testkit::programs;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: impl AsRef<Path>) -> String {
    let path = repository().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The pages that show commands, without the lessons themselves, whose steps have checks of their own.
fn pages() -> Vec<String> {
    let docs = fs::read_dir(repository().join("docs")).unwrap();
    let docs = docs.map(|entry| entry.unwrap().path());
    let docs = docs.filter(|path| path.extension().is_some_and(|extension| extension == "md"));
    let name = |path: PathBuf| format!("docs/{}", path.file_name().unwrap().display());
    let mut pages: Vec<String> = docs.map(name).collect();
    assert!(pages.len() > 10, "{pages:?}");
    let examples =
        ["hello", "orders", "word-count"].map(|name| format!("examples/{name}/README.md"));
    let others = ["README.md", "CONTRIBUTING.md", "k8s/README.md", "lessons/TEACHING.md"];
    pages.extend(examples.into_iter().chain(others.map(str::to_owned)));
    pages.sort();
    pages
}

/// The blocks of this language, with the text before each.
fn blocks<'a>(page: &'a str, language: &str) -> Vec<(&'a str, &'a str)> {
    let begin = format!("\n```{language}\n");
    page.match_indices(&begin)
        .map(|(at, _)| {
            let rest = &page[at + begin.len()..];
            let end = rest.find("```\n").expect("a block has an end");
            (page[..at].trim_end(), &rest[..end])
        })
        .collect()
}

#[test]
fn readme_fits_two_screens() {
    let bytes = read("README.md").len();
    assert!(bytes < 8192, "it has {bytes} bytes; move a part of it to docs/");
}

#[test]
fn readme_shows_the_example_as_it_is() {
    let (readme, example) = (read("README.md"), read("examples/hello/src/main.rs"));
    let shown = blocks(&readme, "rust");
    assert!(!shown.is_empty(), "it shows no code");
    for (_, code) in shown {
        assert!(example.contains(&format!("\n{code}")), "the example has no such lines:\n{code}");
    }
}

#[test]
fn failure_modes_name_existing_tests() {
    let page = read("docs/failure-modes.md");
    let rows = page.lines().filter(|line| line.starts_with("| "));
    let rows = rows.filter(|line| !line.starts_with("| ---") && !line.starts_with("| fault |"));
    let mut named = 0;
    for row in rows {
        let tests = row.trim_end_matches([' ', '|']).rsplit(" | ").next().unwrap();
        let (module, _) = tests.split_once("`: ").unwrap_or_else(|| panic!("no module: {row}"));
        let file = read(format!("lab/tests/system/{}.rs", module.trim_matches('`')));
        let before = named;
        for name in tests.split('`').filter(|word| word.contains('_')) {
            let is_there = file.contains(&format!("fn {name}("));
            assert!(is_there || tests.starts_with(&format!("`{name}`:")), "{name}: {row}");
            named += usize::from(is_there);
        }
        assert!(named > before, "this row names no test: {row}");
    }
    assert!(named >= 60, "only {named} tests are named");
}

#[test]
fn commands_say_whether_ci_runs_them() {
    let mut marked = 0;
    for path in pages() {
        let page = read(&path);
        for (before, block) in blocks(&page, "console") {
            let mark = before.lines().next_back().unwrap_or_default();
            let mark = mark.strip_prefix("<!-- ").and_then(|mark| mark.strip_suffix(" -->"));
            let command = block.lines().next().unwrap_or_default();
            match mark.and_then(|mark| mark.split_once(": ")) {
                Some(("run by", file)) => {
                    assert!(repository().join(file).exists(), "{path}: there is no {file}");
                }
                Some(("not run", reason)) => assert!(!reason.is_empty(), "{path}: {command}"),
                _ => panic!("{path}: CONTRIBUTING.md says how to mark a block such as {command}"),
            }
            marked += 1;
        }
    }
    assert!(marked >= 40, "only {marked} blocks show commands");
}

/// With `UPDATE_DOCS=1` it updates the pages that differ.
#[tokio::test]
async fn shown_help_is_that_of_the_programs() {
    let [decoupled] = programs::build_only(["decoupled"]).await.unwrap();
    let lab = PathBuf::from(env!("CARGO_BIN_EXE_lab"));
    let update = std::env::var_os("UPDATE_DOCS").is_some();
    let mut shown = 0;
    for path in pages() {
        let page = read(&path);
        let mut updated = page.clone();
        for (_, block) in blocks(&page, "console") {
            let (command, help) = block.split_once('\n').unwrap();
            if !command.ends_with(" --help") {
                continue;
            }
            let program = match command {
                "$ decoupled --help" => &decoupled,
                "$ cargo lab --help" => &lab,
                _ => panic!("{path}: there is no program for {command}"),
            };
            let output = Command::new(program).arg("--help").env_remove("COLUMNS").output();
            let printed = String::from_utf8(output.unwrap().stdout).unwrap();
            if update {
                updated = updated.replace(block, &format!("{command}\n{printed}"));
            } else {
                let hint = "UPDATE_DOCS=1 cargo test --package lab --test docs mends the pages";
                assert_eq!(help, printed, "{path} shows another help; {hint}");
            }
            shown += 1;
        }
        if updated != page {
            fs::write(repository().join(path), updated).unwrap();
        }
    }
    assert_eq!(shown, 2, "pages show the help of decoupled and of cargo lab");
}

#[tokio::test]
async fn settings_have_the_defaults_that_the_table_shows() {
    let programs = programs::build_only(["requestor", "generator", "gateway"]).await.unwrap();
    let help = programs.map(|program| {
        let output = Command::new(program).arg("--help").output();
        String::from_utf8(output.unwrap().stdout).unwrap()
    });
    let page = read("docs/operations.md");
    let (_, table) = page.split_once("| setting | default |").unwrap();
    let (_, rows) = table.split_once("| --- |").unwrap();
    let quoted = |cell: &str| {
        let words = cell.split('`').skip(1).step_by(2);
        words.map(str::to_owned).collect::<Vec<String>>()
    };
    let mut compared = 0;
    for row in rows.lines().skip(1).take_while(|row| row.starts_with("| ")) {
        let cells: Vec<&str> = row.split(" | ").collect();
        let mut defaults = quoted(cells[1]).into_iter();
        for name in quoted(cells[0]) {
            let flags = help.iter().flat_map(|help| help.split("\n      --"));
            let mut flags = flags.filter_map(|flag| {
                let (_, after) = flag.split_once(&format!("[env: {name}"))?;
                (!after.starts_with('_')).then_some((flag, after))
            });
            let (flag, after) = flags.next().unwrap_or_else(|| panic!("no program has {name}"));
            match defaults.next() {
                Some(default) => assert!(flag.contains(&default), "not {default}: {flag}"),
                None => assert!(!after.contains("[default: "), "{row}: {flag}"),
            }
            compared += 1;
        }
    }
    assert!(compared >= 30, "only {compared} settings are in the table");
}
