//! Reads what changes by itself at intervals, for live numbers and charts. All pages share the samples.
//!
//! Jobs are counted in one loop, and workers and counters are read in another. So slow counts take nothing else along.

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use pq_diesel::admin::{TaskCounters, WorkerInfo};
use pq_diesel::metrics::QueueGauges;
use pq_diesel::store::{Connect, Counting, Workers};
use pq_diesel::{Error, LimitedQueue};
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};

use crate::chart::Course;
use crate::database::{Database, Unread, is_slow};

/// The time between two samples while somebody watches, and while nobody does.
const WATCHED: Duration = Duration::from_secs(2);
const UNWATCHED: Duration = Duration::from_secs(10);

/// The pause after a sample is at least this many times as long as it or the one before took, also if a request wants
/// a new one. So samples of both kinds together cost the database less than 1 % of the time, and a single slow
/// sample, which may only have been held up, causes no long pause.
const PAUSE_FACTOR: u32 = 250;

/// The longest such pause.
const MAX_PAUSE: Duration = Duration::from_secs(300);

/// The least pause, also after an error, which costs the database nothing.
const MIN_PAUSE: Duration = Duration::from_millis(500);

/// A page waits for a sample that begins within this time, and shows an older one otherwise.
const SOON: Duration = Duration::from_millis(900);

/// How long the counts of a sample may take. The library limits each of their three statements to 5 s.
const COUNT_TIMEOUT: Duration = Duration::from_secs(15);

/// Rates are measured over at least this time, because workers send what they have counted every two seconds.
const RATE_SECONDS: TimeDelta = TimeDelta::seconds(10);

/// A worker sends a heartbeat every two seconds. After this time without one it is shown as silent.
pub(crate) const SILENT_AFTER: Duration = Duration::from_secs(10);

/// The most queues of a sample, in the order of their names.
pub(crate) const MAX_QUEUES: usize = 500;

/// The jobs of all queues by state, at one time.
#[derive(Clone, Debug)]
pub(crate) struct Counts {
    /// The time by the server's clock.
    at: DateTime<Utc>,
    pub(crate) queues: Vec<QueueGauges>,
    /// The queues that have limits, as far as they could be read.
    limited: Vec<LimitedQueue>,
    pub(crate) waiting: Course,
    pub(crate) running: Course,
}

impl Counts {
    /// Returns the jobs of a queue.
    pub(crate) fn queue(&self, name: &str) -> Option<&QueueGauges> {
        self.queues.iter().find(|queue| queue.queue == name)
    }

    /// Returns how much of its limits a queue uses, if it has any.
    pub(crate) fn limited(&self, name: &str) -> Option<&LimitedQueue> {
        self.limited.iter().find(|limited| limited.queue.as_str() == name)
    }
}

/// What the workers do, at one time.
#[derive(Clone, Debug)]
pub(crate) struct Activity {
    /// The time by the server's clock.
    at: DateTime<Utc>,
    pub(crate) workers: Vec<WorkerInfo>,
    pub(crate) counters: Vec<TaskCounters>,
    rates: BTreeMap<String, Rates>,
    pub(crate) done: Course,
    pub(crate) failed: Course,
}

impl Activity {
    /// Returns what becomes of the jobs of a queue per second.
    pub(crate) fn rates(&self, queue: &str) -> Rates {
        self.rates.get(queue).copied().unwrap_or_default()
    }
}

/// What becomes of jobs per second, by the counters in the database.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Rates {
    /// Jobs that are completed.
    pub(crate) done: f64,
    /// Attempts that fail.
    pub(crate) failed: f64,
}

/// A sample that has a time.
pub(crate) trait Sample {
    fn at(&self) -> DateTime<Utc>;
}

impl Sample for Counts {
    fn at(&self) -> DateTime<Utc> {
        self.at
    }
}

impl Sample for Activity {
    fn at(&self) -> DateTime<Utc> {
        self.at
    }
}

