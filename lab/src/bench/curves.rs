//! Curves: the growth of figures with an amount, as tables and as one picture.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::iter::once;

use serde::Serialize;

use super::figures::{Spread, with_commas};
use super::report::table;
use super::round::real;
use crate::theme::THEME;

/// The growth of one figure.
#[derive(Clone, Debug, Serialize)]
pub struct Curve {
    /// The amount that grows, such as "requests waiting".
    pub along: &'static str,
    /// The figure that is measured, such as "audit".
    pub title: &'static str,
    /// The unit of the values.
    pub unit: &'static str,
    /// For each amount the values, round by round.
    pub points: BTreeMap<u64, Vec<f64>>,
}

/// All curves, in the order in which they were first measured.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(transparent)]
pub struct Curves(Vec<Curve>);

impl Curves {
    /// Records the value of a round.
    pub(super) fn add(
        &mut self,
        (along, amount): (&'static str, u64),
        title: &'static str,
        unit: &'static str,
        value: f64,
    ) {
        let key = (along, title, unit);
        let found = self.0.iter().position(|curve| (curve.along, curve.title, curve.unit) == key);
        let index = found.unwrap_or_else(|| {
            // Next to the curves of the same panel.
            let last = self.0.iter().rposition(|curve| (curve.along, curve.unit) == (along, unit));
            let index = last.map_or(self.0.len(), |last| last + 1);
            self.0.insert(index, Curve { along, title, unit, points: BTreeMap::new() });
            index
        });
        self.0[index].points.entry(amount).or_default().push(value);
    }

    /// Whether no curve was measured.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The curves in groups that share what `of` returns, in order.
    fn groups<T: PartialEq>(&self, of: impl Fn(&Curve) -> T) -> impl Iterator<Item = &[Curve]> {
        self.0.chunk_by(move |one, next| of(one) == of(next))
    }
}

impl Curve {
    fn median(&self, amount: u64) -> f64 {
        self.points.get(&amount).map(|values| Spread::of(values).median).unwrap_or_default()
    }
}

impl fmt::Display for Curves {
    /// A table in Markdown for each amount that grows: the medians, and their spread.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for curves in self.groups(|curve| curve.along) {
            let Some(first) = curves.first() else { continue };
            let titles = curves.iter().map(|Curve { title, unit, .. }| format!("{title}, {unit}"));
            let head: Vec<String> = once(first.along.to_owned()).chain(titles).collect();
            let row = |amount| {
                let values = curves.iter().filter_map(|curve| curve.points.get(amount));
                let spreads = values.map(|values| Spread::of(values).text(short));
                once(with_commas(&amount.to_string())).chain(spreads).collect::<Vec<String>>()
            };
            let rows: Vec<Vec<String>> = first.points.keys().map(row).collect();
            write!(formatter, "\n{}", table(&head, &rows))?;
        }
        Ok(())
    }
}

/// A number with three digits or more.
fn short(value: f64) -> String {
    let digits = match value {
        value if value < 10.0 => 2,
        value if value < 100.0 => 1,
        _ => 0,
    };
    with_commas(&format!("{value:.digits$}"))
}

/// The sizes of the picture and of its panels, in its own units.
const COLUMNS: usize = 3;
const PANEL: (f64, f64) = (320.0, 250.0);
const PLOT: (f64, f64) = (270.0, 110.0);
const LEFT: f64 = 24.0;

/// The colours of the lines of a panel.
const COLOURS: [&str; 4] = ["--once", "--late", "--bad", "--ink"];

const STYLE: &str = "
text { font: 12px system-ui, sans-serif; fill: var(--soft); }
.name { font-weight: 600; font-size: 13px; fill: var(--ink); }
.mark { text-anchor: middle; }
.ground { fill: var(--ground); }
.axis { fill: none; stroke: var(--line); }
.curve { fill: none; stroke-width: 2; }
";

