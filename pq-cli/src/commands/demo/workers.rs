//! The demo's worker processes, from both sides.

use std::env;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc::{Receiver, channel};

use diesel::prelude::*;
use pq_diesel::{Pq, Stop, Wait};

use super::place::{self, Place};
use super::{QUEUE, files, report};
use crate::failure::Failure;
use crate::output;

/// The processes. Dropping them ends them.
pub(super) struct Workers {
    running: Vec<Child>,
    started: usize,
    killed: usize,
    /// Says which of the processes holds a job and waits to be killed.
    holds: Receiver<u32>,
}

impl Workers {
    /// Starts so many processes. The first of them to work on `fatal` stops in the middle of it, after it
    /// has written a result and before it commits.
    pub(super) fn start(place: &Place, folder: &Path, count: usize, fatal: &str) -> Result<Self, Failure> {
        let failed = |error: io::Error| Failure::Io(format!("a worker process cannot be started: {error}"));
        let (held, holds) = channel();
        let mut workers = Self { running: Vec::new(), started: 0, killed: 0, holds };
        for number in 1..=count {
            let mut command = Command::new(env::current_exe().map_err(failed)?);
            command
                .arg("demo-worker")
                .envs(place.environment())
                .env("PQ_DEMO_FOLDER", folder)
                .env("PQ_DEMO_WORKER", number.to_string())
                // A worker ends when this is closed, so none outlives its parent.
                .stdin(Stdio::piped())
                .stdout(Stdio::piped());
            // With one worker alone nobody would be left to take over.
            if count > 1 {
                command.env("PQ_DEMO_FATAL", fatal);
            }
            let mut child = command.spawn().map_err(failed)?;
            if let Some(stdout) = child.stdout.take() {
                let (held, id) = (held.clone(), child.id());
                std::thread::spawn(move || {
                    if let Some(Ok(_)) = BufReader::new(stdout).lines().next() {
                        let _ = held.send(id);
                    }
                });
            }
            workers.running.push(child);
            workers.started += 1;
        }
        Ok(workers)
    }

    /// Kills the worker that holds a job, once it does.
    pub(super) fn kill_the_one_that_holds(&mut self) -> bool {
        let Ok(id) = self.holds.try_recv() else { return false };
        let Some(position) = self.running.iter().position(|child| child.id() == id) else { return false };
        let mut victim = self.running.swap_remove(position);
        // On Unix this is SIGKILL.
        let killed = victim.kill().is_ok();
        let _ = victim.wait();
        self.killed += usize::from(killed);
        killed
    }

    /// An error where all workers have ended although there is work.
    pub(super) fn check(&mut self) -> Result<(), Failure> {
        let ended = self.running.iter_mut().all(|child| matches!(child.try_wait(), Ok(Some(_))));
        if ended {
            Err(Failure::Demo("all workers have ended before the work was done".to_owned()))
        } else {
            Ok(())
        }
    }

    /// Tells the workers to end, and waits until they have.
    pub(super) fn finish(&mut self) {
        for child in &mut self.running {
            drop(child.stdin.take());
        }
        for mut child in self.running.drain(..) {
            let _ = child.wait();
        }
    }

    pub(super) fn started(&self) -> usize {
        self.started
    }

    pub(super) fn killed(&self) -> usize {
        self.killed
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        for child in &mut self.running {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// `pq demo-worker`: gets jobs and writes results until its standard input is closed.
pub(crate) fn work() -> Result<ExitCode, Failure> {
    let variable = |name: &str| {
        env::var(name).map_err(|_| Failure::Usage("`pq demo` starts its workers by itself".to_owned()))
    };
    let (url, schema) = (variable("PQ_DEMO_URL")?, variable("PQ_DEMO_SCHEMA")?);
    let folder = PathBuf::from(variable("PQ_DEMO_FOLDER")?);
    let number: i32 = variable("PQ_DEMO_WORKER")?.parse().unwrap_or_default();
    let fatal = env::var("PQ_DEMO_FATAL").ok();

    let stop = Stop::new();
    let pq = place::connect(&url, &schema)?;
    let queue = pq.queue::<String>(QUEUE)?.with_stop(&stop);
    std::thread::spawn(move || {
        let _ = io::stdin().lock().read(&mut [0]);
        stop.stop();
    });
    loop {
        let worked = queue.get_with(Wait::Forever, |conn, job| {
            place::enter(conn, &schema)?;
            write_result(conn, &folder, &job.data, number)?;
            if fatal.as_deref() == Some(&job.data) && is_the_victim(&pq, &schema, number)? {
                hold()
            } else {
                Ok(())
            }
        });
        match worked {
            Ok(_) => {}
            Err(Failure::Queue(pq_diesel::Error::Refused(refused))) if refused.is_stopped() => {
                return Ok(ExitCode::SUCCESS);
            }
            Err(failure) => return Err(failure),
        }
    }
}

/// Takes the measure of one file, in the transaction that holds its job. A file that cannot be read is a
/// result too.
fn write_result(conn: &mut PgConnection, folder: &Path, path: &str, worker: i32) -> Result<(), Failure> {
    use report::demo_result::dsl;
    let insert = diesel::insert_into(dsl::demo_result);
    let who = (dsl::path.eq(path), dsl::worker.eq(worker));
    match files::facts(&folder.join(path)) {
        Ok(facts) => insert
            .values((
                who,
                dsl::bytes.eq(facts.bytes),
                dsl::lines.eq(facts.lines),
                dsl::sha256.eq(facts.sha256),
            ))
            .execute(conn)?,
        Err(error) => insert.values((who, dsl::error.eq(error.to_string()))).execute(conn)?,
    };
    Ok(())
}

/// Whether this is the first process to come so far. That is noted in a transaction of its own, which
/// outlives the one that is about to be killed.
fn is_the_victim(pq: &Pq, schema: &str, worker: i32) -> Result<bool, Failure> {
    pq.transaction(|conn| {
        place::enter(conn, schema)?;
        let noted = diesel::insert_into(report::demo_victim::table)
            .values(report::demo_victim::worker.eq(worker))
            .on_conflict_do_nothing()
            .execute(conn)?;
        Ok(noted == 1)
    })
}

/// Says that a job is held, and waits to be killed. If the parent ends instead, so does this process,
/// and the job is back all the same.
fn hold() -> Result<(), Failure> {
    output::print_lines(["held"]).map_err(|error| Failure::Io(error.to_string()))?;
    let _ = io::stdin().lock().read(&mut [0]);
    Err(Failure::Demo("the parent has ended".to_owned()))
}