/// The newest sample of a kind, and what became of the latest attempt to take one.
#[derive(Debug)]
pub(crate) struct Latest<T> {
    sample: Option<Arc<T>>,
    /// Why the latest attempt failed, if it did.
    pub(crate) failure: Option<Unread>,
    /// When the latest attempt began, and until when no other one begins.
    attempt: Option<(Instant, Instant)>,
}

impl<T> Default for Latest<T> {
    fn default() -> Self {
        Self { sample: None, failure: None, attempt: None }
    }
}

impl<T> Latest<T> {
    /// Returns the newest sample, which may be old if there is a failure.
    pub(crate) fn sample(&self) -> Result<&T, Unread> {
        self.sample.as_deref().ok_or_else(|| {
            let unfinished = || Unread("the database is still reading it; load this page again".to_owned());
            self.failure.clone().unwrap_or_else(unfinished)
        })
    }

    /// Returns whether no newer sample than this one begins until `soon` for a page that was requested at `asked`.
    fn is_newest(&self, asked: Instant, soon: Instant) -> bool {
        self.attempt.is_some_and(|(begun, again)| begun >= asked || again > soon)
    }
}

/// The newest samples.
#[derive(Clone, Debug, Default)]
pub(crate) struct Samples {
    pub(crate) counts: Arc<Latest<Counts>>,
    pub(crate) activity: Arc<Latest<Activity>>,
}

/// Starts with the first request, and ends with the dashboard.
pub(crate) struct Sampler {
    reads: Database,
    counts: Database,
    samples: Arc<watch::Sender<Samples>>,
    wanted: [Arc<Notify>; 2],
    started: AtomicBool,
}

impl Sampler {
    /// `counts` has a connection of its own, so that slow counts do not keep pages waiting.
    pub(crate) fn new(reads: Database, counts: Database) -> Self {
        let samples = Arc::new(watch::Sender::default());
        Self { reads, counts, samples, wanted: Default::default(), started: AtomicBool::new(false) }
    }

    /// Returns the samples as they come.
    pub(crate) fn watch(&self) -> watch::Receiver<Samples> {
        if !self.started.swap(true, Ordering::Relaxed) {
            let [counts, activity] = self.wanted.clone();
            let samples = Arc::downgrade(&self.samples);
            tokio::spawn(run(Counter::default(), self.counts.clone(), samples.clone(), counts));
            tokio::spawn(run(Observer::default(), self.reads.clone(), samples, activity));
        }
        self.samples.subscribe()
    }

    /// Returns new samples. All who ask at the same time share them.
    ///
    /// Returns older ones if the pause after them has not passed, or if the database does not answer soon.
    pub(crate) async fn samples(&self) -> Samples {
        let asked = Instant::now();
        let limit = self.reads.statement_timeout();
        let soon = asked + limit.min(SOON);
        let mut watching = self.watch();
        self.wanted.iter().for_each(|wanted| wanted.notify_one());
        let are_newest = |samples: &Samples| {
            samples.counts.is_newest(asked, soon) && samples.activity.is_newest(asked, soon)
        };
        // An error means that the older ones are shown, with their times.
        let _ = timeout(limit, watching.wait_for(are_newest)).await;
        watching.borrow().clone()
    }
}

/// Takes samples of one kind.
trait Reader: Send + 'static {
    type Sample: Send + Sync + 'static;
    /// Why there is no sample if the database needs too long.
    const SLOW: &str;

    /// Takes a sample, and returns it with the time that the database needed. Returns no sample if that was too long.
    fn read(
        &mut self,
        database: &Database,
    ) -> impl Future<Output = Result<(Option<Self::Sample>, Duration), Unread>> + Send;

    /// Returns the place of this kind.
    fn place(samples: &mut Samples) -> &mut Arc<Latest<Self::Sample>>;
}

