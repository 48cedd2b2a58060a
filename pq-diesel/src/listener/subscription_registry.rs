//! The waiters of each channel, and the actions that are pending for the listener's thread.

use std::collections::{BTreeSet, HashMap};
use std::io::PipeWriter;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use pq_core::{JobId, QueueName, WakeSignal};

use super::coalescing::{BUSY_PUTS, BUSY_WINDOW};
use super::wake_thread;
use crate::metrics::ListenerGauges;
use crate::table::{Ident, notified_channels};

/// The time for which the thread listens to a channel without waiters. A loop of short waits would otherwise LISTEN and
/// UNLISTEN each time, or never LISTEN, if each wait ends before the server confirms it.
const KEEP_UNUSED: Duration = Duration::from_secs(60);

/// The state that the handle and the listener's thread share.
#[derive(Debug, Default)]
pub(super) struct SubscriptionRegistry {
    state: Mutex<State>,
    is_connected: AtomicBool,
    /// How often the thread has connected.
    connects: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    thread: Thread,
    closed: bool,
    channels: HashMap<String, Channel>,
    /// Channels to notify of the handle's own puts.
    notify: BTreeSet<Ident>,
    /// The number of puts of the handle that notified in their commit since `puts_since`, by channel.
    puts: HashMap<String, usize>,
    puts_since: Option<Instant>,
    /// Channels whose number of such puts has reached [`BUSY_PUTS`].
    busy: Vec<ChannelNames>,
    /// Whether the pipe already has a byte.
    woken: bool,
}

#[derive(Debug, Default)]
enum Thread {
    #[default]
    None,
    Starting,
    Running(PipeWriter),
}

#[derive(Debug, Default)]
struct Channel {
    /// All channels on which puts of the same queue are notified.
    notified: Vec<Ident>,
    /// Each with the job for whose end it waits, on the channel of these.
    signals: Vec<(Option<JobId>, Weak<WakeSignal>)>,
    /// Whether the server has confirmed LISTEN.
    listening: bool,
    /// When the last waiter left.
    unused_since: Option<Instant>,
}

/// The pending actions of the listener's thread.
pub(super) struct PendingActions {
    pub(super) closed: bool,
    pub(super) listen: Vec<ChannelNames>,
    pub(super) unlisten: Vec<Ident>,
    /// Channels of queues into which the handle often puts.
    pub(super) busy: Vec<ChannelNames>,
    pub(super) notify: BTreeSet<Ident>,
    /// The time until another action may become pending by itself.
    pub(super) recheck_in: Option<Duration>,
}

/// A channel to listen to or to notify for.
#[derive(Debug)]
pub(super) struct ChannelNames {
    pub(super) channel: Ident,
    /// All channels on which puts of the same queue are notified.
    pub(super) notified: Vec<Ident>,
}

impl SubscriptionRegistry {
    /// Subscribes a signal, and has the thread listen to its channel.
    ///
    /// `notified` returns all channels on which puts of the same queue are notified. With `job` the signal is
    /// notified only of this job, and of what concerns the whole channel.
    pub(super) fn subscribe(
        &self,
        channel: &str,
        notified: impl FnOnce() -> Vec<Ident>,
        job: Option<JobId>,
        signal: &Arc<WakeSignal>,
    ) {
        let mut state = self.lock();
        let new = || Channel { notified: notified(), ..Channel::default() };
        let entry = state.channels.entry(channel.to_owned()).or_insert_with(new);
        entry.signals.push((job, Arc::downgrade(signal)));
        entry.unused_since = None;
        if !entry.listening {
            state.wake_thread();
        }
    }

    /// Removes a signal from a channel.
    pub(super) fn unsubscribe(&self, channel: &str, signal: &Weak<WakeSignal>) {
        let mut state = self.lock();
        if let Some(entry) = state.channels.get_mut(channel) {
            entry.signals.retain(|(_, other)| !other.ptr_eq(signal));
            if entry.signals.is_empty() {
                // The thread then knows when to UNLISTEN.
                entry.unused_since = Some(Instant::now());
                state.wake_thread();
            }
        }
    }

    /// Asks the thread to notify these channels.
    pub(super) fn notify(&self, channels: Vec<Ident>) {
        let mut state = self.lock();
        // If other channels are pending, the thread already knows when to notify.
        let is_first = state.notify.is_empty();
        state.notify.extend(channels);
        if is_first {
            state.wake_thread();
        }
    }

    /// Records a put that notifies in its commit. Returns whether the queue has become busy, which the thread handles.
    pub(super) fn record_put(&self, queue: &QueueName, channel: &str) -> bool {
        let now = Instant::now();
        let mut state = self.lock();
        if state.puts_since.is_none_or(|since| now.saturating_duration_since(since) > BUSY_WINDOW) {
            state.puts_since = Some(now);
            state.puts.clear();
        }
        let puts = match state.puts.get_mut(channel) {
            Some(puts) => puts,
            None => state.puts.entry(channel.to_owned()).or_default(),
        };
        *puts += 1;
        // Once in each window.
        let is_busy = *puts == BUSY_PUTS;
        if is_busy {
            let notified = notified_channels(queue.as_str());
            state.busy.push(ChannelNames { channel: Ident::of_channel(channel), notified });
            state.wake_thread();
        }
        is_busy
    }

