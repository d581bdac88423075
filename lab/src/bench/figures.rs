//! The figures of several rounds, each with its median and its spread.

use serde::Serialize;

/// A figure, before it is measured.
#[derive(Clone, Copy, Debug, Serialize)]
struct Measure {
    /// Its name, for programs.
    name: &'static str,
    /// Its name, for people.
    title: &'static str,
    unit: &'static str,
    /// The number of decimals in the table.
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

    const fn of_the_baseline(self, least: f64) -> Self {
        Self { target: Some(Goal::OfTheBaseline(least)), ..self }
    }
}

/// All figures, in the order of the table.
const MEASURES: [Measure; 42] = [
    measure("baseline", "the baseline: publishes that the broker confirms", "/s", 0),
    measure("round_trips", "round trips, one string each", "/s", 0).of_the_baseline(1.0),
    measure("strings_16", "strings, 16 in each round trip", "/s", 0),
    measure("strings_64", "strings, 64 in each round trip", "/s", 0).of_the_baseline(3.0),
    measure("latency_100_median", "latency at 100 round trips a second: median", "ms", 2)
        .at_most(2.0),
    measure("latency_100_p99", "latency at 100 round trips a second: 99th percentile", "ms", 2)
        .at_most(10.0),
    measure("latency_busy_median", "latency at 60 % of full speed: median", "ms", 2),
    measure("latency_busy_p99", "latency at 60 % of full speed: 99th percentile", "ms", 2),
    measure("processor_broker", "processor time of the broker for a round trip", "µs", 1),
    measure("processor_requestor", "processor time of the requestor for a round trip", "µs", 1),
    measure("processor_generator", "processor time of the generator for a round trip", "µs", 1),
    measure("processor_share", "processor time of both services, against the broker's", "%", 0)
        .at_most(45.0),
    measure("bundles_8", "BUNDLE_LIMIT=8: round trips, one string each", "/s", 0),
    measure(
        "bundles_8_processor",
        "the same: processor time of all three for a round trip",
        "µs",
        1,
    ),
    measure("bundles_64", "BUNDLE_LIMIT=64: round trips, one string each", "/s", 0),
    measure(
        "bundles_64_processor",
        "the same: processor time of all three for a round trip",
        "µs",
        1,
    ),
    measure("bundles_memory", "with these bundles: memory of a service, the most", "MB", 1),
    measure("round_trips_2_generators", "round trips with two generators", "/s", 0),
    measure("round_trips_4_generators", "round trips with four generators", "/s", 0),
    measure("four_generators", "four generators, against one", "%", 0).at_least(85.0),
    measure(
        "backlog_round_trips",
        "round trips from a backlog of 200,000 submitted requests",
        "/s",
        0,
    ),
    measure("backlog_share", "writes out of that backlog, against without one", "%", 0)
        .at_least(85.0),
    measure("urgent_in_backlog", "an urgent request behind 10,000 others, the slowest", "ms", 0)
        .at_most(200.0),
    measure(
        "low_under_urgent_load",
        "share of low-priority requests, beside many of high priority",
        "%",
        0,
    )
    .at_least(5.0),
    measure("rate_exceeded_by", "RATE_LIMIT=1000, five generators: jobs beyond it", "", 0)
        .at_most(0.0),
    measure("rate_highest_second", "requests started in the highest second", "/s", 0),
    measure("rate_used", "share of that rate which is used", "%", 1).at_least(95.0),
    measure("rate_questions", "calls to the broker for a hundred jobs", "", 1).at_most(10.0),
    measure("due_at_once", "the last of 5,000 that are due at once, after its time", "ms", 0)
        .at_most(1000.0),
    measure("memory_broker", "memory of the broker, the most", "MB", 1),
    measure("memory_requestor", "memory of the requestor, the most", "MB", 1).at_most(20.0),
    measure("memory_generator", "memory of the generator, the most", "MB", 1).at_most(20.0),
    measure("ready_generator", "a generator is ready after", "ms", 0).at_most(100.0),
    measure("ready_requestor", "a requestor is ready after", "ms", 0).at_most(100.0),
    measure("idle_memory_requestor", "memory of an idle requestor", "MB", 1).at_most(10.0),
    measure("idle_memory_generator", "memory of an idle generator", "MB", 1).at_most(10.0),
    measure("idle_processor_requestor", "processor time of an idle requestor", "%", 2).at_most(0.1),
    measure("idle_processor_generator", "processor time of an idle generator", "%", 2).at_most(0.1),
    measure("size_requestor", "program of the requestor", "MB", 1).at_most(10.0),
    measure("size_generator", "program of the generator", "MB", 1).at_most(10.0),
    measure("sync_baseline", "sync_interval always: the baseline", "/s", 0),
    measure("sync_round_trips", "sync_interval always: round trips, one string each", "/s", 0),
];

/// The target of a figure.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Goal {
    /// At least this.
    AtLeast(f64),
    /// At most this.
    AtMost(f64),
    /// At least this share of the baseline.
    OfTheBaseline(f64),
}

