//! Startup: wrong settings, and brokers that are away or refuse. Each error names the setting.

use std::collections::HashSet;
use std::path::Path;
use std::process::Output;

use contract::queues::REQUESTS;
use nkeys::KeyPair;
use testkit::broker::{Broker, BrokerOptions};
use testkit::eventually::eventually;
use testkit::process::{Process, bound_to_this, logged};
use tokio::net::TcpListener;
use tokio::process::Command;

use crate::deployment::{
    Deployment, PATIENT, Service, admin, ended, gateway, programs, ready, run, soon, succeeded,
    watch,
};
use crate::unreadable::{CARRIAGE_RETURN, publish};

async fn requestor(words: &[&str]) -> Output {
    Command::new(&programs().await.requestor).args(words).output().await.unwrap()
}

#[tokio::test]
async fn unknown_flag_is_an_error() {
    let output = requestor(&["--request-speed", "9"]).await;
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(said.contains("unexpected argument '--request-speed'"), "{said}");
}

#[tokio::test]
async fn negative_rate_is_an_error() {
    let output = requestor(&["--request-rate", "-1"]).await;
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(said.contains("write requests a second, such as 0.5 or 1000, or 0, or max"), "{said}");
}

#[tokio::test]
async fn wrong_setting_is_refused_with_its_limits() {
    let from_zero = "write a whole number from 0";
    let (requestor, gateway) = (&programs().await.requestor, &programs().await.gateway);
    for (program, setting, value, help) in [
        (requestor, "REQUEST_TOTAL", "many", from_zero),
        (gateway, "AUDIT_LIMIT", "-1", from_zero),
        (requestor, "STRING_COUNT", "1001", "write a whole number from 1 to 1000"),
        (requestor, "STRING_LENGTH", "0", "write a whole number from 1 to 1024"),
        (requestor, "CONCURRENCY", "18446744073709551615", "write a whole number from 1 to 65536"),
        (requestor, "RATE_LIMIT", "0", "write a whole number of jobs a second from 1, such as 100"),
        (requestor, "REPLICAS", "2", "write 1, 3 or 5"),
        (requestor, "NATS_PASSWORD", "s3cret", "NATS_USER has to name its user"),
    ] {
        let output = Command::new(program).env(setting, value).output();
        let output = soon("it ends", output).await.unwrap();
        let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert!(!output.status.success() && said.contains(help), "{setting}: {said}");
        assert!(!said.contains("s3cret"), "{said}");
    }
}

#[tokio::test]
async fn amount_beyond_the_limits_is_an_error() {
    let output = requestor(&["--string-count", "1000", "--string-length", "1000"]).await;
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    let cause = "STRING_COUNT and STRING_LENGTH ask for 1000 strings";
    assert_eq!(said.matches(cause).count(), 1, "{said}");
}

#[tokio::test]
async fn help_shows_every_setting_and_no_password() {
    let mut command = Command::new(&programs().await.requestor);
    let output = command.arg("--help").env("NATS_PASSWORD", "secret").output().await.unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    for setting in [
        "NATS_URL",
        "NATS_USER",
        "NATS_PASSWORD",
        "NATS_CREDS",
        "NATS_CA",
        "NATS_CERT",
        "NATS_KEY",
        "NATS_DOMAIN",
        "NATS_INBOX_PREFIX",
        "ADMIN_ADDR",
        "INSTANCE",
        "CONCURRENCY",
        "MAX_ATTEMPTS",
        "RATE_LIMIT",
        "ACK_WAIT",
        "DRAIN_TIMEOUT",
        "QUEUE_LIMIT",
        "FACTS_MAX_AGE",
        "REPLICAS",
        "RUST_LOG",
        "LOG_FORMAT",
        "REQUEST_RATE",
        "REQUEST_TOTAL",
        "STRING_COUNT",
        "STRING_LENGTH",
    ] {
        assert!(help.contains(&format!("[env: {setting}")), "{setting} is missing:\n{help}");
    }
    assert!(!help.contains("secret"), "{help}");
}

