//! Log events for calls that the store refuses: one when a series of refusals begins, and one when it ends.
//!
//! Workers and waits repeat such calls with backoff. An event for each try would hide everything else in the log.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use crate::StoreError;
use crate::lock::lock;

/// A kind of call that is repeated until the store accepts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Call {
    /// Looking for jobs.
    Poll,
    /// Passing the outcomes of jobs.
    Settle,
    /// Extending leases.
    Extend,
    /// Registering a worker.
    Heartbeat,
    /// Returning expired leases and pruning.
    Maintain,
    /// Putting periodic jobs.
    #[cfg(feature = "cron")]
    Cron,
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Poll => "poll",
            Self::Settle => "settle",
            Self::Extend => "extend",
            Self::Heartbeat => "heartbeat",
            Self::Maintain => "maintain",
            #[cfg(feature = "cron")]
            Self::Cron => "cron",
        })
    }
}

/// The calls of one worker, or of one wait, that the store refuses at present.
///
/// The loss of the store is one incident, however many kinds of calls notice it. It ends when each of them was accepted
/// again, so a late failure of one does not begin another. Any other refusal is an incident of its kind of call.
#[derive(Debug, Default)]
pub(crate) struct Incidents {
    state: Mutex<State>,
    /// Whether there is one, so that an accepted call needs no lock.
    any: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    outage: Option<Outage>,
    /// Since when each kind of call has been refused, and the last error.
    refused: BTreeMap<Call, (Instant, String)>,
}

/// The store cannot be reached, or accepts no changes.
#[derive(Debug)]
struct Outage {
    began: Instant,
    calls: BTreeSet<Call>,
    /// Which of the two was logged.
    unavailable: bool,
    read_only: bool,
}

impl Incidents {
    /// Records that the store refused a call, which will be repeated.
    pub(crate) fn failed(&self, call: Call, error: &impl StoreError) {
        let mut state = lock(&self.state);
        self.any.store(true, Ordering::SeqCst);
        if error.is_unavailable() {
            let outage = state.outage.get_or_insert_with(|| Outage {
                began: Instant::now(),
                calls: BTreeSet::new(),
                unavailable: false,
                read_only: false,
            });
            outage.calls.insert(call);
            let is_read_only = error.is_read_only();
            let logged = if is_read_only { &mut outage.read_only } else { &mut outage.unavailable };
            match (std::mem::replace(logged, true), is_read_only) {
                (true, _) => tracing::debug!(%call, %error, "call failed again"),
                (false, true) => {
                    tracing::warn!(%call, %error, "store became read-only; calls will be repeated");
                }
                (false, false) => {
                    tracing::warn!(%call, %error, "store became unavailable; calls will be repeated");
                }
            }
            return;
        }
        // The store has answered.
        state.end_outage_of(call);
        if let Some((_, last)) = state.refused.get_mut(&call) {
            *last = error.to_string();
            tracing::debug!(%call, %error, "call failed again");
            return;
        }
        state.refused.insert(call, (Instant::now(), error.to_string()));
        if error.is_passing() {
            tracing::warn!(%call, %error, "call was refused; it will be repeated");
        } else {
            tracing::error!(%call, %error, "call was refused; it will be repeated");
        }
    }

    /// Records that the store accepted a call.
    pub(crate) fn succeeded(&self, call: Call) {
        if !self.any.load(Ordering::SeqCst) {
            return;
        }
        let mut state = lock(&self.state);
        state.end_outage_of(call);
        if let Some((began, _)) = state.refused.remove(&call) {
            tracing::info!(%call, after = ?began.elapsed(), "call was accepted again");
        }
        self.any.store(state.outage.is_some() || !state.refused.is_empty(), Ordering::SeqCst);
    }

    /// Returns the last error of a kind of call that the store refuses at present, although it can be reached.
    pub(crate) fn refusal(&self, call: Call) -> Option<String> {
        lock(&self.state).refused.get(&call).map(|(_, error)| error.clone())
    }

    /// Returns whether the store cannot be reached, or accepts no changes.
    pub(crate) fn is_store_unavailable(&self) -> bool {
        self.any.load(Ordering::SeqCst) && lock(&self.state).outage.is_some()
    }
}

