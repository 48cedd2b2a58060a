//! `pq top`, in a terminal that tmux plays.

#![allow(clippy::print_stdout, reason = "a test that cannot be run says so")]

mod common;

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use pq_diesel::{Outcome as End, Pq, StopMode, Worker};
use pq_testing::{Database, Kind, Options, Server, Stop};
use tempfile::TempDir;

use self::common::*;

/// A terminal of its own, in which `pq top` runs as a child of a shell.
struct Terminal {
    folder: TempDir,
    name: String,
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.tmux(&["kill-server"]);
    }
}

impl Terminal {
    /// Runs `pq top` with these words. When that has ended the shell says how, and the terminal echoes.
    fn with(test: &str, url: &str, words: &str) -> Result<Self, Box<dyn std::error::Error>> {
        let terminal =
            Self { folder: tempfile::tempdir()?, name: format!("pq-{test}-{}", std::process::id()) };
        let script = format!(
            "sh -c 'echo $$ >pid; exec \"$PQ_UNDER_TEST\" top {words}' 2>said; echo left with $?; cat said; exec cat"
        );
        let mut tmux = terminal.command();
        tmux.env("PQ_URL", url).env("PQ_UNDER_TEST", env!("CARGO_BIN_EXE_pq"));
        tmux.args(["-f", "/dev/null", "new-session", "-d", "-x", "100", "-y", "30", &script]);
        let begun =
            tmux.output().map_err(|error| format!("these tests need tmux (see ci/setup): {error}"))?;
        assert!(begun.status.success(), "{}", stderr(&begun));
        Ok(terminal)
    }

    fn command(&self) -> Command {
        let mut command = Command::new("tmux");
        command.current_dir(self.folder.path()).env("TMUX_TMPDIR", self.folder.path());
        command.env_remove("TMUX").env_remove("NO_COLOR");
        command.args(["-u", "-L", &self.name]);
        command
    }

    fn tmux(&self, words: &[&str]) -> Result<String, Box<dyn std::error::Error>> {
        let output = self.command().args(words).output()?;
        Ok(stdout(&output))
    }

    fn screen(&self) -> Result<String, Box<dyn std::error::Error>> {
        self.tmux(&["capture-pane", "-p"])
    }

    fn press(&self, keys: &[&str]) -> Outcome {
        self.tmux(&[&["send-keys"], keys].concat())?;
        Ok(())
    }

