//! The leases that a worker holds.

use std::collections::{HashMap, HashSet};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::lock::lock;
use crate::{JobId, Store};

/// The longest time between two extensions of a lease, and so until a handler learns that its job shall be cancelled.
const EXTEND_WITHIN: Duration = Duration::from_secs(2);

/// A lease that the worker holds.
#[derive(Debug)]
struct LeaseState {
    /// The time by which each extension postpones the expiry.
    length: Duration,
    extended_at: Instant,
    /// Whether the lease expired before it was extended. Another worker may run its jobs.
    lost: bool,
    /// Jobs of the lease for which cancellation was requested.
    cancel_requested: HashSet<JobId>,
}

/// The leases of a worker by their tokens.
#[derive(Debug, Default)]
pub(crate) struct LeaseTable(Mutex<HashMap<i64, LeaseState>>);

impl LeaseTable {
    /// Adds a lease that was just taken.
    pub(crate) fn insert(&self, lease: i64, length: Duration) {
        let state =
            LeaseState { length, extended_at: Instant::now(), lost: false, cancel_requested: HashSet::new() };
        lock(&self.0).insert(lease, state);
    }

    /// Removes a lease, which is not extended from then on. Returns `false` if it was not in the table.
    pub(crate) fn remove(&self, lease: i64) -> bool {
        lock(&self.0).remove(&lease).is_some()
    }

    pub(crate) fn is_empty(&self) -> bool {
        lock(&self.0).is_empty()
    }

    pub(crate) fn is_lost(&self, lease: i64) -> bool {
        lock(&self.0).get(&lease).is_some_and(|state| state.lost)
    }

    pub(crate) fn is_cancel_requested(&self, lease: i64, job: JobId) -> bool {
        lock(&self.0).get(&lease).is_some_and(|state| state.cancel_requested.contains(&job))
    }

    /// Returns the time by which an extension postpones the expiry.
    pub(crate) fn length(&self, lease: i64) -> Option<Duration> {
        lock(&self.0).get(&lease).map(|state| state.length)
    }

    /// Sets the time by which an extension postpones the expiry, and makes an extension due.
    ///
    /// Returns `false` if nothing changed.
    pub(crate) fn set_length(&self, lease: i64, length: Duration) -> bool {
        match lock(&self.0).get_mut(&lease) {
            Some(state) if state.length != length => {
                state.length = length;
                state.extended_at = Instant::now().checked_sub(length).unwrap_or(state.extended_at);
                true
            }
            _ => false,
        }
    }

    /// Extends the leases after a third of their length, or after [`EXTEND_WITHIN`] if that is shorter.
    ///
    /// Returns `false` if the store did not answer for some of them.
    pub(crate) fn extend_due<S: Store>(&self, store: &S) -> bool {
        let mut answered = true;
        let mut due = HashMap::<Duration, Vec<i64>>::new();
        for (lease, state) in lock(&self.0).iter() {
            if !state.lost && state.extended_at.elapsed() >= (state.length / 3).min(EXTEND_WITHIN) {
                due.entry(state.length).or_default().push(*lease);
            }
        }
        for (length, leases) in due {
            if let Err(error) = self.extend(store, &leases, length) {
                answered = false;
                tracing::warn!(%error, leases = leases.len(), "extending leases failed; the worker will retry");
            }
        }
        answered
    }

    /// Extends these leases. Returns whether the store still knew all of them; the others are marked as lost.
    pub(crate) fn extend<S: Store>(
        &self,
        store: &S,
        leases: &[i64],
        length: Duration,
    ) -> Result<bool, S::Error> {
        let extended = store.with_connection(|conn| store.extend(conn, leases, length))?;
        let mut table = lock(&self.0);
        for lease in leases {
            let Some(state) = table.get_mut(lease) else { continue };
            match extended.iter().find(|extended| extended.lease == *lease) {
                Some(extended) => {
                    state.extended_at = Instant::now();
                    state.cancel_requested.extend(extended.cancelled.iter().copied());
                }
                // The lease may also have been settled meanwhile. Then its state is not read again.
                None => state.lost = true,
            }
        }
        Ok(extended.len() == leases.len())
    }

    /// Returns whether the lease is still held.
    ///
    /// A lease that may have expired, for example while the process was suspended, is extended first. It counts as lost
    /// if that fails.
    pub(crate) fn confirm<S: Store>(&self, store: &S, lease: i64, now: Instant) -> bool {
        let length = match lock(&self.0).get(&lease) {
            Some(state) if state.lost => return false,
            Some(state) if now - state.extended_at >= state.length => state.length,
            _ => return true,
        };
        let held = self.extend(store, &[lease], length).unwrap_or(false);
        if !held && let Some(state) = lock(&self.0).get_mut(&lease) {
            state.lost = true;
        }
        held
    }
}