async fn run<R: Reader>(
    mut reader: R,
    database: Database,
    samples: Weak<watch::Sender<Samples>>,
    wanted: Arc<Notify>,
) {
    let mut took_before = Duration::ZERO;
    loop {
        let begun = Instant::now();
        let (sample, failure, took) = match reader.read(&database).await {
            Ok((Some(sample), took)) => (Some(Arc::new(sample)), None, took),
            Ok((None, took)) => (None, Some(Unread(R::SLOW.to_owned())), took),
            Err(unread) => (None, Some(unread), Duration::ZERO),
        };
        let pause = (took.min(took_before) * PAUSE_FACTOR).clamp(MIN_PAUSE, MAX_PAUSE);
        took_before = took;
        let Some(sender) = samples.upgrade() else { return };
        sender.send_modify(|samples| {
            let latest = R::place(samples);
            let sample = sample.or_else(|| latest.sample.clone());
            *latest = Arc::new(Latest { sample, failure, attempt: Some((begun, Instant::now() + pause)) });
        });
        let usual = if sender.receiver_count() > 0 { WATCHED } else { UNWATCHED };
        drop(sender);
        sleep(pause).await;
        // An error means that the usual time has passed without a request.
        let _ = timeout(usual.saturating_sub(begun.elapsed()), wanted.notified()).await;
    }
}

/// Counts the jobs.
#[derive(Default)]
struct Counter {
    waiting: Course,
    running: Course,
}

impl Reader for Counter {
    type Sample = Counts;
    const SLOW: &str =
        "the jobs could not be counted within 5 s; the page Health says what keeps dead tuples";

    async fn read(&mut self, database: &Database) -> Result<(Option<Counts>, Duration), Unread> {
        let (measured, took) = database.run(COUNT_TIMEOUT, |pq| timed(|| pq.metrics(MAX_QUEUES))).await?;
        let (at, limited) = (measured.at, measured.limited.unwrap_or_default());
        let Some(queues) = measured.queues else { return Ok((None, took)) };
        let sum = |count: fn(&QueueGauges) -> u64| queues.iter().map(count).sum::<u64>() as f64;
        self.waiting.add(at, sum(|queue| queue.ready + queue.blocked + queue.scheduled));
        self.running.add(at, sum(|queue| queue.running));
        let (waiting, running) = (self.waiting.clone(), self.running.clone());
        Ok((Some(Counts { at, queues, limited, waiting, running }), took))
    }

    fn place(samples: &mut Samples) -> &mut Arc<Latest<Counts>> {
        &mut samples.counts
    }
}

/// Reads workers and counters.
#[derive(Default)]
struct Observer {
    /// Completed jobs and failed attempts of each queue, at some times before.
    totals: VecDeque<(DateTime<Utc>, Totals)>,
    done: Course,
    failed: Course,
}

type Totals = BTreeMap<String, [u64; 2]>;

impl Reader for Observer {
    type Sample = Activity;
    const SLOW: &str = "the database needs too long to read the workers and the counters";

    async fn read(&mut self, database: &Database) -> Result<(Option<Activity>, Duration), Unread> {
        let reads = database.clone();
        let read = move || {
            reads.read_here(|pq, conn| {
                let store = pq.store();
                Ok((store.now(conn)?, store.workers(conn)?, store.counted(conn)?))
            })
        };
        let unless_slow = move || match read() {
            Err(error) if is_slow(&error) => Ok(None),
            read => read.map(Some),
        };
        let (read, took) = database.run(database.statement_timeout(), move |_| timed(unless_slow)).await?;
        let Some((at, workers, counters)) = read else { return Ok((None, took)) };
        let rates = self.rates(at, &workers, totals(&counters));
        let sum = |rate: fn(&Rates) -> f64| rates.values().map(rate).fold(0.0, |sum, rate| sum + rate);
        self.done.add(at, sum(|rates| rates.done));
        self.failed.add(at, sum(|rates| rates.failed));
        let (done, failed) = (self.done.clone(), self.failed.clone());
        Ok((Some(Activity { at, workers, counters, rates, done, failed }), took))
    }

    fn place(samples: &mut Samples) -> &mut Arc<Latest<Activity>> {
        &mut samples.activity
    }
}

