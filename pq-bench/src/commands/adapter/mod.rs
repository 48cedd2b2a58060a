//! `pq-bench adapter`: our part in a public harness that compares queues on PostgreSQL.
//!
//! The harness starts it as a process, says in the environment what is to be put and worked, and reads lines of JSON
//! until it sends SIGTERM. See `docs/harness.md`.

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

/// How long handlers may go on after the end. What is left is given back then: the harness waits five seconds.
const GRACE: Duration = Duration::from_secs(2);

/// How often it is observed how many jobs there are.
const OBSERVE: Duration = Duration::from_millis(250);

#[derive(clap::Args)]
pub(crate) struct Arguments {}

/// What the threads of a run share.
struct Run {
    settings: Settings,
    pq: Pq,
    queues: Vec<Queue<Work>>,
    figures: Arc<Figures>,
    /// Whether the last observation was one.
    is_observed: AtomicBool,
    shutdown: Arc<Shutdown>,
}

pub(crate) fn run(_: &Arguments) -> Result<()> {
    let settings = Settings::from_env()?;
    // Caught before there is anything that could be left half done.
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
        // The worker has one connection more than threads; producer, load group and observer have one each.
        let connections = u32::try_from(settings.workers + 4)?;
        let pq = Pq::builder().url(&settings.database_url).pool_size(connections).connect();
        let pq = pq.context("DATABASE_URL names no database that can be used")?;
        pq.migrate().context("the table cannot be made in the database of DATABASE_URL")?;
        let name = |number| if number == 0 { "bench".to_owned() } else { format!("bench_{number}") };
        let queues: Result<_, _> = (0..settings.queues).map(|number| pq.queue(name(number))).collect();
        let figures = Arc::new(Figures::new(settings.sample_every)?);
        Ok(Self { settings, pq, queues: queues?, figures, is_observed: AtomicBool::new(false), shutdown })
    }

    /// The database, and the version of what is in it.
    fn names(&self) -> Result<(String, String)> {
        let sql = "SELECT current_database()::text, (SELECT max(version)::text FROM pq.queue_migrations)";
        let query = |conn: &mut PgConnection| diesel::dsl::sql::<(Text, Text)>(sql).get_result(conn);
        Ok(self.pq.transaction(|conn| query(conn).map_err(Error::from))?)
    }

    /// Runs all threads until the end, and tells what they did.
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
        // Whoever reads the last depth may add it to what was completed. A server that is gone is not waited for.
        if self.is_observed.load(Ordering::Relaxed) && self.settings.observes() {
            self.update_depth();
        }
        sampler.rest()?;
        Ok(report)
    }

    /// Observes how many jobs there are, until the end, and is busy with that for a small part of the time.
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
            Err(error) => eprintln!("the jobs cannot be counted: {error}"),
        }
    }

    /// One statement, however many queues there are.
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

/// Lets the handlers that run end, and tells those that take too long to give their jobs back.
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
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).context("signals cannot be handled")?;
    let shutdown = Arc::clone(shutdown);
    std::thread::spawn(move || {
        for _ in signals.forever() {
            shutdown.request();
        }
    });
    Ok(())
}
