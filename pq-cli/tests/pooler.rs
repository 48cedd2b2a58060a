//! Commands behind PgBouncer in transaction mode. They need the program `pgbouncer`, which `ci/setup test` installs.

mod common;

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};

use common::{Outcome, Work, feed, json, migrated, on, pq, printed, status, stderr, stdout, wait_for};
use pq_testing::{Database, Server};

/// A running PgBouncer in front of the shared server.
struct Bouncer {
    process: Child,
    port: u16,
    _folder: tempfile::TempDir,
}

impl Bouncer {
    /// Starts it with this number of sessions at the server for each database.
    fn start(sessions: u32) -> Result<Self, Box<dyn std::error::Error>> {
        let folder = tempfile::tempdir()?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let server: Vec<String> = server_words()?;
        // PgBouncer refuses to run as root.
        let is_root = rustix::process::geteuid().is_root();
        let user = if is_root { "user = nobody\n" } else { "" };
        let configuration = format!(
            "[databases]\n* = {}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n\
             auth_type = any\npool_mode = transaction\ndefault_pool_size = {sessions}\nmax_client_conn = 200\n\
             ignore_startup_parameters = extra_float_digits\n{user}",
            server.join(" ")
        );
        let file = folder.path().join("pgbouncer.ini");
        fs::write(&file, configuration)?;
        if is_root {
            use std::os::unix::fs::PermissionsExt;
            fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))?;
        }
        let path = format!("{}:/usr/sbin", std::env::var("PATH").unwrap_or_default());
        let process = Command::new("pgbouncer")
            .arg("-q")
            .arg(&file)
            .env("PATH", path)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| format!("cannot start pgbouncer: {error}; install it by `ci/setup test`"))?;
        let bouncer = Self { process, port, _folder: folder };
        wait_for("PgBouncer accepts connections", || Ok(TcpStream::connect(("127.0.0.1", port)).is_ok()))?;
        Ok(bouncer)
    }

    /// Returns the command with the database behind the pooler.
    fn command(&self, database: &Database, words: &[&str]) -> Command {
        let mut command = pq(words);
        command.env("PQ_URL", format!("postgres://any@127.0.0.1:{}/{}", self.port, database.name()));
        command
    }
}

impl Drop for Bouncer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Returns the address and the credentials of the shared server, as key=value words.
fn server_words() -> Result<Vec<String>, Box<dyn std::error::Error>> {
    let database = Server::shared()?.database()?;
    let url = database.url().split_once("://").ok_or("a URL")?.1;
    let (credentials, rest) = url.split_once('@').ok_or("a user")?;
    let (user, password) = credentials.split_once(':').unwrap_or((credentials, ""));
    let (host, port) = rest.split_once('/').ok_or("a database")?.0.split_once(':').ok_or("a port")?;
    let mut words = vec![format!("host={host}"), format!("port={port}"), format!("user={user}")];
    words.extend((!password.is_empty()).then(|| format!("password={password}")));
    Ok(words)
}

#[test]
fn without_the_option_a_command_fails_with_the_remedy() -> Outcome {
    let (database, bouncer) = (migrated()?, Bouncer::start(1)?);
    let failed = (0..3)
        .map(|_| bouncer.command(&database, &["ls"]).output())
        .collect::<Result<Vec<_>, _>>()?
        .into_iter()
        .find(|output| status(output) != 0)
        .ok_or("a failure: sessions share the names of prepared statements")?;
    assert!(stderr(&failed).contains("--pooler or set PQ_POOLER=1"), "{}", printed(&failed));
    Ok(())
}

#[test]
fn every_command_works_behind_a_pooler() -> Outcome {
    let (database, bouncer) = (Server::shared()?.database()?, Bouncer::start(2)?);
    let run = |words: &[&str]| bouncer.command(&database, &[words, &["--pooler"]].concat()).output();
    for words in [
        &["migrate"][..],
        &["migrate", "--dry-run"],
        &["put", "mail", "--task", "send", "--args", "[1]"],
        &["put", "mail", "--task", "send", "--args", "[1]", "--unique", "k"],
        &["get", "mail"],
        &["ls"],
        &["jobs", "mail"],
        &["show", "2"],
        &["cancel", "2"],
        &["retry", "2"],
        &["move", "mail", "post", "--yes"],
        &["pause", "post"],
        &["resume", "post"],
        &["cron", "add", "beat", "@hourly", "mail"],
        &["cron", "ls"],
        &["top", "--once"],
        &["clear", "post", "--yes"],
        &["prune", "mail", "--state", "dead", "--yes"],
    ] {
        let done = run(words)?;
        assert_eq!(status(&done), 0, "{words:?}: {}", printed(&done));
    }
    // The shared server has settings for tests, which the doctor finds.
    let examined = run(&["doctor"])?;
    assert!([0, 7].contains(&status(&examined)), "{}", printed(&examined));
    assert!(stdout(&examined).contains("--pooler"), "{}", printed(&examined));
    assert!(stdout(&examined).contains(" 0 skipped"), "{}", printed(&examined));
    Ok(())
}

#[test]
fn a_worker_behind_a_pooler_works_every_job_once_and_is_stopped_through_the_database() -> Outcome {
    const JOBS: usize = 200;
    let (database, bouncer, folder) = (migrated()?, Bouncer::start(2)?, tempfile::tempdir()?);
    let trace = folder.path().join("trace");
    let command = format!("read x; echo $x >> '{}'", trace.display());
    let mut worker = bouncer.command(&database, &["work", "mail", "--exec", &command, "--workers", "3"]);
    worker.env("PQ_POOLER", "1");
    let work = Work::start(worker)?;
    let jobs = (0..JOBS).map(|n| n.to_string()).collect::<Vec<_>>().join("\n");
    let mut put = bouncer.command(&database, &["put", "mail", "--lines"]);
    put.env("PQ_NO_LISTEN", "1").env("PQ_NO_PREPARE", "yes").env("PQ_POLL_INTERVAL", "100ms");
    assert_eq!(status(&feed(put, &jobs)?), 0);
    wait_for("all jobs", || Ok(fs::read_to_string(&trace).map_or(0, |text| text.lines().count()) >= JOBS))?;
    wait_for("the queue is empty", || Ok(json(&database, &["ls", "--json"])? == serde_json::json!([])))?;
    let mut runs: Vec<usize> =
        fs::read_to_string(&trace)?.lines().filter_map(|line| line.parse().ok()).collect();
    runs.sort_unstable();
    assert!(runs.into_iter().eq(0..JOBS), "a job ran twice or never");
    let stopped = on(&database, &["stop", "--all", "--yes", "--wait", "1m"]).output()?;
    assert_eq!(status(&stopped), 0, "{}", printed(&stopped));
    let (code, log) = work.end()?;
    assert_eq!(code, 0, "{log}");
    assert!(!log.contains("WARN") && !log.contains("ERROR"), "{log}");
    Ok(())
}

#[test]
fn a_wait_behind_a_pooler_gets_a_job_by_polling() -> Outcome {
    let (database, bouncer) = (migrated()?, Bouncer::start(2)?);
    let waiting = bouncer.command(&database, &["get", "mail", "--wait", "60", "--pooler"]).spawn()?;
    assert_eq!(status(&feed(on(&database, &["put", "mail"]), "\"hello\"")?), 0);
    let got = waiting.wait_with_output()?;
    assert_eq!((status(&got), stdout(&got).as_str()), (0, "\"hello\"\n"), "{}", printed(&got));
    Ok(())
}
