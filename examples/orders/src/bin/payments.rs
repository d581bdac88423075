//! The payment service. There may be several replicas.

use orders::Program;
use orders::payments::{Payments, TABLES};
use workqueue::Service;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let Some(program) = Program::start("payments.db", TABLES).await? else { return Ok(()) };
    let service = Service::new("payments").consume(Payments(program.database.clone()));
    Ok(service.run(&program.settings, &program.stop).await?)
}
