//! `pq demo`: puts one job per file of a directory, works them in several processes, and kills one of these.

mod chaos;
mod environment;
mod fault;
mod files;
mod report;
mod worker_pool;
mod worker_process;

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use diesel::prelude::*;
use pq_diesel::{CancellationToken, Pq, Queue};

use self::chaos::Chaos;
use self::environment::Environment;
use self::fault::Fault;
use self::report::{ChaosCounts, ProcessCounts, Report};
use self::worker_pool::{HeldJob, WorkerPool};
pub(crate) use self::worker_process::work;
use super::examples;
use crate::failure::Failure;
use crate::global::Global;
use crate::output;
use crate::signals::stop_on_signals;

/// The queue of the demo. The payload of a job is a relative path.
const QUEUE: &str = "files";

/// Interval at which the parent checks its workers.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Demonstrate that no job is lost or done twice when a worker is killed.
///
/// Puts one job per file of a directory. Several worker processes hash the files, and one of them is killed half way.
///
/// Runs on a private PostgreSQL server in a temporary directory, started from the PostgreSQL programs on this machine,
/// or in the database of --database-url. It removes everything at the end.
#[derive(Debug, clap::Args)]
#[command(after_help = examples("pq demo --jobs-from ~/project --workers 8\npq demo --chaos"))]
pub(crate) struct Demo {
    /// Directory whose files become jobs, without files that git ignores.
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub(crate) jobs_from: PathBuf,
    /// Number of worker processes.
    #[arg(long, value_name = "N", default_value = "4")]
    pub(crate) workers: NonZeroUsize,
    /// Keep killing workers and terminating their backends until all jobs are done. Killed workers are replaced.
    #[arg(long)]
    pub(crate) chaos: bool,
    /// Seed of the random faults, to repeat a run. The timing of the faults also depends on the speed of the workers.
    /// Default: random, and printed at the end.
    #[arg(long, value_name = "N", requires = "chaos")]
    pub(crate) seed: Option<u64>,
}

impl Demo {
    pub(crate) fn run(&self, global: &Global) -> Result<ExitCode, Failure> {
        let stop = stop_on_signals()?;
        let folder = self.jobs_from.canonicalize().map_err(|error| {
            Failure::Io(format!("cannot read the directory {}: {error}", self.jobs_from.display()))
        })?;
        let files = files::list(&folder)?;
        if files.is_empty() {
            return Err(Failure::Usage(format!("no file in the directory {}", folder.display())));
        }
        // Dropped last, because dropping it removes the server or the schema.
        let environment = Environment::prepare(global)?;
        output::print_status(&format!("PostgreSQL: {}", environment.origin()));
        let pq = environment.connect()?;
        let queue = pq.queue::<String>(QUEUE)?;
        let mut chaos = self.chaos.then(|| Chaos::new(self.seed));
        let faults = match &mut chaos {
            Some(chaos) => chaos.faults(&files),
            // A single worker has no other to take over its jobs.
            None if self.workers.get() == 1 => Vec::new(),
            None => vec![(files[files.len() / 2].as_str(), Fault::Kill)],
        };
        queue.transaction(|conn| {
            environment.set_search_path(conn)?;
            report::insert_files(conn, &files)?;
            fault::insert(conn, &faults)?;
            queue.on(conn).put_many(&files)?;
            Ok::<_, Failure>(())
        })?;
        output::print_status(&format!("{} jobs put, one per file of {}", files.len(), folder.display()));

        let began = Instant::now();
        let workers = WorkerPool::start(&environment, &folder, self.workers.get())?;
        let mut supervisor =
            Supervisor { environment: &environment, pq: &pq, queue: &queue, workers, chaos, stop: &stop };
        supervisor.run_until_done(files.len(), self.workers.get())?;
        let elapsed = began.elapsed();
        let Supervisor { mut workers, chaos, .. } = supervisor;
        workers.finish();

        let report = queue.transaction(|conn| {
            environment.set_search_path(conn)?;
            Report::count(conn)
        })?;
        let chaos_counts =
            chaos.map(|chaos| ChaosCounts { terminated: chaos.terminated(), seed: chaos.seed() });
        let processes =
            ProcessCounts { started: workers.started(), killed: workers.killed(), chaos: chaos_counts };
        let table = report.table(elapsed, &processes, environment.origin());
        output::print_lines([table.as_str()])
            .map_err(|error| Failure::Io(format!("cannot write the table: {error}")))?;
        if report.is_clean() {
            Ok(ExitCode::SUCCESS)
        } else {
            Err(Failure::Demo("jobs were lost or done twice".to_owned()))
        }
    }
}

/// The parent process: supervises the workers and injects faults.
struct Supervisor<'w> {
    environment: &'w Environment,
    pq: &'w Pq,
    queue: &'w Queue<String>,
    workers: WorkerPool,
    chaos: Option<Chaos>,
    stop: &'w CancellationToken,
}

impl Supervisor<'_> {
    /// Supervises the workers and injects faults until no job is left.
    fn run_until_done(&mut self, jobs: usize, count: usize) -> Result<(), Failure> {
        let bar =
            output::progress_bar(jobs as u64, "{wide_bar} {pos}/{len} files, {per_sec}, {eta} left{msg}");
        loop {
            if self.stop.is_cancelled() {
                return Err(pq_core::Error::Stopped.into());
            }
            let done = self.queue.transaction(|conn| {
                self.environment.set_search_path(conn)?;
                report::demo_result::table.count().get_result::<i64>(conn).map_err(Failure::from)
            })?;
            bar.set_position(done.max(0).unsigned_abs());
            while let Some(held) = self.workers.next_held() {
                let Some(what) = self.inject_fault(&held)? else { continue };
                bar.suspend(|| {
                    output::print_status(&format!(
                        "after {done} of {jobs} jobs: {what} between its result and its commit"
                    ));
                });
            }
            if let Some(chaos) = &mut self.chaos {
                if let Some(what) = chaos.inject_random(done, &mut self.workers, self.pq, self.environment)? {
                    bar.suspend(|| {
                        output::print_status(&format!("after {done} of {jobs} jobs: {what} at random"))
                    });
                }
                self.workers.replace_killed(count)?;
                let (killed, terminated) = (self.workers.killed(), chaos.terminated());
                bar.set_message(format!(", {killed} killed, {terminated} terminated"));
            }
            // The end is when the queue is empty. The number of results is no substitute: a job that is done twice
            // would hide one that is lost.
            if self.queue.counts()?.live() == 0 {
                bar.finish_and_clear();
                return Ok(());
            }
            self.workers.check()?;
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    /// Kills a worker that waits in the middle of a job, or terminates its backend. Describes what was done.
    fn inject_fault(&mut self, held: &HeldJob) -> Result<Option<&'static str>, Failure> {
        Ok(match (held.backend, &mut self.chaos) {
            (Some(backend), Some(chaos)) => chaos
                .terminate(backend, self.pq, self.environment)?
                .then_some("terminated the backend of a worker"),
            _ => self.workers.kill_worker(held).then_some("killed a worker with SIGKILL"),
        })
    }
}
