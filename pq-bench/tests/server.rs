//! The server that is measured.
//!
//! Tests that need Docker are skipped if no daemon answers. If PQ_TEST_CONTAINER is set, as in ci/docker, they
//! fail instead.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a skipped test prints the reason")]

use std::env;
use std::process::Command;

use pq_bench::Bench;

#[test]
#[ignore = "the process whose environment the others choose"]
fn print_origin() {
    println!("origin: {}", Bench::start().expect("a server").origin());
}

/// Returns the origin of the server in a process with this environment.
fn origin(environment: &[(&str, &str)]) -> String {
    let output = Command::new(env::current_exe().expect("this program"))
        .args(["print_origin", "--exact", "--ignored", "--nocapture"])
        .env_remove("PQ_TEST_DATABASE_URL")
        .envs(environment.iter().copied())
        .output()
        .expect("output");
    let text = String::from_utf8_lossy(&output.stdout);
    let origin = text.split_once("origin: ").and_then(|(_, origin)| origin.lines().next());
    origin.unwrap_or_else(|| panic!("{text}{}", String::from_utf8_lossy(&output.stderr))).to_owned()
}

fn docker(arguments: &[&str]) -> bool {
    Command::new("docker").args(arguments).output().is_ok_and(|output| output.status.success())
}

/// Returns whether a Docker daemon answers, and prints if not.
fn possible() -> bool {
    if docker(&["info"]) {
        return true;
    }
    assert!(
        env::var_os("PQ_TEST_CONTAINER").is_none(),
        "PQ_TEST_CONTAINER requires a container, but no Docker daemon answers"
    );
    eprintln!("skipped: no Docker daemon answers");
    false
}

#[test]
fn server_is_a_private_cluster_without_a_docker_daemon() {
    let origin = origin(&[("DOCKER_HOST", "unix:///nonexistent/docker.sock")]);
    assert!(origin.starts_with("private cluster, ") && !origin.contains("Docker"), "{origin}");
}

#[test]
fn server_is_a_container_with_a_docker_daemon() {
    let variable = |name| env::var(name).unwrap_or_default();
    let image = format!("{}:{}", variable("PQ_TEST_IMAGE"), variable("PQ_TEST_IMAGE_TAG"));
    if possible() && (docker(&["image", "inspect", &image]) || env::var_os("PQ_TEST_CONTAINER").is_some()) {
        let origin = origin(&[]);
        assert!(origin.starts_with(&format!("container of {image}, ")), "{origin}");
    }
}

#[test]
fn origin_reports_an_image_that_cannot_be_pulled() {
    if possible() {
        // Without a registry at this address, no request reaches the network.
        let origin = origin(&[("PQ_TEST_IMAGE", "localhost:1/pq-none"), ("PQ_TEST_IMAGE_TAG", "none")]);
        assert!(origin.starts_with("private cluster, "), "{origin}");
        assert!(
            origin.contains("a Docker daemon answers, but: ") && origin.contains("localhost:1/pq-none:none"),
            "{origin}"
        );
    }
}
