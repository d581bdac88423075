//! The verdict: exit status 0 only if no order is lost, invented or mischarged.

use std::io::{Write, stdout};
use std::process::ExitCode;

use anyhow::{Context, bail};
use orders::Program;
use orders::audit::audit;
use orders::database::Database;
use orders::orders::TABLES;
use orders::payments;
use workqueue::variable;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<ExitCode> {
    let Some(program) = Program::start("orders.db", TABLES).await? else { bail!("stopped") };
    let url = variable("PAYMENTS_DATABASE_URL").or_else(|| variable("DATABASE_URL"));
    let url = url.as_deref().unwrap_or("sqlite:payments.db");
    let auditing = async {
        let payments = Database::connect(url, payments::TABLES).await;
        let payments = payments.context("cannot use the database (PAYMENTS_DATABASE_URL)")?;
        audit(&program.database, &payments, &program.settings).await
    };
    let verdict = program.stop.run_until_cancelled(auditing).await.context("stopped")??;
    write!(stdout(), "{verdict}")?;
    Ok(if verdict.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
