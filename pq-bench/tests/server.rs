//! Which server is measured on. What needs Docker is passed over where no daemon answers, or fails there where
//! PQ_TEST_CONTAINER is set, as ci/docker does.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a test that is passed over says why")]

use std::env;
use std::process::Command;

use pq_bench::Bench;

#[test]
#[ignore = "the process whose environment the others choose"]
fn it_says_where_it_is() {
    println!("origin: {}", Bench::start().expect("a server").origin());
}

/// Where a process with this environment measures.
fn origin(environment: &[(&str, &str)]) -> String {
    let said = Command::new(env::current_exe().expect("this program"))
        .args(["it_says_where_it_is", "--exact", "--ignored", "--nocapture"])
        .env_remove("PQ_TEST_DATABASE_URL")
        .envs(environment.iter().copied())
        .output()
        .expect("it runs");
    let text = String::from_utf8_lossy(&said.stdout);
    let origin = text.split_once("origin: ").and_then(|(_, origin)| origin.lines().next());
    origin.unwrap_or_else(|| panic!("{text}{}", String::from_utf8_lossy(&said.stderr))).to_owned()
}

fn docker(arguments: &[&str]) -> bool {
    Command::new("docker").args(arguments).output().is_ok_and(|output| output.status.success())
}

/// Whether a daemon answers; says so if not.
fn possible() -> bool {
    if docker(&["info"]) {
        return true;
    }
    assert!(env::var_os("PQ_TEST_CONTAINER").is_none(), "a container is demanded, but no daemon answers");
    eprintln!("passed over: no Docker daemon answers");
    false
}

#[test]
fn without_a_daemon_it_is_a_private_cluster() {
    let origin = origin(&[("DOCKER_HOST", "unix:///nonexistent/docker.sock")]);
    assert!(origin.starts_with("private cluster, ") && !origin.contains("Docker"), "{origin}");
}

#[test]
fn with_a_daemon_it_is_a_container() {
    let variable = |name| env::var(name).unwrap_or_default();
    let image = format!("{}:{}", variable("PQ_TEST_IMAGE"), variable("PQ_TEST_IMAGE_TAG"));
    if possible() && (docker(&["image", "inspect", &image]) || env::var_os("PQ_TEST_CONTAINER").is_some()) {
        let origin = origin(&[]);
        assert!(origin.starts_with(&format!("container of {image}, ")), "{origin}");
    }
}

#[test]
fn a_daemon_without_the_image_is_told_of() {
    if possible() {
        // No registry is there, so that nothing is asked of the network.
        let origin = origin(&[("PQ_TEST_IMAGE", "localhost:1/pq-none"), ("PQ_TEST_IMAGE_TAG", "none")]);
        assert!(origin.starts_with("private cluster, "), "{origin}");
        assert!(
            origin.contains("a Docker daemon answers, but: ") && origin.contains("localhost:1/pq-none:none"),
            "{origin}"
        );
    }
}
