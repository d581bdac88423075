//! `lab lesson`: sets the scene of a lesson of the course, or does its steps by itself, to verify the lesson.

mod check;
mod run;

use anyhow::{Context as _, bail};
use clap::{Args, Parser};
use gateway::lessons;
use gateway::lessons::lesson::{Lesson, Step};

pub(crate) use check::check;
pub(crate) use run::{StepRun, Workplace, run};

use crate::up::UpSettings;

/// Settings of `lab lesson`.
#[derive(Args, Clone, Debug)]
pub struct LessonSettings {
    /// Which lesson [default: a list of them; with --check, all]
    #[arg(value_name = "NUMBER", value_parser = workqueue::number::<usize>(0..))]
    pub(crate) number: Option<usize>,

    /// Do the steps, and verify that each check comes true
    #[arg(long)]
    pub(crate) check: bool,
}

/// The lesson with this number.
pub(crate) fn numbered(number: usize) -> anyhow::Result<&'static Lesson> {
    lessons::numbered(number).with_context(|| {
        format!(
            "there is no lesson {number}: they are numbered from 0 to {}",
            lessons::lessons().len() - 1
        )
    })
}

/// The step of a lesson with this number, from 1.
pub(crate) fn step(lesson: &'static Lesson, number: usize) -> anyhow::Result<&'static Step> {
    lesson.step(number).with_context(|| format!("lesson {} has no step {number}", lesson.number))
}

/// The numbers and titles of all lessons.
pub(crate) fn list() -> String {
    let lines = lessons::lessons().iter().map(|it| format!("  {}  {}\n", it.number, it.title));
    format!(
        "The lessons are:\n{}Begin one with `cargo lab lesson NUMBER`.",
        lines.collect::<String>()
    )
}

/// The command line `cargo lab up` with its flags.
#[derive(Parser)]
struct Up {
    #[command(flatten)]
    settings: UpSettings,
}

/// The settings of `lab up` in the scene of a lesson, from the last line of its command.
pub(crate) fn scene(lesson: &Lesson) -> anyhow::Result<UpSettings> {
    let command = lesson.scene().lab.as_deref().unwrap_or_default();
    let line = command.lines().last().unwrap_or_default();
    let Some((environment, flags)) = line.split_once("cargo lab up") else {
        bail!("the scene of lesson {} is no `cargo lab up`: {line}", lesson.number);
    };
    let up = Up::try_parse_from(["cargo lab up"].into_iter().chain(flags.split_whitespace()));
    let mut settings =
        up.with_context(|| format!("the scene of lesson {}", lesson.number))?.settings;
    for set in environment.split_whitespace() {
        let (name, value) = set.split_once('=').with_context(|| format!("{set} sets nothing"))?;
        settings.environment.insert(name.to_owned(), value.to_owned());
    }
    Ok(settings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scene_of_each_lesson_can_be_set() {
        for lesson in lessons::lessons() {
            scene(lesson).unwrap_or_else(|error| panic!("{error:#}"));
        }
    }
}
