//! Working jobs to their end inside a test, with injected faults.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pq_core::{Claim, Failure, JobInfo, JobRecord, Outcome, Pq, Report, Retention, StopMode, Store, Worker};

/// An attempt that a worker has run.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// The job, as it was taken.
    pub job: JobRecord,
    /// The name of the task; `None` if the handler serves a whole queue.
    pub task: Option<String>,
    /// The number of the attempt, 1 for the first.
    pub number: u32,
    /// The result of the handler, after an injected failure and before the middleware of the worker.
    pub result: Result<Outcome, Failure>,
}

/// What a worker has done until its queues were empty.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Worked {
    /// The attempts, in their order.
    pub attempts: Vec<Attempt>,
    /// The outcomes that the store has accepted.
    pub report: Report,
}

/// How an attempt fails. The handler has run to its end when it does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The handler returns this error.
    Error(String),
    /// The handler panics with this text.
    Panic(String),
    /// The worker dies before its transaction commits or its outcome is stored.
    ///
    /// A transactional handler's writes are rolled back, and the job is ready at once. A leased job is returned when
    /// its lease has expired, so the next attempt needs [`advance`](crate::advance). Its crash counts.
    WorkerDies,
}

/// Works the jobs of the worker's queues, one after the other, until none is ready.
///
/// First it runs maintenance: puts the periodic jobs that are due and returns the jobs of expired leases. Jobs that the
/// handlers put are worked too. What is scheduled or backs off is left, see [`advance`](crate::advance).
///
/// The worker runs in one thread, whatever its settings, sends no heartbeats, and prunes nothing. Its handlers must be
/// blocking ones.
///
/// ```
/// use pq_core::{Pq, Worker, memory::MemoryStore};
/// use pq_testing::work_all;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let pq = Pq::new(MemoryStore::new());
/// let greet = pq.queue("greetings")?.task::<String>("greet");
/// greet.call(&"world".to_owned())?;
/// let worker = Worker::new(&pq).serve(greet.leased(|_, _job| Ok::<_, std::io::Error>(())));
///
/// let worked = work_all(&pq, worker)?;
/// assert_eq!((worked.report.done, worked.report.failed), (1, 0));
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// The errors of [`Worker::run_until_empty`].
pub fn work_all<S: Store>(pq: impl AsRef<Pq<S>>, worker: Worker<S>) -> Result<Worked, S::Error>
where
    S::Conn: Send,
{
    maintain(pq.as_ref())?;
    let attempts = Recorder::default();
    let recorder = attempts.clone();
    let report = inline(worker)
        .wrap(move |info, next| {
            let result = next.run();
            recorder.push(info, &result);
            result
        })
        .run_until_empty()?;
    Ok(Worked { attempts: attempts.take(), report })
}

/// Works the first ready job of the worker's queues, and returns its attempt. Returns `None` if no job is ready.
///
/// Otherwise as [`work_all`].
///
/// # Errors
///
/// The errors of [`Worker::run_until_empty`].
pub fn work_one<S: Store>(pq: impl AsRef<Pq<S>>, worker: Worker<S>) -> Result<Option<Attempt>, S::Error>
where
    S::Conn: Send,
{
    work_next(pq.as_ref(), worker, None)
}

/// Works the first ready job as [`work_one`] does, and has the attempt fail.
///
/// What follows is as after a real fault: the job's next attempt comes by its retries and its backoff, or after a
/// crash. A job that has no handler in this worker fails for that reason, unless the worker dies.
///
/// ```
/// use std::time::Duration;
/// use pq_core::{Pq, Worker, memory::MemoryStore};
/// use pq_testing::{Fault, advance, work_all, work_one_with};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let pq = Pq::new(MemoryStore::new());
/// let greet = pq.queue("greetings")?.task::<String>("greet").max_retries(1);
/// let worker = || Worker::new(&pq).serve(greet.leased(|_, _job| Ok::<_, std::io::Error>(())));
/// greet.call(&"world".to_owned())?;
///
/// work_one_with(&pq, worker(), Fault::Error("the mail server is away".to_owned()))?;
/// assert_eq!(work_all(&pq, worker())?.report.done, 0, "it backs off for 30 s");
/// advance(&pq, Duration::from_secs(30))?;
/// assert_eq!(work_all(&pq, worker())?.report.done, 1);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// The errors of [`Worker::run_until_empty`].
pub fn work_one_with<S: Store>(
    pq: impl AsRef<Pq<S>>,
    worker: Worker<S>,
    fault: Fault,
) -> Result<Option<Attempt>, S::Error>
where
    S::Conn: Send,
{
    work_next(pq.as_ref(), worker, Some(fault))
}

