//! What a leased handler knows of its job, and can do with it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::shared::{Shared, lock};
use super::status::StopMode;
use crate::task::{Envelope, Incoming, Trace};
use crate::{CodecError, Error, Outcome, RawJob, Settlement, Store};

/// What a leased handler knows of its job, and can do with it while it runs.
pub struct Context<S: Store> {
    pub(super) shared: Arc<Shared<S>>,
    pub(super) job: Arc<RawJob>,
    pub(super) trace: Trace,
    pub(super) is_task: bool,
    pub(super) served: usize,
    pub(super) deadline: Option<Instant>,
    pub(super) settled: AtomicBool,
    /// The call as the last checkpoint left it.
    pub(super) call: Mutex<Option<Envelope>>,
}

impl<S: Store> Context<S> {
    pub(super) fn new(
        shared: &Arc<Shared<S>>,
        served: usize,
        incoming: &Incoming,
        timeout: Option<Duration>,
    ) -> Self {
        Self {
            shared: Arc::clone(shared),
            job: Arc::clone(&incoming.raw),
            trace: incoming.trace(),
            is_task: incoming.envelope.is_some(),
            served,
            deadline: timeout.and_then(|timeout| Instant::now().checked_add(timeout)),
            settled: AtomicBool::new(false),
            call: Mutex::default(),
        }
    }

    /// The job, not decoded: its id, attempt and times.
    #[must_use]
    pub fn job(&self) -> &RawJob {
        &self.job
    }

    /// The context of the trace in which the task was called.
    #[must_use]
    pub fn trace(&self) -> &Trace {
        &self.trace
    }

    /// Whether the handler should end soon, for whatever reason: the job is cancelled, its time is over, its
    /// lease is lost, or the worker is to stop now.
    #[must_use]
    pub fn should_stop(&self) -> bool {
        self.is_cancelled() || self.is_timed_out() || self.is_lease_lost() || self.is_aborting()
    }

    /// Whether somebody wants the job cancelled. Known within two seconds of the wish.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.state(|state| state.cancel_requested.contains(&self.job.id))
    }

    /// Whether the handler has taken longer than it may: whatever it returns, its job has failed.
    #[must_use]
    pub fn is_timed_out(&self) -> bool {
        self.deadline.is_some_and(|deadline| Instant::now() >= deadline)
    }

    /// Whether the lease was over before it could be extended. Another worker may run the job by now, and this
    /// one's verdict will be refused.
    #[must_use]
    pub fn is_lease_lost(&self) -> bool {
        self.state(|state| state.lost)
    }

    /// Whether the worker is to stop now.
    #[must_use]
    pub fn is_aborting(&self) -> bool {
        self.shared.signals.mode() == Some(StopMode::Abort)
    }

    /// Extends the lease at once. The worker does so by itself while the handler runs; this tells whether the
    /// lease is still held.
    ///
    /// # Errors
    ///
    /// [`Error::LeaseLost`]; the store's own.
    pub fn extend_lease(&self) -> Result<(), S::Error> {
        let Some(lease) = self.job.claim.lease() else { return Err(Error::lease_lost(self.job.id).into()) };
        let length = lock(&self.shared.leases).get(&lease).map(|state| state.length);
        let length = length.unwrap_or(self.shared.settings.lease);
        let store = self.shared.pq.store();
        let extended = store.with_connection(|conn| store.extend(conn, &[lease], length))?;
        match extended.first() {
            Some(extended) => {
                if let Some(state) = lock(&self.shared.leases).get_mut(&lease) {
                    state.extended = Instant::now();
                    state.cancel_requested.extend(extended.cancelled.iter().copied());
                }
                Ok(())
            }
            None => Err(Error::lease_lost(self.job.id).into()),
        }
    }

    /// Completes the job in the caller's transaction, on the caller's connection: what was written there and
    /// the completion commit together, or not at all. What the handler returns does not count then.
    ///
    /// # Errors
    ///
    /// [`Error::LeaseLost`] where it comes too late. Let it roll back the transaction: another attempt does the
    /// work, and its verdict counts. The store's own.
    pub fn complete_with(&self, conn: &mut S::Conn) -> Result<(), S::Error> {
        self.settle_with(conn, Outcome::Complete)
    }

    /// Passes any verdict in the caller's transaction, as [`Context::complete_with`] does.
    ///
    /// # Errors
    ///
    /// As [`Context::complete_with`].
    pub fn settle_with(&self, conn: &mut S::Conn, outcome: Outcome) -> Result<(), S::Error> {
        let verdict = Settlement { job: &self.job, outcome };
        let accepted = self.shared.pq.store().settle(conn, std::slice::from_ref(&verdict))?;
        if accepted.first() != Some(&true) {
            return Err(Error::lease_lost(self.job.id).into());
        }
        self.settled.store(true, Ordering::SeqCst);
        Ok(())
    }

    /// Stores what the job carries from now on, at once: whatever attempt comes after this one begins with it.
    /// For a task it is the arguments.
    ///
    /// # Errors
    ///
    /// As [`crate::Queue::put`] for the payload; [`Error::LeaseLost`]; the store's own.
    pub fn checkpoint<T: Serialize>(&self, data: &T) -> Result<(), S::Error> {
        let json =
            serde_json::to_string(data).map_err(|found| Error::Encode(CodecError::new(found.to_string())))?;
        let queue = &self.shared.queues.all[self.served].queue;
        let mut call = None;
        if self.is_task {
            let read = queue.json_of(&self.job).and_then(|json| Envelope::read(&json));
            let mut changed = read.map_err(|reason| Error::Encode(CodecError::new(reason)))?;
            changed.set_arguments(&json)?;
            call = Some(changed);
        }
        let payload = queue.encode_json(call.as_ref().map_or(Ok(json), Envelope::to_json)?)?;
        let store = self.shared.pq.store();
        store.with_connection(|conn| store.update(conn, &self.job.claim, &payload))?;
        *lock(&self.call) = call;
        Ok(())
    }

    /// A connection of the handle's own, for [`Context::complete_with`] say.
    ///
    /// # Errors
    ///
    /// What `work` returned; the store's own.
    pub fn transaction<R, E: From<S::Error>>(
        &self,
        work: impl FnOnce(&mut S::Conn) -> Result<R, E>,
    ) -> Result<R, E> {
        self.shared.pq.transaction(work)
    }

    fn state(&self, ask: impl FnOnce(&super::shared::LeaseState) -> bool) -> bool {
        let leases = lock(&self.shared.leases);
        self.job.claim.lease().and_then(|lease| leases.get(&lease)).is_some_and(ask)
    }
}
