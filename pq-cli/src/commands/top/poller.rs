//! Reads snapshots from the database in a thread of its own, so that a slow server does not delay key presses.

use std::collections::BTreeMap;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender, TryRecvError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use pq_diesel::admin::{QueueCounts, WorkerInfo};
use pq_diesel::store::{Connect, Limiting};
use pq_diesel::{Error, Filter, JobId, JobRecord, JobState, LimitedQueue, Pq, Progress, QueueName, Reason};

use super::action::Action;
use crate::failure::Failure;

/// Number of dead jobs in the view, the latest first.
pub(super) const DEAD_LIMIT: usize = 50;

/// Maximum pause between two attempts while the server is unreachable.
const MAX_PAUSE: Duration = Duration::from_secs(15);

/// Time to wait at the end for the current poll. libpq must not be in use when the process exits.
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// The result of one poll.
#[derive(Clone, Debug)]
pub(super) struct Snapshot {
    /// Time of the poll by the server's clock.
    pub(super) at: DateTime<Utc>,
    pub(super) queues: Vec<QueueCounts>,
    pub(super) workers: Vec<WorkerInfo>,
    pub(super) dead: DeadJobs,
    pub(super) stuck: Option<StuckJob>,
    /// The queue of which a job may be stuck, if it has limits.
    pub(super) limited: Option<Box<LimitedQueue>>,
    /// The progress of running jobs.
    pub(super) progress: BTreeMap<JobId, Progress>,
}

/// The latest dead jobs of one queue.
#[derive(Clone, Debug, Default)]
pub(super) struct DeadJobs {
    pub(super) of: Option<QueueName>,
    pub(super) jobs: Vec<JobRecord>,
}

/// The oldest due job of a queue in which nothing runs, and why it does not run.
#[derive(Clone, Debug)]
pub(super) struct StuckJob {
    pub(super) queue: QueueName,
    pub(super) id: JobId,
    pub(super) reasons: Vec<Reason>,
    /// The error of its last attempt.
    pub(super) error: Option<String>,
}

impl Snapshot {
    /// Reads queues and workers, and of the queues that `choose` returns the dead jobs, the stuck job and the use of
    /// the limits.
    pub(super) fn read(pq: &Pq, choose: impl FnOnce(&[QueueCounts]) -> Chosen) -> Result<Self, Error> {
        let queues = pq.overview()?;
        let Chosen { dead, stuck } = choose(&queues);
        let has_limits =
            |name: &&QueueName| queues.iter().any(|queue| queue.queue == **name && queue.limits.is_some());
        let limited = match stuck.as_ref().filter(has_limits) {
            Some(name) => {
                pq.store().with_connection(|conn| pq.store().limited(conn, Some(name)))?.pop().map(Box::new)
            }
            None => None,
        };
        let stuck = stuck.filter(|name| queues.iter().any(|queue| queue.queue == *name && is_stuck(queue)));
        let dead = DeadJobs::read(pq, dead)?;
        let stuck = stuck.map(|name| StuckJob::read(pq, name)).transpose()?.flatten();
        let workers = pq.workers()?;
        let running: Vec<JobId> =
            workers.iter().flat_map(|worker| &worker.status.running).map(|job| job.id).collect();
        let progress = pq.progress(&running)?.into_iter().map(|noted| (noted.id, noted.progress)).collect();
        Ok(Self { at: pq.now()?, queues, workers, dead, stuck, limited, progress })
    }
}

/// The queues of which a snapshot has jobs.
pub(super) struct Chosen {
    pub(super) dead: Option<QueueName>,
    pub(super) stuck: Option<QueueName>,
}

/// Returns whether a queue has due jobs and none of them runs.
pub(super) fn is_stuck(queue: &QueueCounts) -> bool {
    queue.ready + queue.blocked > 0 && queue.running == 0
}

impl DeadJobs {
    fn read(pq: &Pq, of: Option<QueueName>) -> Result<Self, Error> {
        let jobs = match &of {
            Some(name) => pq.queue::<()>(name.as_str())?.archived(JobState::Dead, None, DEAD_LIMIT)?,
            None => Vec::new(),
        };
        Ok(Self { of, jobs })
    }
}

impl StuckJob {
    /// Returns `None` if the queue has no due job any more.
    fn read(pq: &Pq, queue: QueueName) -> Result<Option<Self>, Error> {
        let due = Filter::queue(queue.as_str()).state(JobState::Ready).state(JobState::Blocked);
        let Some(job) = pq.list(&due, 1)?.pop() else { return Ok(None) };
        let reasons = pq.explain(job.id)?;
        Ok(Some(Self { queue, id: job.id, reasons, error: job.error }))
    }
}

