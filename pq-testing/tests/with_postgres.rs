//! The command `with-postgres`: the environment of the command that it runs, and exit statuses.
#![cfg(feature = "command")]

mod common;

use std::process::{Command, Output};

use common::{entries, parent, private_in, start};

fn with_postgres(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_with-postgres"))
        .args(arguments)
        .env_remove("PQ_TEST_DATABASE_URL")
        .envs(environment.iter().copied())
        .output()
        .expect("it runs")
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).trim().to_owned()
}

#[test]
fn the_command_gets_a_database_and_its_status_is_returned() {
    let parent = parent();
    let tmpdir = parent.path().to_str().expect("a readable name");
    let script = "echo $PQ_TEST_DATABASE_URL $0 $1; exit 7";
    let arguments = ["--database", "de mo", "sh", "-c", script, "--durable", "-x"];
    let output = with_postgres(&arguments, &[("TMPDIR", tmpdir)]);
    assert_eq!(output.status.code(), Some(7), "{}", stderr(&output));
    let line = stdout(&output);
    assert!(line.starts_with("postgres://postgres:"), "{line}");
    // Arguments after the command belong to the command.
    assert!(line.ends_with("/de%20mo --durable -x"), "{line}");
    assert_eq!(entries(parent.path()), Vec::<String>::new());
}

#[test]
fn a_given_server_is_used() {
    let parent = parent();
    let theirs = start(&private_in(parent.path()));
    let environment = [("PQ_TEST_DATABASE_URL", theirs.url())];
    let output = with_postgres(&["--", "sh", "-c", "echo $PQ_TEST_DATABASE_URL"], &environment);
    assert_eq!(stdout(&output), theirs.url());
    theirs.database().expect("it still answers");
}

#[test]
fn mistakes_have_their_own_exit_status() {
    for (arguments, code, word) in
        [(&["--nonsense"][..], 2, "--nonsense"), (&[], 2, "--help"), (&["--database"], 2, "--database")]
    {
        let output = with_postgres(arguments, &[]);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}");
        assert!(stderr(&output).contains(word), "{}", stderr(&output));
    }
    let output = with_postgres(&["--", "true"], &[("PQ_TEST_PG_BIN", "/nowhere")]);
    assert_eq!(output.status.code(), Some(125));
    assert!(stderr(&output).contains("PQ_TEST_PG_BIN"), "{}", stderr(&output));
    let output = with_postgres(&["--", "/nowhere/it"], &[("PQ_TEST_DATABASE_URL", "x")]);
    assert_eq!(output.status.code(), Some(127));
    assert_eq!(with_postgres(&["--help"], &[]).status.code(), Some(0));
}
