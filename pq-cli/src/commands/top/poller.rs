//! Where the view's numbers come from: a thread of its own, so that keys are heard while the server is asked.

use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender, TryRecvError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use pq_diesel::{Ended, EndedAs, Error, Overview, Pq, QueueName, WorkerInfo};

use super::action::Action;
use crate::failure::Failure;

/// How many dead jobs are shown, the last first.
pub(super) const DEAD_LIMIT: usize = 50;

/// The longest pause between two tries while the server is lost.
const MAX_PAUSE: Duration = Duration::from_secs(15);

/// How long the end waits for a look that is under way. libpq must not be at work when the process exits.
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// What one look saw.
#[derive(Clone, Debug)]
pub(super) struct Snapshot {
    /// The server's clock.
    pub(super) at: DateTime<Utc>,
    pub(super) queues: Vec<Overview>,
    pub(super) workers: Vec<WorkerInfo>,
    pub(super) dead: Dead,
}

/// Dead jobs of one queue.
#[derive(Clone, Debug, Default)]
pub(super) struct Dead {
    pub(super) of: Option<QueueName>,
    pub(super) jobs: Vec<Ended>,
}

impl Snapshot {
    /// Looks at everything, and at the dead jobs of the queue that is chosen from the numbers.
    pub(super) fn look(
        pq: &Pq,
        choose: impl FnOnce(&[Overview]) -> Option<QueueName>,
    ) -> Result<Self, Error> {
        let queues = pq.overview()?;
        let dead = Dead::look(pq, choose(&queues))?;
        Ok(Self { at: pq.now()?, queues, workers: pq.workers()?, dead })
    }
}

impl Dead {
    fn look(pq: &Pq, of: Option<QueueName>) -> Result<Self, Error> {
        let jobs = match &of {
            Some(name) => pq.queue::<()>(name.as_str())?.archived(EndedAs::Dead, None, DEAD_LIMIT)?,
            None => Vec::new(),
        };
        Ok(Self { of, jobs })
    }
}

/// What the view requests of the poller.
pub(super) enum Request {
    /// Show the dead jobs of this queue from now on.
    Watch(Option<QueueName>),
    Run(Action),
}

/// What the poller tells the view.
pub(super) enum Update {
    Snapshot(Snapshot),
    Dead(Dead),
    /// The server was not there, or refused; it is tried again after so long.
    Lost(String, Duration),
    /// What came of a action.
    ActionDone(Result<String, String>),
}

/// The thread that looks and does.
pub(super) struct Poller {
    requests: Sender<Request>,
    update: Receiver<Update>,
    thread: JoinHandle<()>,
}

impl Poller {
    /// Looks again and again, for the first time after the interval.
    pub(super) fn start(pq: Pq, interval: Duration, watched: Option<QueueName>) -> Result<Self, Failure> {
        let ((requests, asked), (updates, update)) = (mpsc::channel(), mpsc::channel());
        let poll_loop = PollLoop { pq, interval, watched, failures: 0, updates };
        let thread = thread::Builder::new()
            .name("looks".to_owned())
            .spawn(move || poll_loop.run(&asked))
            .map_err(|error| Failure::Io(format!("no thread can be started: {error}")))?;
        Ok(Self { requests, update, thread })
    }

    pub(super) fn ask(&self, ask: Request) {
        // Where nobody listens any more, `told` says so.
        let _ = self.requests.send(ask);
    }

    /// What was told and not heard yet.
    pub(super) fn update(&self) -> Result<Option<Update>, Failure> {
        match self.update.try_recv() {
            Ok(update) => Ok(Some(update)),
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => Err(Failure::Io("the thread that looks has ended".to_owned())),
        }
    }

    /// Ends the thread, and waits a while for that.
    pub(super) fn end(self) {
        let Self { requests, update, thread } = self;
        drop(requests);
        let begun = Instant::now();
        while !thread.is_finished() && begun.elapsed() < END_TIMEOUT {
            // It is over when the last sender is gone.
            let _ = update.recv_timeout(Duration::from_millis(20));
        }
    }
}

/// The thread's own part.
struct PollLoop {
    pq: Pq,
    interval: Duration,
    watched: Option<QueueName>,
    /// Looks that failed since the last that did not.
    failures: u32,
    updates: Sender<Update>,
}

impl PollLoop {
    fn run(mut self, asked: &Receiver<Request>) {
        let mut due = Instant::now() + self.interval;
        // Several steps through the queues are one look at the last.
        let mut turned = false;
        loop {
            let wait = if turned { Duration::ZERO } else { due.saturating_duration_since(Instant::now()) };
            let update = match asked.recv_timeout(wait) {
                Ok(Request::Watch(queue)) => {
                    self.watched = queue;
                    turned = true;
                    continue;
                }
                Ok(Request::Run(action)) => {
                    due = Instant::now();
                    Update::ActionDone(action.run(&self.pq).map_err(|error| error.to_string()))
                }
                Err(RecvTimeoutError::Timeout) if turned && Instant::now() < due => {
                    turned = false;
                    // A failure is told by the next look, and while the server is lost that comes soon enough.
                    let dead = (self.failures == 0).then(|| Dead::look(&self.pq, self.watched.clone()));
                    let Some(Ok(dead)) = dead else { continue };
                    Update::Dead(dead)
                }
                Err(RecvTimeoutError::Timeout) => {
                    turned = false;
                    let (update, pause) = self.look();
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

    /// Looks, and says how long to pause after that.
    fn look(&mut self) -> (Update, Duration) {
        let begun = Instant::now();
        match Snapshot::look(&self.pq, |_| self.watched.clone()) {
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
