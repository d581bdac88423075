//! The report of a run, for people and for programs.

use std::fmt::{self, Write as _};

use serde::Serialize;

use super::curves::Curves;
use super::figures::Figure;
use super::machine::Machine;

/// The report of a run.
#[derive(Clone, Debug, Serialize)]
pub struct BenchReport {
    /// The machine.
    pub machine: Machine,
    /// The number of rounds.
    pub rounds: u32,
    /// Whether the run was a test, whose figures mean nothing.
    pub quick: bool,
    /// The figures.
    pub figures: Vec<Figure>,
    /// The curves.
    pub curves: Curves,
}

/// The picture of the curves, beside the file.
pub(super) const PICTURE: &str = "docs/growth.svg";

impl BenchReport {
    /// The file with the last run.
    #[must_use]
    pub fn file(&self) -> String {
        let Machine { cores, processor, kernel, file_system, broker, compiler, commit, at } =
            &self.machine;
        let text = self.to_string();
        let shown = text.trim_end();
        format!(
            "# Benchmarks\n\n\
             What the last run of `cargo lab bench --save` printed. It is written by that command, never by \
             hand.\n\n\
             | | |\n| --- | --- |\n\
             | processor | {cores} cores, {processor} |\n\
             | kernel | {kernel} |\n\
             | file system of the broker | {file_system} |\n\
             | broker | {broker} |\n\
             | compiler | {compiler} |\n\
             | commit | {commit} |\n\
             | when | {at} |\n\n\
             {shown}\n\n\
             ![The same curves as a picture]({PICTURE})\n"
        )
    }
}

impl fmt::Display for BenchReport {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rounds =
            if self.rounds == 1 { "one round".to_owned() } else { self.rounds.to_string() };
        let rows: Vec<[String; 6]> = self.figures.iter().map(Figure::row).collect();
        let head = ["what", "median", "spread", "of the baseline", "target", ""];
        formatter.write_str(&table(&head, &rows))?;
        let (met, all) = self
            .figures
            .iter()
            .filter_map(|figure| figure.met)
            .fold((0, 0), |(met, all), it| (met + u32::from(it), all + 1));
        write!(
            formatter,
            "\nMedians of {rounds} with their spread; {met} of {all} targets are met. The baseline is what this \
             broker confirms on this machine in the same round; a round trip writes {} times.",
            super::round::WRITES
        )?;
        if !self.curves.is_empty() {
            write!(formatter, "\n\n## Growth\n{}", self.curves)?;
        }
        if self.quick {
            write!(formatter, "\nThis was a quick run, whose figures mean nothing.")?;
        }
        Ok(())
    }
}

/// A table in Markdown, with aligned columns.
pub(super) fn table(head: &[impl AsRef<str>], rows: &[impl AsRef<[String]>]) -> String {
    let head: Vec<String> = head.iter().map(|cell| cell.as_ref().to_owned()).collect();
    let rows: Vec<&[String]> = rows.iter().map(AsRef::as_ref).collect();
    let mut widths = vec![3; head.len()];
    for row in rows.iter().chain([&&*head]) {
        for (width, cell) in widths.iter_mut().zip(*row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let line: Vec<String> = widths.iter().map(|width| "-".repeat(*width)).collect();
    let mut text = String::new();
    for row in [&*head, &*line].into_iter().chain(rows) {
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(text, "| {cell:width$} ");
        }
        text.push_str("|\n");
    }
    text
}
