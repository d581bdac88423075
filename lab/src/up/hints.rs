//! Commands that `lab up` proposes to try.

use std::net::SocketAddr;

use testkit::broker::Brokers;
use testkit::programs::Programs;
use testkit::target_directory::from_here;
use workqueue::variable;

use super::replicas::Replicas;
use super::settings::UpSettings;
use crate::replica::Replica;

/// A command, and its effect.
type Hint = (String, &'static str);

/// Commands to try with what runs. There is none for a side without replicas: `kill -9` without a process
/// id would end the shell's own.
pub(super) fn what_to_try(
    settings: &UpSettings,
    brokers: &Brokers,
    programs: &Programs,
    replicas: &Replicas,
    api: SocketAddr,
) -> String {
    let url = brokers.url();
    let mut hints: Vec<Hint> = Vec::new();
    let body = r#"{"count": 1, "length": 64}"#;
    hints.push((
        format!("curl -i http://{api}/requests --json '{body}'"),
        "ask for strings yourself; Location has the address of the request",
    ));
    let asks = settings.requestors > 0 && settings.rate != requestor::Rate::Zero;
    if let Some(first) = replicas.generators.first() {
        let ids = ids(&replicas.generators);
        let effect = if asks {
            "pause the generators: REQUESTS fills, and asking goes on"
        } else {
            "pause the generators: what you ask for waits in REQUESTS"
        };
        hints.push((format!("kill -STOP {ids}"), effect));
        hints.push((format!("kill -CONT {ids}"), "let them go on: it drains"));
        // At the usual rate, work without a duration is never in flight when one looks.
        let takes_time = variable("WORK_TIME").and_then(|time| workqueue::duration(&time).ok());
        let effect = match (settings.generators, takes_time.is_some_and(|time| !time.is_zero())) {
            (1, _) => "kill the generator: its messages wait in REQUESTS for another one",
            (_, true) => "kill a generator: its messages in flight are redelivered to the others",
            (_, false) => {
                "kill a generator: the others go on (with WORK_TIME=1s, they get its messages in flight)"
            }
        };
        hints.push((format!("kill -9 {}", first.id()), effect));
    }
    if !replicas.requestors.is_empty() {
        let ids = ids(&replicas.requestors);
        let effect = if asks {
            "pause the requestors, and ask by curl meanwhile: RESPONSES fills"
        } else {
            "pause the requestors: what you ask for waits in RESPONSES"
        };
        hints.push((format!("kill -STOP {ids}"), effect));
        hints.push((format!("kill -CONT {ids}"), "let them go on: it drains"));
    }
    hints.push((
        format!("NATS_URL={url} {}", from_here(&programs.generator)),
        "add a generator, and end it with Ctrl-C",
    ));
    let victim = brokers.iter().next().expect("there is always one");
    if let Some(id) = victim.id() {
        let effect = if brokers.len() == 1 {
            "kill the broker: all wait for it, and no confirmed message is lost"
        } else {
            "kill a broker: the others elect new leaders, and everything goes on"
        };
        hints.push((format!("kill -9 {id}"), effect));
        let (server, configuration) = (victim.binary(), victim.configuration_file());
        hints.push((
            format!("{} --config {}", from_here(server), from_here(&configuration)),
            "start it again on the same store; it is yours then, and ends with Ctrl-C",
        ));
    }
    let decoupled = from_here(&programs.decoupled);
    hints.push((format!("{decoupled} audit --nats-url {url}"), "ask for the verdict at any time"));
    let hints = hints.iter().map(|(command, what)| format!("  {command}\n      {what}\n"));
    format!(
        "Try in another terminal, and watch the queues:\n{}Ctrl-C here stops all that was started here, \
         in order.",
        hints.collect::<String>()
    )
}

fn ids(side: &[Replica]) -> String {
    side.iter().map(|replica| replica.id().to_string()).collect::<Vec<_>>().join(" ")
}
