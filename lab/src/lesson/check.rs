//! Does the steps of lessons, and verifies that each check comes true.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use cli::terminal::say;
use futures_util::{StreamExt, stream};
use gateway::lessons::lesson::{Lesson, Step};
use reqwest::Response;
use serde_json::Value;
use testkit::programs::{self, Programs};
use testkit::target_directory::{RunDirectory, from_here};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{Workplace, run, scene};
use crate::lesson::run::is_as_shown;
use crate::replica::refuse_request_total;
use crate::up::RunningLab;

/// The number of lessons at a time. Most of a lesson is waiting.
const AT_A_TIME: usize = 4;

/// The time limit for a check to come true. Only a wrong lesson reaches it.
const PATIENCE: Duration = Duration::from_mins(2);

/// Does the steps of these lessons, each on a system of its own, and prints the results. Returns whether all checks came
/// true.
///
/// # Errors
///
/// If the programs cannot be built, or the run was stopped.
pub(crate) async fn check(
    lessons: impl Iterator<Item = &'static Lesson>,
    stop: &CancellationToken,
) -> anyhow::Result<bool> {
    refuse_request_total()?;
    let building = async {
        // The steps run programs of the examples, and have no minutes to wait for them.
        let all = programs::names().await?;
        programs::build_all(&all.iter().map(String::as_str).collect::<Vec<_>>()).await?;
        programs::build().await
    };
    let programs = stop.run_until_cancelled(building).await;
    let programs = programs.context("stopped before anything was started")??;
    let checks = lessons.map(|lesson| Box::pin(check_one(lesson, &programs, stop)));
    let mut checks = stream::iter(checks).buffer_unordered(AT_A_TIME);
    let mut wrong = 0;
    while let Some((lesson, checked)) = checks.next().await {
        let Err(error) = checked else { continue };
        ensure!(!stop.is_cancelled(), "stopped before all was done");
        say(format_args!("{}. {}: {error:#}", lesson.number, lesson.title))?;
        wrong += 1;
    }
    Ok(wrong == 0)
}

async fn check_one(
    lesson: &'static Lesson,
    programs: &Programs,
    stop: &CancellationToken,
) -> (&'static Lesson, anyhow::Result<()>) {
    let checked = async {
        let directory = RunDirectory::make("lesson")?;
        let checked = check_in(directory.path(), lesson, programs, stop).await;
        let place = from_here(directory.path());
        if checked.is_err() {
            directory.keep();
        }
        checked.with_context(|| format!("logs and queues are in {place}"))
    };
    (lesson, checked.await)
}

async fn check_in(
    directory: &Path,
    lesson: &'static Lesson,
    programs: &Programs,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let scene = scene(lesson)?;
    let running = RunningLab::start(programs, &scene, directory).await?;
    let work = running.during(async {
        running.all_ready(&scene).await?;
        steps(lesson, &running).await
    });
    let done = stop.run_until_cancelled(work).await;
    done.context("stopped before the lesson was done")??;
    let (verdict, mut system) = running.judge().await?;
    system.end().await?;
    // The audit may be unable to tell, because a lesson may replace a store.
    ensure!(verdict.lost + verdict.doubled == 0, "the audit is not clean:\n{verdict}");
    Ok(())
}

async fn steps(lesson: &'static Lesson, running: &RunningLab) -> anyhow::Result<()> {
    let place = Workplace::of(&running.control);
    for (number, step) in (1..).zip(lesson.steps()) {
        let seen = timeout(PATIENCE, done(lesson, number, step, running, &place)).await;
        let seen = seen.with_context(|| format!("after {PATIENCE:?} it is not done"));
        let seen = seen.and_then(|seen| seen);
        let seen = seen.with_context(|| format!("step {number}"))?;
        say(format_args!("  {}.{number}  {seen}", lesson.number))?;
    }
    Ok(())
}

/// Does a step, and returns the values that its check saw.
async fn done(
    lesson: &Lesson,
    number: usize,
    step: &Step,
    running: &RunningLab,
    place: &Workplace,
) -> anyhow::Result<String> {
    let follows = step.check.is_some() && !step.lab_only;
    let mut events = if follows {
        let gateway = running.gateway;
        let url = format!("http://{gateway}/api/lessons/{}/steps/{number}", lesson.number);
        let mut events = Events { response: reqwest::get(url).await?, unread: String::new() };
        // The gateway has the state before the step now.
        let (is_true, saw) = events.next().await?;
        ensure!(!is_true, "its check is true before anything is done: {saw}");
        Some(events)
    } else {
        None
    };
    let mut printed = None;
    if step.commands.lab.is_some() {
        let ran = run(step, place).await?;
        ensure!(ran.status == 0, "its command ends with {}:\n{}", ran.status, ran.output);
        if let Some(shown) = &step.prints {
            let is_as_shown = is_as_shown(shown, &ran.output);
            ensure!(is_as_shown, "it prints\n{}\nand the lesson shows\n{shown}", ran.output);
        }
        printed = Some(ran);
    }
    if let Some(events) = &mut events {
        let mut last = String::new();
        loop {
            match events.next().await.with_context(|| format!("the last state was: {last}"))? {
                (true, saw) => return Ok(saw),
                (false, saw) => last = saw,
            }
        }
    }
    match printed {
        Some(ran) if step.lab_only => match ran.done {
            Some(done) => Ok(done.saw),
            None => bail!("its check does not hold of what it prints:\n{}", ran.output),
        },
        _ => Ok("done".to_owned()),
    }
}

/// The server-sent events of a step.
struct Events {
    response: Response,
    unread: String,
}

impl Events {
    /// The next event: whether the check holds, and the values that it saw.
    async fn next(&mut self) -> anyhow::Result<(bool, String)> {
        loop {
            if let Some(end) = self.unread.find("\n\n") {
                let event: String = self.unread.drain(..end + 2).collect();
                let field = |name| event.lines().find_map(|line| line.strip_prefix(name));
                let data: Value = serde_json::from_str(field("data: ").unwrap_or_default())?;
                let saw = data["saw"].as_str().unwrap_or_default().to_owned();
                return Ok((field("event: ") == Some("done"), saw));
            }
            let chunk = self.response.chunk().await?.context("the gateway sends no more events")?;
            self.unread += &String::from_utf8_lossy(&chunk);
        }
    }
}
