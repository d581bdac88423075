//! The comparison, for people and for programs.

use std::fmt;
use std::fs;
use std::time::Duration;

use anyhow::Context as _;
use cli::terminal::tell;
use jiff::fmt::serde::unsigned_duration::friendly::compact::required as friendly;
use observe::audit::Verdict;
use serde::Serialize;
use testkit::target_directory::from_here;

use super::figures::{Design, PairFigures, Second, Seen};
use super::picture;
use super::plan::Outage;
use super::settings::CompareSettings;
use crate::times::in_words;

/// The length of a bar in characters.
const BAR: usize = 60;

/// The characters of a bar: answered at once, answered late, and never.
const SIGNS: [&str; 3] = ["▓", "░", "·"];

/// The figures of all four pairs.
#[derive(Clone, Debug, Serialize)]
pub struct CompareReport {
    /// Whether the audit of the queue is clean, and the queue is empty.
    pub clean: bool,
    /// The seed of the outages.
    pub seed: u64,
    /// The time in which requests were made.
    #[serde(rename = "for", with = "friendly")]
    pub duration: Duration,
    /// Requests a second, of each pair.
    pub rate: u32,
    /// The time for making a string.
    #[serde(with = "friendly")]
    pub work_time: Duration,
    /// The outages of the generators.
    pub outages: Vec<Outage>,
    /// The pairs.
    pub pairs: Vec<PairFigures>,
    /// The audit of the queue.
    pub verdict: Verdict,
}

impl CompareReport {
    /// The comparison of these observations of `each` pair, in the order of [`Design::ALL`].
    pub(super) fn new(
        seed: u64,
        duration: Duration,
        settings: &CompareSettings,
        outages: Vec<Outage>,
        each: &[Seen],
        verdict: Verdict,
    ) -> Self {
        let seconds = usize::try_from(duration.as_millis().div_ceil(1000)).unwrap_or(usize::MAX);
        let figures = |(design, seen)| PairFigures::new(design, seen, &outages, seconds);
        let pairs = Design::ALL.into_iter().zip(each).map(figures).collect();
        let (rate, work_time) = (settings.rate, settings.work_time);
        let clean = verdict.is_clean() && verdict.pending == 0;
        Self { clean, seed, duration, rate, work_time, outages, pairs, verdict }
    }

    /// Draws the picture into the file of the settings, if they name one.
    ///
    /// # Errors
    ///
    /// If the file cannot be written.
    pub fn draw(&self, settings: &CompareSettings) -> anyhow::Result<()> {
        let Some(file) = &settings.svg else { return Ok(()) };
        fs::write(file, picture::draw(self))
            .with_context(|| format!("cannot write the picture {}", file.display()))?;
        tell(format_args!("The picture is in {}", from_here(file)));
        Ok(())
    }

    /// The time until an answer of this pair without an outage.
    fn calm(&self, design: Design) -> Option<f64> {
        self.pairs.iter().find(|pair| pair.design == design)?.calm_median_ms
    }

    /// The cost of the queue, in sentences.
    fn cost(&self) -> Option<String> {
        let (coupled, queue) = (self.calm(Design::Coupled)?, self.calm(Design::Queue)?);
        let cost = match queue - coupled {
            cost if cost > 0.0 => time(Some(cost)),
            _ => "nothing that shows".to_owned(),
        };
        let [coupled, queue] = [coupled, queue].map(|it| time(Some(it)));
        Some(format!(
            "Without outages, the median answer takes {coupled} coupled, and {queue} over the\n\
             queue: the hop adds {cost}. The broker redelivers the requests of a killed\n\
             generator after ACK_WAIT."
        ))
    }
}