fn work_next<S: Store>(
    pq: &Pq<S>,
    worker: Worker<S>,
    fault: Option<Fault>,
) -> Result<Option<Attempt>, S::Error>
where
    S::Conn: Send,
{
    maintain(pq)?;
    let attempts = Recorder::default();
    let recorder = attempts.clone();
    let control = worker.control();
    let worker = inline(worker).batch(1, 1).wrap(move |info, next| {
        let result = next.run();
        recorder.push(info, &result);
        control.stop(StopMode::Finish);
        result
    });
    match fault {
        None => worker.run_until_empty().map(drop)?,
        Some(Fault::Error(text)) => {
            worker
                .map_results(failing(move || Err(Failure::Error(text.clone()))))
                .run_until_empty()
                .map(drop)?;
        }
        Some(Fault::Panic(text)) => {
            worker
                .map_results(failing(move || std::panic::panic_any(text.clone())))
                .run_until_empty()
                .map(drop)?;
        }
        Some(Fault::WorkerDies) => run_until_it_dies(worker)?,
    }
    Ok(attempts.take().pop())
}

/// Returns a function that replaces a handler's result. One that could not decode its job keeps its own failure.
fn failing(
    fail: impl Fn() -> Result<Outcome, Failure> + Send + Sync + 'static,
) -> impl Fn(&Claim, Result<Outcome, Failure>) -> Result<Outcome, Failure> + Send + Sync + 'static {
    move |_, result| match result {
        Err(Failure::Undecodable(_)) => result,
        _ => fail(),
    }
}

/// Runs the worker until its first handler has returned, and abandons it there.
///
/// The worker stops without waiting for the handler's thread: it stores no outcome, extends no lease and commits no
/// transaction. Then the thread is let go, and rolls its transaction back.
fn run_until_it_dies<S: Store>(worker: Worker<S>) -> Result<(), S::Error>
where
    S::Conn: Send,
{
    let control = worker.control();
    let (dead, is_dead) = channel::<()>();
    let (alive, have_ended) = channel::<()>();
    let (ends, alive): (Mutex<Receiver<()>>, Mutex<Sender<()>>) = (Mutex::new(is_dead), Mutex::new(alive));
    let ran = worker
        .stop_within(Duration::ZERO)
        .dies_at_deadline()
        .map_results(move |_, result| {
            let _alive = &alive;
            control.stop(StopMode::Abort);
            // Returns an error when the worker has ended.
            let _ = ends.lock().unwrap_or_else(PoisonError::into_inner).recv();
            result
        })
        .run_until_empty();
    drop(dead);
    // The run's threads own the function above. When the last of them has ended, no sender is left.
    let _ = have_ended.recv();
    ran.map(drop)
}

/// Sets what a worker inside a test needs.
fn inline<S: Store>(worker: Worker<S>) -> Worker<S>
where
    S::Conn: Send,
{
    worker.threads(1).heartbeat_every(None).maintain_every(Duration::MAX)
}

/// Puts the periodic jobs that are due, and returns the jobs of all expired leases.
fn maintain<S: Store>(pq: &Pq<S>) -> Result<(), S::Error> {
    let mut keep = Retention::default();
    (keep.done, keep.dead, keep.cancelled) = (None, None, None);
    // Another process that runs maintenance now does the same.
    while pq.maintain(&keep)?.is_some_and(|report| report.more) {}
    Ok(())
}

/// The attempts of a worker, from its threads.
#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<Vec<Attempt>>>);

impl Recorder {
    fn push(&self, info: &JobInfo<'_>, result: &Result<Outcome, Failure>) {
        let attempt = Attempt {
            job: info.job.record.clone(),
            task: info.task.map(str::to_owned),
            number: info.attempt,
            result: result.clone(),
        };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(attempt);
    }

    fn take(&self) -> Vec<Attempt> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
