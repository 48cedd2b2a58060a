//! The spans that the command exports by OTLP, and what it does without a collector.
#![cfg(feature = "otlp")]

mod common;
#[path = "../../pq-otel/tests/receiver/mod.rs"]
mod receiver;

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::process::Command;
use std::time::{Duration, Instant};

use common::{Outcome, Work, feed, handle, migrated, on, put, signal, status, stderr, wait_for};
use pq_testing::Database;
use receiver::Receiver;
use rustix::process::Signal;

const NOT_EXPORTED: &str = "spans were not exported";
const EXPORTED_AGAIN: &str = "spans are exported again";

/// The command, with the collector at this address.
fn exporting(database: &Database, endpoint: &str, words: &[&str]) -> Command {
    let mut command = on(database, words);
    command.env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint).env("OTEL_BSP_SCHEDULE_DELAY", "50");
    command
}

/// An address at which nothing listens.
fn free_address() -> std::io::Result<SocketAddr> {
    TcpListener::bind("127.0.0.1:0")?.local_addr()
}

#[test]
fn spans_lead_from_the_caller_of_put_to_the_command_of_the_job() -> Outcome {
    let (database, folder, receiver) = (migrated()?, tempfile::tempdir()?, Receiver::start()?);
    let (trace, caller) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
    let mut put = exporting(&database, &receiver.endpoint(), &["put", "mail", "--lines"]);
    put.env("TRACEPARENT", format!("00-{trace}-{caller}-01"))
        .env("OTEL_SERVICE_NAME", "shop")
        .env("OTEL_EXPORTER_OTLP_HEADERS", "api-key=s3cret");
    let put = feed(put, "1\n2\n")?;
    assert_eq!(status(&put), 0, "{}", stderr(&put));
    assert!(receiver.headers().contains(&"api-key: s3cret".to_owned()), "{:?}", receiver.headers());
    let file = folder.path().join("traces");
    let command = format!("read x; echo $x $TRACEPARENT >> '{}'; [ $x = 1 ]", file.display());
    let words = ["work", "mail", "--burst", "--exec", &command];
    let worked = exporting(&database, &receiver.endpoint(), &words).output()?;
    assert_eq!(status(&worked), 0, "{}", stderr(&worked));

    let put = &receiver.wait_for("put mail", 1)[0];
    assert_eq!((put.id.0.as_str(), put.parent.as_str(), put.service.as_str()), (trace, caller, "shop"));
    assert_eq!(put.attribute("messaging.batch.message_count"), Some("2"));
    let runs = receiver.wait_for("run mail", 2);
    let seen = fs::read_to_string(&file)?;
    for (run, job, error) in [(&runs[0], "1", None), (&runs[1], "2", Some("exit status 1"))] {
        assert!(run.is_child_of(put), "{run:#?}");
        assert_eq!((run.service.as_str(), run.error.as_deref()), ("pq", error), "{run:#?}");
        let expected = format!("{job} 00-{trace}-{}-01", run.id.1);
        assert!(seen.lines().any(|line| line == expected), "{expected} in {seen}");
    }
    for name in ["take mail", "settle mail"] {
        let spans = receiver.wait_for(name, 1);
        assert!(spans.iter().any(|span| span.links.contains(&put.id)), "{spans:#?}");
    }
    Ok(())
}

#[test]
fn nothing_is_exported_unless_the_environment_asks_for_it() -> Outcome {
    let (database, receiver) = (migrated()?, Receiver::start()?);
    for (name, value) in [
        ("OTEL_TRACES_EXPORTER", "none"),
        ("OTEL_SDK_DISABLED", "true"),
        ("OTEL_TRACES_SAMPLER", "always_off"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", ""),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_TRACES_EXPORTER", "zipkin"),
    ] {
        let mut put = exporting(&database, &receiver.endpoint(), &["put", "mail"]);
        put.env(name, value);
        let put = feed(put, "1")?;
        assert_eq!(status(&put), 0, "{name}={value}: {}", stderr(&put));
        let is_invalid = value == "grpc" || value == "zipkin";
        assert_eq!(stderr(&put).contains(&format!("invalid {name}")), is_invalid, "{name}: {}", stderr(&put));
        assert_eq!(stderr(&put).lines().count(), usize::from(is_invalid), "{}", stderr(&put));
    }
    assert_eq!(receiver.all(), []);
    Ok(())
}

#[test]
fn work_goes_on_without_a_collector() -> Outcome {
    let (database, address) = (migrated()?, free_address()?);
    let words = ["work", "mail", "--exec", "true"];
    let work = Work::start(exporting(&database, &format!("http://{address}"), &words))?;
    put(&database, "mail", "1")?;
    work.wait_for_stderr(NOT_EXPORTED)?;
    let numbers: Vec<String> = (0..50).map(|n| n.to_string()).collect();
    put(&database, "mail", &numbers.join("\n"))?;
    let queue = handle(&database)?.queue::<serde_json::Value>("mail")?;
    wait_for("jobs that are done without a collector", || Ok(queue.counts()?.ready == 0))?;
    let receiver = Receiver::listen(address)?;
    put(&database, "mail", "1")?;
    work.wait_for_stderr(EXPORTED_AGAIN)?;
    assert!(!receiver.wait_for("run mail", 1).is_empty());
    signal(&work.child, Signal::TERM)?;
    let (code, log) = work.end()?;
    assert_eq!(code, 0, "{log}");
    let lines = |text: &str| log.lines().filter(|line| line.contains(text)).count();
    assert_eq!((lines(NOT_EXPORTED), lines(EXPORTED_AGAIN)), (1, 1), "{log}");
    Ok(())
}

#[test]
fn a_collector_that_does_not_answer_delays_the_end_by_seconds_at_most() -> Outcome {
    let database = migrated()?;
    // Connections are established, and nobody accepts them.
    let silent = TcpListener::bind("127.0.0.1:0")?;
    let endpoint = format!("http://{}", silent.local_addr()?);
    let began = Instant::now();
    let mut put = exporting(&database, &endpoint, &["put", "mail"]);
    put.env("OTEL_EXPORTER_OTLP_TIMEOUT", "600000");
    let put = feed(put, "1")?;
    assert_eq!(status(&put), 0, "{}", stderr(&put));
    assert!(stderr(&put).contains("last spans were not exported"), "{}", stderr(&put));
    assert!(began.elapsed() < Duration::from_secs(300), "{:?}", began.elapsed());
    Ok(())
}