#[tokio::test]
async fn content_in_place_of_a_file_is_not_shown() {
    let seed = KeyPair::new_user().seed().unwrap();
    let creds = format!(
        "-----BEGIN NATS USER JWT-----\nabc.def\n------END NATS USER JWT------\n\n\
         -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    );
    let key = "-----BEGIN PRIVATE KEY-----\ns3cret\n-----END PRIVATE KEY-----\n";
    let (generator, decoupled) = (&programs().await.generator, &programs().await.decoupled);
    for (setting, value, secret) in [
        ("NATS_NKEY", &*seed, &*seed),
        ("NATS_CREDS", &creds, &seed),
        ("NATS_KEY", key, "s3cret"),
        ("NATS_CERT", key, "s3cret"),
        ("NATS_CA", key, "s3cret"),
        ("NATS_URL", &seed, &seed),
    ] {
        for (program, word) in [(generator, "--help"), (generator, ""), (decoupled, "audit")] {
            let mut command = Command::new(program);
            command.env_clear().args(Some(word).filter(|word| !word.is_empty()));
            let output = soon("it ends", command.env(setting, value).output()).await.unwrap();
            let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
            assert!(!said.contains(secret), "{setting} {word}: {said}");
            let named = format!("{setting} is '***': ");
            assert!(word == "--help" || said.contains(&named), "{setting} {word}: {said}");
        }
    }
}

#[tokio::test]
async fn service_without_a_broker_is_live_but_not_ready() {
    let mut deployment = Deployment::start().await;
    deployment.broker.kill().await.unwrap();
    let mut requestor = deployment.ask(10).await;
    logged(&requestor, "cannot connect to the broker yet; trying again").await;
    assert_eq!(admin(&requestor, "/livez").await.0, 200);
    let (status, body) = admin(&requestor, "/readyz").await;
    assert_eq!(status, 503);
    assert!(body.contains("not connected to the broker"), "{body}");
    deployment.broker.restart().await.unwrap();
    let _generator = deployment.run(Service::Generator, "generator", &[]).await;
    succeeded(&mut requestor).await;
    // After many tries it has logged each reason once.
    let log = requestor.log_text();
    let said: Vec<&str> =
        log.lines().filter_map(|line| Some(line.split_once("cannot connect")?.1)).collect();
    let reasons: HashSet<&str> = said.iter().copied().collect();
    assert_eq!(said.len(), reasons.len(), "{log}");
}

#[tokio::test]
async fn service_whose_client_is_gone_ends() {
    let deployment = Deployment::start().await;
    let mut generator = deployment.run(Service::Generator, "generator", &[]).await;
    ready(&generator).await;
    publish(deployment.broker.port(), REQUESTS, CARRIAGE_RETURN).await;
    let status = ended(&mut generator).await;
    let log = generator.log_text();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("the NATS client has panicked"), "{log}");
    assert!(log.contains("Run `decoupled declare --watch`"), "{log}");
    assert_eq!(deployment.depth(REQUESTS).await, 1);
}

#[tokio::test]
async fn service_is_ready_once_it_is_connected_and_bound() {
    let mut deployment = Deployment::start().await;
    let generator = deployment.run(Service::Generator, "generator", &[]).await;
    ready(&generator).await;
    assert_eq!(admin(&generator, "/readyz").await.0, 200);
    deployment.broker.kill().await.unwrap();
    unready(&generator).await;
    deployment.broker.restart().await.unwrap();
    ready(&generator).await;
    assert_eq!(admin(&generator, "/nowhere").await.0, 404);
}

async fn unready(process: &Process) {
    eventually("it is not ready", async || match admin(process, "/readyz").await {
        (503, _) => Ok(()),
        other => Err(other),
    })
    .await;
}

#[tokio::test]
async fn metrics_count_settlements() {
    let deployment = Deployment::with(&PATIENT).await;
    let generator = deployment.run(Service::Generator, "generator", &[]).await;
    let mut requestor = deployment.ask(10).await;
    succeeded(&mut requestor).await;
    let verdict = deployment.verdict().await;
    assert_eq!(verdict.complete, 10);
    let (_, metrics) = admin(&generator, "/metrics").await;
    for line in [
        r#"generator_settlements_total{queue="REQUESTS",outcome="ack"} 10"#,
        r#"generator_settlements_total{queue="ACKNOWLEDGMENTS",outcome="ack"} 10"#,
        r#"generator_handle_duration_seconds_count{queue="REQUESTS"} 10"#,
        r#"generator_in_flight{queue="REQUESTS"} 0"#,
        r#"generator_publishes_total{stream="RESPONSES",outcome="confirmed"} 10"#,
        "generator_connected 1",
    ] {
        assert!(metrics.lines().any(|shown| shown == line), "{line} is missing:\n{metrics}");
    }
}

