//! Commands that `lab up` proposes to try.

use std::net::SocketAddr;

use workqueue::variable;

use super::settings::UpSettings;

/// Commands to try with the running system. There is none for a service without replicas.
pub(super) fn what_to_try(settings: &UpSettings, api: SocketAddr) -> String {
    let asks = settings.requestors > 0 && settings.rate != requestor::Rate::Zero;
    let curl = format!("curl -i http://{api}/requests --json '{{\"count\": 1, \"length\": 64}}'");
    let mut hints =
        vec![(curl.as_str(), "ask for strings yourself; Location has the address of the request")];
    if settings.generators > 0 {
        let effect = if asks {
            "stop the generators: REQUESTS fills, and asking goes on"
        } else {
            "stop the generators: your requests wait in REQUESTS"
        };
        hints.push(("cargo lab stop generators", effect));
        hints.push(("cargo lab start generators", "start them again: the queue drains"));
        // At the default rate, work that takes no time is hardly ever in flight.
        let work_time = settings.environment.get("WORK_TIME").cloned();
        let work_time = work_time.or_else(|| variable("WORK_TIME"));
        let work_time = work_time.and_then(|time| workqueue::duration(&time).ok());
        let effect = match (settings.generators, work_time.is_some_and(|time| !time.is_zero())) {
            (1, _) => "kill the generator: its messages wait in REQUESTS for another one",
            (_, true) => "kill a generator: its messages in flight are redelivered to the others",
            (_, false) => {
                "kill a generator: the others go on (after `cargo lab set --work-time 1s`, they get its \
                 messages in flight)"
            }
        };
        hints.push(("cargo lab kill generator-1", effect));
        hints.push((
            "cargo lab scale generators 4",
            "run four generators, which share the messages",
        ));
    }
    if settings.requestors > 0 {
        let effect = if asks {
            "pause the requestors, and ask by curl meanwhile: RESPONSES fills"
        } else {
            "pause the requestors: their responses wait in RESPONSES"
        };
        hints.push(("cargo lab pause requestors", effect));
        hints.push(("cargo lab resume requestors", "resume them: the queue drains"));
    }
    let effect = if settings.brokers == 1 {
        "kill the broker: both services wait, and no confirmed message is lost"
    } else {
        "kill a broker: the others elect new leaders, and everything goes on"
    };
    hints.push(("cargo lab kill broker", effect));
    hints.push(("cargo lab start broker", "start it again on the same store"));
    hints.push(("cargo lab exec decoupled audit", "get the verdict at any time"));
    hints.push(("cargo lab lesson", "learn with it: each lesson is a page beside the flow"));
    let hints = hints.iter().map(|(command, what)| format!("  {command}\n      {what}\n"));
    format!(
        "Try in another terminal, and watch the queues:\n{}Ctrl-C here stops all that was started here, \
         in order.",
        hints.collect::<String>()
    )
}
