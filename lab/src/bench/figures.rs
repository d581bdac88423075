//! What is measured: figures of several rounds, each with its median and its spread.

use serde::Serialize;

/// A figure that is known before it is measured.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    /// What programs call it.
    pub(super) name: &'static str,
    /// What people call it.
    pub(super) title: &'static str,
    /// Its unit, for people.
    pub(super) unit: &'static str,
    /// With how many digits after the point people are shown it.
    pub(super) digits: usize,
    /// What it should be, where there is something that it should.
    pub(super) target: Option<Target>,
}

impl Known {
    /// How many of something there are in a second.
    pub(super) const fn rate(name: &'static str, title: &'static str) -> Self {
        Self { name, title, unit: "/s", digits: 0, target: None }
    }

    /// How much of something there is, against something else.
    pub(super) const fn percent(name: &'static str, title: &'static str) -> Self {
        Self { name, title, unit: "%", digits: 0, target: None }
    }

    /// The same, and what it should be.
    pub(super) const fn with(self, target: Target) -> Self {
        Self { target: Some(target), ..self }
    }
}

/// What a figure should be.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
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
    /// What programs call it.
    pub name: &'static str,
    /// What people call it.
    pub title: &'static str,
    /// Its unit.
    pub unit: &'static str,
    #[serde(skip)]
    digits: usize,
    /// What was measured, round by round.
    pub values: Vec<f64>,
    /// The middle of it, and its ends.
    pub spread: Spread,
    /// Which share of the limit of the same round this is, for what can be compared with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub of_the_limit: Option<Spread>,
    #[serde(skip)]
    shares: Vec<f64>,
    /// What it should be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<Target>,
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
    /// Notes what a round has measured.
    pub(super) fn add(&mut self, known: &Known, value: f64) {
        self.note(known, value, None);
    }

    /// Notes a rate, and which share it is of what the broker can do.
    pub(super) fn add_rate(&mut self, known: &Known, value: f64, share: f64) {
        self.note(known, value, Some(share));
    }

    fn note(&mut self, known: &Known, value: f64, share: Option<f64>) {
        let found = self.0.iter().position(|figure| figure.name == known.name);
        let index = found.unwrap_or_else(|| {
            self.0.push(Figure {
                name: known.name,
                title: known.title,
                unit: known.unit,
                digits: known.digits,
                values: Vec::new(),
                spread: Spread::default(),
                of_the_limit: None,
                shares: Vec::new(),
                target: known.target,
                met: None,
            });
            self.0.len() - 1
        });
        let figure = &mut self.0[index];
        figure.values.push(value);
        figure.spread = Spread::of(&figure.values);
        figure.shares.extend(share);
        if !figure.shares.is_empty() {
            figure.of_the_limit = Some(Spread::of(&figure.shares));
        }
        figure.met = figure.target.map(|target| figure.meets(target));
    }

    pub(super) fn into_list(self) -> Vec<Figure> {
        self.0
    }
}

impl Figure {
    fn meets(&self, target: Target) -> bool {
        match target {
            Target::AtLeast(least) => self.spread.median >= least,
            Target::AtMost(most) => self.spread.median <= most,
            Target::OfTheLimit(least) => {
                self.of_the_limit.is_some_and(|share| share.median >= least)
            }
        }
    }

    /// What stands in a row of the table: the figure, its median, its spread, the share of the limit, the
    /// target, and whether that is met.
    pub(super) fn row(&self) -> [String; 6] {
        let digits = self.digits;
        let number = |value: f64| with_commas(&format!("{value:.digits$}"));
        let unit = if self.unit.is_empty() { String::new() } else { format!(" {}", self.unit) };
        let target = match self.target {
            None => String::new(),
            Some(Target::AtLeast(least)) => format!("≥ {least}{unit}"),
            Some(Target::AtMost(most)) => format!("≤ {most}{unit}"),
            Some(Target::OfTheLimit(least)) => format!("≥ {least:.2} of the limit"),
        };
        let met = match self.met {
            None => "",
            Some(true) => "met",
            Some(false) => "not met",
        };
        let Spread { median, lowest, highest } = self.spread;
        [
            self.title.to_owned(),
            format!("{}{unit}", number(median)),
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

    fn known(target: Target) -> Known {
        Known { name: "loops", title: "Loops", unit: "/s", digits: 0, target: Some(target) }
    }

    fn measured(target: Target, rounds: &[(f64, f64)]) -> Figure {
        let mut figures = Figures::default();
        for (value, share) in rounds {
            figures.add_rate(&known(target), *value, *share);
        }
        figures.into_list().remove(0)
    }

    #[test]
    fn it_is_the_median_that_counts() {
        let rounds = [(30_000.0, 0.9), (10_000.0, 0.1), (20_000.0, 0.5)];
        for (target, met) in [
            (Target::AtLeast(20_000.0), true),
            (Target::AtLeast(20_001.0), false),
            (Target::AtMost(20_000.0), true),
            (Target::AtMost(19_999.0), false),
            (Target::OfTheLimit(0.5), true),
            (Target::OfTheLimit(0.51), false),
        ] {
            assert_eq!(measured(target, &rounds).met, Some(met), "{target:?}");
        }
    }

    #[test]
    fn a_row_has_the_median_and_both_ends() {
        let figure = measured(Target::OfTheLimit(1.0), &[(1_234_567.0, 0.5), (999.0, 0.25)]);
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