impl Curves {
    /// Draws the curves, with one panel for those with the same amount and unit.
    pub(super) fn draw(&self) -> String {
        let panels: Vec<&[Curve]> = self.groups(|curve| (curve.along, curve.unit)).collect();
        let (columns, rows) = (real(COLUMNS as u64), real(panels.len().div_ceil(COLUMNS) as u64));
        let (width, height) = (columns * PANEL.0, rows * PANEL.1);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
             role=\"img\" aria-labelledby=\"title\">\n\
             <title id=\"title\">How the figures grow. The tables beside this picture have all \
             numbers.</title>\n<style>{THEME}{STYLE}</style>\n\
             <rect class=\"ground\" width=\"{width}\" height=\"{height}\"/>\n"
        );
        for (number, curves) in panels.into_iter().enumerate() {
            let (column, row) = (real((number % COLUMNS) as u64), real((number / COLUMNS) as u64));
            let (x, y) = (column * PANEL.0 + LEFT, row * PANEL.1 + 28.0);
            let _ = writeln!(svg, "<g transform=\"translate({x} {y})\">");
            panel(&mut svg, curves);
            svg.push_str("</g>\n");
        }
        svg + "</svg>\n"
    }
}

/// Draws the curves from zero to their highest value, over the amounts at equal distances.
fn panel(svg: &mut String, curves: &[Curve]) {
    let Some(first) = curves.first() else { return };
    let amounts: Vec<u64> = first.points.keys().copied().collect();
    let all = curves.iter().flat_map(|curve| amounts.iter().map(|amount| curve.median(*amount)));
    let highest = all.fold(f64::MIN_POSITIVE, f64::max);
    let step = PLOT.0 / real(amounts.len() as u64);
    let place = |index: usize| (real(index as u64) + 0.5) * step;
    let (top, bottom) = (16.0, 16.0 + PLOT.1);
    let _ = writeln!(svg, "<text class=\"name\">{}, {}</text>", first.along, first.unit);
    let _ = writeln!(svg, "<path class=\"axis\" d=\"M0 {top}V{bottom}H{}\"/>", PLOT.0);
    let _ = writeln!(svg, "<text x=\"4\" y=\"{}\">{}</text>", top + 10.0, short(highest));
    for (index, amount) in amounts.iter().enumerate() {
        let (x, y, amount) = (place(index), bottom + 16.0, with_commas(&amount.to_string()));
        let _ = writeln!(svg, "<text class=\"mark\" x=\"{x:.1}\" y=\"{y}\">{amount}</text>");
    }
    for ((number, curve), colour) in curves.iter().enumerate().zip(COLOURS) {
        let mut path = String::new();
        for (index, amount) in amounts.iter().enumerate() {
            let y = bottom - PLOT.1 * curve.median(*amount) / highest;
            let _ =
                write!(path, "{}{:.1} {y:.1}", if index == 0 { 'M' } else { 'L' }, place(index));
        }
        let _ =
            writeln!(svg, "<path class=\"curve\" style=\"stroke: var({colour})\" d=\"{path}\"/>");
        let y = bottom + 36.0 + 16.0 * real(number as u64);
        let _ =
            writeln!(svg, "<text style=\"fill: var({colour})\" y=\"{y}\">{}</text>", curve.title);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curves_become_a_table_and_a_picture() {
        let mut curves = Curves::default();
        for (amount, values) in [(1000, [3.0, 1.0, 2.0]), (10, [1.0, 1.0, 1.0])] {
            for value in values {
                curves.add(("requests waiting", amount), "audit", "s", value);
                curves.add(("requests waiting", amount), "broker", "MB", value * 100.0);
            }
        }
        let table = "
| requests waiting | audit, s           | broker, MB      |
| ---------------- | ------------------ | --------------- |
| 10               | 1.00               | 100             |
| 1,000            | 2.00 (1.00 – 3.00) | 200 (100 – 300) |
";
        assert_eq!(curves.to_string(), table);
        let svg = curves.draw();
        // Half as high at the first amount as at the second.
        assert_eq!(svg.matches("d=\"M67.5 71.0L202.5 16.0\"").count(), 2, "{svg}");
    }
}
