//! Receives notifications: one connection and one thread for all queues and waiters of a handle.
//!
//! The first wait starts the thread, or frequent puts, because the thread may notify on behalf of all writers. It
//! sleeps on the connection's socket and on a pipe by which the handle wakes it. Notifications that are sent while
//! the connection is down are lost. Therefore the thread reconnects with backoff, listens to all channels again and
//! then wakes every waiter.

mod coalescing;
mod session;
mod subscription_registry;

use std::io::{PipeReader, Read, Write, pipe};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use pq_core::{JobId, QueueName, WakeSignal};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use self::session::Session;
use self::subscription_registry::SubscriptionRegistry;
use crate::conninfo::ConnInfo;
use crate::libpq::Connection;
use crate::metrics::ListenerGauges;
use crate::shutdown_guard::ShutdownGuard;
use crate::table::{Ident, Table, channel, end_channel, notified_channels};

/// The first and the longest pause between two attempts to connect.
const FIRST_RETRY: Duration = Duration::from_millis(50);
const MAX_RETRY: Duration = Duration::from_secs(5);

/// The handle's side of the listener.
pub(crate) struct Listener {
    conninfo: ConnInfo,
    table: Table,
    /// The channel of the ends of jobs.
    end_channel: Ident,
    registry: Arc<SubscriptionRegistry>,
    /// The longest time that a statement of the listener waits for the server.
    call_timeout: Duration,
    shutdown_guard: ShutdownGuard,
}

/// Keeps a signal subscribed to a channel until it is dropped.
#[derive(Debug)]
pub struct Subscription {
    registry: Arc<SubscriptionRegistry>,
    channel: String,
    signal: Weak<WakeSignal>,
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.registry.unsubscribe(&self.channel, &self.signal);
    }
}

impl Listener {
    /// Creates a listener. It connects at the first wait.
    pub(crate) fn new(conninfo: ConnInfo, table: Table, call_timeout: Duration) -> Self {
        let (registry, shutdown_guard) = (Arc::default(), ShutdownGuard::default());
        let end_channel = end_channel(&table);
        Self { conninfo, table, end_channel, registry, call_timeout, shutdown_guard }
    }

    /// Subscribes a signal to a queue.
    ///
    /// Returns at once, because the listener may hang. When the server has confirmed LISTEN, the signal is notified, so
    /// that a put that committed before is found. Later puts notify it at their commit.
    pub(crate) fn subscribe(&self, queue: &QueueName, signal: &Arc<WakeSignal>) -> Subscription {
        let channel = channel(queue.as_str()).as_str().to_owned();
        self.start();
        self.registry.subscribe(&channel, || notified_channels(queue.as_str()), None, signal);
        Subscription { registry: Arc::clone(&self.registry), channel, signal: Arc::downgrade(signal) }
    }

    /// Subscribes a signal to the end of an awaited job, as [`Listener::subscribe`] does to a queue.
    pub(crate) fn subscribe_to_end(&self, job: JobId, signal: &Arc<WakeSignal>) -> Subscription {
        let channel = self.end_channel.as_str().to_owned();
        self.start();
        self.registry.subscribe(&channel, Vec::new, Some(job), signal);
        Subscription { registry: Arc::clone(&self.registry), channel, signal: Arc::downgrade(signal) }
    }

    /// Wakes this handle's own waiters of a queue.
    pub(crate) fn wake_own_waiters(&self, queue: &QueueName) {
        self.registry.wake_waiters(channel(queue.as_str()).as_str(), None);
    }

    /// Records a put that notifies in its commit.
    ///
    /// If there are many, the thread looks whether writers wait for each other, and may notify on their behalf.
    pub(crate) fn record_put(&self, queue: &QueueName) {
        if self.registry.record_put(queue, channel(queue.as_str()).as_str()) {
            self.start();
        }
    }

    /// Notifies all waiters of a queue of a put that has committed.
    ///
    /// Returns at once. The thread sends one notification for many calls.
    pub(crate) fn notify(&self, queue: &QueueName) {
        self.start();
        self.registry.notify(notified_channels(queue.as_str()));
    }

    pub(crate) fn gauges(&self) -> ListenerGauges {
        self.registry.gauges()
    }

    fn start(&self) {
        let Some(starting) = self.registry.claim_start() else { return };
        let started = pipe().and_then(|(reader, writer)| {
            let (conninfo, table, registry) =
                (self.conninfo.clone(), self.table.clone(), Arc::clone(&self.registry));
            let thread = std::thread::Builder::new().name("pq-listener".to_owned());
            let (call_timeout, guarded) = (self.call_timeout, self.shutdown_guard.enter());
            let run = move || {
                run(&conninfo, &table, &registry, call_timeout, reader);
                drop(guarded);
            };
            thread.spawn(run).map(|_| writer)
        });
        match started {
            Ok(writer) => starting.started(writer),
            Err(error) => {
                tracing::error!(%error, "listener thread failed to start; waits poll");
                starting.failed();
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.registry.close();
        self.shutdown_guard.wait();
    }
}

/// Runs the listener's thread: one session after the other until the handle is closed.
fn run(
    conninfo: &ConnInfo,
    table: &Table,
    registry: &SubscriptionRegistry,
    call_timeout: Duration,
    mut pipe: PipeReader,
) {
    let (mut retry_in, mut lost_at) = (FIRST_RETRY, None::<Instant>);
    while !registry.is_closed() {
        let started = Instant::now();
        let served = Connection::open(conninfo, call_timeout).and_then(|conn| {
            registry.connected();
            if let Some(at) = lost_at.take() {
                tracing::info!(after = ?at.elapsed(), server = conninfo.server(), "listener connected again");
            }
            Session::new(conn, table, registry).serve(&mut pipe)
        });
        if let Err(reason) = served {
            if lost_at.is_none() {
                lost_at = Some(Instant::now());
                tracing::warn!(
                    reason,
                    server = conninfo.server(),
                    "listener lost its connection; waits poll"
                );
            } else {
                tracing::debug!(reason, "listener failed to connect again");
            }
        }
        registry.disconnected();
        if registry.is_closed() {
            return;
        }
        // The backoff starts again after a connection that lasted.
        retry_in = if started.elapsed() > MAX_RETRY { FIRST_RETRY } else { (retry_in * 2).min(MAX_RETRY) };
        sleep(None, &mut pipe, Some(retry_in));
    }
}

/// Sleeps until the socket can be read, the pipe has been written to, or the timeout has passed.
fn sleep(socket: Option<BorrowedFd<'_>>, pipe: &mut PipeReader, timeout: Option<Duration>) {
    let woken = {
        let mut fds = vec![PollFd::from_borrowed_fd(pipe.as_fd(), PollFlags::IN)];
        fds.extend(socket.map(|socket| PollFd::from_borrowed_fd(socket, PollFlags::IN)));
        let timeout = timeout.and_then(|time| Timespec::try_from(time).ok());
        // An interrupted poll counts as a wake-up.
        let _ = poll(&mut fds, timeout.as_ref());
        !fds[0].revents().is_empty()
    };
    if woken {
        let _ = pipe.read(&mut [0; 64]);
    }
}

/// Wakes the listener's thread from [`sleep`].
fn wake_thread(mut writer: &std::io::PipeWriter) {
    let _ = writer.write_all(&[0]);
}
