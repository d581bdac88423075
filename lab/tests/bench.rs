//! `cargo lab bench` as a program: all parts are measured, and the figures agree. No test checks the speed.

use std::process::Command;

use lab::bench::Figure;
use serde_json::Value;

struct JsonReport(Value);

impl JsonReport {
    fn figure(&self, name: &str) -> &Value {
        let figures = self.0["figures"].as_array().unwrap();
        let found = figures.iter().find(|figure| figure["name"] == name);
        found.unwrap_or_else(|| panic!("{name} is not measured"))
    }

    fn median(&self, name: &str) -> f64 {
        self.figure(name)["spread"]["median"].as_f64().unwrap()
    }

    fn share(&self, name: &str) -> f64 {
        self.figure(name)["of_the_baseline"]["median"].as_f64().unwrap()
    }
}

fn agree(one: f64, other: f64) {
    assert!((one - other).abs() <= 0.001 * one.abs().max(other.abs()), "{one} is not {other}");
}

#[test]
fn bench_measures_every_figure_consistently() {
    let output = Command::new(env!("CARGO_BIN_EXE_lab"))
        .args(["bench", "--quick", "--json"])
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{told}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["rounds"], &report["quick"]), (&Value::from(1), &Value::from(true)));
    for field in ["processor", "kernel", "file_system", "broker", "compiler", "commit", "at"] {
        assert!(report["machine"][field].as_str().is_some_and(|it| !it.is_empty()), "{field}");
    }
    let report = JsonReport(report);
    for name in Figure::names() {
        let figure = report.figure(name);
        let values = figure["values"].as_array().unwrap();
        let value = values[0].as_f64().unwrap();
        let none_is_good = name.starts_with("idle_processor") || name == "rate_exceeded_by";
        assert!(
            values.len() == 1 && (value > 0.0 || none_is_good) && value.is_finite(),
            "{figure}"
        );
        for end in ["median", "lowest", "highest"] {
            agree(figure["spread"][end].as_f64().unwrap(), value);
        }
        // A figure with a target reports whether it is met.
        assert_eq!(figure["target"].is_null(), figure["met"].is_null(), "{figure}");
    }
    // Each curve has a value for each amount.
    let curves = report.0["curves"].as_array().unwrap();
    let along = |what: &str| {
        let curves: Vec<_> = curves.iter().filter(|curve| curve["along"] == what).collect();
        let amounts = |curve: &&Value| curve["points"].as_object().unwrap().len();
        (curves.len(), curves.iter().map(amounts).sum::<usize>())
    };
    assert_eq!(along("requests waiting"), (8, 16));
    assert_eq!(along("requests done"), (8, 16));
    assert_eq!(along("replicas of each service"), (4, 8));
    assert_eq!(along("browsers"), (2, 4));
    assert_eq!(along("brokers"), (4, 8));
    agree(report.share("baseline"), 1.0);
    agree(
        report.share("round_trips"),
        6.0 * report.median("round_trips") / report.median("baseline"),
    );
    agree(report.share("strings_64"), report.median("strings_64") / report.median("baseline"));
    agree(
        report.share("sync_round_trips"),
        6.0 * report.median("sync_round_trips") / report.median("sync_baseline"),
    );
    let services = report.median("processor_requestor") + report.median("processor_generator");
    agree(report.median("processor_share"), services * 100.0 / report.median("processor_broker"));
    let one = report.median("round_trips") / 100.0;
    agree(report.median("four_generators"), report.median("round_trips_4_generators") / one);
    // Out of a backlog, a round trip writes four times and not six.
    let writes = report.median("backlog_round_trips") * 4.0 / 6.0;
    agree(report.median("backlog_share"), writes / one);
    for load in ["100", "busy"] {
        let at = |which| report.median(&format!("latency_{load}_{which}"));
        assert!(at("median") <= at("p99"));
    }
    for service in ["requestor", "generator"] {
        let idle = report.median(&format!("idle_memory_{service}"));
        assert!((1.0..100.0).contains(&idle), "{idle} MB");
    }
}