/// A request from the view to the poller.
pub(super) enum Request {
    /// Read the dead jobs of this queue from now on.
    Watch(Option<QueueName>),
    Run(Action),
}

/// An update from the poller to the view.
pub(super) enum Update {
    Snapshot(Snapshot),
    Dead(DeadJobs),
    /// A poll failed, with the error and the time until the next attempt.
    Lost(String, Duration),
    /// The result of an action.
    ActionDone(Result<String, String>),
}

/// The view's handle of the polling thread.
pub(super) struct Poller {
    requests: Sender<Request>,
    updates: Receiver<Update>,
    thread: JoinHandle<()>,
}

impl Poller {
    /// Starts the thread. Its first poll is after `interval`.
    pub(super) fn start(pq: Pq, interval: Duration, watched: Option<QueueName>) -> Result<Self, Failure> {
        let ((requests, received), (sender, updates)) = (mpsc::channel(), mpsc::channel());
        let poll_loop = PollLoop { pq, interval, watched, failures: 0, updates: sender };
        let thread = thread::Builder::new()
            .name("poller".to_owned())
            .spawn(move || poll_loop.run(&received))
            .map_err(|error| Failure::Io(format!("cannot start a thread: {error}")))?;
        Ok(Self { requests, updates, thread })
    }

    pub(super) fn request(&self, request: Request) {
        // If the thread has ended, `next_update` returns the error.
        let _ = self.requests.send(request);
    }

    /// Returns the next update, or `None` if there is none yet.
    pub(super) fn next_update(&self) -> Result<Option<Update>, Failure> {
        match self.updates.try_recv() {
            Ok(update) => Ok(Some(update)),
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => {
                Err(Failure::Io("the polling thread has ended unexpectedly".to_owned()))
            }
        }
    }

    /// Ends the thread and waits for it for a bounded time.
    pub(super) fn end(self) {
        let Self { requests, updates, thread } = self;
        drop(requests);
        let begun = Instant::now();
        while !thread.is_finished() && begun.elapsed() < END_TIMEOUT {
            // This returns early when the thread drops its sender.
            let _ = updates.recv_timeout(Duration::from_millis(20));
        }
    }
}

/// The state of the polling thread.
struct PollLoop {
    pq: Pq,
    interval: Duration,
    watched: Option<QueueName>,
    /// Number of consecutive failed polls.
    failures: u32,
    updates: Sender<Update>,
}

impl PollLoop {
    fn run(mut self, requests: &Receiver<Request>) {
        let mut due = Instant::now() + self.interval;
        // While the user scrolls through the queues, only the dead jobs of the last one are read.
        let mut selection_changed = false;
        loop {
            let wait = if selection_changed {
                Duration::ZERO
            } else {
                due.saturating_duration_since(Instant::now())
            };
            let update = match requests.recv_timeout(wait) {
                Ok(Request::Watch(queue)) => {
                    self.watched = queue;
                    selection_changed = true;
                    continue;
                }
                Ok(Request::Run(action)) => {
                    due = Instant::now();
                    Update::ActionDone(action.run(&self.pq).map_err(|error| error.to_string()))
                }
                Err(RecvTimeoutError::Timeout) if selection_changed && Instant::now() < due => {
                    selection_changed = false;
                    // An error here is dropped: the next poll reports it.
                    let dead = (self.failures == 0).then(|| DeadJobs::read(&self.pq, self.watched.clone()));
                    let Some(Ok(dead)) = dead else { continue };
                    Update::Dead(dead)
                }
                Err(RecvTimeoutError::Timeout) => {
                    selection_changed = false;
                    let (update, pause) = self.poll();
                    due = Instant::now() + pause;
                    update
                }
                Err(RecvTimeoutError::Disconnected) => return,
            };
            if self.updates.send(update).is_err() {
                return;
            }
        }
    }

    /// Polls once, and returns the pause before the next poll.
    fn poll(&mut self) -> (Update, Duration) {
        let begun = Instant::now();
        let watched = || self.watched.clone();
        match Snapshot::read(&self.pq, |_| Chosen { dead: watched(), stuck: watched() }) {
            Ok(snapshot) => {
                self.failures = 0;
                (Update::Snapshot(snapshot), self.interval.max(begun.elapsed()))
            }
            Err(error) => {
                let pause = self.interval.saturating_mul(1 << self.failures.min(10)).min(MAX_PAUSE);
                let pause = pause.max(self.interval);
                self.failures += 1;
                (Update::Lost(error.to_string(), pause), pause)
            }
        }
    }
}