impl State {
    fn end_outage_of(&mut self, call: Call) {
        if let Some(outage) = &mut self.outage
            && outage.calls.remove(&call)
            && outage.calls.is_empty()
        {
            tracing::info!(after = ?outage.began.elapsed(), "store became available again");
            self.outage = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tracing::field::{Field, Visit};
    use tracing::span::{Attributes, Id, Record};
    use tracing::{Event, Level, Metadata, Subscriber};

    use super::*;

    /// An error of a store that has these properties.
    #[derive(Debug, Default, thiserror::Error)]
    #[error("no")]
    struct Refusal {
        unavailable: bool,
        read_only: bool,
        passing: bool,
    }

    impl From<crate::Error> for Refusal {
        fn from(_: crate::Error) -> Self {
            Self::default()
        }
    }

    impl StoreError for Refusal {
        fn is_unavailable(&self) -> bool {
            self.unavailable
        }

        fn is_conflict(&self) -> bool {
            false
        }

        fn is_passing(&self) -> bool {
            self.passing || self.unavailable
        }

        fn is_read_only(&self) -> bool {
            self.read_only
        }
    }

    /// Collects the messages of events above level debug.
    #[derive(Clone, Default)]
    struct Collector(Arc<Mutex<Vec<String>>>);

    impl Visit for Collector {
        fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
            if field.name() == "message" {
                lock(&self.0).push(format!("{value:?}"));
            }
        }
    }

    impl Subscriber for Collector {
        fn enabled(&self, metadata: &Metadata<'_>) -> bool {
            *metadata.level() <= Level::INFO
        }

        fn new_span(&self, _: &Attributes<'_>) -> Id {
            Id::from_u64(1)
        }

        fn record(&self, _: &Id, _: &Record<'_>) {}

        fn record_follows_from(&self, _: &Id, _: &Id) {}

        fn event(&self, event: &Event<'_>) {
            event.record(&mut self.clone());
        }

        fn enter(&self, _: &Id) {}

        fn exit(&self, _: &Id) {}
    }

    fn logged(work: impl FnOnce(&Incidents)) -> Vec<String> {
        let collector = Collector::default();
        tracing::subscriber::with_default(collector.clone(), || work(&Incidents::default()));
        lock(&collector.0).clone()
    }

    #[test]
    fn an_outage_is_logged_once_and_ends_with_the_last_call_that_failed() {
        let lost = Refusal { unavailable: true, ..Refusal::default() };
        let lines = logged(|incidents| {
            incidents.succeeded(Call::Poll);
            for _ in 0..3 {
                incidents.failed(Call::Poll, &lost);
                incidents.failed(Call::Heartbeat, &lost);
            }
            incidents.succeeded(Call::Poll);
            incidents.failed(Call::Heartbeat, &lost);
            incidents.succeeded(Call::Heartbeat);
            incidents.succeeded(Call::Heartbeat);
        });
        assert_eq!(
            lines,
            ["store became unavailable; calls will be repeated", "store became available again"]
        );
    }

    #[test]
    fn a_server_that_comes_back_as_a_standby_is_logged_once() {
        let lost = Refusal { unavailable: true, ..Refusal::default() };
        let standby = Refusal { unavailable: true, read_only: true, ..Refusal::default() };
        let lines = logged(|incidents| {
            for _ in 0..2 {
                incidents.failed(Call::Poll, &lost);
                incidents.failed(Call::Poll, &standby);
            }
            incidents.succeeded(Call::Poll);
        });
        assert_eq!(
            lines,
            [
                "store became unavailable; calls will be repeated",
                "store became read-only; calls will be repeated",
                "store became available again"
            ]
        );
    }

    #[test]
    fn a_refusal_is_logged_for_each_kind_of_call() {
        let lines = logged(|incidents| {
            for _ in 0..2 {
                incidents.failed(Call::Poll, &Refusal::default());
                incidents.failed(Call::Maintain, &Refusal { passing: true, ..Refusal::default() });
            }
            incidents.succeeded(Call::Poll);
            incidents.succeeded(Call::Poll);
        });
        let refused = "call was refused; it will be repeated";
        assert_eq!(lines, [refused, refused, "call was accepted again"]);
    }
}
