//! Counts the words of web pages, as the lectures on Celery do: a front that accepts jobs and stores results, and
//! workers that fetch pages from an untrusted web.
//!
//! ```text
//! word-count    POST, page --> [TASKS] (high, normal, low)     [RECOUNTS], when due --> [TASKS]     api, recounts
//! word-counter  [TASKS] --> the web --> [RESULTS]                             counter, tasks, web, address
//! word-count    [RESULTS] --> SQLite --> GET, page                            store, api
//! ```
//!
//! The two programs share this file, but no database, no call and no clock: each can be stopped while the other works.

mod address;
mod api;
mod counter;
mod recounts;
mod store;
mod tasks;
mod web;

pub use address::{InvalidUrl, check, is_public};
pub use api::router;
pub use counter::Counter;
pub use recounts::Recounts;
pub use store::Store;
pub use tasks::{Kind, TASKS};
pub use web::{Page, Web};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use workqueue::{Job, JobId, Priority, Queue};

/// A task by its name, with its parameters. Only a worker knows the names of the tasks.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Task {
    /// The id of the job, under which its result is stored.
    pub id: JobId,
    /// The name of the task.
    pub task: String,
    /// Its parameters: for each task so far `{"url": …}`.
    pub input: Value,
    /// Its priority. Normal by default.
    #[serde(default)]
    pub priority: Priority,
}

impl Job for Task {
    const QUEUE: Queue = Queue::new("TASKS", "tasks").consumer("word-counter").with_priorities();

    fn id(&self) -> Option<JobId> {
        Some(self.id)
    }

    fn priority(&self) -> Priority {
        self.priority
    }
}

/// The result of a task.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TaskResult {
    /// The task.
    #[serde(flatten)]
    pub task: Task,
    /// The result.
    pub output: Value,
    /// The instance that did it.
    pub worker: String,
}

impl Job for TaskResult {
    const QUEUE: Queue = Queue::new("RESULTS", "results").consumer("word-count");

    fn id(&self) -> Option<JobId> {
        Some(self.task.id)
    }
}

/// A recurring task: each time that it is due, it becomes a [`Task`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Recount {
    /// The name of the task.
    pub task: String,
    /// Its parameters.
    pub input: Value,
}

impl Job for Recount {
    // A queue cannot have both priorities and schedules, so due recounts are forwarded to TASKS.
    const QUEUE: Queue =
        Queue::new("RECOUNTS", "recounts").consumer("word-count").with_schedules("recurring");
}