    /// Looks until the screen is as it should be.
    fn until(&self, what: &str, is_so: impl Fn(&str) -> bool) -> Result<String, Box<dyn std::error::Error>> {
        let begun = Instant::now();
        loop {
            let screen = self.screen()?;
            if is_so(&screen) {
                return Ok(screen);
            }
            assert!(begun.elapsed() < PATIENCE, "{what} was never shown:\n{screen}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn until_shown(&self, what: &str) -> Result<String, Box<dyn std::error::Error>> {
        self.until(what, |screen| screen.contains(what))
    }

    /// The shell has the terminal back, and it is as it was: the first screen, echo, and the cursor.
    fn is_itself_again(&self, code: i32) -> Outcome {
        let screen = self.until_shown(&format!("left with {code}"))?;
        assert!(!screen.contains("Queues"), "{screen}");
        let state = self.tmux(&["display-message", "-p", "#{alternate_on} #{cursor_flag}"])?;
        assert_eq!(state.trim(), "0 1", "{screen}");
        self.press(&["once more", "Enter"])?;
        self.until("an echo, and cat's", |screen| screen.matches("once more").count() == 2)?;
        Ok(())
    }

    fn pid(&self) -> Result<rustix::process::Pid, Box<dyn std::error::Error>> {
        let pid = fs::read_to_string(self.folder.path().join("pid"))?;
        Ok(rustix::process::Pid::from_raw(pid.trim().parse()?).ok_or("a pid")?)
    }
}

fn connect(database: &Database) -> Result<Pq, pq_diesel::Error> {
    Pq::connect(database.url())
}

/// Two queues with jobs, and three dead ones among them.
fn some_jobs(pq: &Pq) -> Outcome {
    let (bills, mail) = (pq.queue::<i64>("bills")?, pq.queue::<String>("mail \u{1b}[31m")?);
    for n in 0..5 {
        bills.put(&n)?;
    }
    for n in 0..3 {
        mail.put(&format!("{n}@example.com"))?;
    }
    for job in mail.lease(3, PATIENCE, pq_diesel::Wait::No)? {
        mail.settle(&job, End::Dead { error: format!("550 no mailbox {}\u{7}", job.data) })?;
    }
    Ok(())
}

#[test]
fn a_queue_is_paused_from_the_view() -> Outcome {
    let database = migrated()?;
    some_jobs(&connect(&database)?)?;
    let terminal = Terminal::with("pause", database.url(), "--interval 200ms")?;
    let screen = terminal.until_shown("> bills")?;
    assert!(screen.contains("2 queues, 0 workers, 5 waiting, 3 dead"), "{screen}");
    assert!(screen.contains("mail \\u{1b}[31m"), "{screen}");
    terminal.press(&["p"])?;
    until(&database, "SELECT count(*) FROM pq.queue_paused WHERE q_name = 'bills'")?;
    terminal.until_shown("bills: paused")?;
    terminal.until("since when it is paused", |screen| {
        screen.lines().any(|line| line.starts_with("> bills") && line.contains("for "))
    })?;
    terminal.press(&["p"])?;
    until(&database, "SELECT (count(*) = 0)::int::bigint FROM pq.queue_paused")?;
    terminal.until_shown("bills: goes on")?;
    terminal.press(&["q"])?;
    terminal.is_itself_again(0)
}

#[test]
fn dead_jobs_are_put_back_from_the_view() -> Outcome {
    let database = migrated()?;
    some_jobs(&connect(&database)?)?;
    let terminal = Terminal::with("retry", database.url(), "--interval 200ms")?;
    terminal.until_shown("> bills")?;
    terminal.press(&["j"])?;
    let screen = terminal.until_shown("550 no mailbox 2@example.com\\u{7}")?;
    let place = |error: &str| screen.lines().position(|line| line.contains(error));
    assert!(place("mailbox 2") < place("mailbox 0"), "the last first: {screen}");
    // One, without a question.
    terminal.press(&["Tab", "Tab", "Tab", "r"])?;
    until(&database, "SELECT count(*) FROM pq.queue WHERE q_name LIKE 'mail%'")?;
    terminal.until_shown("Dead jobs of mail \\u{1b}[31m (2)")?;
    // All, with one.
    terminal.press(&["Tab", "r"])?;
    terminal.until_shown("y/n")?;
    terminal.press(&["n"])?;
    terminal.until_shown("left as it was")?;
    until(&database, "SELECT (count(*) = 2)::int::bigint FROM pq.queue_archive")?;
    terminal.press(&["r"])?;
    terminal.until_shown("Put all 2 dead jobs of mail \\u{1b}[31m back into the line? y/n")?;
    terminal.press(&["y"])?;
    until(&database, "SELECT (count(*) = 3)::int::bigint FROM pq.queue WHERE q_name LIKE 'mail%'")?;
    terminal.until_shown("2 dead jobs are back in the line")?;
    terminal.press(&["C-c"])?;
    terminal.is_itself_again(0)
}

#[test]
fn a_running_job_is_cancelled_and_its_worker_stopped_from_the_view() -> Outcome {
    let database = migrated()?;
    let pq = connect(&database)?;
    let task = pq.queue("slow")?.task::<i64>("wait");
    task.call(&1)?;
    let worker = Worker::new(&pq)
        .lease(Duration::from_secs(5))
        .heartbeat_every(Some(Duration::from_millis(50)))
        .serve(task.leased(|context, _job| {
            while !context.should_stop() {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err::<(), _>("it was told to end")
        }));
    // However this ends, the thread that works does too.
    struct StopAtEnd<F: Fn()>(F);
    impl<F: Fn()> Drop for StopAtEnd<F> {
        fn drop(&mut self) {
            self.0();
        }
    }
    let control = worker.control();
    std::thread::scope(|threads| {
        let running = threads.spawn(|| worker.run());
        let at_end = StopAtEnd(|| control.stop(StopMode::Abort));
        let terminal = Terminal::with("stop", database.url(), "--interval 100ms")?;
        let screen = terminal.until_shown("wait ")?;
        assert!(screen.contains("Workers (1)") && screen.contains("Running jobs (1)"), "{screen}");
        terminal.press(&["Tab", "Tab", "c"])?;
        terminal.until_shown("Cancel job 1 of slow, which runs at")?;
        terminal.press(&["y"])?;
        terminal.until_shown("1: runs; its handler is told")?;
        until(&database, "SELECT count(*) FROM pq.queue_archive WHERE error = 'it was told to end'")?;
        terminal.press(&["BTab", "s"])?;
        terminal.until_shown("stop when nothing waits? y/n")?;
        terminal.press(&["y"])?;
        terminal.until_shown("no worker was heard of")?;
        terminal.press(&["Escape"])?;
        terminal.is_itself_again(0)?;
        let report = running.join().map_err(|_| "the worker panicked")??;
        drop(at_end);
        assert_eq!((report.done, report.failed), (0, 1));
        Ok(())
    })
}

#[test]
fn it_follows_the_size_of_the_terminal() -> Outcome {
    let database = migrated()?;
    some_jobs(&connect(&database)?)?;
    let terminal = Terminal::with("resize", database.url(), "")?;
    let wide = terminal.until_shown("> bills")?;
    assert!(wide.contains("SCHEDULED") && wide.contains("Running jobs"), "{wide}");
    terminal.tmux(&["resize-window", "-x", "40", "-y", "10"])?;
    let small = terminal.until("the small view", |screen| {
        screen.contains("Queues") && !screen.contains("SCHEDULED") && !screen.contains("Running jobs")
    })?;
    assert!(small.lines().all(|line| line.chars().count() <= 40), "{small}");
    terminal.tmux(&["resize-window", "-x", "120", "-y", "40"])?;
    terminal
        .until("the wide view", |screen| screen.contains("SCHEDULED") && screen.contains("Running jobs"))?;
    terminal.press(&["q"])?;
    terminal.is_itself_again(0)
}

#[test]
fn a_signal_gives_the_terminal_back() -> Outcome {
    let database = migrated()?;
    let terminal = Terminal::with("signal", database.url(), "")?;
    terminal.until_shown("no queue has a job")?;
    rustix::process::kill_process(terminal.pid()?, rustix::process::Signal::TERM)?;
    terminal.is_itself_again(130)
}

#[test]
fn it_ends_with_its_terminal() -> Outcome {
    let database = migrated()?;
    let terminal = Terminal::with("closed", database.url(), "")?;
    terminal.until_shown("no queue has a job")?;
    let pid = terminal.pid()?;
    terminal.tmux(&["kill-server"])?;
    let begun = Instant::now();
    while rustix::process::test_kill_process(pid).is_ok() {
        assert!(begun.elapsed() < PATIENCE, "it goes on without a terminal");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

#[test]
fn a_lost_server_is_shown_and_found_again() -> Outcome {
    let server = match Server::start(&Options::throwaway().kind(Kind::Binaries)) {
        Ok(server) => server,
        Err(error) => {
            println!("no server can be stopped here, so nothing was tested: {error}");
            return Ok(());
        }
    };
    let database = server.database()?;
    assert_eq!(status(&on(&database, &["migrate"]).output()?), 0);
    {
        some_jobs(&connect(&database)?)?;
    }
    let terminal = Terminal::with("lost", database.url(), "--interval 100ms")?;
    terminal.until_shown("> bills")?;
    server.stop(Stop::Immediate)?;
    let screen = terminal.until_shown("nothing new for now, again in")?;
    assert!(screen.contains("> bills"), "what was seen last is shown still: {screen}");
    terminal.press(&["p"])?;
    terminal.until("that it could not be paused", |screen| {
        screen
            .lines()
            .last()
            .is_some_and(|line| line.contains("cannot connect") || line.contains("not available"))
    })?;
    server.start_again()?;
    terminal.until_shown("2 queues, 0 workers")?;
    server.stop(Stop::Immediate)?;
    terminal.until_shown("nothing new for now, again in")?;
    terminal.press(&["q"])?;
    terminal.is_itself_again(0)?;
    // So that the server ends as it is used to.
    server.start_again()?;
    Ok(())
}

#[test]
fn without_a_terminal_it_says_what_does() -> Outcome {
    let database = migrated()?;
    some_jobs(&connect(&database)?)?;
    let refused = on(&database, &["top"]).output()?;
    assert_eq!(status(&refused), 2);
    assert!(stderr(&refused).contains("--once"), "{}", stderr(&refused));
    assert_eq!(stdout(&refused), "");
    let once = on(&database, &["top", "--once"]).output()?;
    assert_eq!(status(&once), 0, "{}", stderr(&once));
    let text = stdout(&once);
    assert!(text.starts_with("2 queues, 0 workers, 5 waiting, 3 dead"), "{text}");
    assert!(text.contains("Dead jobs of mail \\u{1b}[31m (3)"), "the first that has any: {text}");
    assert!(!text.contains(|c: char| c.is_control() && c != '\n'), "{text:?}");
    let chosen = on(&database, &["top", "--once", "--queue", "bills"]).output()?;
    assert!(stdout(&chosen).contains("Dead jobs of bills\nnone"), "{}", stdout(&chosen));
    Ok(())
}

#[test]
fn what_is_wrong_from_the_beginning_is_said() -> Outcome {
    let database = Server::shared()?.database()?;
    assert_eq!(status(&on(&database, &["top", "--once"]).output()?), 4, "there is no table");
    let nowhere =
        pq(&["top", "--once", "--database-url", "host=127.0.0.1 port=1 password=hidden"]).output()?;
    assert_eq!(status(&nowhere), 3);
    assert!(!stderr(&nowhere).contains("hidden"));
    for words in [&["--interval", "1ms"], &["--interval", "soon"], &["--queue", ""]] {
        let refused = on(&database, &[&["top", "--once"], &words[..]].concat()).output()?;
        assert_eq!(status(&refused), 2, "{words:?}");
    }
    Ok(())
}
