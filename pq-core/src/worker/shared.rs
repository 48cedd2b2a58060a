//! What the threads of a worker share.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::middleware::Middleware;
use super::queue_set::QueueSet;
use super::status::{Report, Running, Status, StopMode};
use super::{Settings, Until};
use crate::{CancellationToken, JobId, Outcome, Pq, QueueName, RawJob, Store, WakeSignal};

/// What the worker is told, and what it tells, while it runs and before.
#[derive(Default)]
pub(crate) struct Signals {
    level: AtomicU8,
    /// Ends the waits of threads and of the keeper.
    pub(crate) stop: CancellationToken,
    pub(crate) totals: Totals,
    /// What each thread runs, once there are threads. Each has a lock of its own: it is taken twice a job.
    running: OnceLock<Vec<Mutex<Option<Started>>>>,
    /// How many jobs had ended at moments of the last seconds.
    ended: Mutex<VecDeque<(Instant, BTreeMap<QueueName, u64>)>>,
}

/// A handler that runs.
#[derive(Clone)]
pub(crate) struct Started {
    pub(crate) id: JobId,
    pub(crate) queue: QueueName,
    pub(crate) task: Option<String>,
    pub(crate) attempt: i32,
    pub(crate) lease: Option<i64>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) at: Instant,
}

impl Signals {
    pub(crate) fn stop(&self, mode: StopMode) {
        self.level.fetch_max(mode as u8, Ordering::SeqCst);
        self.stop.cancel();
    }

    pub(crate) fn mode(&self) -> Option<StopMode> {
        match self.level.load(Ordering::SeqCst) {
            0 => None,
            1 => Some(StopMode::Drain),
            2 => Some(StopMode::Finish),
            _ => Some(StopMode::Abort),
        }
    }

    /// Whether nothing new is to be begun.
    pub(crate) fn is_ending(&self) -> bool {
        self.mode() >= Some(StopMode::Finish)
    }

    pub(crate) fn started(&self, thread: usize, job: Started) {
        if let Some(running) = self.threads().get(thread) {
            *lock(running) = Some(job);
        }
    }

    pub(crate) fn ended(&self, thread: usize) {
        if let Some(running) = self.threads().get(thread) {
            *lock(running) = None;
        }
    }

    pub(crate) fn all_started(&self) -> Vec<(usize, Started)> {
        let started =
            |(thread, running): (usize, &Mutex<Option<Started>>)| Some((thread, lock(running).clone()?));
        self.threads().iter().enumerate().filter_map(started).collect()
    }

    fn threads(&self) -> &[Mutex<Option<Started>>] {
        self.running.get().map_or(&[], Vec::as_slice)
    }

    pub(crate) fn running(&self) -> Vec<Running> {
        let mut running: Vec<Running> = self
            .all_started()
            .into_iter()
            .map(|(_, started)| Running {
                id: started.id,
                queue: started.queue.to_string(),
                task: started.task,
                attempt: started.attempt,
                age: started.at.elapsed(),
            })
            .collect();
        running.sort_by_key(|running| running.id);
        running
    }

    /// Notes how many jobs have ended by now, and forgets what is older than ten seconds.
    pub(crate) fn sample(&self) {
        let mut samples = lock(&self.ended);
        samples.push_back((Instant::now(), lock(&self.totals.ended).clone()));
        while samples.len() > 1 && samples[0].0.elapsed() > Duration::from_secs(10) {
            samples.pop_front();
        }
    }

    /// Jobs a second that ended, by queue, over the last ten seconds or since the worker began.
    fn rates(&self) -> BTreeMap<String, f64> {
        let samples = lock(&self.ended);
        let Some((since, before)) = samples.front() else { return BTreeMap::new() };
        let seconds = since.elapsed().as_secs_f64().max(0.001);
        let rate = |(queue, ended): (&QueueName, &u64)| {
            let ended = ended.saturating_sub(before.get(queue).copied().unwrap_or_default());
            (queue.to_string(), ended as f64 / seconds)
        };
        lock(&self.totals.ended).iter().map(rate).collect()
    }

    /// What the worker does, as far as it knows itself.
    pub(crate) fn status(&self) -> Status {
        let rates = self.rates();
        Status {
            stopping: self.mode(),
            waiting: None,
            buffered: self.totals.buffered.load(Ordering::Relaxed),
            running: self.running(),
            report: self.totals.report(),
            // The sum of nothing is a negative zero.
            per_second: rates.values().sum::<f64>() + 0.0,
            rates,
        }
    }
}

/// What was done so far.
#[derive(Default)]
pub(crate) struct Totals {
    done: AtomicU64,
    failed: AtomicU64,
    dead: AtomicU64,
    cancelled: AtomicU64,
    snoozed: AtomicU64,
    given_back: AtomicU64,
    lost: AtomicU64,
    pub(crate) buffered: AtomicU64,
    /// Jobs that have ended, by queue.
    ended: Mutex<BTreeMap<QueueName, u64>>,
}

impl Totals {
    pub(crate) fn add(&self, counts: &Report) {
        let Report { done, failed, dead, cancelled, snoozed, given_back, lost } = *counts;
        for (total, more) in [
            (&self.done, done),
            (&self.failed, failed),
            (&self.dead, dead),
            (&self.cancelled, cancelled),
            (&self.snoozed, snoozed),
            (&self.given_back, given_back),
            (&self.lost, lost),
        ] {
            total.fetch_add(more, Ordering::Relaxed);
        }
    }

