//! `pq-bench adapter`: an adapter for a public harness that compares queues on PostgreSQL.
//!
//! The harness starts it as a process, configures it by environment variables, and reads lines of JSON until it
//! sends SIGTERM. See `docs/harness.md`.

mod consumer;
mod controls;
mod figures;
mod lines;
mod load_group;
mod producer;
mod sampler;
mod settings;
mod shutdown;
mod work;

use std::io::stdout;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use diesel::prelude::*;
use diesel::sql_types::Text;
use pq_diesel::{Control, Error, Pq, Queue, Report, StopMode};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use self::figures::{Depth, Figures};
use self::lines::{Lines, Manifest};
use self::producer::Producer;
use self::sampler::Sampler;
use self::settings::Settings;
use self::shutdown::{Shutdown, ShutdownOnDrop};
use self::work::Work;

/// How long handlers may continue after the end. Then their jobs are given back, because the harness waits five
/// seconds.
const GRACE: Duration = Duration::from_secs(2);

/// Minimum interval between counts of the jobs.
const OBSERVE: Duration = Duration::from_millis(250);

#[derive(clap::Args)]
pub(crate) struct Arguments {}

/// State that the threads of a run share.
struct Run {
    settings: Settings,
    pq: Pq,
    queues: Vec<Queue<Work>>,
    figures: Arc<Figures>,
    /// Whether the last count of the jobs succeeded.
    is_observed: AtomicBool,
    shutdown: Arc<Shutdown>,
}

pub(crate) fn run(_: &Arguments) -> Result<()> {
    let settings = Settings::from_env()?;
    // Signals are handled before any work that they could interrupt.
    let shutdown = Arc::new(Shutdown::default());
    shut_down_on_signals(&shutdown)?;
    let run = Run::start(settings, shutdown)?;
    let mut lines =
        Lines { to: stdout().lock(), manifest: Manifest::read()?, instance: run.settings.instance };
    let (database, version) = run.names()?;
    lines.describe(&database, &version)?;
    let report = run.all(Sampler::new(&run, lines))?;
    eprintln!(
        "put {} jobs, completed {}, given back {}",
        run.figures.put.get() + run.figures.load_group.put.get(),
        report.done,
        report.given_back + report.snoozed,
    );
    Ok(())
}

impl Run {
    fn start(settings: Settings, shutdown: Arc<Shutdown>) -> Result<Self> {
        // The worker needs one connection more than threads. Producer, load group and observer need one each.
        let connections = u32::try_from(settings.workers + 4)?;
        let pq = Pq::builder().url(&settings.database_url).pool_size(connections).connect();
        let pq = pq.context("cannot connect to the database of DATABASE_URL")?;
        pq.migrate().context("cannot create the table in the database of DATABASE_URL")?;
        let name = |number| if number == 0 { "bench".to_owned() } else { format!("bench_{number}") };
        let queues: Result<_, _> = (0..settings.queues).map(|number| pq.queue(name(number))).collect();
        let figures = Arc::new(Figures::new(settings.sample_every)?);
        Ok(Self { settings, pq, queues: queues?, figures, is_observed: AtomicBool::new(false), shutdown })
    }

    /// Returns the database's name and the schema version.
    fn names(&self) -> Result<(String, String)> {
        let sql = "SELECT current_database()::text, (SELECT max(version)::text FROM pq.queue_migrations)";
        let query = |conn: &mut PgConnection| diesel::dsl::sql::<(Text, Text)>(sql).get_result(conn);
        Ok(self.pq.transaction(|conn| query(conn).map_err(Error::from))?)
    }

    /// Runs all threads until shutdown, and returns the worker's report.
    fn all(&self, mut sampler: Sampler<'_, impl std::io::Write>) -> Result<Report> {
        let worker = consumer::worker(self);
        let control = worker.control();
        let producer = Producer::new(self)?;
        let report = std::thread::scope(|scope| {
            let working = scope.spawn(|| {
                let _guard = ShutdownOnDrop(&self.shutdown);
                consumer::run(self, worker)
            });
            let mut others = vec![scope.spawn(|| {
                let _guard = ShutdownOnDrop(&self.shutdown);
                producer.run();
            })];
            if self.settings.observes() {
                others.push(scope.spawn(|| {
                    let _guard = ShutdownOnDrop(&self.shutdown);
                    self.observe();
                }));
                if self.settings.schedule_file.is_some() {
                    others.push(scope.spawn(|| {
                        let _guard = ShutdownOnDrop(&self.shutdown);
                        load_group::run(self);
                    }));
                }
            }
            let sampled = sampler.run();
            self.shutdown.request();
            for other in others {
                other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            }
            stop(&control, || working.is_finished());
            let report = working.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            sampled.and_then(|()| Ok(report?))
        })?;
        // The last depth is counted after the worker has stopped, so that it adds up with the completions. It is
        // skipped if the last count failed, because the server may be gone.
        if self.is_observed.load(Ordering::Relaxed) && self.settings.observes() {
            self.update_depth();
        }
        sampler.rest()?;
        Ok(report)
    }

    /// Counts the jobs repeatedly, for at most a tenth of the time.
    fn observe(&self) {
        let mut took = Duration::ZERO;
        while !self.shutdown.sleep(OBSERVE.max(took * 10)) {
            let begun = Instant::now();
            self.update_depth();
            took = begun.elapsed();
        }
    }

    fn update_depth(&self) {
        let polled = self.depth();
        self.is_observed.store(polled.is_ok(), Ordering::Relaxed);
        match polled {
            Ok(depth) => self.figures.observed(depth),
            Err(error) => eprintln!("cannot count the jobs: {error}"),
        }
    }

    /// Counts the jobs of all queues with one statement.
    fn depth(&self) -> Result<Depth, Error> {
        if let [queue] = self.queues.as_slice() {
            let counts = queue.counts()?;
            return Ok(Depth { ready: counts.due(), running: counts.running, scheduled: counts.scheduled });
        }
        let mut all = Depth::default();
        for queue in self.pq.overview()? {
            all.ready += queue.ready + queue.blocked;
            all.running += queue.running;
            all.scheduled += queue.scheduled;
        }
        Ok(all)
    }
}

/// Stops the worker; aborts handlers that run longer than the grace period.
fn stop(control: &Control, is_finished: impl Fn() -> bool) {
    control.stop(StopMode::Finish);
    let begun = Instant::now();
    while !is_finished() {
        if begun.elapsed() > GRACE {
            control.stop(StopMode::Abort);
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn shut_down_on_signals(shutdown: &Arc<Shutdown>) -> Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).context("cannot handle signals")?;
    let shutdown = Arc::clone(shutdown);
    std::thread::spawn(move || {
        for _ in signals.forever() {
            shutdown.request();
        }
    });
    Ok(())
}
