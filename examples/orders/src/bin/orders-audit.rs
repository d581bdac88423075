//! The verdict: exit status 0 only if there are orders, and none is lost, invented or mischarged.

use std::io::{Write, stdout};
use std::process::ExitCode;

use anyhow::{Context, ensure};
use orders::{Program, audit::audit, database::Database, orders::TABLES, payments};
use workqueue::variable;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<ExitCode> {
    // By default both files have to exist: with new ones there would be nothing to judge.
    let program = Program::start("orders.db?mode=rw", TABLES).await?.context("stopped")?;
    let url = variable("PAYMENTS_DATABASE_URL").or_else(|| variable("DATABASE_URL"));
    let url = url.as_deref().unwrap_or("sqlite:payments.db?mode=rw");
    let auditing = async {
        let payments = Database::connect(url, payments::TABLES).await;
        let payments = payments.context("cannot use the database (PAYMENTS_DATABASE_URL)")?;
        audit(&program.database, &payments, &program.settings).await
    };
    let verdict = program.stop.run_until_cancelled(auditing).await.context("stopped")??;
    ensure!(!verdict.0.is_empty(), "there are no orders");
    write!(stdout(), "{verdict}")?;
    Ok(if verdict.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
