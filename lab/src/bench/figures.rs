//! What is measured: figures of several rounds, each with its median and its spread.

use serde::Serialize;

/// A figure, before it is measured.
#[derive(Clone, Copy, Debug, Serialize)]
struct Measure {
    /// Its name, for programs.
    name: &'static str,
    /// Its name, for people.
    title: &'static str,
    unit: &'static str,
    /// With how many digits after the point people are shown it.
    #[serde(skip)]
    digits: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<Goal>,
}

const fn measure(
    name: &'static str,
    title: &'static str,
    unit: &'static str,
    digits: usize,
) -> Measure {
    Measure { name, title, unit, digits, target: None }
}

impl Measure {
    const fn at_least(self, least: f64) -> Self {
        Self { target: Some(Goal::AtLeast(least)), ..self }
    }

    const fn at_most(self, most: f64) -> Self {
        Self { target: Some(Goal::AtMost(most)), ..self }
    }

    const fn of_the_limit(self, least: f64) -> Self {
        Self { target: Some(Goal::OfTheLimit(least)), ..self }
    }
}

/// All figures, in the order of the table.
const MEASURES: [Measure; 30] = [
    measure("limit", "the limit: publishes that the broker confirms", "/s", 0),
    measure("loops", "loops, one string each", "/s", 0).of_the_limit(1.0),
    measure("strings_16", "strings, 16 in each loop", "/s", 0),
    measure("strings_64", "strings, 64 in each loop", "/s", 0).of_the_limit(3.0),
    measure("latency_100_median", "latency at 100 loops a second: median", "ms", 2).at_most(2.0),
    measure("latency_100_p99", "latency at 100 loops a second: 99th percentile", "ms", 2)
        .at_most(10.0),
    measure("latency_busy_median", "latency at 60 % of full speed: median", "ms", 2),
    measure("latency_busy_p99", "latency at 60 % of full speed: 99th percentile", "ms", 2),
    measure("processor_broker", "processor time of the broker for a loop", "µs", 1),
    measure("processor_requestor", "processor time of the requestor for a loop", "µs", 1),
    measure("processor_generator", "processor time of the generator for a loop", "µs", 1),
    measure("processor_share", "processor time of both services, against the broker's", "%", 0)
        .at_most(45.0),
    measure("loops_2_generators", "loops with two generators", "/s", 0),
    measure("loops_4_generators", "loops with four generators", "/s", 0),
    measure("four_generators", "four generators, against one", "%", 0).at_least(85.0),
    measure("backlog_loops", "loops out of a backlog of 200,000, asked before", "/s", 0),
    measure("backlog_share", "out of that backlog, against without one", "%", 0).at_least(85.0),
    measure("memory_broker", "memory of the broker, the most", "MB", 1),
    measure("memory_requestor", "memory of the requestor, the most", "MB", 1).at_most(20.0),
    measure("memory_generator", "memory of the generator, the most", "MB", 1).at_most(20.0),
    measure("ready_generator", "a generator is ready after", "ms", 0).at_most(100.0),
    measure("ready_requestor", "a requestor is ready after", "ms", 0).at_most(100.0),
    measure("idle_memory_requestor", "memory of an idle requestor", "MB", 1).at_most(10.0),
    measure("idle_memory_generator", "memory of an idle generator", "MB", 1).at_most(10.0),
    // What `ps` and `top` show as nothing: less than a thousandth of a processor.
    measure("idle_processor_requestor", "processor time of an idle requestor", "%", 2).at_most(0.1),
    measure("idle_processor_generator", "processor time of an idle generator", "%", 2).at_most(0.1),
    measure("size_requestor", "program of the requestor", "MB", 1).at_most(10.0),
    measure("size_generator", "program of the generator", "MB", 1).at_most(10.0),
    measure("sync_limit", "sync_interval always: the limit", "/s", 0),
    measure("sync_loops", "sync_interval always: loops, one string each", "/s", 0),
];

/// What a figure should be.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Goal {
    /// At least that much.
    AtLeast(f64),
    /// At most that much.
    AtMost(f64),
    /// At least that share of what the broker can do.
    OfTheLimit(f64),
}

/// A figure of all rounds.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    #[serde(flatten)]
    measure: Measure,
    /// What was measured, round by round.
    pub values: Vec<f64>,
    /// The middle of it, and its ends.
    pub spread: Spread,
    /// Which share of the limit of the same round this is, for what can be compared with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub of_the_limit: Option<Spread>,
    #[serde(skip)]
    shares: Vec<f64>,
    /// Whether the median is what it should be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub met: Option<bool>,
}

/// The middle of several values, and their ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Spread {
    /// The one in the middle; of an even number the greater of the two.
    pub median: f64,
    /// The least.
    pub lowest: f64,
    /// The greatest.
    pub highest: f64,
}

impl Spread {
    fn of(values: &[f64]) -> Self {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |index: usize| sorted.get(index).copied().unwrap_or_default();
        let last = sorted.len().saturating_sub(1);
        Self { median: at(sorted.len() / 2), lowest: at(0), highest: at(last) }
    }
}

