//! Servers in containers. The tests require a running Docker daemon and the image, which they do not pull. Without them
//! a test is skipped. If `PQ_TEST_CONTAINER` is set, as in ci/docker, it fails.
#![cfg(feature = "container")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a skipped test prints why")]

mod common;

use std::env;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use common::{value, watchdog_of};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pq_testing::{Error, Kind, Options, Origin, Server, Stop};

fn image() -> String {
    let variable = |name, default: &str| env::var(name).unwrap_or_else(|_| default.to_owned());
    let name = variable("PQ_TEST_IMAGE", "postgres");
    format!("{name}:{}", variable("PQ_TEST_IMAGE_TAG", "17-alpine"))
}

/// Runs a `docker` command and returns its output, or `None` if it fails.
fn docker(arguments: &[&str]) -> Option<String> {
    let output = Command::new("docker").args(arguments).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    output.status.success().then_some(text)
}

/// Returns whether the test can run on this machine, and prints the reason if it cannot.
fn can_run() -> bool {
    let reason = if docker(&["info"]).is_none() {
        "no Docker daemon is running".to_owned()
    } else if docker(&["image", "inspect", &image()]).is_none() {
        format!("the image {} is missing; build it with ci/postgres-image", image())
    } else {
        return true;
    };
    assert!(env::var_os("PQ_TEST_CONTAINER").is_none(), "a container is required, but {reason}");
    eprintln!("skipped: {reason}");
    false
}

fn containers() -> Vec<String> {
    let listed = docker(&["ps", "--all", "--quiet", "--filter", "label=pq-testing.owner"]);
    listed.expect("docker ps").lines().map(str::to_owned).collect()
}

/// Held by each test, because the tests count all containers.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

#[test]
fn a_container_is_removed_with_its_guard() {
    if !can_run() {
        return;
    }
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let options = Options::durable().kind(Kind::Container).setting("work_mem", "7MB");
    let server = Server::start(&options).expect("the image works");
    assert!(matches!(server.origin(), Origin::Container { .. }));
    assert!(server.origin().to_string().contains(&image()), "{}", server.origin());

    let database = server.database().expect("a database");
    let mut conn = database.connect().expect("a connection");
    for (setting, wanted) in [("fsync", "on"), ("work_mem", "7MB"), ("server_encoding", "UTF8")] {
        assert_eq!(value(&mut conn, &format!("current_setting('{setting}')")), wanted, "{setting}");
    }
    assert!(matches!(server.stop(Stop::Fast), Err(Error::NotPrivate { .. })));

    let all = containers();
    assert_eq!(all.len(), 1);
    let ports = docker(&["port", &all[0]]).expect("docker port");
    // Inside a container 127.0.0.1 is not that of the daemon.
    let in_container = Path::new("/.dockerenv").exists();
    assert!(in_container || ports.lines().all(|line| line.contains("-> 127.0.0.1:")), "{ports}");
    drop((database, server));
    assert_eq!(containers(), Vec::<String>::new());

    let error = Server::start(&options.image(image(), "no-such-tag")).expect_err("no such image");
    assert!(matches!(error, Error::Container { .. }), "{error}");
    assert_eq!(containers(), Vec::<String>::new());
}

#[test]
#[ignore = "the process that a_killed_owner_leaves_no_container kills"]
fn owner_process() {
    let _server = Server::start(&Options::throwaway().kind(Kind::Container)).expect("the image works");
    println!("begun");
    thread::sleep(Duration::from_secs(60));
}

fn owner() -> Child {
    let mut owner = Command::new(env::current_exe().expect("this program"))
        .args(["owner_process", "--exact", "--ignored", "--nocapture"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let output = BufReader::new(owner.stdout.take().expect("piped"));
    let begun = output.lines().map_while(Result::ok).any(|line| line.contains("begun"));
    assert!(begun, "the owner ended");
    owner
}

#[test]
fn a_killed_owner_leaves_no_container() {
    if !can_run() {
        return;
    }
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let mut killed = owner();
    assert_eq!(containers().len(), 1);
    killed.kill().expect("SIGKILL");
    killed.wait().expect("it ended");
    common::within(Duration::from_secs(60), "the watchdog removed it", || containers().is_empty());

    let mut both = owner();
    let watchdog = Pid::from_raw(watchdog_of(both.id()).cast_signed());
    kill(watchdog, Signal::SIGKILL).expect("ours to kill");
    both.kill().expect("SIGKILL");
    both.wait().expect("it ended");
    let stale = containers();
    assert_eq!(stale.len(), 1);
    let next = Server::start(&Options::throwaway().kind(Kind::Container)).expect("the image works");
    assert!(containers().iter().all(|id| *id != stale[0]), "the next start removed it");
    drop(next);
}

#[test]
fn without_a_daemon_there_is_a_clear_error() {
    if docker(&["info"]).is_some() {
        eprintln!("skipped: a Docker daemon is running");
        return;
    }
    let error = Server::start(&Options::throwaway().kind(Kind::Container)).expect_err("no daemon");
    assert!(matches!(error, Error::NoDocker { .. }), "{error:?}");
    assert!(error.to_string().contains("no Docker daemon is reachable"), "{error}");
}
