//! The leases that a worker holds.

use std::collections::{HashMap, HashSet};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::lock::lock;
use crate::store::Extension;
use crate::{Extended, JobId, Store};

/// The longest time between two extensions of a lease, and so until a handler learns that its job shall be cancelled.
const EXTEND_WITHIN: Duration = Duration::from_secs(2);

/// The longest time that an extension waits for the store's answer.
const EXTENSION_TIMEOUT: Duration = Duration::from_secs(5);

/// Returns how long an extension by `length` waits for the store's answer. It leaves time for other attempts.
pub(crate) fn extension_timeout(length: Duration) -> Duration {
    (length / 6).min(EXTENSION_TIMEOUT)
}

/// The time after which the extension of a locked lease is tried again.
const LOCKED_PAUSE: Duration = Duration::from_millis(20);

/// The number of times that a caller who waits for an extension tries a locked lease.
const LOCKED_TRIES: usize = 25;

/// The number of times that [`LeaseTable::confirm`] extends a lease before it gives up.
const CONFIRM_TRIES: usize = 3;

/// A lease that the worker holds.
#[derive(Debug)]
struct LeaseState {
    /// The time by which each extension postpones the expiry.
    length: Duration,
    /// When the next extension is due.
    extend_at: Instant,
    /// The store keeps the lease at least until then.
    ///
    /// The lease begins when the store grants or extends it, which is after the request was sent. When the answer
    /// arrives the lease may have expired: the worker, the server or the network may have been suspended meanwhile.
    ends_at: Instant,
    /// Until then the lease counts as held even after `ends_at`, because a transaction had locked it when the store
    /// was last asked.
    ///
    /// It may be the transaction in which the handler itself settles its job.
    locked_until: Option<Instant>,
    /// Whether the store has answered that the lease was lost. Another worker may run its jobs.
    lost: bool,
    /// Whether [`LeaseTable::report_expiry`] has reported it.
    reported: bool,
    /// Jobs of the lease for which cancellation was requested.
    cancel_requested: HashSet<JobId>,
}

impl LeaseState {
    /// Notes that the store granted or extended the lease by `length` after `asked_at`.
    fn granted(&mut self, asked_at: Instant, length: Duration) {
        self.ends_at = later(asked_at, length);
        self.locked_until = None;
        // A length that was set meanwhile needs another extension.
        if self.length == length {
            self.extend_at = later(asked_at, (length / 3).min(EXTEND_WITHIN));
        }
    }

    fn is_lost(&self, now: Instant) -> bool {
        self.lost || (now >= self.ends_at && self.locked_until.is_none_or(|until| now >= until))
    }

    fn is_due(&self) -> bool {
        !self.lost && self.extend_at <= Instant::now()
    }
}

/// The leases of a worker by their tokens.
#[derive(Debug, Default)]
pub(crate) struct LeaseTable(Mutex<HashMap<i64, LeaseState>>);

impl LeaseTable {
    /// Adds a lease that was taken by a request sent at `asked_at`.
    pub(crate) fn insert(&self, lease: i64, length: Duration, asked_at: Instant) {
        let mut state = LeaseState {
            length,
            extend_at: asked_at,
            ends_at: asked_at,
            locked_until: None,
            lost: false,
            reported: false,
            cancel_requested: HashSet::new(),
        };
        state.granted(asked_at, length);
        lock(&self.0).insert(lease, state);
    }

    /// Removes a lease, which is not extended from then on. Returns `false` if it was not in the table.
    pub(crate) fn remove(&self, lease: i64) -> bool {
        lock(&self.0).remove(&lease).is_some()
    }

    pub(crate) fn is_empty(&self) -> bool {
        lock(&self.0).is_empty()
    }

    /// Returns whether the lease was lost, or must be assumed to be lost because it was not extended in time.
    ///
    /// The clock decides, so the answer is right even while a call that extends the lease does not return.
    pub(crate) fn is_lost(&self, lease: i64) -> bool {
        lock(&self.0).get(&lease).is_some_and(|state| state.is_lost(Instant::now()))
    }

