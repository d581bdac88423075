//! The replicas of one service that `lab up` runs, each a process.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use serde::Serialize;
use testkit::service::Service;

use crate::replica::Replica;

/// The settings of a replica, on top of the environment.
pub(super) type Settings = Vec<(String, String)>;

/// The replicas of one service.
#[derive(Debug)]
pub(super) struct Replicas {
    service: Service,
    /// The program of the replicas that are started from now on.
    program: PathBuf,
    directory: PathBuf,
    all: Vec<Member>,
    /// The replicas that were told to stop and have successors.
    leaving: Vec<Replica>,
}

/// A replica and its state.
#[derive(Debug)]
struct Member {
    number: u32,
    replica: Replica,
    is_paused: bool,
    is_stopping: bool,
}

/// The state of a process, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct ProcessState {
    pub(super) name: String,
    pub(super) pid: u32,
    /// `running`, `paused`, `stopping` or `ended`.
    pub(super) state: &'static str,
}

impl Replicas {
    pub(super) fn new(service: Service, program: &Path, directory: &Path) -> Self {
        let (program, directory) = (program.to_owned(), directory.to_owned());
        Self { service, program, directory, all: Vec::new(), leaving: Vec::new() }
    }

    fn launch(&self, number: u32, settings: &Settings) -> anyhow::Result<Member> {
        let name = format!("{}-{number}", self.service);
        // The log has the address of the admin endpoint, which must not be that of an earlier process of this name.
        let log = self.directory.join(format!("{name}.log"));
        let _ = fs::rename(&log, log.with_extension("earlier.log"));
        let settings = settings.iter().map(|(name, value)| (name, value));
        let replica = Replica::start(&self.program, &[], name, &self.directory, settings)?;
        Ok(Member { number, replica, is_paused: false, is_stopping: false })
    }

    /// Starts the replicas that were stopped or killed, or the one with this number. Starts one if there were none.
    pub(super) fn start(&mut self, number: Option<u32>, settings: &Settings) -> anyhow::Result<()> {
        self.check_number(number)?;
        if self.all.is_empty() {
            return self.scale(1, settings);
        }
        for index in 0..self.all.len() {
            let member = &mut self.all[index];
            let is_meant = number.is_none_or(|number| member.number == number);
            if !is_meant || member.runs()? && !member.is_stopping {
                continue;
            }
            let number = member.number;
            let started = self.launch(number, settings)?;
            let old = std::mem::replace(&mut self.all[index], started);
            self.leaving.push(old.replica);
        }
        Ok(())
    }

    /// Scales the service to this many replicas. Those with the highest numbers are told to stop, and ended ones are
    /// forgotten.
    pub(super) fn scale(&mut self, count: u32, settings: &Settings) -> anyhow::Result<()> {
        let mut kept = Vec::new();
        for mut member in self.all.drain(..) {
            if member.runs()? && !member.is_stopping {
                kept.push(member);
            } else {
                self.leaving.push(member.replica);
            }
        }
        let surplus = kept.split_off(kept.len().min(count as usize));
        self.all = kept;
        for member in surplus {
            member.replica.terminate();
            self.leaving.push(member.replica);
        }
        let mut number = 0;
        while self.all.len() < count as usize {
            number += 1;
            if self.all.iter().all(|member| member.number != number) {
                let started = self.launch(number, settings)?;
                self.all.push(started);
                self.all.sort_by_key(|member| member.number);
            }
        }
        Ok(())
    }

    /// As [`Replicas::replace_each`], with this program, which later replicas have as well.
    pub(super) async fn deploy(
        &mut self,
        program: &Path,
        settings: &Settings,
    ) -> anyhow::Result<()> {
        let before = std::mem::replace(&mut self.program, program.to_owned());
        let deployed = self.replace_each(settings).await;
        if deployed.is_err() {
            self.program = before;
        }
        deployed
    }

    /// Stops all replicas, and starts this many with this program and these settings. Returns once they are ready.
    pub(super) async fn restart(
        &mut self,
        program: &Path,
        count: u32,
        settings: &Settings,
    ) -> anyhow::Result<()> {
        self.each(None, Verb::Resume).await?;
        self.stop().await?;
        program.clone_into(&mut self.program);
        self.scale(count, settings)?;
        for member in &mut self.all {
            member.replica.ready().await?;
        }
        Ok(())
    }

