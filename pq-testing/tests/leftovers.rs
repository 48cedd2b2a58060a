//! A process that ends without dropping its server leaves nothing behind.
#![cfg(feature = "command")]

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::symlink;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::{entries, lives, parent, private_in, start, watchdog_of, within};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

/// The longest time to wait for something. It is long enough for a busy machine.
const SOON: Duration = Duration::from_secs(60);

/// Returns the command `with-postgres`, with its clusters in `parent`.
fn with_postgres(parent: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_with-postgres"));
    command.args(arguments).env_remove("PQ_TEST_DATABASE_URL").env("TMPDIR", parent).stdin(Stdio::null());
    command
}

/// Starts `with-postgres` in a process group of its own, and returns when its command has printed a line.
fn waiting(parent: &Path, script: &str) -> (Child, BufReader<std::process::ChildStdout>) {
    let mut child = with_postgres(parent, &["--", "sh", "-c", script])
        .stdout(Stdio::piped())
        .process_group(0)
        .spawn()
        .expect("it starts");
    let mut output = BufReader::new(child.stdout.take().expect("piped"));
    let mut line = String::new();
    output.read_line(&mut line).expect("its first line");
    assert_eq!(line, "begun\n");
    (child, output)
}

fn postmaster(parent: &Path) -> u32 {
    let cluster = parent.join(&entries(parent)[0]);
    let file = fs::read_to_string(cluster.join("data/postmaster.pid")).expect("it runs");
    file.lines().next().expect("a line").parse().expect("a process id")
}

fn pid_of(child: &Child) -> Pid {
    Pid::from_raw(child.id().cast_signed())
}

#[test]
fn a_killed_owner_leaves_neither_process_nor_directory() {
    let parent = parent();
    let (mut child, mut output) = waiting(parent.path(), "echo begun; exec sleep 60");
    let server = postmaster(parent.path());
    assert!(lives(server));
    child.kill().expect("SIGKILL");
    child.wait().expect("it ended");
    within(SOON, "the server ended", || !lives(server));
    within(SOON, "the directory is gone", || entries(parent.path()).is_empty());
    // The watchdog must not hold the output open, so that a pager or `tee` ends. The command itself may.
    killpg(pid_of(&child), Signal::SIGKILL).expect("the command still runs");
    let mut rest = String::new();
    output.read_to_string(&mut rest).expect("the end");
    assert_eq!(rest, "");
}

#[test]
fn an_owner_killed_with_its_whole_process_group_leaves_nothing() {
    let parent = parent();
    let (mut child, _output) = waiting(parent.path(), "echo begun; exec sleep 60");
    let server = postmaster(parent.path());
    // Like Ctrl-\ in a terminal, or a CI system that kills the group.
    killpg(pid_of(&child), Signal::SIGKILL).expect("ours to kill");
    child.wait().expect("it ended");
    within(SOON, "the server ended", || !lives(server));
    within(SOON, "the directory is gone", || entries(parent.path()).is_empty());
}

#[test]
fn an_owner_killed_during_initdb_leaves_nothing() {
    let parent = parent();
    let mut child =
        with_postgres(parent.path(), &["sleep", "60"]).process_group(0).spawn().expect("it starts");
    within(SOON, "initdb runs", || {
        let clusters = entries(parent.path());
        clusters.first().is_some_and(|name| parent.path().join(name).join("data/base").exists())
    });
    child.kill().expect("SIGKILL");
    child.wait().expect("it ended");
    within(SOON, "the directory is gone", || entries(parent.path()).is_empty());
    // On a busy machine the command itself may have started before its owner was killed.
    let _ = killpg(pid_of(&child), Signal::SIGKILL);
}

#[test]
fn a_signal_ends_the_command_and_the_server() {
    for (signal, code) in [(Signal::SIGTERM, 143), (Signal::SIGINT, 130), (Signal::SIGHUP, 129)] {
        let parent = parent();
        let (mut child, _output) = waiting(parent.path(), "echo begun; exec sleep 60");
        let server = postmaster(parent.path());
        kill(pid_of(&child), signal).expect("ours to signal");
        let status = child.wait().expect("it ended");
        assert_eq!((status.code(), status.signal()), (Some(code), None), "{signal}");
        assert!(!lives(server));
        assert_eq!(entries(parent.path()), Vec::<String>::new());
    }
}

#[test]
fn a_paused_server_is_removed_too() {
    let parent = parent();
    let signals = tempfile::tempdir().expect("a directory");
    let end = signals.path().join("end");
    let script = format!("echo begun; until [ -e '{}' ]; do sleep 0.1; done", end.display());
    let (mut child, _output) = waiting(parent.path(), &script);
    let server = postmaster(parent.path());
    kill(Pid::from_raw(server.cast_signed()), Signal::SIGSTOP).expect("ours to pause");
    fs::write(&end, "").expect("a file");
    assert!(child.wait().expect("it ended").success());
    assert!(!lives(server));
    assert_eq!(entries(parent.path()), Vec::<String>::new());
}

#[test]
fn the_next_start_removes_stale_clusters_and_nothing_else() {
    let parent = parent();
    let (mut child, _output) = waiting(parent.path(), "echo begun; exec sleep 60");
    let server = postmaster(parent.path());
    let stale = parent.path().join(&entries(parent.path())[0]);
    // The watchdog is killed before its owner, as an out-of-memory killer may do.
    let watchdog = watchdog_of(child.id());
    kill(Pid::from_raw(watchdog.cast_signed()), Signal::SIGKILL).expect("ours to kill");
    killpg(pid_of(&child), Signal::SIGKILL).expect("ours to kill");
    child.wait().expect("it ended");

    // These stay: a live owner's directory, another name, a link, and a directory that was just created.
    let theirs = start(&private_in(parent.path()));
    assert!(!stale.exists() && !lives(server));
    let other = parent.path().join("another-thing");
    let fresh = parent.path().join("pq-testing-fresh0");
    let link = parent.path().join("pq-testing-link00");
    fs::create_dir(&other).expect("a directory");
    fs::create_dir(&fresh).expect("a directory");
    symlink(&other, &link).expect("a link");
    let mine = start(&private_in(parent.path()));
    drop(mine);
    assert!(other.exists() && fresh.exists() && link.exists());
    theirs.database().expect("it still answers");
}
