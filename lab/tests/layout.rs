//! Which crate of this workspace leans on which.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

/// What each crate may lean on, of this workspace. Tests, and what is only for them, may lean on anything.
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
        // Whatever is an example stands on the engine alone, as a stranger would.
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
