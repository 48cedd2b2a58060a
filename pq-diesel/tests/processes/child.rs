//! What the other processes do: this test binary again, as the test `child`.

use std::process::Command;
use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Bool, Integer};
use pq_core::store::Connect;
use pq_diesel::{Backoff, Handler, Pq, Task, Worker};
use pq_testing::Database;
use rustix::process::{Pid, Signal, getpid, kill_process};
use serde::{Deserialize, Serialize};

use crate::common::{Outcome, PATIENCE};

/// What a job does beside its effect.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq)]
pub(crate) enum Step {
    Nothing,
    /// In its first attempt it kills its process before the effect.
    Begun,
    /// It kills its process after the effect: in its first attempt, or in all where it may be tried thrice.
    Done,
    /// In its first attempt its process is killed when the handler has returned.
    Returned,
    /// It goes on when there is a table `go_on`.
    Wait,
    /// It adds one to the counter, in two statements.
    Count,
}

const URL: &str = "PQ_TEST_CHILD_URL";
const ROLE: &str = "PQ_TEST_CHILD_ROLE";

pub(crate) fn work_task(pq: &Pq) -> Result<Task<Step>, pq_diesel::Error> {
    Ok(pq.queue("work")?.task::<Step>("work").max_retries(5).backoff(Backoff::fixed(Duration::ZERO)))
}

fn die() {
    let _ = kill_process(getpid(), Signal::KILL);
    // Until the signal is there.
    std::thread::sleep(PATIENCE);
}

fn effect(conn: &mut PgConnection, job: i64, attempt: i32) -> QueryResult<()> {
    diesel::sql_query("INSERT INTO effect VALUES ($1, $2, $3)")
        .bind::<BigInt, _>(job)
        .bind::<Integer, _>(attempt)
        .bind::<Integer, _>(getpid().as_raw_nonzero().get())
        .execute(conn)
        .map(drop)
}

fn act(conn: &mut PgConnection, step: Step, job: &pq_diesel::RawJob) -> QueryResult<()> {
    let first = job.attempt == 1;
    // In a transaction the attempt that killed its process never was; its second one must not do it again.
    let fatal = first && std::env::var_os(ROLE).is_some();
    if step == Step::Begun && fatal {
        die();
    }
    if step == Step::Count {
        let n: i32 = diesel::dsl::sql::<Integer>("SELECT n FROM counter").get_result(conn)?;
        diesel::sql_query("UPDATE counter SET n = $1").bind::<Integer, _>(n + 1).execute(conn)?;
        return Ok(());
    }
    effect(conn, job.id.0, job.attempt)?;
    if step == Step::Done && std::env::var_os(ROLE).is_some() {
        die();
    }
    while step == Step::Wait
        && !diesel::dsl::sql::<Bool>("SELECT to_regclass('go_on') IS NOT NULL").get_result::<bool>(conn)?
    {
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// The handler of the jobs: their effect is a row, written in the job's transaction, or at once as work that lives
/// elsewhere is.
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

/// A process of its own.
pub(crate) struct Child {
    process: std::process::Child,
}

impl Child {
    /// One that works the jobs until it is killed.
    pub(crate) fn spawn(
        database: &Database,
        transactional: bool,
    ) -> Result<Self, Box<dyn std::error::Error>> {
        Self::of(database, if transactional { "transactional" } else { "leased" })
    }

    /// One that puts a job and a row beside it, and is killed before it commits.
    pub(crate) fn putting(database: &Database) -> Result<Self, Box<dyn std::error::Error>> {
        Self::of(database, "put")
    }

    /// One that works what there is and ends.
    pub(crate) fn brief(database: &Database) -> Result<Self, Box<dyn std::error::Error>> {
        Self::of(database, "brief")
    }

    fn of(database: &Database, role: &str) -> Result<Self, Box<dyn std::error::Error>> {
        let process = Command::new(std::env::current_exe()?)
            .args(["child", "--exact", "--nocapture", "--test-threads=1"])
            .env(URL, database.url())
            .env(ROLE, role)
            .stdout(std::process::Stdio::null())
            .spawn()?;
        Ok(Self { process })
    }

    /// Whether it ended by itself, and well.
    pub(crate) fn wait(&mut self) -> Result<bool, Box<dyn std::error::Error>> {
        Ok(self.process.wait()?.success())
    }

    fn signal(&self, signal: Signal) -> Outcome {
        let pid = Pid::from_raw(i32::try_from(self.process.id())?).ok_or("no process")?;
        Ok(kill_process(pid, signal)?)
    }

    pub(crate) fn stop(&self) -> Outcome {
        self.signal(Signal::STOP)
    }

    pub(crate) fn go_on(&self) -> Outcome {
        self.signal(Signal::CONT)
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

/// What this process does if it is a child.
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
    if role == "brief" {
        let worker = Worker::new(&pq).threads(3).serve(handler(&pq, false)?);
        worker.run_until_empty()?;
        drop(pq);
        // As a process ends, and not as a test does, which is a thread that others outlive.
        std::process::exit(0);
    }
    let worker = Worker::new(&pq)
        .lease(Duration::from_millis(500))
        .maintain_every(Duration::from_millis(50))
        .serve(handler(&pq, role == "transactional")?)
        .wrap(|info, next| {
            let ended = next.run();
            if info.job.payload.as_str().contains("\"Returned\"") && info.job.attempt == 1 {
                die();
            }
            ended
        });
    let control = worker.control();
    std::thread::scope(|threads| -> Outcome {
        let working = threads.spawn(|| worker.run());
        // One whose verdict came too late says so.
        let mut conn = PgConnection::establish(&url)?;
        let mut told = 0;
        while !working.is_finished() {
            let lost = control.status().report.lost;
            if lost > told {
                conn.batch_execute("INSERT INTO effect VALUES (0, -1, 0)")?;
                told = lost;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        working.join().map_err(|_| "the worker panicked")??;
        Ok(())
    })
}
