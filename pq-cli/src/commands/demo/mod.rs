//! `pq demo`: a job for every file of a folder, worked by several processes, one of which is killed.

mod files;
mod place;
mod report;
mod workers;

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use diesel::prelude::*;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use pq_diesel::{Queue, Stop};

use self::place::Place;
use self::report::Report;
use self::workers::Workers;
pub(crate) use self::workers::work;
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
/// Runs on a private PostgreSQL in a temporary directory, from the server's binaries on this
/// machine or in a container, or on the database of --database-url, and leaves nothing behind.
#[derive(Debug, clap::Args)]
#[command(after_help = examples("pq demo --jobs-from ~/project --workers 8"))]
pub(crate) struct Demo {
    /// The folder whose files become jobs; what git ignores is passed over.
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub(crate) jobs_from: PathBuf,
    /// How many worker processes.
    #[arg(long, value_name = "N", default_value = "4")]
    pub(crate) workers: NonZeroUsize,
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
        queue.transaction(|conn| {
            place.enter(conn)?;
            report::note_files(conn, &files)?;
            queue.on(conn).put_many(&files)?;
            Ok::<_, Failure>(())
        })?;
        output::tell(&format!("{} jobs put, one for every file below {}", files.len(), folder.display()));

        let began = Instant::now();
        let mut workers = Workers::start(&place, &folder, self.workers.get(), &files[files.len() / 2])?;
        watch(&place, &queue, &mut workers, files.len(), &stop)?;
        let elapsed = began.elapsed();
        workers.finish();

        let report = queue.transaction(|conn| {
            place.enter(conn)?;
            Report::count(conn)
        })?;
        let table = report.table(elapsed, workers.started(), workers.killed(), place.origin());
        output::print_lines([table.as_str()])
            .map_err(|error| Failure::Io(format!("the table cannot be written: {error}")))?;
        if report.is_clean() {
            Ok(ExitCode::SUCCESS)
        } else {
            Err(Failure::Demo("jobs were lost or done twice".to_owned()))
        }
    }
}

/// Looks on until no job is left, and kills the worker that stops in the middle of one.
fn watch(
    place: &Place,
    queue: &Queue<String>,
    workers: &mut Workers,
    jobs: usize,
    stop: &Stop,
) -> Result<(), Failure> {
    let bar = progress(jobs as u64);
    loop {
        if stop.is_stopped() {
            return Err(pq_core::Error::Stopped.into());
        }
        let done = queue.transaction(|conn| {
            place.enter(conn)?;
            report::demo_result::table.count().get_result::<i64>(conn).map_err(Failure::from)
        })?;
        bar.set_position(done.max(0).unsigned_abs());
        if workers.kill_the_one_that_holds() {
            bar.suspend(|| {
                output::tell(&format!(
                    "at {done} of {jobs}: a worker was killed with SIGKILL, after it wrote a result and \
                     before it committed"
                ));
            });
        }
        // The queue says when to stop, and not the results: a job that was done twice would make up
        // for one that was lost.
        if queue.counts()?.live() == 0 {
            bar.finish_and_clear();
            return Ok(());
        }
        workers.check()?;
        std::thread::sleep(LOOK);
    }
}

fn progress(jobs: u64) -> ProgressBar {
    // Nothing is drawn where standard error is not a terminal.
    let bar = ProgressBar::with_draw_target(Some(jobs), ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template("{wide_bar} {pos}/{len} files, {per_sec}, {eta} left") {
        bar.set_style(style);
    }
    bar
}
