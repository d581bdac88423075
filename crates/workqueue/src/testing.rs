//! Unit tests of handlers, without a broker.
//!
//! ```
//! use serde::{Deserialize, Serialize};
//! use workqueue::testing::Recorder;
//! use workqueue::{Context, Failure, Handler, Job, Queue};
//!
//! #[derive(Serialize, Deserialize)]
//! struct Greet { name: String }
//! #[derive(Debug, PartialEq, Serialize, Deserialize)]
//! struct Greeting { text: String }
//!
//! impl Job for Greet { const QUEUE: Queue = Queue::new("GREET", "greet"); }
//! impl Job for Greeting { const QUEUE: Queue = Queue::new("GREETINGS", "greetings"); }
//!
//! struct Greeter;
//!
//! impl Handler for Greeter {
//!     type Job = Greet;
//!     async fn handle(&self, job: Greet, cx: &Context) -> Result<(), Failure> {
//!         cx.publish(&Greeting { text: format!("Hello, {}!", job.name) }).await?;
//!         Ok(())
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! let recorder = Recorder::new();
//! Greeter.handle(Greet { name: "Ada".into() }, &recorder.context()).await.unwrap();
//! assert_eq!(recorder.published::<Greeting>(), [Greeting { text: "Hello, Ada!".into() }]);
//! # }
//! ```

use std::sync::Arc;
use std::time::Duration;

pub use crate::recorder::Recorder;

use crate::clock::now;
use crate::handler::{Attempt, Context, Shared};
use crate::id::JobId;
use crate::priority::Priority;
use crate::producer::Producer;
use crate::queue::Queue;
use crate::trace::Trace;

impl Recorder {
    /// The context of the first attempt at a new job.
    #[must_use]
    pub fn context(self: &Arc<Self>) -> Context {
        self.context_of(JobId::new(), Attempt::new(1))
    }

    /// The context of this attempt at the job with this id.
    #[must_use]
    pub fn context_of(self: &Arc<Self>, id: JobId, attempt: Attempt) -> Context {
        let shared = Shared {
            lane: Queue::new("TESTS", "tests").lane(Priority::Normal),
            producer: Producer::recording(self),
            instance: "test".to_owned(),
            facts_max_age: Duration::MAX,
        };
        Context::new(id, attempt, now(), Trace::default(), Arc::new(shared))
    }
}

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serialize};

    use super::*;
    use crate::facts::{Bucket, Creation, Fact};
    use crate::handler::Failure;

    #[derive(Debug, Serialize, Deserialize)]
    struct Resized {
        image: String,
    }

    impl Fact for Resized {
        const BUCKET: Bucket = Bucket { name: "resized", stream: "KV_resized" };

        fn key(&self) -> String {
            self.image.clone()
        }
    }

    #[tokio::test]
    async fn recorder_refuses_a_key_that_is_no_subject() {
        let recorder = Recorder::new();
        let context = recorder.context();
        let create = async |image: &str| context.create(&Resized { image: image.to_owned() }).await;
        for image in ["my cat.png", "", "a..b", "*"] {
            assert!(matches!(create(image).await, Err(Failure::Reject(_))), "{image}");
        }
        assert!(recorder.created::<Resized>().is_empty());
        assert!(matches!(create("cat.png").await, Ok(Creation::Created)));
    }
}
