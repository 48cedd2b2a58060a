//! Where the view's numbers come from: a thread of its own, so that keys are heard while the server is asked.

use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender, TryRecvError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use pq_diesel::{Ended, EndedAs, Error, Overview, Pq, QueueName, WorkerInfo};

use super::deed::Deed;
use crate::failure::Failure;

/// How many dead jobs are shown, the last first.
pub(super) const DEAD_SHOWN: usize = 50;

/// The longest pause between two tries while the server is lost.
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// How long the end waits for a look that is under way. libpq must not be at work when the process exits.
const LAST_LOOK: Duration = Duration::from_secs(5);

/// What one look saw.
#[derive(Clone, Debug)]
pub(super) struct Seen {
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

impl Seen {
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
            Some(name) => pq.queue::<()>(name.as_str())?.archived(EndedAs::Dead, None, DEAD_SHOWN)?,
            None => Vec::new(),
        };
        Ok(Self { of, jobs })
    }
}

/// What the view asks of the source.
pub(super) enum Ask {
    /// Show the dead jobs of this queue from now on.
    Watch(Option<QueueName>),
    Do(Deed),
}

/// What the source tells the view.
pub(super) enum Told {
    Seen(Seen),
    Dead(Dead),
    /// The server was not there, or refused; it is tried again after so long.
    Lost(String, Duration),
    /// What came of a deed.
    Did(Result<String, String>),
}

/// The thread that looks and does.
pub(super) struct Source {
    asks: Sender<Ask>,
    told: Receiver<Told>,
    thread: JoinHandle<()>,
}

impl Source {
    /// Looks again and again, for the first time after the interval.
    pub(super) fn start(pq: Pq, interval: Duration, watched: Option<QueueName>) -> Result<Self, Failure> {
        let ((asks, asked), (tell, told)) = (mpsc::channel(), mpsc::channel());
        let eye = Eye { pq, interval, watched, misses: 0, tell };
        let thread = thread::Builder::new()
            .name("looks".to_owned())
            .spawn(move || eye.look_until_the_end(&asked))
            .map_err(|error| Failure::Io(format!("no thread can be started: {error}")))?;
        Ok(Self { asks, told, thread })
    }

    pub(super) fn ask(&self, ask: Ask) {
        // Where nobody listens any more, `told` says so.
        let _ = self.asks.send(ask);
    }

    /// What was told and not heard yet.
    pub(super) fn told(&self) -> Result<Option<Told>, Failure> {
        match self.told.try_recv() {
            Ok(told) => Ok(Some(told)),
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => Err(Failure::Io("the thread that looks has ended".to_owned())),
        }
    }

    /// Ends the thread, and waits a while for that.
    pub(super) fn end(self) {
        let Self { asks, told, thread } = self;
        drop(asks);
        let begun = Instant::now();
        while !thread.is_finished() && begun.elapsed() < LAST_LOOK {
            // It is over when the last sender is gone.
            let _ = told.recv_timeout(Duration::from_millis(20));
        }
    }
}

/// The thread's own part.
struct Eye {
    pq: Pq,
    interval: Duration,
    watched: Option<QueueName>,
    /// Looks that failed since the last that did not.
    misses: u32,
    tell: Sender<Told>,
}

impl Eye {
    fn look_until_the_end(mut self, asked: &Receiver<Ask>) {
        let mut due = Instant::now() + self.interval;
        // Several steps through the queues are one look at the last.
        let mut turned = false;
        loop {
            let wait = if turned { Duration::ZERO } else { due.saturating_duration_since(Instant::now()) };
            let told = match asked.recv_timeout(wait) {
                Ok(Ask::Watch(queue)) => {
                    self.watched = queue;
                    turned = true;
                    continue;
                }
                Ok(Ask::Do(deed)) => {
                    due = Instant::now();
                    Told::Did(deed.carry_out(&self.pq).map_err(|error| error.to_string()))
                }
                Err(RecvTimeoutError::Timeout) if turned && Instant::now() < due => {
                    turned = false;
                    // A failure is told by the next look, and while the server is lost that comes soon enough.
                    let dead = (self.misses == 0).then(|| Dead::look(&self.pq, self.watched.clone()));
                    let Some(Ok(dead)) = dead else { continue };
                    Told::Dead(dead)
                }
                Err(RecvTimeoutError::Timeout) => {
                    turned = false;
                    let (told, pause) = self.look();
                    due = Instant::now() + pause;
                    told
                }
                Err(RecvTimeoutError::Disconnected) => return,
            };
            if self.tell.send(told).is_err() {
                return;
            }
        }
    }

    /// Looks, and says how long to pause after that.
    fn look(&mut self) -> (Told, Duration) {
        let begun = Instant::now();
        match Seen::look(&self.pq, |_| self.watched.clone()) {
            Ok(seen) => {
                self.misses = 0;
                (Told::Seen(seen), self.interval.max(begun.elapsed()))
            }
            Err(error) => {
                let pause = self.interval.saturating_mul(1 << self.misses.min(10)).min(LONGEST_PAUSE);
                let pause = pause.max(self.interval);
                self.misses += 1;
                (Told::Lost(error.to_string(), pause), pause)
            }
        }
    }
}
