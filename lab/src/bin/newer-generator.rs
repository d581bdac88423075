//! A generator of a later release, for lesson 8. It also reads version 2 of a request, which names the characters of
//! its strings. It handles version 1 as the generator does.

use std::error::Error;
use std::process::ExitCode;

use contract::queues::{REQUESTS, Request};
use contract::{Amount, Strings};
use generator::{Generate, GeneratorSettings};
use rand::seq::IndexedRandom;
use serde::{Deserialize, Serialize};
use workqueue::{Context, Failure, Handler, Job, JobId, Priority, Queue, Rejection};

/// A request of version 2. A reader of version 1 would ignore the alphabet, and make the wrong strings, so the version
/// is a new one.
#[derive(Debug, Serialize, Deserialize)]
struct NewerRequest {
    /// All fields of version 1.
    #[serde(flatten)]
    request: Request,
    /// The characters of the strings. A request of version 1 names none.
    alphabet: Option<String>,
}

impl Job for NewerRequest {
    const QUEUE: Queue = REQUESTS;
    const VERSION: u64 = 2;

    fn id(&self) -> Option<JobId> {
        self.request.id()
    }

    fn priority(&self) -> Priority {
        self.request.priority()
    }
}

struct NewerGenerate(Generate);

impl Handler for NewerGenerate {
    type Job = NewerRequest;

    fn admit(&self, job: &NewerRequest, cx: &Context) -> Result<(), Rejection> {
        self.0.admit(&job.request, cx)
    }

    async fn handle(&self, job: NewerRequest, cx: &Context) -> Result<(), Failure> {
        let NewerRequest { request, alphabet } = job;
        let Some(alphabet) = alphabet else { return self.0.handle(request, cx).await };
        let strings = strings_of(&alphabet, request.amount).map_err(Failure::reject)?;
        self.0.respond(request, strings, cx).await
    }
}

/// Random strings of these characters.
fn strings_of(alphabet: &str, amount: Amount) -> Result<Strings, String> {
    let characters: Vec<char> = alphabet.chars().collect();
    let rng = &mut rand::rng();
    let mut string = || (0..amount.length()).filter_map(|_| characters.choose(rng)).collect();
    let strings: Vec<String> = (0..amount.count()).map(|_| string()).collect();
    Strings::try_from(strings).map_err(|error| format!("the alphabet '{alphabet}': {error}"))
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    workqueue::exit_code(run().await)
}

async fn run() -> Result<(), Box<dyn Error + Send + Sync>> {
    let settings: GeneratorSettings = workqueue::parse(&[]);
    let _logs = workqueue::init_telemetry(&settings.service.telemetry)?;
    let stop = workqueue::stop_on_signals()?;
    let service = generator::service(NewerGenerate(Generate::new(&settings)));
    Ok(service.version("0.3.0").run(&settings.service, &stop).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newer_reader_reads_both_versions() {
        let amount = Amount::new(2, 3).unwrap();
        let old = Request::new(JobId::new(), amount, "requestor-1", workqueue::now());
        let mut body = serde_json::to_value(&old).unwrap();
        let read = |body| serde_json::from_value::<NewerRequest>(body).unwrap();
        let first = read(body.clone());
        assert_eq!((first.request, first.alphabet), (old.clone(), None));
        body["alphabet"] = "01".into();
        let second = read(body);
        assert_eq!((second.request, second.alphabet.as_deref()), (old, Some("01")));
    }

    #[test]
    fn strings_have_the_characters_of_the_alphabet() {
        let strings = strings_of("01", Amount::new(3, 100).unwrap()).unwrap();
        assert_eq!(strings.as_slice().len(), 3);
        let all = strings.as_slice().concat();
        assert!(all.len() == 300 && all.bytes().all(|it| it == b'0' || it == b'1'), "{all}");
        for wrong in ["", "é", "!"] {
            let error = strings_of(wrong, Amount::new(1, 1).unwrap()).unwrap_err();
            assert!(error.starts_with(&format!("the alphabet '{wrong}': ")), "{error}");
        }
    }
}