/// All figures, in the order in which they were first measured.
#[derive(Debug, Default)]
pub(super) struct Figures(Vec<Figure>);

impl Figures {
    /// Notes what a round has measured for the figure of this name.
    pub(super) fn add(&mut self, name: &str, value: f64) {
        self.note(name, value, None);
    }

    /// Notes a rate, and which share it is of what the broker can do.
    pub(super) fn add_rate(&mut self, name: &str, value: f64, share: f64) {
        self.note(name, value, Some(share));
    }

    fn note(&mut self, name: &str, value: f64, share: Option<f64>) {
        let measure = MEASURES.into_iter().find(|measure| measure.name == name);
        self.note_measure(measure.expect("the table has all figures"), value, share);
    }

    fn note_measure(&mut self, measure: Measure, value: f64, share: Option<f64>) {
        let found = self.0.iter().position(|figure| figure.measure.name == measure.name);
        let index = found.unwrap_or_else(|| {
            self.0.push(Figure {
                measure,
                values: Vec::new(),
                spread: Spread::default(),
                of_the_limit: None,
                shares: Vec::new(),
                met: None,
            });
            self.0.len() - 1
        });
        let figure = &mut self.0[index];
        figure.values.push(value);
        figure.spread = Spread::of(&figure.values);
        figure.shares.extend(share);
        figure.of_the_limit = (!figure.shares.is_empty()).then(|| Spread::of(&figure.shares));
        figure.met = measure.target.map(|goal| figure.meets(goal));
    }

    pub(super) fn into_list(self) -> Vec<Figure> {
        self.0
    }
}

impl Figure {
    fn meets(&self, goal: Goal) -> bool {
        match goal {
            Goal::AtLeast(least) => self.spread.median >= least,
            Goal::AtMost(most) => self.spread.median <= most,
            Goal::OfTheLimit(least) => self.of_the_limit.is_some_and(|share| share.median >= least),
        }
    }

    /// What stands in a row of the table: the figure, its median, its spread, the share of the limit, the
    /// target, and whether that is met.
    pub(super) fn row(&self) -> [String; 6] {
        let Measure { title, unit, digits, target, .. } = self.measure;
        let number = |value: f64| with_commas(&format!("{value:.digits$}"));
        let target = match target {
            None => String::new(),
            Some(Goal::AtLeast(least)) => format!("≥ {least} {unit}"),
            Some(Goal::AtMost(most)) => format!("≤ {most} {unit}"),
            Some(Goal::OfTheLimit(least)) => format!("≥ {least:.2} of the limit"),
        };
        let met = match self.met {
            None => "",
            Some(true) => "met",
            Some(false) => "not met",
        };
        let Spread { median, lowest, highest } = self.spread;
        [
            title.to_owned(),
            format!("{} {unit}", number(median)),
            format!("{} – {}", number(lowest), number(highest)),
            self.of_the_limit.map(|share| format!("{:.2}", share.median)).unwrap_or_default(),
            target,
            met.to_owned(),
        ]
    }
}

/// A number with a comma between thousands.
fn with_commas(number: &str) -> String {
    let whole = number.split('.').next().unwrap_or_default().len();
    let mut text = String::new();
    for (index, digit) in number.chars().enumerate() {
        if index > 0 && index < whole && (whole - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(goal: Goal, rounds: &[(f64, f64)]) -> Figure {
        let measure = Measure { target: Some(goal), ..measure("loops", "Loops", "/s", 0) };
        let mut figures = Figures::default();
        for (value, share) in rounds {
            figures.note_measure(measure, *value, Some(*share));
        }
        figures.into_list().remove(0)
    }

    #[test]
    fn it_is_the_median_that_counts() {
        let rounds = [(30_000.0, 0.9), (10_000.0, 0.1), (20_000.0, 0.5)];
        for (goal, met) in [
            (Goal::AtLeast(20_000.0), true),
            (Goal::AtLeast(20_001.0), false),
            (Goal::AtMost(20_000.0), true),
            (Goal::AtMost(19_999.0), false),
            (Goal::OfTheLimit(0.5), true),
            (Goal::OfTheLimit(0.51), false),
        ] {
            assert_eq!(measured(goal, &rounds).met, Some(met), "{goal:?}");
        }
    }

    #[test]
    fn a_row_has_the_median_and_both_ends() {
        let figure = measured(Goal::OfTheLimit(1.0), &[(1_234_567.0, 0.5), (999.0, 0.25)]);
        let row = figure.row();
        let wanted =
            ["Loops", "1,234,567 /s", "999 – 1,234,567", "0.50", "≥ 1.00 of the limit", "not met"];
        assert_eq!(row, wanted.map(str::to_owned));
    }

    #[test]
    fn commas_stand_before_the_point() {
        assert_eq!(with_commas("1234.5678"), "1,234.5678");
        assert_eq!(with_commas("123"), "123");
        assert_eq!(with_commas("0.001"), "0.001");
    }
}