impl Observer {
    /// Returns the rates since a sample that is some seconds old. For the first sample, those that workers report.
    fn rates(&mut self, at: DateTime<Utc>, workers: &[WorkerInfo], new: Totals) -> BTreeMap<String, Rates> {
        while self.totals.get(1).is_some_and(|(second, _)| at - *second >= RATE_SECONDS) {
            self.totals.pop_front();
        }
        let rates = match self.totals.front().filter(|(since, _)| *since < at) {
            Some((since, old)) => {
                let seconds = (at - *since).as_seconds_f64();
                let rate = |queue: &str, new: [u64; 2]| {
                    let old = old.get(queue).copied().unwrap_or_default();
                    let [done, failed] =
                        [0, 1].map(|kind| new[kind].saturating_sub(old[kind]) as f64 / seconds);
                    Rates { done, failed }
                };
                new.iter().map(|(queue, new)| (queue.clone(), rate(queue, *new))).collect()
            }
            None => reported(workers),
        };
        self.totals.push_back((at, new));
        rates
    }
}

/// Returns the rates that live workers report.
fn reported(workers: &[WorkerInfo]) -> BTreeMap<String, Rates> {
    let live = workers.iter().filter(|worker| worker.heartbeat_age < SILENT_AFTER);
    let mut rates = BTreeMap::<String, Rates>::new();
    for (queue, rate) in live.flat_map(|worker| &worker.status.rates) {
        rates.entry(queue.clone()).or_default().done += rate;
    }
    rates
}

fn totals(counters: &[TaskCounters]) -> Totals {
    let mut totals = Totals::new();
    for TaskCounters { queue, counters, .. } in counters {
        let [done, failed] = totals.entry(queue.to_string()).or_default();
        *done += counters.done;
        *failed += counters.failed;
    }
    totals
}

/// Returns the result of a call of the database, and how long it took.
fn timed<T>(call: impl FnOnce() -> Result<T, Error>) -> Result<(T, Duration), Error> {
    let begun = Instant::now();
    call().map(|done| (done, begun.elapsed()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(seconds, 0).expect("a time")
    }

    fn mail(done: u64, failed: u64) -> Totals {
        Totals::from([("mail".to_owned(), [done, failed])])
    }

    #[test]
    fn rates_are_differences_of_the_counters_over_some_seconds() {
        let mut observer = Observer::default();
        assert!(observer.rates(at(0), &[], mail(1_000, 5)).is_empty(), "there is nothing to compare with");
        let rates = |done, failed| BTreeMap::from([("mail".to_owned(), Rates { done, failed })]);
        assert_eq!(observer.rates(at(4), &[], mail(1_040, 5)), rates(10.0, 0.0));
        assert_eq!(observer.rates(at(8), &[], mail(1_040, 6)), rates(5.0, 0.125));
        assert_eq!(observer.rates(at(12), &[], mail(1_040, 6)), rates(40.0 / 12.0, 1.0 / 12.0));
        // The first sample is older than needed, and the second one is old enough.
        assert_eq!(observer.rates(at(16), &[], mail(1_064, 6)), rates(2.0, 1.0 / 12.0));
        // The tables were made again.
        assert_eq!(observer.rates(at(18), &[], mail(0, 0)), rates(0.0, 0.0));
    }

    #[test]
    fn a_page_waits_for_no_sample_that_begins_too_late() {
        let now = Instant::now();
        let soon = now + Duration::from_millis(900);
        let is_newest = |begun, again| {
            let attempt = Some((begun, again));
            Latest::<Counts> { attempt, ..Latest::default() }.is_newest(now, soon)
        };
        let old = now.checked_sub(Duration::from_secs(1)).unwrap_or(now);
        assert!(is_newest(now, now), "it began after the request");
        assert!(is_newest(old, now + Duration::from_secs(1)), "its pause lasts too long");
        assert!(!is_newest(old, now), "the next one begins at once");
        assert!(!Latest::<Counts>::default().is_newest(now, soon), "there is none yet");
    }
}