    /// Returns whether the lease may have expired although the worker holds it. Returns `true` once for each lease.
    ///
    /// A lease that the store no longer has does not count before the end of its time: its jobs may be settled.
    pub(crate) fn report_expiry(&self, lease: i64) -> bool {
        let now = Instant::now();
        lock(&self.0).get_mut(&lease).is_some_and(|state| {
            let has_ended = now >= state.ends_at && state.locked_until.is_none_or(|until| now >= until);
            has_ended && !std::mem::replace(&mut state.reported, true)
        })
    }

    pub(crate) fn is_cancel_requested(&self, lease: i64, job: JobId) -> bool {
        lock(&self.0).get(&lease).is_some_and(|state| state.cancel_requested.contains(&job))
    }

    /// Sets the time by which an extension postpones the expiry, and makes an extension due.
    ///
    /// Returns `false` if nothing changed.
    pub(crate) fn set_length(&self, lease: i64, length: Duration) -> bool {
        match lock(&self.0).get_mut(&lease) {
            Some(state) if state.length != length => {
                (state.length, state.extend_at) = (length, Instant::now());
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
    ///
    /// Returns the error of the last extension that failed. It will be tried again.
    pub(crate) fn extend_due<S: Store>(&self, store: &S) -> Result<(), S::Error> {
        let mut due = HashMap::<Duration, Vec<i64>>::new();
        for (lease, state) in lock(&self.0).iter() {
            if state.is_due() {
                due.entry(state.length).or_default().push(*lease);
            }
        }
        // An error must not keep the other leases from being extended.
        let mut done = Ok(());
        for (length, leases) in due {
            done = self.extend(store, &leases, length).map(drop).and(done);
        }
        done
    }

    /// Extends these leases and notes the answers, which it returns.
    fn extend<S: Store>(
        &self,
        store: &S,
        leases: &[i64],
        length: Duration,
    ) -> Result<Vec<Extension>, S::Error> {
        let (asked_at, answers) = store.with_connection(|conn| {
            let (asked_at, timeout) = (Instant::now(), Some(extension_timeout(length)));
            let answers =
                store.with_call_timeout(conn, timeout, |conn| store.extend(conn, leases, length))?;
            Ok::<_, S::Error>((asked_at, answers))
        })?;
        let mut table = lock(&self.0);
        // A lease that is absent may also have been settled meanwhile. Then its state is not read again.
        let mut absent: HashSet<i64> = leases.iter().copied().collect();
        for answer in &answers {
            let (Extension::Locked(lease) | Extension::Extended(Extended { lease, .. })) = answer;
            absent.remove(lease);
            let Some(state) = table.get_mut(lease) else { continue };
            match answer {
                Extension::Extended(extended) => {
                    state.granted(asked_at, length);
                    state.cancel_requested.extend(extended.cancelled.iter().copied());
                }
                Extension::Locked(_) => {
                    state.extend_at = asked_at + LOCKED_PAUSE;
                    state.locked_until = Some(asked_at + EXTEND_WITHIN);
                }
            }
        }
        for lease in absent {
            if let Some(state) = table.get_mut(&lease) {
                state.lost = true;
            }
        }
        Ok(answers)
    }

    /// Extends one lease at once. Asks again for a while if a transaction has locked it.
    ///
    /// Returns `None` if the lease was lost.
    pub(crate) fn extend_now<S: Store>(&self, store: &S, lease: i64) -> Result<Option<Extension>, S::Error> {
        let Some(length) = lock(&self.0).get(&lease).map(|state| state.length) else { return Ok(None) };
        ask_until_unlocked(|| Ok(self.extend(store, &[lease], length)?.pop()))
    }

    /// Returns whether the lease is certainly held from `now` on for this time.
    ///
    /// A lease that may expire before that is extended first. It counts as lost if that fails.
    pub(crate) fn confirm<S: Store>(&self, store: &S, lease: i64, mut now: Instant, time: Duration) -> bool {
        for _ in 0..CONFIRM_TRIES {
            match lock(&self.0).get(&lease) {
                Some(state) if state.lost => return false,
                Some(state) if state.ends_at <= now + time => {}
                _ => return true,
            }
            // The answer may arrive after the extended lease has expired again.
            match self.extend_now(store, lease) {
                Ok(Some(Extension::Extended(_))) => now = Instant::now(),
                _ => break,
            }
        }
        if let Some(state) = lock(&self.0).get_mut(&lease) {
            state.lost = true;
        }
        false
    }
}

/// Asks for the extension of one lease until no transaction has it locked, for about half a second.
///
/// Returns the last answer, which is [`Extension::Locked`] if the transaction is still open.
pub(crate) fn ask_until_unlocked<E>(
    mut ask: impl FnMut() -> Result<Option<Extension>, E>,
) -> Result<Option<Extension>, E> {
    for _ in 1..LOCKED_TRIES {
        match ask()? {
            Some(Extension::Locked(_)) => std::thread::sleep(LOCKED_PAUSE),
            answer => return Ok(answer),
        }
    }
    ask()
}

/// Returns the instant after this time, or one that is far away.
fn later(from: Instant, time: Duration) -> Instant {
    const FAR: Duration = Duration::from_secs(100 * 365 * 86_400);
    from + time.min(FAR)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::MemoryStore;
    use crate::store::{Connect, Jobs};
    use crate::{NewJob, Outcome, Payload, QueueName, Scan, Settlement};

    const LENGTH: Duration = Duration::from_secs(30);

    /// Returns a store with one job under a lease, the lease, and its table. The take was sent at `asked_at`.
    fn leased(asked_at: Instant) -> (MemoryStore, std::sync::Arc<crate::Claim>, LeaseTable) {
        let store = MemoryStore::new();
        let queue = QueueName::new("apples").expect("a valid name");
        let job = NewJob::new(Payload::from_stored("1".to_owned()));
        store.put(&mut store.connect(), &queue, &[job]).expect("a put");
        let taken = store.lease(&mut store.connect(), &queue, 1, LENGTH, Scan::Full).expect("a lease");
        let claim = taken.jobs.into_iter().next().expect("a job");
        let table = LeaseTable::default();
        table.insert(claim.token, LENGTH, asked_at);
        (store, claim, table)
    }

    #[test]
    fn a_lease_counts_from_when_the_take_was_sent() {
        let now = Instant::now();
        let (store, claim, table) = leased(now - LENGTH);
        assert!(table.is_lost(claim.token), "it may have expired before the answer arrived");
        assert!(table.confirm(&store, claim.token, now, Duration::ZERO), "an extension confirms it");
        assert!(!table.is_lost(claim.token));
    }

    #[test]
    fn a_lease_that_may_have_expired_and_is_gone_is_not_confirmed() {
        let now = Instant::now();
        let (store, claim, table) = leased(now - LENGTH);
        let settlement = Settlement { job: &claim, outcome: Outcome::GiveBack };
        assert!(store.settle(&mut store.connect(), &[settlement]).expect("an answer").all());
        assert!(!table.confirm(&store, claim.token, now, Duration::ZERO));
        assert!(table.is_lost(claim.token));
    }

    #[test]
    fn a_lease_that_ends_within_the_time_is_extended_first() {
        let now = Instant::now();
        let (store, claim, table) = leased(now);
        assert!(table.confirm(&store, claim.token, now, LENGTH - Duration::from_secs(1)));
        let settlement = Settlement { job: &claim, outcome: Outcome::Complete };
        assert!(store.settle(&mut store.connect(), &[settlement]).expect("an answer").all());
        assert!(table.confirm(&store, claim.token, now, LENGTH - Duration::from_secs(1)));
        assert!(!table.confirm(&store, claim.token, now, LENGTH));
    }

    #[test]
    fn a_lease_that_its_own_transaction_settles_is_neither_extended_nor_lost() {
        let (store, claim, table) = leased(Instant::now() - LENGTH);
        let rolled_back = store.transaction(&mut store.connect(), |conn| {
            let settlement = Settlement { job: &claim, outcome: Outcome::Complete };
            assert!(store.settle(conn, &[settlement])?.all());
            table.extend_due(&store)?;
            assert!(!table.is_lost(claim.token));
            assert!(!table.confirm(&store, claim.token, Instant::now(), Duration::ZERO));
            Err::<(), _>(crate::Error::Stopped)
        });
        assert!(rolled_back.is_err());
    }
}
