use std::fs;
use std::path::Path;

use serde_json::json;

use super::check::{Check, since, variables};
use super::*;

/// An update as the page gets it.
fn update(silent: bool) -> serde_json::Value {
    let queue = |name, lanes| {
        json!({ "name": name, "waiting": 37, "in_flight": 0, "scheduled": 0, "limit": 100_000, "full": false, "arrival_rate": 10.0, "departure_rate": 0.0,
                "redelivered": 0, "oldest_at": null, "paused_until": null, "lanes": lanes })
    };
    let lanes = ["high", "normal", "low"]
        .map(|priority| json!({ "priority": priority, "waiting": 1, "in_flight": 2 }));
    let state = if silent { "silent" } else { "ready" };
    let percentiles = json!({ "median_ms": 2.5, "p99_ms": 9.0 });
    json!({
        "at": 0,
        "trouble": silent.then(|| json!({ "kind": "silent", "words": "no answer" })),
        "point": { "requestors": u8::from(!silent), "generators": 0 },
        "flow": {
            "queues": [queue("REQUESTS", json!(lanes)), queue("RESPONSES", json!([])), queue("ACKNOWLEDGMENTS", json!([]))],
            "schedules": queue("SCHEDULES", json!([])),
            "replicas": [{ "service": "generator", "id": "5c1e", "instance": "generator-1", "version": "0.2.0", "state": state,
                           "settle_rates": {}, "in_flight": 0, "in_flight_by_queue": {}, "request_rate": 0.0, "full_streams": [] }],
            "requestors": 1, "generators": 1,
            "totals": { "requested": 50, "stored": 13, "received": 13, "dead_letters": 0, "pending": 37, "redelivered": 0,
                         "missing": 0, "written_twice": 0 },
            "brokers": [],
            "last": [{ "id": "01a221c3-2b61-72f7-9dae-33ffdab2a14d", "requestor": "requestor-1", "received_at": null }],
            "latency": { "round_trips": 10, "median_ms": 2.5, "p99_ms": 9.0, "waited": percentiles, "made": percentiles,
                         "stored": percentiles, "marked": percentiles },
        },
    })
}

#[test]
fn check_keeps_what_it_compares_with_and_takes_nothing_else() {
    let check = "new_generators >= 2 && requests.high.waiting > was.requests.high.waiting + was.totals.stored";
    let check = Check::parse(check).unwrap();
    let was = check.baseline(&variables(&update(false)).unwrap()).unwrap();
    let kept = json!({
        "replicas": [{ "service": "generator", "state": "ready", "id": "5c1e" }],
        "requests": { "high": { "waiting": 1 } },
        "totals": { "stored": 13 },
    });
    assert_eq!(json!(was), kept);
    assert_eq!(check.restore(&json!(was).to_string()), Some(was));
    let refused = |wrong: &serde_json::Value| check.restore(&wrong.to_string()).is_none();
    for (part, wrong) in [
        ("/replicas", json!([{ "service": "requestor", "state": "ready", "id": "5c1e" }])),
        ("/replicas", json!([{ "service": "generator", "state": "ready", "id": 1 }])),
        ("/replicas", json!(null)),
        ("/requests/high", json!(1)),
        ("/totals/stored", json!({ "a": 1 })),
        ("/totals", json!({ "stored": 1, "received": 1 })),
        ("", json!({})),
        ("", json!([])),
    ] {
        let mut changed = kept.clone();
        *changed.pointer_mut(part).unwrap() = wrong;
        assert!(refused(&changed), "{changed}");
    }
    assert_eq!(check.restore("garbage"), None);
}

fn now(silent: bool) -> serde_json::Map<String, serde_json::Value> {
    let now = variables(&update(silent)).unwrap();
    since(&now, now.clone())
}