/// A table, bars and their legend, in lines of less than 80 characters.
impl fmt::Display for CompareReport {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "{HEAD}")?;
        for pair in &self.pairs {
            let Second { at_once, late, failed } = pair.total;
            let [longest, median, most] =
                [pair.longest_wait_ms, pair.held_median_ms, pair.held_p99_ms].map(time);
            writeln!(
                formatter,
                "{:<16}{:>7}{at_once:>8}{late:>7}{failed:>7}{:>8}{longest:>8}{median:>11}{most:>7}",
                pair.design.name(),
                pair.asked,
                pair.doubled,
            )?;
        }
        writeln!(formatter)?;
        for pair in &self.pairs {
            writeln!(formatter, "{:<16}  {}", pair.design.name(), bar(pair.total))?;
        }
        let [at_once, late, failed] = SIGNS;
        let legend =
            format!("{at_once} answered within 1 s   {late} later   {failed} failed or lost");
        writeln!(formatter, "{:<16}  {legend}\n", "")?;
        if let Some(cost) = self.cost() {
            writeln!(formatter, "{cost}\n")?;
        }
        let Verdict { requested, complete, lost, doubled, .. } = &self.verdict;
        let again = self.verdict.redeliveries();
        writeln!(
            formatter,
            "The audit of the queue: requested {requested}, complete {complete}, lost {lost}, doubled {doubled};\n\
             redelivered {again}.\n\n{NOTES}"
        )?;
        write!(
            formatter,
            "All four ran at the same time, with the same outages, each with {} requests a\n\
             second and {} of work. Otherwise each has its own defaults.\n{SIMPLIFIED}",
            self.rate,
            in_words(self.work_time)
        )
    }
}

/// The heads of the columns.
const HEAD: &str =
    "                  asked at once   late failed doubled longest  held, 50%    99%";

/// The legend of the table.
const NOTES: &str = "\
Longest: the longest wait for an answer. Held: the time until the caller could
continue. A coupled caller continues with its answer or an error; the others,
when the message is published, or accepted by the queue. Failed: ended in an
error; with fire and forget, lost without one. Doubled: the strings of the
request were made twice; over the queue, stored or received twice.
";

/// The simplifications.
const SIMPLIFIED: &str = "\
Simplified: the work is a wait, so no generator is ever overloaded; no broker
fails; and a killed generator refuses a call at once, which a machine that is
away does not do.";

/// A time in milliseconds, in a suitable unit.
pub(super) fn time(milliseconds: Option<f64>) -> String {
    match milliseconds {
        None => "–".to_owned(),
        Some(time) if time < 1.0 => "<1 ms".to_owned(),
        Some(time) if time < 10.0 => format!("{time:.1} ms"),
        Some(time) if time < 1000.0 => format!("{time:.0} ms"),
        Some(time) => format!("{:.1} s", time / 1000.0),
    }
}

/// The shares of all requests, side by side.
fn bar(total: Second) -> String {
    let asked = total.asked().max(1);
    // Even the smallest share has a character, which the largest loses.
    let cells = |count: usize| (count * BAR / asked).max(usize::from(count > 0));
    let mut cells = [total.at_once, total.late, total.failed].map(cells);
    let (others, most) = (cells.iter().sum::<usize>(), cells.iter().copied().max());
    if let Some(cell) = cells.iter_mut().find(|cell| Some(**cell) == most) {
        *cell = (*cell + BAR).saturating_sub(others);
    }
    if total.asked() == 0 {
        return String::new();
    }
    SIGNS.iter().zip(cells).map(|(sign, cells)| sign.repeat(cells)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bar_has_the_shares_and_shows_the_smallest() {
        let bar = |at_once, late, failed| bar(Second { at_once, late, failed });
        assert_eq!(bar(1, 1, 1), SIGNS.map(|sign| sign.repeat(20)).concat());
        assert_eq!(bar(100_000, 1, 0), "▓".repeat(59) + "░");
        assert_eq!(bar(1, 2, 999), format!("▓░{}", "·".repeat(58)));
        assert_eq!(bar(0, 0, 7), "·".repeat(60));
        assert_eq!(bar(0, 0, 0), "");
    }

    #[test]
    fn docs_show_the_words_of_the_report() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/chaos.md");
        let page = std::fs::read_to_string(page).unwrap();
        for words in [HEAD, NOTES, SIMPLIFIED] {
            assert!(
                page.contains(words.trim()),
                "docs/chaos.md shows something else than\n{words}"
            );
        }
    }

    #[test]
    fn time_has_the_unit_that_suits_it() {
        let times = [None, Some(0.2), Some(3.16), Some(51.6), Some(1049.9), Some(30_500.0)];
        assert_eq!(times.map(time), ["–", "<1 ms", "3.2 ms", "52 ms", "1.0 s", "30.5 s"]);
    }
}