    /// Notifies the signals of a channel, or with `job` those that wait for the end of this job or for none.
    pub(super) fn wake_waiters(&self, channel: &str, job: Option<JobId>) {
        if let Some(entry) = self.lock().channels.get(channel) {
            entry.wake_waiters(job);
        }
    }

    /// Records that the server confirmed LISTEN.
    ///
    /// A put that committed before was not notified, so the waiters are woken to poll once more.
    pub(super) fn listening(&self, channel: &str) {
        let mut state = self.lock();
        if let Some(entry) = state.channels.get_mut(channel) {
            entry.listening = true;
            entry.wake_waiters(None);
        }
    }

    pub(super) fn gauges(&self) -> ListenerGauges {
        ListenerGauges {
            is_started: !matches!(self.lock().thread, Thread::None),
            is_connected: self.is_connected.load(Ordering::Relaxed),
            reconnects: self.connects.load(Ordering::Relaxed).saturating_sub(1),
        }
    }

    /// Records that the thread has connected.
    pub(super) fn connected(&self) {
        self.is_connected.store(true, Ordering::Relaxed);
        self.connects.fetch_add(1, Ordering::Relaxed);
    }

    /// Records that the connection is lost.
    pub(super) fn disconnected(&self) {
        self.is_connected.store(false, Ordering::Relaxed);
        let mut state = self.lock();
        state.channels.values_mut().for_each(|entry| entry.listening = false);
    }

    /// Takes what must be done now. Notifications are held back until `notify_at`, except when the handle closes.
    pub(super) fn pending_actions(&self, notify_at: Instant) -> PendingActions {
        let mut state = self.lock();
        state.woken = false;
        let now = Instant::now();
        let expired = |entry: &Channel| {
            entry.unused_since.is_some_and(|since| now.duration_since(since) >= KEEP_UNUSED)
        };
        let unlisten = state
            .channels
            .iter()
            .filter(|(_, entry)| expired(entry))
            .map(|(name, _)| Ident::of_channel(name))
            .collect();
        state.channels.retain(|_, entry| !expired(entry));
        let listen = state
            .channels
            .iter()
            .filter(|(_, entry)| !entry.listening)
            .map(|(name, entry)| ChannelNames {
                channel: Ident::of_channel(name),
                notified: entry.notified.clone(),
            })
            .collect();
        let unused_since = state.channels.values().filter_map(|entry| entry.unused_since).min();
        let may_notify = state.closed || notify_at <= now;
        let notify = if may_notify { std::mem::take(&mut state.notify) } else { BTreeSet::new() };
        let notify_at = (!state.notify.is_empty()).then_some(notify_at);
        let next = unused_since.map(|since| since + KEEP_UNUSED).into_iter().chain(notify_at).min();
        PendingActions {
            closed: state.closed,
            listen,
            unlisten,
            busy: std::mem::take(&mut state.busy),
            notify,
            recheck_in: next.map(|at| at.saturating_duration_since(now)),
        }
    }

    /// Asks the thread to end.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.wake_thread();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// Returns the right to start the thread to the first caller.
    pub(super) fn claim_start(&self) -> Option<Starting<'_>> {
        let mut state = self.lock();
        matches!(state.thread, Thread::None).then(|| {
            state.thread = Thread::Starting;
            Starting(self)
        })
    }

    /// Locks the state. No invariant spans a panic under the lock, so a poisoned lock is usable.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn wake_thread(&mut self) {
        if let Thread::Running(writer) = &self.thread
            && !self.woken
        {
            wake_thread(writer);
            self.woken = true;
        }
    }
}

impl Channel {
    fn wake_waiters(&self, job: Option<JobId>) {
        let concerns = |waits_for: Option<JobId>| job.is_none() || waits_for.is_none() || waits_for == job;
        let concerned = self.signals.iter().filter(|(waits_for, _)| concerns(*waits_for));
        concerned.filter_map(|(_, signal)| signal.upgrade()).for_each(|signal| signal.notify());
    }
}

/// The right to start the thread.
pub(super) struct Starting<'a>(&'a SubscriptionRegistry);

impl Starting<'_> {
    pub(super) fn started(self, writer: PipeWriter) {
        let mut state = self.0.lock();
        state.thread = Thread::Running(writer);
        // For actions that became pending before the pipe existed.
        state.wake_thread();
    }

    pub(super) fn failed(self) {
        let mut state = self.0.lock();
        state.thread = Thread::None;
    }
}