#[test]
fn check_reads_the_flow_by_the_names_of_its_queues() {
    let holds = |source: &str| Check::parse(source).unwrap().holds(&now(false));
    for source in [
        "requests.waiting > 20 && generators == 0",
        "requests.waiting + 3 == 40 && requests.waiting < was.requests.waiting + 1",
        "requests.arrival_rate > 5 && latency.median_ms < 3.0",
        "requests.high.waiting == 1 && requests.paused_until == null && broker",
        "replicas.exists(it, it.state == 'ready') && requestors == 1",
        "new_generators == 0 && generator_versions.all(version, version == '0.2.0')",
    ] {
        assert_eq!(holds(source), Ok(true), "{source}");
    }
    assert_eq!(holds("requests.waiting < 37"), Ok(false));
    assert!(holds("requests.wating > 0").is_err(), "a name that is not there");
    assert!(holds("requests.waiting").is_err(), "no condition");
    assert!(Check::parse("requests.waiting >").is_err());
}

#[test]
fn check_reports_the_values_that_it_read() {
    let check = Check::parse(
        "generators == 0 && requests.waiting > was.requests.waiting && requests.paused_until == null",
    );
    let saw = check.unwrap().saw(&now(false));
    assert_eq!(saw, "generators 0, REQUESTS not paused, 37 waiting");
    let check = Check::parse(
        "requests.high.waiting == 1 && !requests.full && requests.arrival_rate < 20.0 && requests.in_flight == 0 && \
         broker && totals.dead_letters == 0 && latency.made.median_ms > 1.0 && last.exists(it, it.id == '')",
    );
    let saw = check.unwrap().saw(&now(false));
    let words = "broker ready, 1 last requests, made in 2.5 ms (median), REQUESTS 10.0/s in, not full, high 1 waiting, \
                 0 in flight, dead letters 0";
    assert_eq!(saw, words);
    let check = Check::parse(
        "size(replicas.filter(it, it.state == 'ready' && was.replicas.exists(was, was.instance == it.instance))) == 1 && \
         size(last.filter(it, it.id == '')) > 0 && generator_versions.all(it, it == '1')",
    );
    let words =
        "generators of version 0.2.0, found 1 among 1 replicas, found 0 among 1 last requests";
    assert_eq!(check.unwrap().saw(&now(false)), words);
}

#[test]
fn generator_that_was_not_ready_before_is_new() {
    let was = variables(&update(true)).unwrap();
    let now = since(&was, variables(&update(false)).unwrap());
    assert_eq!(Check::parse("new_generators == 1").unwrap().holds(&now), Ok(true));
}

#[test]
fn no_replica_counts_while_the_broker_is_silent() {
    let check = Check::parse("!broker && requestors == 0 && requests.waiting == 37").unwrap();
    assert_eq!(check.holds(&now(true)), Ok(true));
    assert_eq!(variables(&json!({ "at": 0, "flow": null })), None);
    // The broker answers, but its topology does not exist yet.
    let mut undeclared = update(false);
    undeclared["trouble"] = json!({ "kind": "undeclared", "words": "no stream" });
    assert_eq!(variables(&undeclared).unwrap()["broker"], true);
    undeclared["flow"]["queues"] = json!([]);
    assert_eq!(variables(&undeclared), None);
}

#[test]
fn lesson_in_another_form_is_refused() {
    let sections: String = lesson::HEADINGS.map(|heading| format!("## {heading}\n\n")).concat();
    let refused = |text: &str| Lesson::parse(text).unwrap_err();
    assert_eq!(refused(""), "it is empty");
    assert_eq!(refused("# Kill"), "its title has no number");
    assert_eq!(refused("# 4. Kill\n\n## Why\n"), "Why stands where Set the scene is to stand");
    assert_eq!(refused(&format!("# 4. Kill\n\n{sections}## More\n")), "More is a heading too many");
    let step = "## Do\n\n1. Kill.\n\n   ```ckeck\n   broker\n   ```\n";
    let wrong = format!("# 4. Kill\n\n{}", sections.replace("## Do\n", step));
    assert_eq!(refused(&wrong), "step 1: it has a block that is for nothing");
}

