//! The child processes: this test binary again, as the test `child`.

use std::process::Command;
use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Bool, Integer};
use pq_core::store::Connect;
use pq_diesel::{Backoff, Handler, Pq, Task, Worker};
use pq_testing::Database;
use rustix::process::{Pid, Signal, WaitOptions, getpid, kill_process, waitpid};
use serde::{Deserialize, Serialize};

use crate::common::{Outcome, PATIENCE};

/// The action of a job besides its effect, which is a row.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq)]
pub(crate) enum Step {
    Nothing,
    /// Kills its process before the effect, in the first attempt.
    KillBefore,
    /// Kills its process after the effect, in every attempt.
    KillAfter,
    /// Its process is killed after the handler has returned, in the first attempt.
    KillAtReturn,
    /// Waits until the table `go_on` exists.
    Wait,
    /// Adds one to the counter, in two statements.
    Count,
}

/// The lease of child workers. It is so long that a child never loses one on a busy machine. The tests end leases by
/// [`expire_leases`].
const LEASE: Duration = Duration::from_secs(600);

const URL: &str = "PQ_TEST_CHILD_URL";
const ROLE: &str = "PQ_TEST_CHILD_ROLE";

pub(crate) fn work_task(pq: &Pq) -> Result<Task<Step>, pq_diesel::Error> {
    Ok(pq.queue("work")?.task::<Step>("work").max_retries(5).backoff(Backoff::fixed(Duration::ZERO)))
}

fn die() {
    let _ = kill_process(getpid(), Signal::KILL);
    // Until the signal arrives.
    std::thread::sleep(PATIENCE);
}

/// Lets all leases expire, as if the time had passed.
pub(crate) fn expire_leases(conn: &mut PgConnection) -> QueryResult<()> {
    conn.batch_execute("UPDATE pq.queue_leases SET lease_until = statement_timestamp() - interval '1 second'")
}

fn effect(conn: &mut PgConnection, job: i64, attempt: i32) -> QueryResult<()> {
    diesel::sql_query("INSERT INTO effect VALUES ($1, $2, $3)")
        .bind::<BigInt, _>(job)
        .bind::<Integer, _>(attempt)
        .bind::<Integer, _>(getpid().as_raw_nonzero().get())
        .execute(conn)
        .map(drop)
}

