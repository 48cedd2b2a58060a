//! The worker of asynchronous handlers, and the executor that runs their futures on tokio.

use std::fmt;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use pq_core::{Executor, Report, Retention, StopMode};
use pq_diesel::{Control, Error, Handler};
use tokio::runtime::Handle;
use tokio::sync::Notify;

use crate::Pq;

/// Runs the handlers of one or several queues: asynchronous ones in the application's runtime, and blocking ones in
/// threads.
///
/// A few threads of the worker's own take and settle jobs in batches, extend leases and run maintenance, with
/// connections of [`Pq::blocking`]. So a runtime that is busy does not lose leases. The settings are those of
/// [`pq_core::Worker`].
///
/// ```no_run
/// # async fn run(pq: pq_diesel_async::Pq) -> Result<(), pq_diesel_async::Error> {
/// use pq_diesel_async::Worker;
///
/// let greet = pq.queue("greetings")?.task::<String>("greet");
/// let handler = greet.leased_async(|_context, job| async move {
///     println!("hello, {}", job.data);
///     Ok::<_, std::io::Error>(())
/// });
/// let report = Worker::new(&pq).serve(handler).concurrency(1_000).run().await?;
/// println!("{} jobs done", report.done);
/// # Ok(())
/// # }
/// ```
pub struct Worker {
    worker: pq_diesel::Worker,
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.worker.fmt(f)
    }
}

impl Worker {
    /// Creates a worker that serves no queue yet.
    #[must_use]
    pub fn new(pq: &Pq) -> Self {
        Self { worker: pq_diesel::Worker::new(pq.blocking()) }
    }

    /// Registers a handler, asynchronous or blocking. The handlers of one queue must be of one kind.
    #[must_use]
    pub fn serve(self, handler: Handler) -> Self {
        self.with(|worker| worker.serve(handler))
    }

    /// Changes the worker by the methods of [`pq_core::Worker`] that have no equivalent here.
    #[must_use]
    pub fn with(mut self, change: impl FnOnce(pq_diesel::Worker) -> pq_diesel::Worker) -> Self {
        self.worker = change(self.worker);
        self
    }

    /// Sets how many asynchronous handlers run at the same time. Default: 100.
    ///
    /// See [`pq_core::Worker::concurrency`], and [`pq_core::Handler::concurrency`] for a limit of one task.
    #[must_use]
    pub fn concurrency(self, handlers: usize) -> Self {
        self.with(|worker| worker.concurrency(handlers))
    }

    /// Sets how many asynchronous handlers of one queue run at the same time. Default: as many as of all queues.
    #[must_use]
    pub fn queue_concurrency(self, queue: &str, handlers: usize) -> Self {
        self.with(|worker| worker.queue_concurrency(queue, handlers))
    }

    /// Sets the number of threads that run blocking handlers. Default: 1.
    #[must_use]
    pub fn threads(self, threads: usize) -> Self {
        self.with(|worker| worker.threads(threads))
    }

    /// Sets the length of leases. Default: 30 s. See [`pq_core::Worker::lease`].
    #[must_use]
    pub fn lease(self, lease: Duration) -> Self {
        self.with(|worker| worker.lease(lease))
    }

    /// Sets how long maintenance keeps archived jobs.
    #[must_use]
    pub fn retention(self, retention: Retention) -> Self {
        self.with(|worker| worker.retention(retention))
    }

    /// Sets how long a stop may take. Default: without limit. See [`pq_core::Worker::stop_within`].
    ///
    /// At the end the futures of handlers that have not ended are dropped.
    #[must_use]
    pub fn stop_within(self, limit: Duration) -> Self {
        self.with(|worker| worker.stop_within(limit))
    }

    /// Returns a handle that stops this worker and returns its status.
    ///
    /// [`pq_core::Control::stop`] does not block. [`pq_core::Control::status`] asks the database, so it does.
    #[must_use]
    pub fn control(&self) -> Control {
        self.worker.control()
    }

    /// Runs until the worker is stopped, and its handlers have ended or [`Worker::stop_within`] has passed.
    ///
    /// If the future is dropped, the worker aborts: handlers are asked to end, and their jobs are given back.
    ///
    /// # Errors
    ///
    /// The errors of [`pq_core::Worker::run`]; [`Error::Refused`] if the handle has no URL.
    pub async fn run(self) -> Result<Report, Error> {
        self.run_by(pq_diesel::Worker::run).await
    }

    /// Runs until no job of the queues is ready or under an expired lease, or the worker is stopped.
    ///
    /// # Errors
    ///
    /// See [`Worker::run`].
    pub async fn run_until_empty(self) -> Result<Report, Error> {
        self.run_by(pq_diesel::Worker::run_until_empty).await
    }

    /// Runs until handlers have been run for this number of jobs, or the worker is stopped.
    ///
    /// # Errors
    ///
    /// See [`Worker::run`].
    pub async fn run_jobs(self, jobs: u64) -> Result<Report, Error> {
        self.run_by(move |worker| worker.run_jobs(jobs)).await
    }

    async fn run_by(
        self,
        run: impl FnOnce(pq_diesel::Worker) -> Result<Report, Error> + Send + 'static,
    ) -> Result<Report, Error> {
        let tokio = Arc::new(Tokio::new(Handle::current()));
        let worker = self.worker.executor(Arc::clone(&tokio) as Arc<dyn Executor>);
        let _abort = AbortOnDrop(worker.control());
        let ended = tokio::task::spawn_blocking(move || run(worker)).await;
        tokio.drop_futures();
        match ended {
            Ok(report) => report,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => Err(pq_core::Error::Stopped.into()),
            },
        }
    }
}

/// Stops the worker when its future is dropped.
struct AbortOnDrop(Control);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.stop(StopMode::Abort);
    }
}

/// Runs the futures of handlers on a runtime.
struct Tokio {
    handle: Handle,
    ended: Arc<Ended>,
}

/// Whether the worker has ended, and its futures must be dropped.
#[derive(Default)]
struct Ended {
    has_ended: AtomicBool,
    notify: Notify,
}

impl Tokio {
    fn new(handle: Handle) -> Self {
        Self { handle, ended: Arc::default() }
    }

    /// Drops the futures that have not ended.
    fn drop_futures(&self) {
        self.ended.has_ended.store(true, Ordering::SeqCst);
        self.ended.notify.notify_waiters();
    }
}

impl Executor for Tokio {
    fn spawn(&self, future: Pin<Box<dyn Future<Output = ()> + Send>>) {
        let (ended, mut future) = (Arc::clone(&self.ended), future);
        self.handle.spawn(async move {
            let mut dropped = pin!(ended.notify.notified());
            poll_fn(|context| match future.as_mut().poll(context) {
                Poll::Ready(()) => Poll::Ready(()),
                // The first poll registers the task for the notification, so the flag must be read after it.
                Poll::Pending if dropped.as_mut().poll(context).is_ready() => Poll::Ready(()),
                Poll::Pending if ended.has_ended.load(Ordering::SeqCst) => Poll::Ready(()),
                Poll::Pending => Poll::Pending,
            })
            .await;
        });
    }

    fn sleep(&self, time: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let _entered = self.handle.enter();
        Box::pin(tokio::time::sleep(time))
    }
}
