//! The database: `SQLite`, or Postgres. All differences between the two are here.

use std::time::Duration;

use sqlx::any::AnyPoolOptions;
use sqlx::migrate::Migrator;
use sqlx::postgres::PgListener;
use sqlx::{Any, AnyPool, AssertSqlSafe, Error, Result, Transaction};
use tracing::warn;
use workqueue::{Backoff, LogOnce};

/// The time limit for a connection. While the database is away, HTTP answers 503 after this time.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(3);

/// The first and the highest ceiling of the pause between two tries while the database is away.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// Begins a claim. Postgres ends it, and releases its rows, if the relay is paused or cannot be reached for a minute.
const CLAIM: &str = "BEGIN; SET LOCAL idle_in_transaction_session_timeout = '1min'";

/// A transaction that writes.
pub(crate) type Writing = Transaction<'static, Any>;

/// An event that is not published yet: its id, its body, and the `traceparent` of its trace.
pub(crate) type Unpublished = (String, String, Option<String>);

/// The database of one service.
#[derive(Clone, Debug)]
pub struct Database {
    /// Its connections. Except in this module, the SQL of this crate works with both kinds.
    pub pool: AnyPool,
    url: String,
}

impl Database {
    /// Tries to connect until it succeeds, and migrates these tables. Creates a missing `SQLite` file.
    ///
    /// # Errors
    ///
    /// If the address is invalid, the credentials are refused, the tables differ, or the connection breaks during the
    /// migration.
    pub async fn connect(url: &str, mut tables: Migrator) -> Result<Self> {
        sqlx::any::install_default_drivers();
        // The two services may share a database, and each knows only its own tables.
        tables.set_ignore_missing(true);
        let mode = if is_sqlite(url) && !url.contains('?') { "?mode=rwc" } else { "" };
        let url = format!("{url}{mode}");
        let pool = AnyPoolOptions::new().acquire_timeout(ACQUIRE_TIMEOUT).connect_lazy(&url)?;
        let database = Self { pool, url };
        patiently(|| database.migrate(&tables)).await?;
        Ok(database)
    }

    /// Migrates the tables, while no other process does.
    async fn migrate(&self, tables: &Migrator) -> Result<()> {
        if !is_sqlite(&self.url) {
            let mut connection = self.pool.acquire().await?;
            return Ok(tables.run(&mut *connection).await?);
        }
        // With this mode, readers and a writer do not wait for each other.
        sqlx::query("PRAGMA journal_mode = WAL").execute(&self.pool).await?;
        let mut transaction = self.begin().await?;
        tables.run(&mut *transaction).await?;
        transaction.commit().await
    }

    /// Begins a transaction that writes. `SQLite` has one writer at a time. A second one waits here, because in the
    /// middle of its transaction it could only fail.
    pub(crate) async fn begin(&self) -> Result<Writing> {
        let begin = if is_sqlite(&self.url) { "BEGIN IMMEDIATE" } else { "BEGIN" };
        self.pool.begin_with(begin).await
    }

    /// The first unpublished event of each order, at most `count`, and the transaction that locks them.
    ///
    /// Postgres locks the rows, so several relays share the work. `SQLite` could only lock out all writers. Without a
    /// lock two relays publish the same events twice, which does no harm.
    pub(crate) async fn claim(&self, count: i64) -> Result<(Vec<Unpublished>, Option<Writing>)> {
        let first = "SELECT id, body, traceparent FROM outbox AS event WHERE published_at IS NULL AND NOT EXISTS \
             (SELECT 1 FROM outbox AS earlier WHERE earlier.order_id = event.order_id \
              AND earlier.number < event.number AND earlier.published_at IS NULL) ORDER BY id LIMIT $1";
        if is_sqlite(&self.url) {
            return Ok((sqlx::query_as(first).bind(count).fetch_all(&self.pool).await?, None));
        }
        let mut claim = self.pool.begin_with(CLAIM).await?;
        let locked = AssertSqlSafe(format!("{first} FOR UPDATE OF event SKIP LOCKED"));
        Ok((sqlx::query_as(locked).bind(count).fetch_all(&mut *claim).await?, Some(claim)))
    }

    /// Wakes the relays once this transaction commits. With `SQLite` they poll.
    pub(crate) async fn notify(&self, transaction: &mut Writing) -> Result<()> {
        if !is_sqlite(&self.url) {
            sqlx::query("NOTIFY outbox").execute(&mut **transaction).await?;
        }
        Ok(())
    }

    /// A listener for notifications, if the database has them.
    pub(crate) async fn listen(&self) -> Result<Option<PgListener>> {
        if is_sqlite(&self.url) {
            return Ok(None);
        }
        let mut listener = PgListener::connect(&self.url).await?;
        listener.listen("outbox").await?;
        Ok(Some(listener))
    }
}

fn is_sqlite(url: &str) -> bool {
    url.starts_with("sqlite:")
}

/// Repeats this work while the database is away or busy. A handler that waits keeps its job in flight: an outage of the
/// database for an hour spends no attempt, and makes no dead letter.
pub(crate) async fn patiently<T, F: Future<Output = Result<T>>>(work: impl Fn() -> F) -> Result<T> {
    let (mut backoff, mut logged) = (Backoff::new(RETRY.0, RETRY.1), LogOnce::default());
    loop {
        let error = match work().await {
            Err(error) if is_transient(&error) => error,
            done => return done,
        };
        if logged.is_first(&error) {
            warn!(%error, "waiting for the database");
        }
        backoff.wait().await;
    }
}

/// Whether a retry may succeed.
pub(crate) fn is_transient(error: &Error) -> bool {
    match error {
        Error::Io(_) | Error::PoolTimedOut => true,
        Error::Database(error) => error.code().is_some_and(|code| match &*code {
            // SQLite is busy, locked, or full.
            "5" | "6" | "13" | "261" | "517" => true,
            // Postgres: connections, a claim that was ended, collisions, resources; it stops, or starts.
            state => ["08", "25P", "40", "53", "57P"].iter().any(|class| state.starts_with(class)),
        }),
        _ => false,
    }
}