fn act(conn: &mut PgConnection, step: Step, job: &pq_diesel::Claim) -> QueryResult<()> {
    let first = job.attempt == 1;
    // A transaction that is killed leaves no attempt, so its next one is the first again. It runs in the parent, which
    // has no role and must not kill itself.
    let fatal = first && std::env::var_os(ROLE).is_some();
    if step == Step::KillBefore && fatal {
        die();
    }
    if step == Step::Count {
        let n: i32 = diesel::dsl::sql::<Integer>("SELECT n FROM counter").get_result(conn)?;
        diesel::sql_query("UPDATE counter SET n = $1").bind::<Integer, _>(n + 1).execute(conn)?;
        return Ok(());
    }
    effect(conn, job.id.0, job.attempt)?;
    if step == Step::KillAfter && std::env::var_os(ROLE).is_some() {
        die();
    }
    while step == Step::Wait
        && !diesel::dsl::sql::<Bool>("SELECT to_regclass('go_on') IS NOT NULL").get_result::<bool>(conn)?
    {
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Returns the handler of the jobs. It writes the effect in the job's transaction, or on another connection, like work
/// outside of the database.
pub(crate) fn handler(pq: &Pq, transactional: bool) -> Result<Handler, pq_diesel::Error> {
    let task = work_task(pq)?;
    let elsewhere = pq.clone();
    Ok(match transactional {
        true => task.transactional(|conn, job| act(conn, job.data, &job)),
        false => task.leased(move |_, job| {
            elsewhere.store().with_connection(|conn| Ok::<_, pq_diesel::Error>(act(conn, job.data, &job)?))
        }),
    })
}

/// A child process, which is killed when this is dropped.
pub(crate) struct Child {
    process: std::process::Child,
}

impl Child {
    /// Starts a worker that runs until it is killed.
    pub(crate) fn spawn(
        database: &Database,
        transactional: bool,
    ) -> Result<Self, Box<dyn std::error::Error>> {
        Self::start(database, if transactional { "transactional" } else { "leased" })
    }

    /// Starts a process that puts a job and an effect in one transaction, and is killed before it commits.
    pub(crate) fn spawn_put(database: &Database) -> Result<Self, Box<dyn std::error::Error>> {
        Self::start(database, "put")
    }

    /// Starts a worker that runs until the queue is empty.
    pub(crate) fn spawn_until_empty(database: &Database) -> Result<Self, Box<dyn std::error::Error>> {
        Self::start(database, "until empty")
    }

    fn start(database: &Database, role: &str) -> Result<Self, Box<dyn std::error::Error>> {
        let process = Command::new(std::env::current_exe()?)
            .args(["child", "--exact", "--nocapture", "--test-threads=1"])
            .env(URL, database.url())
            .env(ROLE, role)
            .stdout(std::process::Stdio::null())
            .spawn()?;
        Ok(Self { process })
    }

    /// Waits until it ends, and returns whether it succeeded.
    pub(crate) fn wait(&mut self) -> Result<bool, Box<dyn std::error::Error>> {
        Ok(self.process.wait()?.success())
    }

    pub(crate) fn is_running(&mut self) -> Result<bool, Box<dyn std::error::Error>> {
        Ok(self.process.try_wait()?.is_none())
    }

    fn pid(&self) -> Result<Pid, Box<dyn std::error::Error>> {
        Ok(Pid::from_raw(i32::try_from(self.process.id())?).ok_or("no process")?)
    }

    /// Stops all threads of the process, and waits until they have stopped.
    pub(crate) fn stop(&self) -> Outcome {
        kill_process(self.pid()?, Signal::STOP)?;
        waitpid(Some(self.pid()?), WaitOptions::UNTRACED)?;
        Ok(())
    }

    pub(crate) fn go_on(&self) -> Outcome {
        Ok(kill_process(self.pid()?, Signal::CONT)?)
    }

    pub(crate) fn kill(&mut self) -> Outcome {
        self.process.kill()?;
        self.process.wait()?;
        Ok(())
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

/// Runs the role of this process if it is a child.
pub(crate) fn run() -> Outcome {
    let (Ok(url), Ok(role)) = (std::env::var(URL), std::env::var(ROLE)) else { return Ok(()) };
    let pq = Pq::builder().url(&url).poll_interval(Duration::from_millis(100)).build()?;
    if role == "put" {
        let task = work_task(&pq)?;
        pq.transaction(|conn| {
            task.on(conn).call(&Step::Nothing)?;
            effect(conn, 0, 0)?;
            die();
            Ok::<_, pq_diesel::Error>(())
        })?;
    }
    if role == "until empty" {
        let worker = Worker::new(&pq).threads(3).serve(handler(&pq, false)?);
        worker.run_until_empty()?;
        drop(pq);
        // A real end of the process. A test is a thread, and other threads outlive it.
        std::process::exit(0);
    }
    let worker = Worker::new(&pq)
        .lease(LEASE)
        .maintain_every(Duration::from_millis(50))
        .serve(handler(&pq, role == "transactional")?)
        .wrap(|info, next| {
            let ended = next.run();
            if info.job.payload.as_str().contains("\"KillAtReturn\"") && info.job.attempt == 1 {
                die();
            }
            ended
        });
    let control = worker.control();
    std::thread::scope(|threads| -> Outcome {
        let working = threads.spawn(|| worker.run());
        // Records each lost lease as an effect of attempt -1.
        let mut conn = PgConnection::establish(&url)?;
        let mut recorded = 0;
        while !working.is_finished() {
            let lost = control.status().report.lost;
            if lost > recorded {
                conn.batch_execute("INSERT INTO effect VALUES (0, -1, 0)")?;
                recorded = lost;
            }
            // The status counts the jobs that wait.
            std::thread::sleep(Duration::from_millis(200));
        }
        working.join().map_err(|_| "the worker panicked")??;
        Ok(())
    })
}
