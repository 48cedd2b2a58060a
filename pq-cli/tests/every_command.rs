//! What every command has: help, exit statuses, a man page, a completion, and escaped output.

mod common;

use std::fs::File;
use std::process::{Command, Output, Stdio};

use insta::assert_snapshot;
use pq_testing::{Database, Server};

use self::common::*;

/// A name that could harm a terminal or a statement: it holds an escape sequence, line breaks, a change of the writing
/// direction, quotes, and invisible characters.
const HOSTILE: &str = "a\u{1b}[31mb\nc\r\u{202e}d\"'\\;\u{2028}\u{200b}\u{9b}é";

/// Returns the commands that a help text lists, in its order.
fn listed(help: &Output) -> Vec<String> {
    let text = stdout(help);
    let commands =
        text.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let names = commands.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    names.filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

/// Returns the names of every command and every nested command.
fn all_commands() -> Result<Vec<Vec<String>>, Box<dyn std::error::Error>> {
    let mut commands = Vec::new();
    for name in listed(&pq(&["--help"]).output()?) {
        let parts = listed(&pq(&[&name, "--help"]).output()?);
        commands.extend(parts.into_iter().filter(|part| part != "help").map(|part| vec![name.clone(), part]));
        commands.push(vec![name]);
    }
    commands.retain(|words| words != &["help"]);
    assert!(commands.len() > 20, "{commands:?}");
    Ok(commands)
}

/// Returns the exit statuses of a help text.
fn exit_codes(help: &str) -> String {
    help.lines().skip_while(|line| *line != "Exit status:").collect::<Vec<_>>().join("\n")
}

#[test]
fn every_help_has_an_example_and_the_exit_statuses() -> Outcome {
    let table = exit_codes(&stdout(&pq(&["--help"]).output()?));
    let source = include_str!("../src/failure.rs");
    let written = source.split_once("EXIT_CODES: &str = \"\\\n").and_then(|(_, rest)| rest.split_once("\";"));
    assert_eq!(Some(table.as_str()), written.map(|(text, _)| text), "the table differs from the source");
    for words in all_commands()? {
        let words: Vec<&str> = words.iter().map(String::as_str).chain(["--help"]).collect();
        let help = pq(&words).output()?;
        assert_eq!(status(&help), 0, "{words:?}");
        assert_eq!(exit_codes(&stdout(&help)), table, "{words:?}");
        let example = format!("pq {}", words[..words.len() - 1].join(" "));
        let text = stdout(&help);
        let examples = text.split_once("\nExample").map_or("", |(_, examples)| examples);
        assert!(examples.contains(&example), "{words:?} has no example:\n{text}");
    }
    Ok(())
}

#[test]
fn the_commands_have_the_exit_statuses_of_the_table() -> Outcome {
    let (database, empty) = (migrated()?, Server::shared()?.database()?);
    feed(on(&database, &["put", "mail"]), "1")?;
    let table = exit_codes(&stdout(&pq(&["--help"]).output()?));
    let codes = table.lines().skip(1).filter_map(|line| line.split_whitespace().next());
    let codes = codes.map(str::parse).collect::<Result<Vec<i32>, _>>()?;
    for code in &codes {
        let ended = match code {
            0 => on(&database, &["ls"]).output()?,
            1 => on(&database, &["show", "99"]).output()?,
            2 => on(&database, &["jobs", ""]).output()?,
            3 => pq(&["ls"]).env("PQ_URL", "postgres://127.0.0.1:1/nowhere").output()?,
            4 => on(&empty, &["ls"]).output()?,
            5 => on(&database, &["grant", "nobody here", "reader"]).output()?,
            6 => on(&database, &["jobs", "mail"]).stdout(File::create("/dev/full")?).output()?,
            7 => {
                let faulty = migrated()?;
                let drop = "DROP INDEX pq.queue_ready";
                diesel::connection::SimpleConnection::batch_execute(&mut faulty.connect()?, drop)?;
                on(&faulty, &["doctor"]).output()?
            }
            8 => on(&database, &["get", "mail", "--exec", "false"]).output()?,
            9 => {
                // A put that waits for another one of its unique key loses its connection in the middle of its commit.
                let mut other = database.connect()?;
                let begin = "BEGIN; SELECT pq.queue_put('mail', '1', unique_key => 'k')";
                diesel::connection::SimpleConnection::batch_execute(&mut other, begin)?;
                let words = ["put", "mail", "--task", "send", "--args", "[]", "--unique", "k"];
                let putting = on(&database, &words).spawn()?;
                let waits = "SELECT count(*) FROM pg_stat_activity
                    WHERE datname = current_database() AND wait_event_type = 'Lock'";
                wait_until(&database, waits)?;
                wait_until(
                    &database,
                    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                    WHERE datname = current_database() AND wait_event_type = 'Lock'",
                )?;
                putting.wait_with_output()?
            }
            10 => {
                let id = put_one(&database, "fails")?;
                on(&database, &["get", "fails", "--exec", "false", "--max-retries", "0"]).output()?;
                on(&database, &["wait", &id]).output()?
            }
            11 => {
                let id = put_one(&database, "mail")?;
                on(&database, &["cancel", &id]).output()?;
                on(&database, &["wait", &id]).output()?
            }
            12 => on(&database, &["wait", &put_one(&database, "mail")?, "--timeout", "1ms"]).output()?,
            130 => {
                let waiting = on(&database, &["get", "letters", "--wait", "0"]).spawn()?;
                wait_until(&database, LISTENING)?;
                signal(&waiting, rustix::process::Signal::TERM)?;
                waiting.wait_with_output()?
            }
            _ => return Err(format!("no command here exits with {code}").into()),
        };
        assert_eq!(status(&ended), *code, "{}", printed(&ended));
    }
    // The loop above would not notice a code that is missing in the table.
    assert!([0, 1, 2, 3, 4, 5, 6, 9, 10, 11, 12, 130].iter().all(|code| codes.contains(code)), "{table}");
    Ok(())
}

/// Puts a job and returns its id.
fn put_one(database: &Database, queue: &str) -> Result<String, Box<dyn std::error::Error>> {
    Ok(stdout(&feed(on(database, &["put", queue]), "1")?).trim().to_owned())
}

/// Calls of each command that needs a database. None asks for confirmation.
const CALLS: &[&[&str]] = &[
    &["migrate", "--dry-run"],
    &["grant", "somebody", "reader"],
    &["get", "mail"],
    &["ls"],
    &["ls", "--json"],
    &["jobs", "mail"],
    &["show", "1"],
    &["wait", "99999"],
    &["retry", "1"],
    &["signal", "1", "approved"],
    &["retry", "--queue", "mail", "--yes"],
    &["cancel", "1"],
    &["cancel", "--queue", "mail", "--yes"],
    &["delete", "1", "--yes"],
    &["delete", "--queue", "mail", "--yes"],
    &["run-now", "1"],
    &["run-now", "--queue", "mail", "--yes"],
    &["audit"],
    &["move", "mail", "slow-mail", "--yes"],
    &["move", "mail", "slow-mail", "--id", "1"],
    &["clear", "mail", "--yes"],
    &["prune", "mail", "--state", "dead", "--yes"],
    &["pause", "mail"],
    &["resume", "mail"],
    &["limit", "mail", "--running", "3"],
    &["cron", "add", "beat", "@hourly", "mail"],
    &["cron", "ls"],
    &["cron", "rm", "beat"],
    &["cron", "pause", "beat"],
    &["cron", "resume", "beat"],
];

#[test]
fn without_a_server_every_command_fails_and_shows_no_password() -> Outcome {
    for words in CALLS {
        let failed = pq(words).env("PQ_URL", "postgres://bob:s3cret@127.0.0.1:1/shop").output()?;
        assert_eq!(status(&failed), 3, "{words:?}: {}", printed(&failed));
        assert!(
            stderr(&failed).starts_with("pq: cannot connect to 127.0.0.1:1/shop"),
            "{}",
            printed(&failed)
        );
        assert!(!printed(&failed).contains("s3cret"), "{}", printed(&failed));
    }
    // Without a connection string, libpq uses its own defaults, and its error is printed unchanged.
    let failed = pq(&["ls"]).env("PGHOST", "127.0.0.1").env("PGPORT", "1").output()?;
    assert_eq!(status(&failed), 3);
    assert!(stderr(&failed).contains("port 1 failed"), "{}", printed(&failed));
    Ok(())
}

#[test]
fn without_the_table_every_command_names_the_remedy() -> Outcome {
    let database = Server::shared()?.database()?;
    for words in CALLS.iter().filter(|words| words[0] != "migrate") {
        let failed = on(&database, words).output()?;
        assert_eq!(status(&failed), 4, "{words:?}: {}", printed(&failed));
        assert!(stderr(&failed).contains("run `pq migrate`"), "{words:?}: {}", printed(&failed));
    }
    Ok(())
}

#[test]
fn errors_about_arguments_name_the_expected_values() -> Outcome {
    let database = migrated()?;
    let long = "x".repeat(1025);
    for (words, right) in [
        (&["jobs", "mail", "--state", "nonsense"][..], "ready, blocked, scheduled, running, dequeued, dead"),
        (&["jobs", "mail", "--limit", "0"], "1.."),
        (&["jobs", "mail", "--after", "x"], "a job id is an integer"),
        (&["jobs", "mail", "--key", ""], "it must not be empty"),
        (&["jobs", ""], "it must not be empty"),
        (&["jobs", &long], "it must have at most 1024 bytes"),
        (&["show", "x"], "a job id is an integer"),
        (&["retry", "9223372036854775808"], "a job id is an integer"),
        (&["retry"], "<IDS|--queue <QUEUE>>"),
        (&["cancel"], "<IDS|--queue <QUEUE>>"),
        (&["cancel", "1", "--queue", "mail"], "cannot be used with"),
        (&["cancel", "--queue", "mail", "--state", "dead"], "expected ready, blocked, scheduled or running"),
        (&["cancel", "1", "--state", "ready"], "cannot be used with"),
        (&["cancel", "--state", "ready"], "--queue <QUEUE>"),
        (&["move", "mail", "mail"], "must differ from the source queue"),
        (&["move", "mail", ""], "it must not be empty"),
        (&["move", "mail", "slow-mail", "--id", "-"], "a job id is an integer"),
        (&["prune", "mail"], "--state <STATE>"),
        (&["prune", "mail", "--state", "ready"], "expected dead, cancelled or done"),
        (&["prune", "mail", "--state", "dead", "--older-than", "5x"], "a duration such as"),
        (&["grant", "somebody", "admin"], "expected `producer`, `consumer` or `reader`"),
        (&["completions", "sh"], "bash, elvish, fish, powershell, zsh"),
        (&["migrate", "--down-to", "7", "--yes"], "expected 0001, or 0"),
        (&["ls", "--table", &long[..64]], "63"),
        (&["ls", "--schema", ""], "empty"),
        (&["pause"], "<QUEUE>"),
        (&["limit", "mail", "--rate", "5"], "expected a number and a period such as 100/1m"),
        (&["limit", "mail", "--burst", "5"], "--rate"),
        (&["limit", "mail", "--running", "0"], "expected a whole number from 1 to 1000000"),
        (&[], "Usage: pq"),
        (&["nonsense"], "unrecognized subcommand"),
    ] {
        let refused = on(&database, words).output()?;
        assert_eq!(status(&refused), 2, "{words:?}: {}", printed(&refused));
        assert!(stderr(&refused).contains(right), "{words:?}: {}", printed(&refused));
    }
    Ok(())
}

#[test]
fn hostile_text_is_escaped_on_one_line() -> Outcome {
    let (database, _redacted) = (migrated()?, redact_times());
    let payload =
        "{\"\u{202e}\":\n \"\\u001b[2J \u{7f}\u{9b}\", \"n\": 123456789012345678901234567890, \"n\": 1e400}";
    assert_eq!(status(&feed(on(&database, &["put", HOSTILE]), payload)?), 0);
    let run = |words: &[&str]| -> Result<Output, std::io::Error> { on(&database, words).output() };
    for words in [&["jobs", HOSTILE][..], &["ls"], &["show", "1"]] {
        let shown = stdout(&run(words)?);
        let unseen = |c: char| c != '\n' && (c.is_control() || "\u{202e}\u{2028}\u{200b}".contains(c));
        assert!(!shown.contains(unseen), "{words:?}: {shown:?}");
    }
    assert_snapshot!(stdout(&run(&["jobs", HOSTILE])?), @r#"
    ID  STATE  PRIORITY  ATTEMPT  PUT                   DUE  KEY  TAGS  PAYLOAD                                                                         ERROR
    1   ready  0         0        [instant]                  {"\u{202e}": "\u001b[2J \u{7f}\u{9b}", "n": 123456789012345678901234567890, "…
    "#);
    assert_snapshot!(stdout(&run(&["ls"])?), @r#"
    QUEUE                                                  WAITING  READY  RUNNING  SCHEDULED  BLOCKED  DEAD  OLDEST  RATE   NOTE
    a\u{1b}[31mb\nc\r\u{202e}d"'\;\u{2028}\u{200b}\u{9b}é  1        1      0        0          0        0     [span]  0.0/s
    "#);
    assert_snapshot!(stdout(&run(&["show", "1"])?), @r#"
    id                 1
    queue              a\u{1b}[31mb\nc\r\u{202e}d"'\;\u{2028}\u{200b}\u{9b}é
    state              ready
    why                no live worker serves its queue
    attempt            0
    priority           0
    put                [instant]
    payload            {"\u{202e}":  "\u001b[2J \u{7f}\u{9b}", "n": 123456789012345678901234567890, "n": 1e400}
    "#);
    assert_snapshot!(printed(&run(&["clear", HOSTILE])?), @r#"
    ! pq: not confirmed: this deletes about 1 job of "a\u{1b}[31mb\nc\r\u{202e}d\"'\\;\u{2028}\u{200b}\u{9b}é" permanently; pass --yes to confirm
    [2]
    "#);
    // In JSON the name and the payload are unchanged, except for the line break.
    assert_eq!(parsed(&run(&["ls", "--json"])?)?[0]["queue"], HOSTILE);
    for words in [&["jobs", HOSTILE, "--json"][..], &["show", "1", "--json"]] {
        let printed = stdout(&run(words)?);
        assert!(printed.contains(&payload.replace('\n', " ")), "{words:?}: {printed}");
        assert_eq!(printed.lines().count(), 1, "{words:?}: {printed}");
    }
    assert_eq!(stdout(&run(&["get", HOSTILE])?), format!("{}\n", payload.replace('\n', " ")));
    Ok(())
}

#[test]
fn every_command_takes_hostile_and_long_names() -> Outcome {
    let database = migrated()?;
    let long = "ж".repeat(500);
    for name in [HOSTILE, &long, " ", "--", "Robert'); DROP TABLE pq.queue; --"] {
        let other = &format!("{name} 2");
        for (words, input, code) in [
            (&["put"][..], "1", 0),
            (&["pause"], "", 0),
            (&["get"], "", 1),
            (&["resume"], "", 0),
            (&["limit", "--running", "9", "--group", "a"], "", 0),
            (&["jobs", "--json"], "", 0),
            (&["move"], "", 0),
            (&["cancel", "--yes", "--queue"], "", 0),
            (&["delete", "--yes", "--queue"], "", 0),
            (&["run-now", "--yes", "--queue"], "", 0),
            (&["retry", "--yes", "--queue"], "", 0),
            (&["prune", "--yes", "--state", "cancelled"], "", 0),
            (&["clear", "--yes"], "", 0),
            (&["get"], "", 1),
        ] {
            let queue = format!("--queue={name}");
            let words: Vec<&str> = match words {
                ["move", ..] => vec!["move", "--yes", "--", name, other],
                [command, yes, "--queue"] => vec![command, yes, &queue],
                _ => words.iter().copied().chain(["--", name]).collect(),
            };
            let done = feed(on(&database, &words), input)?;
            assert_eq!(status(&done), code, "{words:?}: {}", printed(&done));
        }
        let moved = on(&database, &["get", "--", other]).output()?;
        assert_eq!(stdout(&moved), "1\n", "{}", printed(&moved));
    }
    Ok(())
}

#[test]
fn every_command_works_in_a_schema_and_a_table_of_any_name() -> Outcome {
    let database = Server::shared()?.database()?;
    let names = ["--schema", "My \"own\"; --\u{1b}", "--table", "tab'le $names$\n\u{202e}"];
    let missing = on(&database, &[&["ls"], &names[..]].concat()).output()?;
    assert_eq!((status(&missing), stderr(&missing).lines().count()), (4, 1), "{}", printed(&missing));
    assert!(!stderr(&missing).contains(['\u{1b}', '\u{202e}']), "{}", printed(&missing));
    assert_eq!(status(&on(&database, &[&["migrate"], &names[..]].concat()).output()?), 0);
    assert_eq!(status(&feed(on(&database, &[&["put", "mail"], &names[..]].concat()), "1")?), 0);
    for words in CALLS.iter().filter(|words| !["get", "grant"].contains(&words[0])) {
        let done = on(&database, &[words, &names[..]].concat()).output()?;
        assert!(status(&done) <= 1, "{words:?}: {}", printed(&done));
    }
    assert_eq!(stdout(&on(&database, &[&["get", "slow-mail"], &names[..]].concat()).output()?), "");
    let undone = on(&database, &[&["migrate", "--down-to", "0", "--yes"], &names[..]].concat()).output()?;
    assert!(printed(&undone).ends_with(" reverted\n"), "{}", printed(&undone));
    Ok(())
}

#[test]
fn a_reader_that_has_ended_is_no_error() -> Outcome {
    let database = migrated()?;
    feed(on(&database, &["put", "mail", "--lines"]), &"1\n".repeat(2_000))?;
    let closed = || -> Result<Stdio, std::io::Error> { Ok(std::io::pipe()?.1.into()) };
    let table = ["jobs", "mail", "--limit", "2000"];
    for words in [
        &table[..],
        &["jobs", "mail", "--json"],
        &["ls"],
        &["show", "1"],
        &["cron", "ls"],
        &["schema"],
        &["completions", "zsh"],
    ] {
        let cut = on(&database, words).stdout(closed()?).output()?;
        assert_eq!(printed(&cut), "", "{words:?}");
    }
    // As in `pq jobs mail | head -1`.
    let mut jobs = on(&database, &table).spawn()?;
    let head = Command::new("head").arg("-1").stdin(jobs.stdout.take().ok_or("a pipe")?).output()?;
    assert!(stdout(&head).starts_with("ID "), "{}", printed(&head));
    let jobs = jobs.wait_with_output()?;
    assert_eq!((status(&jobs), stderr(&jobs).as_str()), (0, ""));
    // The error message is lost, but the exit status is the same.
    assert_eq!(on(&database, &["jobs", ""]).stderr(closed()?).status()?.code(), Some(2));
    assert_eq!(on(&database, &["show", "99999"]).stderr(closed()?).status()?.code(), Some(1));
    assert_eq!(pq(&["--help"]).stdout(closed()?).output()?.stderr, b"");
    Ok(())
}

#[test]
fn every_command_has_a_man_page_and_a_completion() -> Outcome {
    let (folder, commands) = (tempfile::tempdir()?, all_commands()?);
    let pages = folder.path().join("share/man/man1");
    let path = pages.to_str().ok_or("a path")?;
    assert_eq!(printed(&pq(&["man", path]).output()?), "");
    for words in &commands {
        let page = std::fs::read_to_string(pages.join(format!("pq-{}.1", words.join("-"))))?;
        assert!(page.contains(".SH SYNOPSIS") && page.contains("Exit status:"), "{words:?}: {page}");
    }
    assert!(!pages.join("pq-demo-worker.1").exists() && !pages.join("pq-exec-guard.1").exists());
    let blocked = folder.path().join("file");
    std::fs::write(&blocked, "")?;
    let refused = pq(&["man", blocked.to_str().ok_or("a path")?]).output()?;
    assert_eq!(status(&refused), 6, "{}", printed(&refused));
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = pq(&["completions", shell]).output()?;
        assert_eq!(status(&script), 0);
        assert!(stdout(&script).contains("PQ_COMPLETE"), "{shell} does not ask for candidates");
    }
    let mut completing = pq(&["--", "pq", ""]);
    completing.env("PQ_COMPLETE", "fish");
    let candidates = stdout(&completing.output()?);
    for words in commands.iter().filter(|words| words.len() == 1) {
        let name = &words[0];
        assert!(candidates.lines().any(|line| line.split('\t').next() == Some(name)), "{name}: {candidates}");
    }
    assert!(!candidates.contains("demo-worker") && !candidates.contains("exec-guard"), "{candidates}");
    // bash can parse its script.
    let script = folder.path().join("pq.bash");
    std::fs::write(&script, pq(&["completions", "bash"]).output()?.stdout)?;
    let read = Command::new("bash").arg("-n").arg(&script).output()?;
    assert!(read.status.success(), "{}", stderr(&read));
    Ok(())
}

#[test]
fn json_options_print_one_line_of_json() -> Outcome {
    let database = migrated()?;
    feed(on(&database, &["put", "mail"]), "{}")?;
    for words in [&["jobs", "mail"][..], &["show", "1"], &["ls"], &["cron", "ls"]] {
        let printed = parsed(&on(&database, &[words, &["--json"]].concat()).output()?)?;
        assert!(if words[0] == "show" { printed.is_object() } else { printed.is_array() }, "{words:?}");
    }
    Ok(())
}