#[tokio::test]
async fn gateway_metrics_have_the_flow_while_it_can_be_read() {
    let mut deployment = Deployment::start().await;
    let gateway = deployment.gateway("gateway", &[]).await;
    let _asking = deployment.ask(10).await;
    eventually("what waits is told", async || {
        let (_, metrics) = admin(&gateway, "/metrics").await;
        let told = ["gateway_requested_total 10", r#"gateway_queue_waiting{queue="REQUESTS"} 10"#];
        let all = told.iter().all(|line| metrics.lines().any(|shown| shown == *line));
        if all { Ok(()) } else { Err(metrics) }
    })
    .await;
    deployment.broker.kill().await.unwrap();
    eventually("nothing is told of the queues", async || {
        let (_, metrics) = admin(&gateway, "/metrics").await;
        if metrics.contains("gateway_queue_") { Err(metrics) } else { Ok(()) }
    })
    .await;
}

#[tokio::test]
async fn taken_admin_port_is_named() {
    let deployment = Deployment::start().await;
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    let mut generator =
        deployment.run(Service::Generator, "generator", &[("ADMIN_ADDR", &addr)]).await;
    let status = ended(&mut generator).await;
    let log = generator.log_text();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains(&format!("cannot listen on {addr} (ADMIN_ADDR)")), "{log}");
}

