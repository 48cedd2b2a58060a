//! The leases that a worker holds.

use std::collections::{HashMap, HashSet};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::lock::lock;
use crate::{JobId, Store};

/// The longest time between two extensions of a lease, and so until a handler learns that its job shall be cancelled.
const EXTEND_WITHIN: Duration = Duration::from_secs(2);

/// The longest time that an extension waits for the store's answer.
const EXTENSION_TIMEOUT: Duration = Duration::from_secs(5);

/// Returns how long an extension by `length` waits for the store's answer. It leaves time for other attempts.
pub(crate) fn extension_timeout(length: Duration) -> Duration {
    (length / 6).min(EXTENSION_TIMEOUT)
}

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

impl LeaseState {
    fn is_due(&self) -> bool {
        !self.lost && self.extended_at.elapsed() >= (self.length / 3).min(EXTEND_WITHIN)
    }
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

    /// Returns whether a lease is due to be extended, or could not be.
    pub(crate) fn is_extension_due(&self) -> bool {
        lock(&self.0).values().any(LeaseState::is_due)
    }

    /// Extends the leases after a third of their length, or after [`EXTEND_WITHIN`] if that is shorter.
    pub(crate) fn extend_due<S: Store>(&self, store: &S) {
        let mut due = HashMap::<Duration, Vec<i64>>::new();
        for (lease, state) in lock(&self.0).iter() {
            if state.is_due() {
                due.entry(state.length).or_default().push(*lease);
            }
        }
        for (length, leases) in due {
            if let Err(error) = self.extend(store, &leases, length) {
                tracing::warn!(%error, leases = leases.len(), "extending leases failed; the worker will retry");
            }
        }
    }

    /// Extends these leases. Returns whether the store still knew all of them; the others are marked as lost.
    pub(crate) fn extend<S: Store>(
        &self,
        store: &S,
        leases: &[i64],
        length: Duration,
    ) -> Result<bool, S::Error> {
        let extended = store.with_connection(|conn| {
            let timeout = Some(extension_timeout(length));
            store.with_call_timeout(conn, timeout, |conn| store.extend(conn, leases, length))
        })?;
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
