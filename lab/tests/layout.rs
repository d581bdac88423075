//! Which crate of this workspace leans on which, and how its tests are named.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// The crates of this workspace that each crate may lean on. Dependencies of tests are not restricted.
const MAY_LEAN_ON: [(&str, &[&str]); 9] = [
    ("workqueue", &[]),
    ("testkit", &[]),
    ("contract", &["workqueue"]),
    ("observe", &["contract", "workqueue"]),
    ("requestor", &["contract", "workqueue"]),
    ("generator", &["contract", "workqueue"]),
    ("gateway", &["contract", "workqueue", "observe", "requestor"]),
    ("cli", &["contract", "workqueue", "observe"]),
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

#[test]
fn crate_leans_only_on_those_that_it_may() {
    let cargo = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    let metadata: Value = serde_json::from_slice(&cargo.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let name = |of: &Value| of["name"].as_str().unwrap().to_owned();
    let ours: BTreeSet<String> = packages.iter().map(name).collect();
    let allowed = BTreeMap::from(MAY_LEAN_ON);
    for package in packages {
        let package_name = name(package);
        // Examples depend on the engine alone, as programs outside this repository do.
        let is_example = package["manifest_path"].as_str().unwrap().contains("/examples/");
        let may = if is_example { &["workqueue"][..] } else { allowed[package_name.as_str()] };
        for dependency in package["dependencies"].as_array().unwrap() {
            let dependency_name = name(dependency);
            let is_for_tests = dependency["kind"] == "dev";
            if ours.contains(&dependency_name) && !is_for_tests {
                let is_allowed = may.contains(&dependency_name.as_str());
                assert!(is_allowed, "{package_name} may not lean on {dependency_name}");
            }
        }
    }
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