    pub(crate) fn report(&self) -> Report {
        let read = |total: &AtomicU64| total.load(Ordering::Relaxed);
        Report {
            done: read(&self.done),
            failed: read(&self.failed),
            dead: read(&self.dead),
            cancelled: read(&self.cancelled),
            snoozed: read(&self.snoozed),
            given_back: read(&self.given_back),
            lost: read(&self.lost),
        }
    }

    /// Counts what became of a queue's jobs.
    pub(crate) fn add_of(&self, queue: &QueueName, counts: &Report) {
        self.add(counts);
        let Report { done, failed, cancelled, snoozed, .. } = *counts;
        let mut ended = lock(&self.ended);
        match ended.get_mut(queue) {
            Some(ended) => *ended += done + failed + cancelled + snoozed,
            None => drop(ended.insert(queue.clone(), done + failed + cancelled + snoozed)),
        }
    }
}

impl Report {
    /// Counts an outcome. Whoever fails is retried or dead.
    pub(crate) fn count(&mut self, outcome: &Outcome) {
        match outcome {
            Outcome::Complete | Outcome::Keep { .. } => self.done += 1,
            Outcome::Retry { .. } => self.failed += 1,
            Outcome::Dead { .. } => {
                self.failed += 1;
                self.dead += 1;
            }
            Outcome::Snooze { .. } => self.snoozed += 1,
            Outcome::Cancel { .. } => self.cancelled += 1,
            Outcome::GiveBack => self.given_back += 1,
        }
    }
}

/// What a thread that works under a lease has in hand. The keeper settles what waits too long.
#[derive(Default)]
pub(crate) struct Slot {
    /// Taken, and not begun.
    pub(crate) buffer: Mutex<VecDeque<RawJob>>,
    /// Ended, and not settled.
    pub(crate) finished: Mutex<Vec<Finished>>,
}

/// A job with what is to become of it.
pub(crate) struct Finished {
    pub(crate) job: Arc<RawJob>,
    pub(crate) outcome: Outcome,
    pub(crate) at: Instant,
    /// Whether the handler has settled the job in a transaction of its own.
    pub(crate) settled: bool,
}

/// A lease that the worker holds.
pub(crate) struct LeaseState {
    /// How long it is extended for.
    pub(crate) length: Duration,
    pub(crate) extended: Instant,
    /// Whether it was over before it was extended: its jobs are anyone's.
    pub(crate) lost: bool,
    /// Jobs of it that somebody wants cancelled.
    pub(crate) cancel_requested: HashSet<JobId>,
}

/// What the threads of a running worker share.
pub(crate) struct Shared<S: Store> {
    pub(crate) pq: Pq<S>,
    pub(crate) queues: QueueSet<S>,
    pub(crate) settings: Settings,
    pub(crate) middleware: Vec<Arc<Middleware>>,
    pub(crate) signals: Arc<Signals>,
    pub(crate) until: Until,
    /// Jobs that may still be begun.
    left: AtomicI64,
    pub(crate) slots: Vec<Slot>,
    pub(crate) leases: Mutex<HashMap<i64, LeaseState>>,
    /// Held by the one thread that waits for all.
    pub(crate) leader: Mutex<()>,
    /// Wakes the keeper.
    pub(crate) maintenance: Arc<WakeSignal>,
    /// Whether the keeper sleeps as long as it does when there is no lease.
    pub(crate) maintenance_idle: AtomicBool,
    /// Whether the store has ever answered.
    pub(crate) reached: AtomicBool,
}

impl<S: Store> Shared<S> {
    pub(crate) fn new(
        pq: Pq<S>,
        queues: QueueSet<S>,
        settings: Settings,
        middleware: Vec<Arc<Middleware>>,
        signals: Arc<Signals>,
        until: Until,
    ) -> Arc<Self> {
        let left = match until {
            Until::Jobs(jobs) => i64::try_from(jobs).unwrap_or(i64::MAX),
            Until::Stopped | Until::Empty => i64::MAX,
        };
        signals.running.get_or_init(|| (0..settings.threads).map(|_| Mutex::default()).collect());
        Arc::new(Self {
            pq,
            queues: queues.ready(),
            slots: (0..settings.threads).map(|_| Slot::default()).collect(),
            settings,
            middleware,
            signals,
            until,
            left: AtomicI64::new(left),
            leases: Mutex::default(),
            leader: Mutex::default(),
            maintenance: WakeSignal::new(),
            maintenance_idle: AtomicBool::new(false),
            reached: AtomicBool::new(false),
        })
    }

    /// Reserves up to so many of the jobs that may still be begun.
    pub(crate) fn reserve(&self, wished: usize) -> usize {
        if !matches!(self.until, Until::Jobs(_)) {
            return wished;
        }
        let wished = i64::try_from(wished).unwrap_or(i64::MAX);
        let before = self.left.fetch_sub(wished, Ordering::SeqCst);
        let got = before.clamp(0, wished);
        self.left.fetch_add(wished - got, Ordering::SeqCst);
        usize::try_from(got).unwrap_or_default()
    }

    /// Gives back what was reserved and not begun.
    pub(crate) fn release(&self, jobs: usize) {
        if matches!(self.until, Until::Jobs(_)) {
            self.left.fetch_add(i64::try_from(jobs).unwrap_or_default(), Ordering::SeqCst);
        }
    }

    /// There is a lease to keep.
    pub(crate) fn wake_maintenance(&self) {
        if self.maintenance_idle.swap(false, Ordering::SeqCst) {
            self.maintenance.notify();
        }
    }

    pub(crate) fn slot(&self, thread: usize) -> &Slot {
        &self.slots[thread]
    }
}

/// No invariant spans a panic under these locks, so a poisoned one is as good as new.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
