//! `lab declare`: creates or adjusts the streams, buckets and consumers of a deployment.

use async_nats::jetstream::Context;
use contract::topology::{self, DeclareError, Limits};

/// Creates what is missing, changes limits that differ in place, and tells what it did, a line for
/// each.
///
/// # Errors
///
/// Where what is there breaks a promise, or the broker refuses.
pub async fn declare(nats: &Context, limits: &Limits) -> Result<Vec<String>, DeclareError> {
    let topology = topology::adjust(nats, limits).await?;
    let created = topology.created.iter().map(|object| format!("created {object}"));
    let adjusted = topology.adjusted.iter().map(|change| {
        let topology::Difference { object, setting, is, should_be } = change;
        format!("changed {object}: {setting} from {is} to {should_be}")
    });
    Ok(created.chain(adjusted).collect())
}