/// A figure of all rounds.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    #[serde(flatten)]
    measure: Measure,
    /// The values, round by round.
    pub values: Vec<f64>,
    /// The median, and the ends of the spread.
    pub spread: Spread,
    /// The share of the baseline of the same round, for figures that compare with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub of_the_baseline: Option<Spread>,
    #[serde(skip)]
    shares: Vec<f64>,
    /// Whether the median meets the target.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub met: Option<bool>,
}

/// The median of several values, and their extremes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Spread {
    /// The value in the middle; of an even number of values, the greater of the two.
    pub median: f64,
    /// The lowest value.
    pub lowest: f64,
    /// The highest value.
    pub highest: f64,
}

impl Spread {
    pub(super) fn of(values: &[f64]) -> Self {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |index: usize| sorted.get(index).copied().unwrap_or_default();
        let last = sorted.len().saturating_sub(1);
        Self { median: at(sorted.len() / 2), lowest: at(0), highest: at(last) }
    }

    /// The median, and both ends if they differ, each as `number` formats it.
    pub(super) fn text(self, number: impl Fn(f64) -> String) -> String {
        let [median, lowest, highest] = [self.median, self.lowest, self.highest].map(number);
        if lowest == highest { median } else { format!("{median} ({lowest} – {highest})") }
    }
}

/// All figures, in the order in which they were first measured.
#[derive(Debug, Default)]
pub(super) struct Figures(Vec<Figure>);

impl Figures {
    /// Records the value of a round for the figure of this name.
    pub(super) fn add(&mut self, name: &str, value: f64) {
        self.note(name, value, None);
    }

    /// Records a rate, and its share of the baseline.
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
                of_the_baseline: None,
                shares: Vec::new(),
                met: None,
            });
            self.0.len() - 1
        });
        let figure = &mut self.0[index];
        figure.values.push(value);
        figure.spread = Spread::of(&figure.values);
        figure.shares.extend(share);
        figure.of_the_baseline = (!figure.shares.is_empty()).then(|| Spread::of(&figure.shares));
        figure.met = measure.target.map(|goal| figure.meets(goal));
    }

    pub(super) fn into_list(self) -> Vec<Figure> {
        self.0
    }
}

impl Figure {
    /// The names of all figures, in the order of the table.
    pub fn names() -> impl Iterator<Item = &'static str> {
        MEASURES.iter().map(|measure| measure.name)
    }

    fn meets(&self, goal: Goal) -> bool {
        match goal {
            Goal::AtLeast(least) => self.spread.median >= least,
            Goal::AtMost(most) => self.spread.median <= most,
            Goal::OfTheBaseline(least) => {
                self.of_the_baseline.is_some_and(|share| share.median >= least)
            }
        }
    }

    /// A row of the table: the figure, its median, its spread, the share of the baseline, the
    /// target, and whether that is met.
    pub(super) fn row(&self) -> [String; 6] {
        let Measure { title, unit, digits, target, .. } = self.measure;
        let number = |value: f64| with_commas(&format!("{value:.digits$}"));
        let target = match target {
            None => String::new(),
            Some(Goal::AtLeast(least)) => format!("≥ {least} {unit}"),
            Some(Goal::AtMost(most)) => format!("≤ {most} {unit}"),
            Some(Goal::OfTheBaseline(least)) => format!("≥ {least:.2} of the baseline"),
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
            self.of_the_baseline.map(|share| format!("{:.2}", share.median)).unwrap_or_default(),
            target,
            met.to_owned(),
        ]
    }
}

/// A number with a comma between thousands.
pub(super) fn with_commas(number: &str) -> String {
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
        let measure =
            Measure { target: Some(goal), ..measure("round_trips", "Round trips", "/s", 0) };
        let mut figures = Figures::default();
        for (value, share) in rounds {
            figures.note_measure(measure, *value, Some(*share));
        }
        figures.into_list().remove(0)
    }

    #[test]
    fn median_decides_whether_a_target_is_met() {
        let rounds = [(30_000.0, 0.9), (10_000.0, 0.1), (20_000.0, 0.5)];
        for (goal, met) in [
            (Goal::AtLeast(20_000.0), true),
            (Goal::AtLeast(20_001.0), false),
            (Goal::AtMost(20_000.0), true),
            (Goal::AtMost(19_999.0), false),
            (Goal::OfTheBaseline(0.5), true),
            (Goal::OfTheBaseline(0.51), false),
        ] {
            assert_eq!(measured(goal, &rounds).met, Some(met), "{goal:?}");
        }
    }

    #[test]
    fn row_has_the_median_and_both_ends() {
        let figure = measured(Goal::OfTheBaseline(1.0), &[(1_234_567.0, 0.5), (999.0, 0.25)]);
        let row = figure.row();
        let wanted = [
            "Round trips",
            "1,234,567 /s",
            "999 – 1,234,567",
            "0.50",
            "≥ 1.00 of the baseline",
            "not met",
        ];
        assert_eq!(row, wanted.map(str::to_owned));
    }

    #[test]
    fn commas_stand_before_the_point() {
        assert_eq!(with_commas("1234.5678"), "1,234.5678");
        assert_eq!(with_commas("123"), "123");
        assert_eq!(with_commas("0.001"), "0.001");
    }
}
