//! Samples all queues at intervals, for live numbers and charts. All pages share the samples.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use pq_diesel::admin::WorkerInfo;
use pq_diesel::metrics::QueueGauges;
use pq_diesel::store::{Connect, Workers};
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use crate::database::{Database, Unread};

/// The pause between two samples while somebody watches, and while nobody does.
const WATCHED: Duration = Duration::from_secs(2);
const UNWATCHED: Duration = Duration::from_secs(10);

/// A pause is at least this many times as long as the sample took, so that samples cost at most 1 % of the time.
const PAUSE_FACTOR: u32 = 100;

/// The longest pause.
const MAX_PAUSE: Duration = Duration::from_secs(60);

/// The number of points of a chart.
const POINTS: usize = 150;

/// All queues and workers at one time.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    /// The time by the server's clock.
    pub(crate) at: DateTime<Utc>,
    pub(crate) queues: Vec<QueueGauges>,
    pub(crate) workers: Vec<WorkerInfo>,
}

impl Sample {
    /// Returns the jobs of a queue that ended per second, by the last heartbeats of its workers.
    pub(crate) fn per_second(&self, queue: &str) -> f64 {
        let live = self.workers.iter().filter(|worker| worker.heartbeat_age < SILENT_AFTER);
        live.filter_map(|worker| worker.status.rates.get(queue)).sum()
    }
}

/// A worker sends a heartbeat every two seconds. After this time without one it is shown as silent.
pub(crate) const SILENT_AFTER: Duration = Duration::from_secs(10);

/// The most queues of a sample, in the order of their names.
pub(crate) const MAX_QUEUES: usize = 500;

/// How long the counts of a sample may take. The library limits each of their statements to this time.
const COUNT_TIMEOUT: Duration = Duration::from_secs(5);

/// The totals of a sample, which charts show.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Point {
    pub(crate) at: DateTime<Utc>,
    pub(crate) waiting: u64,
    pub(crate) running: u64,
    pub(crate) per_second: f64,
}

/// The newest sample, or why there is none, and the points before it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Samples {
    /// When reading the newest sample began, and its result.
    pub(crate) newest: Option<(Instant, Result<Sample, Unread>)>,
    pub(crate) points: VecDeque<Point>,
}

impl Samples {
    /// Returns the newest sample.
    pub(crate) fn newest(&self) -> Result<&Sample, Unread> {
        match &self.newest {
            Some((_, Ok(sample))) => Ok(sample),
            Some((_, Err(unread))) => Err(unread.clone()),
            None => Err(Unread("the database does not answer".to_owned())),
        }
    }
}

/// Starts with the first request, and ends with the dashboard.
pub(crate) struct Sampler {
    reads: Database,
    samples: Arc<watch::Sender<Arc<Samples>>>,
    wanted: Arc<Notify>,
    started: AtomicBool,
}

impl Sampler {
    pub(crate) fn new(reads: Database) -> Self {
        let samples = Arc::new(watch::Sender::new(Arc::default()));
        Self { reads, samples, wanted: Arc::default(), started: AtomicBool::new(false) }
    }

    /// Returns the samples as they come.
    pub(crate) fn watch(&self) -> watch::Receiver<Arc<Samples>> {
        if !self.started.swap(true, Ordering::Relaxed) {
            let task = run(self.reads.clone(), Arc::downgrade(&self.samples), Arc::clone(&self.wanted));
            tokio::spawn(task);
        }
        self.samples.subscribe()
    }

    /// Takes a sample and returns it with the points before it. All who ask at the same time share one.
    ///
    /// Returns an older sample if the database does not answer soon.
    pub(crate) async fn samples(&self) -> Arc<Samples> {
        let asked = Instant::now();
        let mut watching = self.watch();
        self.wanted.notify_one();
        let is_new =
            |samples: &Arc<Samples>| samples.newest.as_ref().is_some_and(|(begun, _)| *begun >= asked);
        // If none comes in time, the older one is shown with its time.
        let _ = timeout(self.reads.statement_timeout(), watching.wait_for(is_new)).await;
        Arc::clone(&watching.borrow())
    }
}

async fn run(reads: Database, samples: Weak<watch::Sender<Arc<Samples>>>, wanted: Arc<Notify>) {
    loop {
        let begun = Instant::now();
        let newest = sample(&reads).await;
        let took = begun.elapsed();
        let Some(sender) = samples.upgrade() else { return };
        sender.send_modify(|samples| {
            let mut points = samples.points.clone();
            if let Ok(sample) = &newest {
                points.push_back(point(sample));
                while points.len() > POINTS {
                    points.pop_front();
                }
            }
            *samples = Arc::new(Samples { newest: Some((begun, newest)), points });
        });
        let least = if sender.receiver_count() > 0 { WATCHED } else { UNWATCHED };
        drop(sender);
        // An error means that the pause has passed.
        let _ = timeout(least.max(took * PAUSE_FACTOR).min(MAX_PAUSE), wanted.notified()).await;
    }
}

async fn sample(database: &Database) -> Result<Sample, Unread> {
    let counted = database.run(COUNT_TIMEOUT, |pq| Ok(pq.metrics(MAX_QUEUES)?.queues)).await?;
    let queues = counted.ok_or_else(|| {
        Unread(
            "the jobs could not be counted within 5 s; the page Health says what keeps dead tuples"
                .to_owned(),
        )
    })?;
    let read = database.read(|pq, conn| Ok((pq.store().now(conn)?, pq.store().workers(conn)?)));
    let (at, workers) = read.await?;
    Ok(Sample { at, queues, workers })
}

fn point(sample: &Sample) -> Point {
    let sum = |count: fn(&QueueGauges) -> u64| sample.queues.iter().map(count).sum();
    Point {
        at: sample.at,
        waiting: sum(|queue| queue.ready + queue.blocked + queue.scheduled),
        running: sum(|queue| queue.running),
        per_second: sample.queues.iter().map(|queue| sample.per_second(&queue.queue)).sum(),
    }
}