/// The parts of a check that `&&` joins, outside of parentheses.
fn parts(source: &str) -> Vec<String> {
    let (mut parts, mut depth) = (vec![String::new()], 0_usize);
    for part in source.split_inclusive("&&") {
        let all = parts.last_mut().unwrap();
        all.push_str(part);
        depth = depth + part.matches('(').count() - part.matches(')').count();
        if depth == 0 && part.ends_with("&&") {
            all.truncate(all.len() - 2);
            parts.push(String::new());
        }
    }
    parts
}

#[test]
fn lessons_have_their_form_and_valid_checks() {
    for (number, file) in FILES.iter().enumerate() {
        let lesson = Lesson::parse(file).unwrap_or_else(|error| panic!("lesson {number}: {error}"));
        assert_eq!(lesson.number, number);
        assert!(lesson.scene().lab.is_some(), "lesson {number} has no scene for the lab");
        assert!((2..=8).contains(&lesson.steps().count()), "lesson {number}");
        for (step, of) in (1..).zip(lesson.steps()) {
            assert_eq!(
                of.commands.lab.is_some(),
                of.prints.is_some(),
                "step {step} of lesson {number} has to show what its command prints"
            );
            let Some(check) = &of.check else { continue };
            assert!(
                of.commands.lab.is_some(),
                "step {step} of lesson {number} has no command for the lab"
            );
            // Each part by itself: a check ends at the first part that is false.
            for part in parts(check.source()).iter().filter(|_| !of.lab_only) {
                let now = variables(&update(false)).unwrap();
                let was = check.baseline(&now).expect("it compares single values");
                let holds = Check::parse(part).and_then(|part| part.holds(&since(&was, now)));
                holds.unwrap_or_else(|error| panic!("step {step} of lesson {number}: {error}"));
            }
        }
        let scene = lesson.scene().lab.as_deref().unwrap();
        assert!(scene.contains("cargo lab up"), "lesson {number}: {scene}");
    }
}

#[test]
fn links_of_the_course_have_targets() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../lessons");
    let mut functions = 0;
    let lessons = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
    // These two pages link to the code as the lessons do.
    let others = ["glossary.md", "comparison.md"].map(|name| folder.join("../docs").join(name));
    for path in lessons.chain(others) {
        if path.extension().is_none_or(|extension| extension != "md") {
            continue;
        }
        let page = path.display();
        let mut links = Vec::new();
        for element in markdown::elements(&fs::read_to_string(&path).unwrap()) {
            element.each(&mut |it| {
                links.extend(it.href.clone().or(it.src.clone()).map(|to| (to, it.clone())));
            });
        }
        for (to, link) in links {
            if to.starts_with("http") {
                continue;
            }
            let (file, anchor) = to.split_once('#').unwrap_or((&to, ""));
            let file = if file.is_empty() { path.clone() } else { path.with_file_name(file) };
            assert!(file.exists(), "{page}: {to} is not there");
            if anchor.is_empty() {
                // The file has to define an item of this name.
                if file.extension().is_some_and(|extension| extension == "rs")
                    && let [markdown::Node::Element(markdown::Element { tag: "code", .. })] =
                        link.children.as_slice()
                {
                    let name = link.text();
                    let name = name.rsplit("::").next().unwrap().trim_end_matches("()").to_owned();
                    let text = fs::read_to_string(&file).unwrap();
                    let is_there =
                        ["fn", "struct", "enum", "trait", "const", "static", "type", "mod"]
                            .iter()
                            .any(|kind| {
                                [' ', '(', '<', ':', '{', ';']
                                    .iter()
                                    .any(|end| text.contains(&format!("{kind} {name}{end}")))
                            });
                    assert!(is_there, "{page}: {name} is not in {to}");
                    functions += 1;
                }
            } else {
                let terms = glossary::terms(&fs::read_to_string(&file).unwrap());
                assert!(terms.contains_key(anchor), "{page}: {to} is not there");
            }
        }
    }
    assert!(functions >= 30, "only {functions} links lead to functions");
}
