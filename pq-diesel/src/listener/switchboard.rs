//! Who waits on which channel, and what the listener's thread is to do about it.

use std::collections::{BTreeSet, HashMap};
use std::io::PipeWriter;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use pq_core::{QueueName, WakeSignal};

use super::wake;
use crate::table::{Ident, told_on};

/// How long a channel on which nobody waits is listened to, so that a loop of short waits does not
/// LISTEN and UNLISTEN each time.
const KEEP: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
pub(super) struct Switchboard {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    thread: Thread,
    closed: bool,
    /// The server could not be reached at the last attempt, so nobody waits for a confirmation.
    down: bool,
    channels: HashMap<String, Channel>,
    tell: BTreeSet<Ident>,
    /// A byte is in the pipe already.
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
    /// All channels on which the puts are told that are told on this one.
    told_on: Vec<Ident>,
    signals: Vec<Weak<WakeSignal>>,
    listening: bool,
    idle_since: Option<Instant>,
}

/// What the thread is to do before it sleeps.
pub(super) struct Orders {
    pub(super) closed: bool,
    pub(super) listen: Vec<Listen>,
    pub(super) unlisten: Vec<Ident>,
    pub(super) tell: BTreeSet<Ident>,
    pub(super) look_again_in: Option<Duration>,
}

/// A channel to listen to, and all those on which the same puts are told.
pub(super) struct Listen {
    pub(super) channel: Ident,
    pub(super) told_on: Vec<Ident>,
}

impl Switchboard {
    pub(super) fn subscribe(
        &self,
        queue: &QueueName,
        channel: &str,
        signal: &Arc<WakeSignal>,
        confirm_within: Duration,
    ) {
        let until = Instant::now() + confirm_within;
        let mut state = self.lock();
        let new = || Channel { told_on: told_on(queue.as_str()), ..Channel::default() };
        let entry = state.channels.entry(channel.to_owned()).or_insert_with(new);
        entry.signals.push(Arc::downgrade(signal));
        entry.idle_since = None;
        if entry.listening {
            return;
        }
        state.wake();
        loop {
            let waiting = state.channels.get(channel).is_some_and(|entry| !entry.listening);
            let left = until.saturating_duration_since(Instant::now());
            if !waiting || state.down || state.closed || left.is_zero() {
                return;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    pub(super) fn unsubscribe(&self, channel: &str, signal: &Weak<WakeSignal>) {
        let mut state = self.lock();
        if let Some(entry) = state.channels.get_mut(channel) {
            entry.signals.retain(|other| !other.ptr_eq(signal));
            if entry.signals.is_empty() {
                // The thread finds it at its next look, or at the end of another channel's rest.
                entry.idle_since = Some(Instant::now());
                state.wake();
            }
        }
    }

    pub(super) fn tell(&self, channels: Vec<Ident>) {
        let mut state = self.lock();
        // Where others are to be told already, the thread knows when.
        let is_first = state.tell.is_empty();
        state.tell.extend(channels);
        if is_first {
            state.wake();
        }
    }

    pub(super) fn ring(&self, channel: &str) {
        if let Some(entry) = self.lock().channels.get(channel) {
            entry.ring();
        }
    }

    /// The server confirmed a LISTEN. What was put before it is found by the look that follows, so
    /// whoever waits already is told to look.
    pub(super) fn listening(&self, channel: &str) {
        let mut state = self.lock();
        state.down = false;
        if let Some(entry) = state.channels.get_mut(channel) {
            entry.listening = true;
            entry.ring();
        }
        self.changed.notify_all();
    }

    pub(super) fn disconnected(&self) {
        let mut state = self.lock();
        state.down = true;
        state.channels.values_mut().for_each(|entry| entry.listening = false);
        self.changed.notify_all();
    }

    /// What is to be done now. Before `tell_at` nobody is told, unless it is the last time.
    pub(super) fn orders(&self, tell_at: Instant) -> Orders {
        let mut state = self.lock();
        state.woken = false;
        let now = Instant::now();
        let rested =
            |entry: &Channel| entry.idle_since.is_some_and(|since| now.duration_since(since) >= KEEP);
        let unlisten = state
            .channels
            .iter()
            .filter(|(_, entry)| rested(entry))
            .map(|(name, _)| Ident::of_channel(name))
            .collect();
        state.channels.retain(|_, entry| !rested(entry));
        let listen = state
            .channels
            .iter()
            .filter(|(_, entry)| !entry.listening && !entry.signals.is_empty())
            .map(|(name, entry)| Listen { channel: Ident::of_channel(name), told_on: entry.told_on.clone() })
            .collect();
        let idle = state.channels.values().filter_map(|entry| entry.idle_since).min();
        let may_tell = state.closed || tell_at <= now;
        let tell = if may_tell { std::mem::take(&mut state.tell) } else { BTreeSet::new() };
        let next =
            idle.map(|since| since + KEEP).into_iter().chain((!state.tell.is_empty()).then_some(tell_at));
        Orders {
            closed: state.closed,
            listen,
            unlisten,
            tell,
            look_again_in: next.min().map(|at| at.saturating_duration_since(now)),
        }
    }

    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.wake();
        self.changed.notify_all();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// The right to start the thread, for the first who asks.
    pub(super) fn claim_start(&self) -> Option<Starting<'_>> {
        let mut state = self.lock();
        matches!(state.thread, Thread::None).then(|| {
            state.thread = Thread::Starting;
            Starting(self)
        })
    }

    /// No invariant spans a panic under the lock, so a poisoned one is as good as new.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn wake(&mut self) {
        if let Thread::Running(writer) = &self.thread
            && !self.woken
        {
            wake(writer);
            self.woken = true;
        }
    }
}

impl Channel {
    fn ring(&self) {
        self.signals.iter().filter_map(Weak::upgrade).for_each(|signal| signal.notify());
    }
}

pub(super) struct Starting<'a>(&'a Switchboard);

impl Starting<'_> {
    pub(super) fn started(self, writer: PipeWriter) {
        let mut state = self.0.lock();
        state.thread = Thread::Running(writer);
        // Whatever was asked for while the pipe was being made.
        state.wake();
    }

    pub(super) fn failed(self) {
        let mut state = self.0.lock();
        state.thread = Thread::None;
        state.down = true;
        self.0.changed.notify_all();
    }
}
