//! `pq demo`: a job for every file of a folder, worked by several processes, one of which is killed.

mod chaos;
mod fate;
mod files;
mod place;
mod report;
mod worker;
mod workers;

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use diesel::prelude::*;
use pq_diesel::{CancellationToken, Pq, Queue};

use self::chaos::Chaos;
use self::fate::Fate;
use self::place::Place;
use self::report::{Harm, Report, Toll};
pub(crate) use self::worker::work;
use self::workers::{Held, Workers};
use super::examples;
use crate::failure::Failure;
use crate::global::Global;
use crate::output;
use crate::signals::stop_on_signals;

/// The queue of the demo's jobs. A job is a file's path below the folder.
const QUEUE: &str = "files";

/// How often the parent looks at how far its workers are.
const LOOK: Duration = Duration::from_millis(20);

/// See the queue work: a job for every file of a folder, a worker killed half way, nothing lost.
///
/// Runs on a private PostgreSQL server in a temporary directory, started from the PostgreSQL programs on this machine,
/// or in the database of --database-url. It removes everything at the end.
#[derive(Debug, clap::Args)]
#[command(after_help = examples("pq demo --jobs-from ~/project --workers 8\npq demo --chaos"))]
pub(crate) struct Demo {
    /// The folder whose files become jobs; what git ignores is passed over.
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub(crate) jobs_from: PathBuf,
    /// How many worker processes.
    #[arg(long, value_name = "N", default_value = "4")]
    pub(crate) workers: NonZeroUsize,
    /// All the way through, kill workers and start others, and terminate the backends of those that run.
    #[arg(long)]
    pub(crate) chaos: bool,
    /// What the chaos is drawn from, to draw the same again; the table shows it. When each blow falls
    /// depends on how fast the workers are as well.
    #[arg(long, value_name = "N", requires = "chaos")]
    pub(crate) seed: Option<u64>,
}

impl Demo {
    pub(crate) fn run(&self, global: &Global) -> Result<ExitCode, Failure> {
        let stop = stop_on_signals()?;
        let folder = self.jobs_from.canonicalize().map_err(|error| {
            Failure::Io(format!("the folder {} cannot be read: {error}", self.jobs_from.display()))
        })?;
        let files = files::below(&folder)?;
        if files.is_empty() {
            return Err(Failure::Usage(format!("there is no file below {}", folder.display())));
        }
        // Dropped last: the server or the schema goes when everybody has left it.
        let place = Place::prepare(global)?;
        output::tell(&format!("PostgreSQL: {}", place.origin()));
        let pq = place.connect()?;
        let queue = pq.queue::<String>(QUEUE)?;
        let mut chaos = self.chaos.then(|| Chaos::new(self.seed));
        let fates = match &mut chaos {
            Some(chaos) => chaos.fates(&files),
            // With one worker alone nobody would be left to take over.
            None if self.workers.get() == 1 => Vec::new(),
            None => vec![(files[files.len() / 2].as_str(), Fate::Killed)],
        };
        queue.transaction(|conn| {
            place.enter(conn)?;
            report::note_files(conn, &files)?;
            fate::note(conn, &fates)?;
            queue.on(conn).put_many(&files)?;
            Ok::<_, Failure>(())
        })?;
        output::tell(&format!("{} jobs put, one for every file below {}", files.len(), folder.display()));

        let began = Instant::now();
        let workers = Workers::start(&place, &folder, self.workers.get())?;
        let mut watch = Watch { place: &place, pq: &pq, queue: &queue, workers, chaos, stop: &stop };
        watch.until_done(files.len(), self.workers.get())?;
        let elapsed = began.elapsed();
        let Watch { mut workers, chaos, .. } = watch;
        workers.finish();

        let report = queue.transaction(|conn| {
            place.enter(conn)?;
            Report::count(conn)
        })?;
        let harm = chaos.map(|chaos| Harm { terminated: chaos.terminated(), seed: chaos.seed() });
        let toll = Toll { started: workers.started(), killed: workers.killed(), chaos: harm };
        let table = report.table(elapsed, &toll, place.origin());
        output::print_lines([table.as_str()])
            .map_err(|error| Failure::Io(format!("the table cannot be written: {error}")))?;
        if report.is_clean() {
            Ok(ExitCode::SUCCESS)
        } else {
            Err(Failure::Demo("jobs were lost or done twice".to_owned()))
        }
    }
}

/// The parent's part while the workers work.
struct Watch<'w> {
    place: &'w Place,
    pq: &'w Pq,
    queue: &'w Queue<String>,
    workers: Workers,
    chaos: Option<Chaos>,
    stop: &'w CancellationToken,
}

impl Watch<'_> {
    /// Looks on until no job is left, and deals their fates to the workers.
    fn until_done(&mut self, jobs: usize, count: usize) -> Result<(), Failure> {
        let bar = output::progress(jobs as u64, "{wide_bar} {pos}/{len} files, {per_sec}, {eta} left{msg}");
        loop {
            if self.stop.is_cancelled() {
                return Err(pq_core::Error::Stopped.into());
            }
            let done = self.queue.transaction(|conn| {
                self.place.enter(conn)?;
                report::demo_result::table.count().get_result::<i64>(conn).map_err(Failure::from)
            })?;
            bar.set_position(done.max(0).unsigned_abs());
            while let Some(held) = self.workers.next_that_holds() {
                let Some(what) = self.deal_with(&held)? else { continue };
                bar.suspend(|| {
                    output::tell(&format!(
                        "at {done} of {jobs}: {what}, after it wrote a result and before it committed"
                    ));
                });
            }
            if let Some(chaos) = &mut self.chaos {
                chaos.strike(done, &mut self.workers, self.pq, self.place)?;
                self.workers.fill_up(count)?;
                let (killed, terminated) = (self.workers.killed(), chaos.terminated());
                bar.set_message(format!(", {killed} killed, {terminated} terminated"));
            }
            // The queue says when to stop, and not the results: a job that was done twice would make up
            // for one that was lost.
            if self.queue.counts()?.live() == 0 {
                bar.finish_and_clear();
                return Ok(());
            }
            self.workers.check()?;
            std::thread::sleep(LOOK);
        }
    }

    /// Kills the worker that holds a job and waits for that, or terminates its backend, and says so.
    fn deal_with(&mut self, held: &Held) -> Result<Option<&'static str>, Failure> {
        Ok(match (held.backend, &mut self.chaos) {
            (Some(backend), Some(chaos)) => chaos
                .terminate(backend, self.pq, self.place)?
                .then_some("the backend of a worker was terminated"),
            _ => self.workers.kill_holder(held).then_some("a worker was killed with SIGKILL"),
        })
    }
}