/// A broker that accepts one user with one password.
pub async fn with_password(password: &str, before: Option<&Broker>) -> Broker {
    with(&format!(r#"user: "somebody", password: "{password}""#), before).await
}

/// A broker with these credentials, on the port of the previous one.
async fn with(authorization: &str, before: Option<&Broker>) -> Broker {
    let port = before.map(Broker::port);
    let extra = format!("authorization {{ {authorization} }}");
    Broker::start(BrokerOptions { port, extra, ..BrokerOptions::default() }).await.unwrap()
}

/// Asserts that the refusal of these credentials is logged once, although they are tried several times.
fn refused_once(service: &Process) {
    let log = service.log_text();
    let said = ["refuses user", "authorization violation"];
    let count: usize = said.iter().map(|words| log.matches(words).count()).sum();
    assert_eq!(count, 1, "{log}");
    assert!(!log.contains("wrong"), "a password is logged:\n{log}");
}

/// Waits until a broker has refused each of this many services several times.
async fn refused_often(broker: &Broker, services: usize) {
    eventually("the broker refuses again and again", async || {
        let log = broker.log_text();
        if log.matches("authentication error").count() > 5 * services { Ok(()) } else { Err(log) }
    })
    .await;
}

#[tokio::test]
async fn service_waits_for_a_broker_that_has_its_password() {
    let mut strict = with_password("other", None).await;
    let directory = tempfile::tempdir().unwrap();
    let settings = [("NATS_USER", "somebody"), ("NATS_PASSWORD", "wrong")];
    let url = strict.url();
    let log = |name: &str| directory.path().join(name);
    let services = [
        run(Service::Generator, &url, log("generator"), &settings).await,
        run(Service::Requestor, &url, log("requestor"), &settings).await,
        gateway(&url, log("gateway"), &settings).await,
        watch(&url, log("watch"), &settings).await,
    ];
    for service in &services {
        logged(service, "refuses user 'somebody'").await;
        assert_eq!(admin(service, "/livez").await.0, 200);
        assert_eq!(admin(service, "/readyz").await.0, 503);
    }
    refused_often(&strict, services.len()).await;
    strict.kill().await.unwrap();
    let _broker = with_password("wrong", Some(&strict)).await;
    for mut service in services {
        ready(&service).await;
        refused_once(&service);
        service.terminate().unwrap();
        succeeded(&mut service).await;
    }
}

#[tokio::test]
async fn command_ends_at_once_if_its_password_is_refused() {
    let broker = with_password("right", None).await;
    for command in [["audit"].as_slice(), &["dead-letters", "list"], &["declare"]] {
        let mut decoupled = Command::new(&programs().await.decoupled);
        decoupled.env_clear().args(command).env("NATS_URL", broker.url());
        decoupled.env("NATS_USER", "somebody").env("NATS_PASSWORD", "wrong");
        let output = soon("it ends", decoupled.output()).await.unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains("refuses user 'somebody'; check NATS_USER"), "{said}");
        assert!(!said.contains("wrong"), "a password is logged:\n{said}");
    }
}

#[tokio::test]
async fn credentials_that_are_refused_later_are_tried_again() {
    let mut broker = with_password("right", None).await;
    let directory = tempfile::tempdir().unwrap();
    let settings = [("NATS_USER", "somebody"), ("NATS_PASSWORD", "right")];
    let log = directory.path().join("log");
    let mut generator = run(Service::Generator, &broker.url(), log, &settings).await;
    ready(&generator).await;
    broker.kill().await.unwrap();
    let mut strict = with_password("other", Some(&broker)).await;
    logged(&generator, "refuses user 'somebody'").await;
    refused_often(&strict, 1).await;
    refused_once(&generator);
    assert_eq!(admin(&generator, "/livez").await.0, 200);
    assert_eq!(admin(&generator, "/readyz").await.0, 503);
    strict.kill().await.unwrap();
    broker.restart().await.unwrap();
    ready(&generator).await;
    generator.terminate().unwrap();
    succeeded(&mut generator).await;
}

#[tokio::test]
async fn user_of_an_address_and_a_token_are_accepted() {
    let directory = tempfile::tempdir().unwrap();
    let log = |name: &str| directory.path().join(name);
    let by_user = with(r#"user: "al ice", password: "s/cret#?""#, None).await;
    let user = format!("nats://al%20ice:s%2Fcret%23%3F@127.0.0.1:{}", by_user.port());
    ready(&run(Service::Generator, &user, log("user"), &[]).await).await;
    let by_token = with(r#"token: "t0k/en""#, None).await;
    let token = format!("nats://t0k%2Fen@127.0.0.1:{}", by_token.port());
    ready(&run(Service::Generator, &token, log("address"), &[]).await).await;
    let settings = [("NATS_TOKEN", "t0k/en")];
    ready(&run(Service::Generator, &by_token.url(), log("token"), &settings).await).await;
}

#[tokio::test]
async fn refused_user_of_an_address_is_named_without_its_password() {
    let broker = with_password("right", None).await;
    let mut decoupled = Command::new(&programs().await.decoupled);
    let url = format!("nats://alice:s3cret@127.0.0.1:{}", broker.port());
    decoupled.env_clear().args(["audit", "--nats-url", &url]);
    let output = soon("it ends", decoupled.output()).await.unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("refuses user 'alice'") && !said.contains("s3cret"), "{said}");
}

#[tokio::test]
async fn logs_show_no_secret_of_an_address() {
    let by_user = with(r#"user: "bob", password: "s3cret""#, None).await;
    let by_token = with(r#"token: "s3cret""#, None).await;
    let directory = tempfile::tempdir().unwrap();
    for (name, url) in [
        (
            "user",
            format!("nats://bob:s3cret@127.0.0.1:1,nats://bob:s3cret@127.0.0.1:{}", by_user.port()),
        ),
        ("token", format!("nats://s3cret@127.0.0.1:{}", by_token.port())),
    ] {
        let log = directory.path().join(name);
        let generator = run(Service::Generator, &url, log, &[("RUST_LOG", "trace")]).await;
        ready(&generator).await;
        let log = generator.log_text();
        assert!(log.contains("attempting connection") && !log.contains("s3cret"), "{log}");
    }
}

#[tokio::test]
async fn file_without_a_certificate_or_key_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("nothing.pem");
    std::fs::write(&file, "nothing").unwrap();
    let file = file.to_str().unwrap();
    for (settings, named) in [
        (
            [("NATS_CA", file), ("RUST_LOG", "info")],
            format!("NATS_CA is '{file}': it has no certificate"),
        ),
        (
            [("NATS_CERT", file), ("NATS_KEY", file)],
            format!("NATS_CERT is '{file}': it has no certificate"),
        ),
    ] {
        let log = directory.path().join("log");
        let mut generator = run(Service::Generator, "nats://127.0.0.1:1", log, &settings).await;
        assert_eq!(ended(&mut generator).await.code(), Some(1));
        assert!(generator.log_text().contains(&named), "{}", generator.log_text());
    }
}

#[tokio::test]
async fn replaced_nkey_is_read_at_the_next_connect() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("user.nk");
    let (old, new) = (KeyPair::new_user(), KeyPair::new_user());
    let only = |key: &KeyPair| format!("users: [{{ nkey: {} }}]", key.public_key());
    std::fs::write(&file, old.seed().unwrap()).unwrap();
    let mut broker = with(&only(&old), None).await;
    let settings = [("NATS_NKEY", file.to_str().unwrap())];
    let log = directory.path().join("log");
    let generator = run(Service::Generator, &broker.url(), log, &settings).await;
    ready(&generator).await;
    broker.kill().await.unwrap();
    unready(&generator).await;
    std::fs::write(&file, new.seed().unwrap()).unwrap();
    let _broker = with(&only(&new), Some(&broker)).await;
    ready(&generator).await;
}

#[tokio::test]
async fn file_that_is_being_rewritten_does_not_end_a_service() {
    let directory = tempfile::tempdir().unwrap();
    let (seed, ca) = (directory.path().join("user.nk"), directory.path().join("ca.pem"));
    let (old, new) = (KeyPair::new_user(), KeyPair::new_user());
    std::fs::write(&seed, old.seed().unwrap()).unwrap();
    let certificate = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    std::fs::write(&ca, certificate).unwrap();
    let only_new = format!("users: [{{ nkey: {} }}]", new.public_key());
    let broker = with(&only_new, None).await;
    let log = |name: &str| directory.path().join(name);
    let nkey = [("NATS_NKEY", seed.to_str().unwrap())];
    let refused = run(Service::Generator, &broker.url(), log("refused"), &nkey).await;
    logged(&refused, "refuses the nkey of").await;
    let tls = [("NATS_CA", ca.to_str().unwrap())];
    let away = run(Service::Generator, "nats://127.0.0.1:1", log("away"), &tls).await;
    logged(&away, "cannot connect to the broker yet").await;
    for file in [&seed, &ca] {
        std::fs::write(file, "").unwrap();
    }
    logged(&refused, "it has no seed of a user's nkey, which begins with SU; trying again").await;
    logged(&away, "it has no certificate").await;
    std::fs::write(&seed, new.seed().unwrap()).unwrap();
    ready(&refused).await;
    assert_eq!(admin(&away, "/livez").await.0, 200);
}

#[tokio::test]
async fn missing_file_is_named_with_the_cause_alone() {
    for (setting, other) in [("NATS_CA", "NATS_URL"), ("NATS_CERT", "NATS_KEY")] {
        let mut decoupled = Command::new(&programs().await.decoupled);
        decoupled.env_clear().args(["audit"]).env(other, "nats://127.0.0.1:1");
        decoupled.env(setting, "/no/such/file");
        let output = soon("it ends", decoupled.output()).await.unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        let cause = format!("Error: {setting} is '/no/such/file': No such file or directory");
        assert!(said.contains(&cause), "{said}");
    }
}

/// Runs a command of `decoupled` without a broker. Returns its exit status and its standard error.
async fn without_a_broker(words: &[&str]) -> (Option<i32>, String) {
    let mut decoupled = Command::new(&programs().await.decoupled);
    decoupled.env_clear().args(words).args(["--nats-url", "nats://alice:s3cret@127.0.0.1:1"]);
    let output = soon("it ends", decoupled.output()).await.unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[tokio::test]
async fn command_says_that_it_waits_for_a_broker() {
    for command in ["audit", "declare"] {
        let (status, said) = without_a_broker(&[command]).await;
        assert_eq!(status, Some(2), "{said}");
        assert!(said.starts_with("waiting for the broker at nats://***@127.0.0.1:1\n"), "{said}");
        assert!(said.contains("cannot connect to the broker at nats://***@127.0.0.1:1"), "{said}");
        assert!(said.contains("Connection refused"), "{said}");
    }
}

#[tokio::test]
async fn directory_is_checked_before_a_command_connects() {
    let (status, said) = without_a_broker(&["restore", "/no/such/backup"]).await;
    assert_eq!(status, Some(2), "{said}");
    assert!(said.starts_with("Error: /no/such/backup is not a complete backup"), "{said}");
    let (status, said) = without_a_broker(&["backup", "/"]).await;
    assert_eq!(status, Some(2), "{said}");
    assert!(said.starts_with("Error: / is not empty"), "{said}");
}

/// A program with an empty value in each variable that its help names.
async fn with_empty_variables(program: &Path, words: &[&str]) -> Command {
    let help = Command::new(program).args(words).arg("--help").output().await.unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let names = help.split("[env: ").skip(1).map(|rest| rest.split(['=', ']']).next().unwrap());
    let mut command = bound_to_this(program);
    command.env_clear().args(words).envs(names.map(|name| (name, "")));
    assert!(command.as_std().get_envs().count() >= 10, "{help}");
    command
}

#[tokio::test]
async fn empty_variable_counts_as_not_set() {
    let deployment = Deployment::start().await;
    let programs = programs().await;
    for words in [["declare"], ["audit"]] {
        let mut command = with_empty_variables(&programs.decoupled, &words).await;
        let output = command.args(["--nats-url", deployment.url()]).output().await.unwrap();
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    for (program, name) in [
        (&programs.generator, "generator"),
        (&programs.requestor, "requestor"),
        (&programs.gateway, "gateway"),
    ] {
        let mut command = with_empty_variables(program, &[]).await;
        command.args(["--nats-url", deployment.url(), "--log-format", "pretty"]);
        let service = Process::spawn(command, deployment.log(name)).unwrap();
        ready(&service).await;
    }
}
