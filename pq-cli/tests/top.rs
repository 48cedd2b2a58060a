//! `pq top` in a terminal of tmux.

#![allow(clippy::print_stdout, reason = "a skipped test prints why")]

mod common;

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use pq_diesel::{Limits, Outcome as End, Pq, StopMode, Wait, Worker};
use pq_testing::{Database, Kind, Options, Server, Stop};
use tempfile::TempDir;

use self::common::*;

/// A terminal in which `pq top` runs as the child of a shell.
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
    /// Runs `pq top` with these arguments. At its end the shell prints its exit status, and the terminal echoes.
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

    /// Polls the screen until it is as expected, and returns it.
    ///
    /// A screen can be captured while it is half drawn, so the condition must check all that the test relies on.
    fn until(&self, what: &str, is_so: impl Fn(&str) -> bool) -> Result<String, Box<dyn std::error::Error>> {
        let begun = Instant::now();
        loop {
            let screen = self.screen()?;
            if is_so(&screen) {
                return Ok(screen);
            }
            assert!(begun.elapsed() < TIMEOUT, "timed out waiting for {what}:\n{screen}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn until_shown(&self, text: &str) -> Outcome {
        self.until_all_shown(&[text])
    }

    fn until_all_shown(&self, texts: &[&str]) -> Outcome {
        self.until(&format!("{texts:?}"), |screen| texts.iter().all(|text| screen.contains(text)))?;
        Ok(())
    }

    /// Waits for the end of `pq top`, and checks that the terminal is restored: the main screen, echo and the cursor.
    fn assert_restored(&self, code: i32) -> Outcome {
        let left = format!("left with {code}");
        self.until("the main screen", |screen| screen.contains(&left) && !screen.contains("Queues"))?;
        let state = self.tmux(&["display-message", "-p", "#{alternate_on} #{cursor_flag}"])?;
        assert_eq!(state.trim(), "0 1", "{}", self.screen()?);
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

/// Puts jobs into two queues. Those of one are dead.
fn some_jobs(pq: &Pq) -> Outcome {
    let (bills, mail) = (pq.queue::<i64>("bills")?, pq.queue::<String>("mail \u{1b}[31m")?);
    for n in 0..5 {
        bills.put(&n)?;
    }
    for n in 0..3 {
        mail.put(&format!("{n}@example.com"))?;
    }
    for job in mail.lease(3, TIMEOUT, pq_diesel::Wait::No)? {
        mail.settle(&job, End::Dead { error: format!("550 no mailbox {}\u{7}", job.data) })?;
    }
    Ok(())
}

#[test]
fn a_queue_is_paused_from_the_view() -> Outcome {
    let database = migrated()?;
    some_jobs(&connect(&database)?)?;
    let terminal = Terminal::with("pause", database.url(), "--interval 200ms")?;
    terminal.until_all_shown(&["> bills", "2 queues, 0 workers, 5 waiting, 3 dead", "mail \\u{1b}[31m"])?;
    terminal.until_shown("job 1 of bills does not run: no live worker serves its queue")?;
    terminal.press(&["p"])?;
    wait_until(&database, "SELECT count(*) FROM pq.queue_controls WHERE q_name = 'bills'")?;
    terminal.until_all_shown(&["bills: paused", "job 1 of bills does not run: its queue is paused since"])?;
    terminal.until("the duration of the pause", |screen| {
        screen.lines().any(|line| line.starts_with("> bills") && line.contains("paused "))
    })?;
    terminal.press(&["p"])?;
    wait_until(&database, "SELECT (count(*) = 0)::int::bigint FROM pq.queue_controls")?;
    terminal.until_shown("bills: resumed")?;
    terminal.press(&["q"])?;
    terminal.assert_restored(0)
}

#[test]
fn dead_jobs_are_requeued_from_the_view() -> Outcome {
    let database = migrated()?;
    some_jobs(&connect(&database)?)?;
    let terminal = Terminal::with("retry", database.url(), "--interval 200ms")?;
    terminal.until_shown("> bills")?;
    terminal.press(&["j"])?;
    let screen = terminal.until("three dead jobs", |screen| {
        (0..3).all(|n| screen.contains(&format!("550 no mailbox {n}@example.com\\u{{7}}")))
    })?;
    let line = |error: &str| screen.lines().position(|line| line.contains(error));
    assert!(line("mailbox 2") < line("mailbox 0"), "the latest is first: {screen}");
    // One job, without a question.
    terminal.press(&["Tab", "Tab", "Tab", "r"])?;
    wait_until(&database, "SELECT count(*) FROM pq.queue WHERE q_name LIKE 'mail%'")?;
    terminal.until_shown("Dead jobs of mail \\u{1b}[31m (2)")?;
    // All jobs, with a question.
    terminal.press(&["Tab", "r"])?;
    terminal.until_shown("y/n")?;
    terminal.press(&["n"])?;
    terminal.until_shown("not done")?;
    wait_until(&database, "SELECT (count(*) = 2)::int::bigint FROM pq.queue_archive")?;
    terminal.press(&["r"])?;
    terminal.until_shown("Retry 2 dead jobs of mail \\u{1b}[31m? y/n")?;
    terminal.press(&["y"])?;
    wait_until(&database, "SELECT (count(*) = 3)::int::bigint FROM pq.queue WHERE q_name LIKE 'mail%'")?;
    terminal.until_shown("2 dead jobs requeued")?;
    terminal.press(&["C-c"])?;
    terminal.assert_restored(0)
}

#[test]
fn a_running_job_is_cancelled_and_its_worker_stopped_from_the_view() -> Outcome {
    let database = migrated()?;
    let pq = connect(&database)?;
    let task = pq.queue("slow")?.task::<i64>("wait");
    task.call(&1)?;
    let worker = Worker::new(&pq).lease(TIMEOUT).heartbeat_every(Some(Duration::from_millis(50))).serve(
        task.leased(|context, _job| {
            while !context.should_stop() {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err::<(), _>("asked to stop")
        }),
    );
    // Stops the worker's thread even if the test fails.
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
        terminal.until_all_shown(&["wait ", "Workers (1)", "Running jobs (1)"])?;
        terminal.press(&["Tab", "Tab", "c"])?;
        terminal.until_shown("Cancel job 1 of slow, running on")?;
        terminal.press(&["y"])?;
        terminal.until_shown("1: running; it is asked to stop")?;
        wait_until(&database, "SELECT count(*) FROM pq.queue_archive WHERE error = 'asked to stop'")?;
        terminal.press(&["BTab", "s"])?;
        terminal.until_shown("when no job is ready? y/n")?;
        terminal.press(&["y"])?;
        terminal.until_shown("no worker has sent a heartbeat")?;
        terminal.press(&["Escape"])?;
        terminal.assert_restored(0)?;
        let report = running.join().map_err(|_| "the worker panicked")??;
        drop(at_end);
        assert_eq!((report.done, report.failed), (0, 1));
        Ok(())
    })
}

#[test]
fn the_view_follows_the_size_of_the_terminal() -> Outcome {
    let database = migrated()?;
    some_jobs(&connect(&database)?)?;
    let terminal = Terminal::with("resize", database.url(), "")?;
    let wide = ["> bills", "SCHEDULED", "Running jobs", "Dead jobs of bills", "q quit"];
    terminal.until_all_shown(&wide)?;
    terminal.tmux(&["resize-window", "-x", "40", "-y", "10"])?;
    // The whole screen, because a screen that is half drawn has lines of both sizes.
    let small = "\
pq top  2 queues, 0 workers, 5 waiting,…
 Queues (2) ────────────────────────────
  QUEUE           WAITING  RUNNING  DEAD
> bills                 5        0     0
  mail \\u{1b}[3…        0        0     3



job 1 of bills does not run: no live wo…
p pause or resume, r retry dead, tab ne…
";
    terminal.until("the small view", |screen| screen == small)?;
    terminal.tmux(&["resize-window", "-x", "120", "-y", "40"])?;
    terminal.until_all_shown(&wide)?;
    terminal.press(&["q"])?;
    terminal.assert_restored(0)
}

#[test]
fn a_signal_restores_the_terminal() -> Outcome {
    let database = migrated()?;
    let terminal = Terminal::with("signal", database.url(), "")?;
    terminal.until_shown("no queue has a job")?;
    rustix::process::kill_process(terminal.pid()?, rustix::process::Signal::TERM)?;
    terminal.assert_restored(130)
}

#[test]
fn the_view_ends_with_its_terminal() -> Outcome {
    let database = migrated()?;
    let terminal = Terminal::with("closed", database.url(), "")?;
    terminal.until_shown("no queue has a job")?;
    let pid = terminal.pid()?;
    terminal.tmux(&["kill-server"])?;
    let begun = Instant::now();
    while rustix::process::test_kill_process(pid).is_ok() {
        assert!(begun.elapsed() < TIMEOUT, "the view runs without a terminal");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

#[test]
fn a_lost_server_is_shown_until_it_is_back() -> Outcome {
    let server = match Server::start(&Options::throwaway().kind(Kind::Binaries)) {
        Ok(server) => server,
        Err(error) => {
            println!("skipped, because no private server can be started: {error}");
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
    // The last snapshot stays on the screen.
    terminal.until_all_shown(&["no update, retrying in", "> bills"])?;
    terminal.press(&["p"])?;
    terminal.until("that the queue cannot be paused", |screen| {
        screen
            .lines()
            .last()
            .is_some_and(|line| line.contains("cannot connect") || line.contains("not available"))
    })?;
    server.start_again()?;
    terminal.until_shown("2 queues, 0 workers")?;
    server.stop(Stop::Immediate)?;
    terminal.until_shown("no update, retrying in")?;
    terminal.press(&["q"])?;
    terminal.assert_restored(0)?;
    // The server's guard stops a running server.
    server.start_again()?;
    Ok(())
}

#[test]
fn without_a_terminal_the_error_names_the_remedy() -> Outcome {
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
    assert!(text.contains("Dead jobs of mail \\u{1b}[31m (3)"), "the first queue with dead jobs: {text}");
    assert!(text.contains("\n\njob 1 of bills does not run: no live worker serves its queue\n"), "{text}");
    assert!(!text.contains(|c: char| c.is_control() && c != '\n'), "{text:?}");
    let chosen = on(&database, &["top", "--once", "--queue", "bills"]).output()?;
    assert!(stdout(&chosen).contains("Dead jobs of bills\nnone"), "{}", stdout(&chosen));
    Ok(())
}

#[test]
fn jobs_that_wait_for_a_limit_are_counted() -> Outcome {
    let database = migrated()?;
    let pq = connect(&database)?;
    let mail = pq.queue::<u32>("mail")?;
    mail.put_many([1, 2, 3])?;
    mail.set_limits(&Limits::new().running(1))?;
    assert_eq!(mail.lease(1, Duration::from_secs(60), Wait::No)?.len(), 1);
    let once = on(&database, &["top", "--once"]).output()?;
    let text = stdout(&once);
    assert!(text.contains("\n\nmail: 2 due jobs waiting for the limit running\n\n"), "{text}");
    assert!(text.contains("full; limited to 1 running"), "{text}");
    Ok(())
}

#[test]
fn errors_of_the_first_poll_are_printed() -> Outcome {
    let database = Server::shared()?.database()?;
    assert_eq!(status(&on(&database, &["top", "--once"]).output()?), 4, "the table is missing");
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
