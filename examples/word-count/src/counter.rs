//! The worker: does tasks within the rate limits of their kinds and their hosts, and stores nothing.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use workqueue::{Context, Failure, Handler, RetryPolicy};

use crate::tasks::Kind;
use crate::web::Web;
use crate::{Task, TaskResult, check};

/// Time that a server may be silent.
const PATIENCE: Duration = Duration::from_secs(10);

/// Does tasks.
pub struct Counter {
    web: Web,
    /// A permit for each processor. A task that waits for one keeps its page in memory, but no thread.
    processors: Arc<Semaphore>,
}

impl Counter {
    /// A worker that calls only allowed addresses, and each host at most this often a second, together with all workers.
    #[must_use]
    pub fn new(is_allowed: fn(IpAddr) -> bool, host_rate: NonZeroU32) -> Self {
        let processors = available_parallelism().map_or(1, usize::from);
        let web = Web::new(is_allowed, host_rate, PATIENCE);
        Self { web, processors: Arc::new(Semaphore::new(processors)) }
    }
}

impl Handler for Counter {
    type Job = Task;

    fn retry_policy_of(&self, job: &Task) -> RetryPolicy {
        Kind::named(&job.task).map_or_else(|_| self.retry_policy(), Kind::policy)
    }

    async fn handle(&self, task: Task, cx: &Context) -> Result<(), Failure> {
        let kind = Kind::named(&task.task).map_err(Failure::reject)?;
        let wrong =
            || Failure::reject(format!("the input of {} has to be {{\"url\": …}}", kind.name));
        let url = check(task.input["url"].as_str().ok_or_else(wrong)?).map_err(Failure::reject)?;
        // The permit for the host comes first: most of many jobs for one host wait here, and use no permit for
        // their task.
        self.web.permit(&url, cx).await?;
        cx.permit(&format!("task {}", kind.name), kind.per_second).await?;
        let page = self.web.page(url, cx).await?;
        // The permit moves into the work, which continues even if the attempt has timed out.
        let processor = Arc::clone(&self.processors).acquire_owned().await?;
        let work = move || {
            let _processor = processor;
            (kind.read)(&page)
        };
        let output = spawn_blocking(work).await?;
        let worker = cx.instance().to_owned();
        cx.publish(&TaskResult { task, output, worker }).await?; // stored, not merely sent
        Ok(())
    }
}