    /// Replaces each running replica by a new process, which is ready before the old one is told to stop.
    pub(super) async fn replace_each(&mut self, settings: &Settings) -> anyhow::Result<()> {
        for index in 0..self.all.len() {
            if !self.all[index].runs()? || self.all[index].is_stopping {
                continue;
            }
            let last = self.all.iter().map(|member| member.number).max();
            let mut started = self.launch(last.unwrap_or_default() + 1, settings)?;
            started.replica.ready().await.context("the old ones continue")?;
            let old = std::mem::replace(&mut self.all[index], started);
            old.replica.terminate();
            self.leaving.push(old.replica);
        }
        Ok(())
    }

    fn check_number(&self, number: Option<u32>) -> anyhow::Result<()> {
        let Some(number) = number else { return Ok(()) };
        let is_there = self.all.iter().any(|member| member.number == number);
        ensure!(is_there, "there is no {}-{number}", self.service);
        Ok(())
    }

    /// Applies an action to each running replica, or to the one with this number.
    pub(super) async fn each(&mut self, number: Option<u32>, verb: Verb) -> anyhow::Result<()> {
        self.check_number(number)?;
        let found = |member: &&mut Member| number.is_none_or(|number| member.number == number);
        for member in self.all.iter_mut().filter(found) {
            // A second signal would end a stopping replica at once, and a pause would keep it from its end.
            if !member.runs()? || member.is_stopping && verb != Verb::Kill {
                continue;
            }
            match verb {
                Verb::Stop => {
                    member.replica.terminate();
                    member.is_stopping = true;
                }
                Verb::Kill => drop(member.replica.process.kill().await?),
                Verb::Pause => member.replica.process.pause()?,
                Verb::Resume => member.replica.process.resume()?,
            }
            member.is_paused = verb == Verb::Pause || member.is_paused && verb != Verb::Resume;
        }
        Ok(())
    }

    /// Checks that all replicas have accepted their settings, which also come from the environment.
    ///
    /// # Errors
    ///
    /// If a replica has not. The error has its log.
    pub(super) fn all_could_start(&mut self) -> anyhow::Result<()> {
        self.all.iter_mut().try_for_each(|member| member.replica.could_start())
    }

    /// The states of the processes.
    pub(super) fn describe(&mut self) -> Vec<String> {
        self.all.iter_mut().map(|member| member.replica.describe()).collect()
    }

    pub(super) fn state(&mut self) -> anyhow::Result<Vec<ProcessState>> {
        self.all.iter_mut().map(Member::state).collect()
    }

    /// The number of replicas. Those that were stopped or killed count as well: each may be started again, with its
    /// share of the rate.
    pub(super) fn count(&self) -> u32 {
        u32::try_from(self.all.len()).unwrap_or(u32::MAX)
    }

    /// Stops all replicas gracefully, and waits for them.
    pub(super) async fn stop(&mut self) -> anyhow::Result<()> {
        for member in self.all.drain(..) {
            // A second signal would end a stopping replica at once.
            if !member.is_stopping {
                member.replica.terminate();
            }
            self.leaving.push(member.replica);
        }
        // If this is not waited for, the rest is stopped later, and not killed.
        while let Some(replica) = self.leaving.last_mut() {
            replica.stopped().await?;
            self.leaving.pop();
        }
        Ok(())
    }
}

/// An action on a running process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    Stop,
    Kill,
    Pause,
    Resume,
}

impl Member {
    fn runs(&mut self) -> anyhow::Result<bool> {
        Ok(self.replica.process.try_wait()?.is_none())
    }

    fn state(&mut self) -> anyhow::Result<ProcessState> {
        let state = match (self.runs()?, self.is_stopping, self.is_paused) {
            (false, ..) => "ended",
            (_, true, _) => "stopping",
            (_, _, true) => "paused",
            _ => "running",
        };
        let name = self.replica.name().to_owned();
        Ok(ProcessState { name, pid: self.replica.id(), state })
    }
}
