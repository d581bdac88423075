//! The database of the front: one row for each job, filled once.

use std::str::FromStr;

use serde_json::{Value, json};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqliteSynchronous};
use sqlx::{Result, query, query_as, query_scalar, raw_sql};
use tracing::warn;
use workqueue::{Context, Failure, Handler, RetryPolicy};

use crate::{Task, TaskResult};

const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS jobs
        (id TEXT PRIMARY KEY, task TEXT NOT NULL, input TEXT NOT NULL, output TEXT, worker TEXT) STRICT;
    CREATE VIEW IF NOT EXISTS listed AS SELECT id, json_object('id', id, 'task', task,
        'input', json(input), 'output', json(output), 'worker', worker, 'reason', NULL,
        'state', CASE WHEN output IS NULL THEN 'waiting' ELSE 'done' END) AS job FROM jobs;";

/// The database. As a handler it stores the results.
#[derive(Clone)]
pub struct Store(SqlitePool);

impl Store {
    /// Opens the database at this URL, such as `sqlite:word-count.db`, and creates what is missing.
    ///
    /// # Errors
    ///
    /// If there is no such database, or if it cannot be opened.
    pub async fn open(url: &str) -> Result<Self> {
        // A result is acked once it is stored, so a commit has to reach the disk. Temporary files would have no place
        // in a container with a read-only root.
        let options = SqliteConnectOptions::from_str(url)?
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .pragma("temp_store", "memory");
        let pool = SqlitePool::connect_with(options).await?;
        raw_sql(TABLES).execute(&pool).await?;
        Ok(Self(pool))
    }

    /// Records submitted jobs in one transaction. A job with a result stays unchanged.
    pub(crate) async fn note(&self, tasks: &[Task]) -> Result<()> {
        let row = |Task { id, task, input, .. }: &Task| json!([id, task, input.to_string()]);
        let rows: Value = tasks.iter().map(row).collect();
        let note = "INSERT INTO jobs (id, task, input) SELECT value ->> 0, value ->> 1, value ->> 2
                    FROM json_each(?) WHERE true ON CONFLICT DO NOTHING";
        query(note).bind(rows.to_string()).execute(&self.0).await?;
        Ok(())
    }

    /// Stores a result. Returns whether it is the first of its job. A second one changes nothing.
    async fn finish(&self, result: &TaskResult) -> Result<bool> {
        let TaskResult { task: Task { id, task, input, .. }, output, worker } = result;
        let finish = "INSERT INTO jobs (id, task, input, output, worker) VALUES (?, ?, ?, ?, ?)
                      ON CONFLICT DO UPDATE SET output = excluded.output, worker = excluded.worker
                      WHERE output IS NULL";
        let finish = query(finish).bind(id.to_string()).bind(task).bind(input.to_string());
        let finish = finish.bind(output.to_string()).bind(worker);
        Ok(finish.execute(&self.0).await?.rows_affected() > 0)
    }

    /// A job in JSON, if there is one with this id.
    pub(crate) async fn job(&self, id: &str) -> Result<Option<String>> {
        let job = query_scalar("SELECT job FROM listed WHERE id = ?").bind(id);
        job.fetch_optional(&self.0).await
    }

    /// The last jobs, the newest first, with at most five words of each and without its links.
    pub(crate) async fn latest(&self, jobs: u32) -> Result<Vec<String>> {
        let latest = "SELECT json_remove(json_replace(job, '$.output.words',
                          json((SELECT json_group_array(json(value)) FROM json_each(output, '$.words') WHERE key < 5))),
                          '$.output.links')
                      FROM listed JOIN jobs USING (id) ORDER BY id DESC LIMIT ?";
        query_scalar(latest).bind(jobs).fetch_all(&self.0).await
    }

    /// The number of jobs, and of those with a result.
    pub(crate) async fn counts(&self) -> Result<(u64, u64)> {
        query_as("SELECT count(*), count(output) FROM jobs").fetch_one(&self.0).await
    }

    /// The most frequent words of the last 1,000 counted pages together, with their counts.
    pub(crate) async fn words(&self, top: u32) -> Result<Vec<(String, u64)>> {
        let words = "SELECT value ->> 0 AS word, sum(value ->> 1) AS count
                     FROM (SELECT output FROM jobs WHERE task = 'word_count' AND output IS NOT NULL
                           ORDER BY id DESC LIMIT 1000), json_each(output, '$.words')
                     GROUP BY word ORDER BY count DESC, word LIMIT ?";
        query_as(words).bind(top).fetch_all(&self.0).await
    }
}

impl Handler for Store {
    type Job = TaskResult;

    fn retry_policy(&self) -> RetryPolicy {
        // The database may be full or locked for hours: these are some eight.
        RetryPolicy { max_attempts: Some(1_000), ..RetryPolicy::default() }
    }

    async fn handle(&self, result: TaskResult, cx: &Context) -> std::result::Result<(), Failure> {
        if !self.finish(&result).await? {
            warn!(id = %cx.id(), worker = result.worker, "a second result; the first one stands");
        }
        Ok(()) // the row is on the disk: only now is the result acked
    }
}

#[cfg(test)]
mod tests {
    use workqueue::{JobId, Priority};

    use super::*;

    #[tokio::test]
    async fn first_result_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", directory.path().join("results.db").display());
        let store = Store::open(&url).await.unwrap();
        let (task, input) = ("word_count".to_owned(), json!({ "url": "http://example.com/" }));
        let result = |task: &Task, words: Value| TaskResult {
            task: task.clone(),
            output: json!({ "words": words }),
            worker: "worker".to_owned(),
        };
        // One job is recorded before its result is stored, the other one after that.
        for is_early in [true, false] {
            let id = JobId::new();
            let task =
                Task { id, task: task.clone(), input: input.clone(), priority: Priority::Normal };
            if is_early {
                store.note(std::slice::from_ref(&task)).await.unwrap();
            }
            let words = json!([["fox", 9], ["a", 1], ["b", 1], ["c", 1], ["d", 1], ["e", 1]]);
            assert!(store.finish(&result(&task, words.clone())).await.unwrap());
            assert!(!store.finish(&result(&task, json!([["fox", 10]]))).await.unwrap());
            store.note(&[task]).await.unwrap();
            let job = store.job(&id.to_string()).await.unwrap().unwrap();
            let job: Value = serde_json::from_str(&job).unwrap();
            assert_eq!(job["output"], json!({ "words": words }));
        }
        assert_eq!(store.counts().await.unwrap(), (2, 2));
        assert_eq!(store.words(1).await.unwrap(), [("fox".to_owned(), 18)]);
        let latest = store.latest(9).await.unwrap();
        assert!(latest.len() == 2 && latest.iter().all(|job| job.contains(r#"["d",1]]}"#)));
    }
}
