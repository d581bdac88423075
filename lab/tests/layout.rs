//! The dependencies between the crates of this workspace, and the names of its tests.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

/// The name in these tables for each crate below `examples/`: they depend on the engine as programs outside this
/// repository do.
const EXAMPLES: &str = "examples";

/// The crates of this workspace on which each crate may depend.
const MAY_DEPEND_ON: [(&str, &[&str]); 10] = [
    (EXAMPLES, &["workqueue"]),
    ("workqueue", &[]),
    ("testkit", &[]),
    ("contract", &["workqueue"]),
    ("observe", &["contract", "workqueue"]),
    ("requestor", &["contract", "workqueue"]),
    ("generator", &["contract", "workqueue"]),
    ("gateway", &["contract", "workqueue", "observe", "requestor"]),
    ("cli", &["contract", "workqueue", "observe", "requestor"]),
    (
        "lab",
        &[
            "workqueue",
            "testkit",
            "contract",
            "observe",
            "requestor",
            "generator",
            "gateway",
            "cli",
        ],
    ),
];

/// The further crates on which its tests may depend. The tests of the whole system are those of the lab.
const TESTS_MAY_DEPEND_ON: [(&str, &[&str]); 1] = [(EXAMPLES, &["testkit"])];

#[test]
fn crate_has_only_allowed_dependencies() {
    let cargo = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    let metadata: Value = serde_json::from_slice(&cargo.stdout).unwrap();
    assert_eq!(forbidden(&metadata), [""; 0]);
}

#[test]
fn engine_tests_do_not_depend_on_the_lab() {
    let metadata = metadata("/checkout", "crates/workqueue", "lab", &json!("dev"));
    assert_eq!(forbidden(&metadata), ["tests of workqueue on lab"]);
}

#[test]
fn checkout_below_a_folder_called_examples_is_no_example() {
    let metadata = metadata("/examples/checkout", "gateway", "requestor", &Value::Null);
    assert_eq!(forbidden(&metadata), [""; 0]);
}

/// Cargo's metadata of a workspace at `root` with two crates, of which the one at `path` depends on the other.
fn metadata(root: &str, path: &str, on: &str, kind: &Value) -> Value {
    let name = path.rsplit('/').next();
    let package = |name, path, dependencies| {
        let manifest_path = format!("{root}/{path}/Cargo.toml");
        json!({ "name": name, "manifest_path": manifest_path, "dependencies": dependencies })
    };
    let dependencies = json!([{ "name": on, "kind": kind }]);
    let packages = [package(Some(on), on, json!([])), package(name, path, dependencies)];
    json!({ "workspace_root": root, "packages": packages })
}

/// The dependencies between the crates of a workspace that are in neither table.
fn forbidden(metadata: &Value) -> Vec<String> {
    let root = metadata["workspace_root"].as_str().unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let text = |of: &Value, field| of[field].as_str().unwrap().to_owned();
    let ours: BTreeSet<String> = packages.iter().map(|package| text(package, "name")).collect();
    let (always, in_tests) = (BTreeMap::from(MAY_DEPEND_ON), BTreeMap::from(TESTS_MAY_DEPEND_ON));
    let mut forbidden = Vec::new();
    for package in packages {
        let (name, manifest) = (text(package, "name"), text(package, "manifest_path"));
        let is_example = Path::new(&manifest).strip_prefix(root).unwrap().starts_with(EXAMPLES);
        let row = if is_example { EXAMPLES } else { &name };
        for dependency in package["dependencies"].as_array().unwrap() {
            let on = text(dependency, "name");
            let is_in = |table: &BTreeMap<&str, &[&str]>| {
                table.get(row).is_some_and(|may| may.contains(&on.as_str()))
            };
            let is_for_tests = dependency["kind"] == "dev";
            let is_allowed = is_in(&always) || is_for_tests && is_in(&in_tests);
            if ours.contains(&on) && !is_allowed {
                let tests = if is_for_tests { "tests of " } else { "" };
                forbidden.push(format!("{tests}{name} on {on}"));
            }
        }
    }
    forbidden
}

#[test]
fn test_names_are_short_and_begin_with_a_subject() {
    for (test, file) in tests_in(&Path::new(env!("CARGO_MANIFEST_DIR")).join("..")) {
        let first = test.split('_').next().unwrap();
        let is_named = test.len() <= 60 && !["what", "who", "where"].contains(&first);
        assert!(
            is_named,
            "{file}: name {test} as subject_does_something, in 60 characters at most"
        );
    }
}

/// The name of each test under a directory, with its file.
fn tests_in(directory: &Path) -> Vec<(String, String)> {
    let mut tests = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("target") {
            tests.extend(tests_in(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let mut lines = text.lines().map(str::trim);
            let is_test =
                |line: &str| line.starts_with("#[test]") || line.starts_with("#[tokio::test");
            while lines.any(is_test) {
                let (_, name) = lines.find_map(|line| line.split_once("fn ")).unwrap();
                let (name, _) = name.split_once('(').unwrap();
                tests.push((name.to_owned(), path.display().to_string()));
            }
        }
    }
    tests
}
