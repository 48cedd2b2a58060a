//! The durable steps of an attempt: the sequence in which a handler asks for them.

use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Context;
use crate::lock::lock;
use crate::payload::mismatch;
use crate::store::{Keeping, NewStep};
use crate::{Error, Failure, LogLevel, Outcome, Payload, StepKind, StepRecord, Store};

/// The steps of an attempt.
#[derive(Debug, Default)]
pub(crate) struct StepSequence {
    /// The kept steps of the job. `None` until they are read, and after a call that may have changed them.
    kept: Option<Vec<StepRecord>>,
    /// The position of the step that the handler asks for next.
    next: usize,
    is_running: bool,
    /// The outcome with which a sleep or a wait has ended the attempt.
    suspended: Option<Outcome>,
    /// Why no attempt of this program can go on after the kept steps.
    changed: Option<String>,
}

/// A step that a handler has asked for. Created by [`Context::begin_step`].
///
/// For a crate that has asynchronous connections. If it is dropped before [`StepRun::finish`], the position is free
/// again, and the next step reads the kept ones again.
#[must_use]
#[allow(missing_debug_implementations, reason = "a store need not implement Debug")]
pub struct StepRun<'c, S: Store> {
    context: &'c Context<S>,
    kind: StepKind,
    name: &'c str,
    position: u32,
    is_finished: bool,
}

impl<S: Store> Context<S> {
    /// Begins the next step, without reading the kept ones. `kind` is [`StepKind::Step`], [`StepKind::Sleep`] or
    /// [`StepKind::Waiting`].
    ///
    /// # Errors
    ///
    /// [`Error::InvalidSetting`] for the name; [`Error::StepRefused`] while another step runs; [`Error::Suspended`].
    pub fn begin_step<'c>(&'c self, kind: StepKind, name: &'c str) -> Result<StepRun<'c, S>, Error> {
        StepRecord::check_name(name)?;
        let id = self.job().id;
        let mut steps = lock(&self.steps);
        if steps.suspended.is_some() {
            return Err(Error::Suspended { id });
        }
        if steps.is_running {
            let reason = "another step of the job runs; steps run one after the other".to_owned();
            return Err(Error::StepRefused { id, name: name.to_owned(), reason });
        }
        steps.is_running = true;
        let position = u32::try_from(steps.next).unwrap_or(u32::MAX);
        Ok(StepRun { context: self, kind, name, position, is_finished: false })
    }

    /// Returns the result of the handler, or the outcome of the attempt that a sleep or a wait has ended. If the
    /// handler has asked for other steps than the kept ones, its error says that.
    pub(crate) fn conclude(&self, result: Result<Outcome, Failure>) -> Result<Outcome, Failure> {
        let mut steps = lock(&self.steps);
        if let (Some(changed), Err(Failure::Error(_))) = (steps.changed.take(), &result) {
            return Err(Failure::ChangedSteps(changed));
        }
        let Some(outcome) = steps.suspended.clone() else { return result };
        match result {
            Err(Failure::Error(_)) => Ok(outcome),
            Err(failure) => Err(failure),
            Ok(_) => Err(Failure::Error(
                "the handler went on after a sleep or a wait had ended its attempt; \
                 it must return the error of `sleep` and `wait_for_signal`"
                    .to_owned(),
            )),
        }
    }
}

impl<S: Store> StepRun<'_, S> {
    /// Returns whether the kept steps must be passed to [`StepRun::set_kept`] before [`StepRun::find`].
    #[must_use]
    pub fn needs_kept(&self) -> bool {
        lock(&self.context.steps).kept.is_none()
    }

    /// Sets the kept steps of the job, as the store has returned them.
    ///
    /// # Errors
    ///
    /// [`Error::StepRefused`] if an earlier step of this attempt was rolled back.
    pub fn set_kept(&self, kept: Vec<StepRecord>) -> Result<(), Error> {
        let mut steps = lock(&self.context.steps);
        if kept.len() < steps.next {
            return Err(self.refused(OUT_OF_ORDER));
        }
        steps.kept = Some(kept);
        Ok(())
    }

    /// Returns the kept step, if there is one and the kept ones have been read.
    ///
    /// # Errors
    ///
    /// [`Error::StepChanged`] if another step is kept at this position.
    pub fn find(&self) -> Result<Option<StepRecord>, Error> {
        let mut steps = lock(&self.context.steps);
        let next = steps.next;
        let Some(kept) = steps.kept.as_ref().and_then(|kept| kept.get(next)) else { return Ok(None) };
        if kept.name == self.name && kept.kind.asked() == self.kind.asked() {
            return Ok(Some(kept.clone()));
        }
        let named = |kind: StepKind, name: &str| match kind {
            StepKind::Sleep => "a sleep".to_owned(),
            kind => format!("the {} {name:?}", kind.asked()),
        };
        let changed = Error::StepChanged {
            id: self.context.job().id,
            number: self.position.saturating_add(1),
            kept: named(kept.kind, &kept.name),
            asked: named(self.kind, self.name),
            label: kept.label(),
        };
        steps.changed = Some(changed.to_string());
        Err(changed)
    }

    /// Returns whether a later step is kept, so that a sleep has passed.
    #[must_use]
    pub fn is_followed(&self) -> bool {
        let steps = lock(&self.context.steps);
        steps.kept.as_ref().is_some_and(|kept| kept.len() > steps.next + 1)
    }

    /// Returns the kept result, and ends the step without running it.
    ///
    /// # Errors
    ///
    /// [`Error::StepRefused`] if it has another type.
    pub fn replay<T: DeserializeOwned>(self, kept: &StepRecord) -> Result<T, Error> {
        let json = kept.result.as_ref().map_or("null", Payload::as_str);
        let Ok(result) = serde_json::from_str(json) else {
            let (id, label) = (self.context.job().id, kept.label());
            let refused = self.refused(&format!(
                "its kept result has another type: {}; the program that began the job can run it, or \
                 `pq retry {id} --from-step {label}` forgets this step and all later ones: they run again, and so does what \
                 they do outside of the database",
                mismatch::<T>(json)
            ));
            lock(&self.context.steps).changed = Some(refused.to_string());
            return Err(refused);
        };
        self.finish();
        Ok(result)
    }

    /// Returns whether a signal has come whose value is no `T`. Then the caller must forget the step in the same
    /// transaction, so that the next attempt waits for another one.
    #[must_use]
    pub fn is_misfit<T: DeserializeOwned>(&self, keeping: &Keeping) -> bool {
        matches!(keeping, Keeping::Kept(Some(value)) if serde_json::from_str::<T>(value.as_str()).is_err())
    }

    /// Returns the value of the signal that has come, if one has.
    ///
    /// # Errors
    ///
    /// [`Error::StepRefused`] if it has another type. The log of the job has the value then.
    pub fn receive<T: DeserializeOwned>(&self, keeping: &Keeping) -> Result<Option<T>, Error> {
        let Keeping::Kept(Some(value)) = keeping else { return Ok(None) };
        serde_json::from_str(value.as_str()).map(Some).map_err(|_| {
            let shown: String = value.as_str().chars().take(MAX_SHOWN).collect();
            self.context.log_at(LogLevel::Error, format!("removed the signal {:?} with the value {shown}", self.name));
            self.refused(&format!(
                "the signal has another type: {}; it was removed, and is in the log of the job; send one of the right type",
                mismatch::<T>(value.as_str())
            ))
        })
    }

    /// Returns the position, from 0.
    #[must_use]
    pub fn position(&self) -> u32 {
        self.position
    }

    /// Returns the step with the result of its closure, to be kept.
    ///
    /// # Errors
    ///
    /// [`Error::Encode`], [`Error::PayloadTooLarge`] and [`Error::PayloadTooDeep`].
    pub fn with_result<T: Serialize + ?Sized>(&self, result: &T) -> Result<NewStep<'_>, Error> {
        let result = self.context.access.pq.json_payload(result)?;
        Ok(NewStep { result: Some(result), ..self.new_step(None) })
    }

    /// Returns the sleep or the wait of this length, to be kept.
    #[must_use]
    pub fn lasting(&self, after: Duration) -> NewStep<'_> {
        self.new_step(Some(after))
    }

    fn new_step(&self, after: Option<Duration>) -> NewStep<'_> {
        NewStep { position: self.position, kind: self.kind, name: self.name, result: None, after }
    }

    /// Returns the error of a step that was not kept, or `None` if it was kept or waits.
    #[must_use]
    pub fn refusal(&self, keeping: &Keeping) -> Option<Error> {
        match keeping {
            Keeping::Kept(_) | Keeping::Waits(_) => None,
            Keeping::LeaseLost => Some(Error::lease_lost(self.context.job().id)),
            Keeping::OutOfOrder => Some(self.refused(OUT_OF_ORDER)),
        }
    }

    /// Returns the error of a step whose caller's connection does not see the lease, although the handle's does.
    #[must_use]
    pub fn elsewhere(&self) -> Error {
        self.refused(
            "its connection does not see the lease of the job, and the handle's does; \
             it must be connected to the database of the queue, and begin its transaction in the handler",
        )
    }

    fn refused(&self, reason: &str) -> Error {
        let (id, name) = (self.context.job().id, self.name.to_owned());
        Error::StepRefused { id, name, reason: reason.to_owned() }
    }

    /// Ends the step: it is kept, and the handler may ask for the next one.
    pub fn finish(mut self) {
        self.is_finished = true;
        lock(&self.context.steps).next += 1;
    }

    /// Ends a step that a transaction of the caller has kept, and that commits with it.
    ///
    /// The next step reads the kept ones again, and is refused if its connection does not see this one. Otherwise it
    /// would wait for that transaction, which waits for the handler.
    pub fn finish_in_transaction(self) {
        let context = self.context;
        self.finish();
        lock(&context.steps).kept = None;
    }

    /// Ends the attempt by this outcome, with which the store has settled the job, and returns the error for the
    /// handler.
    pub fn suspend(self, outcome: Outcome) -> Error {
        lock(&self.context.steps).suspended = Some(outcome);
        Error::Suspended { id: self.context.job().id }
    }
}

impl<S: Store> Drop for StepRun<'_, S> {
    fn drop(&mut self) {
        let mut steps = lock(&self.context.steps);
        steps.is_running = false;
        if !self.is_finished {
            // The store may have kept the step, although the caller does not know.
            steps.kept = None;
        }
    }
}

/// The maximum number of characters of a removed signal in the log of its job.
const MAX_SHOWN: usize = 1_000;

const OUT_OF_ORDER: &str = "the step before was rolled back or has not been committed, or another attempt or an operator \
    has changed the steps of the job; return the error, so that the next attempt goes on";

/// The steps of a blocking handler.
impl<S: Store> Context<S> {
    /// Runs `work` once, and keeps its result. In later attempts returns the kept result, and does not run `work`.
    ///
    /// The result is committed before this returns. If `work` fails, nothing is kept. After a crash between the end
    /// of `work` and the commit it runs again, so what it does outside of the database happens at least once. For
    /// writes in the database use [`Context::step_with`], which is exactly once.
    ///
    /// A failure of `work` is not kept either: a handler that goes another way after a failure makes it a result,
    /// such as `Ok(charge().map_err(|error| error.to_string()))`.
    ///
    /// A handler must ask for its steps in the same order in each attempt, and one after the other. The n-th step of
    /// a name is `name#n`, so a loop can use one name. The results have the limits of payloads, and are kept until
    /// the job completes: also while it is dead or cancelled, so that a requeued job goes on after them.
    ///
    /// A transactional handler has no context and so no steps: all it does is committed at once, with its job.
    ///
    /// ```
    /// # use pq_core::{Pq, Worker, memory::MemoryStore};
    /// # let pq = Pq::new(MemoryStore::new());
    /// let orders = pq.queue::<u32>("orders")?;
    /// # orders.put(&7)?;
    /// let handler = orders.leased(|context, job| {
    ///     let receipt = context.step("charge", || Ok::<_, pq_core::Error>(format!("receipt of {}", job.data)))?;
    ///     assert_eq!(receipt, "receipt of 7");
    ///     context.step("mail", || Ok::<_, pq_core::Error>(()))
    /// });
    /// assert_eq!(Worker::new(&pq).serve(handler).run_until_empty()?.done, 1);
    /// # Ok::<_, pq_core::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// The error of `work`; [`Error::StepChanged`] if an earlier attempt has kept another step here;
    /// [`Error::LeaseLost`] if the lease has expired; [`Error::StepRefused`] inside of another step;
    /// [`Error::Suspended`]; the errors of [`crate::Queue::put`] for the result; the store's errors.
    pub fn step<T, E>(&self, name: &str, work: impl FnOnce() -> Result<T, E>) -> Result<T, E>
    where
        T: Serialize + DeserializeOwned,
        E: From<S::Error>,
    {
        let step = self.begin_step(StepKind::Step, name).map_err(S::Error::from)?;
        if let Some(kept) = self.find_step(&step)? {
            return Ok(step.replay(&kept).map_err(S::Error::from)?);
        }
        let result = work()?;
        let store = self.access.pq.store();
        let new = step.with_result(&result).map_err(S::Error::from)?;
        let keeping = store.with_connection(|conn| store.keep_step(conn, &self.job, &new))?;
        if let Some(refusal) = step.refusal(&keeping) {
            return Err(S::Error::from(refusal).into());
        }
        step.finish();
        Ok(result)
    }

    /// Runs `work` once on the caller's connection, and commits its writes together with its result.
    ///
    /// Begins a transaction, or a nested one if the connection is in one already. The writes and the result are
    /// committed or neither is, and only while the job's lease is held: if another worker may have the job, all is
    /// rolled back. So the writes happen exactly once. The rest is as by [`Context::step`].
    ///
    /// If an enclosing transaction of the caller is rolled back, the handler must return an error: the next attempt
    /// repeats the step. Until the enclosing transaction has ended, a step on another connection is refused.
    ///
    /// # Errors
    ///
    /// See [`Context::step`]. The transaction was rolled back. [`Error::StepRefused`] if the connection is to another
    /// database than that of the queue.
    pub fn step_with<T, E>(
        &self,
        conn: &mut S::Conn,
        name: &str,
        work: impl FnOnce(&mut S::Conn) -> Result<T, E>,
    ) -> Result<T, E>
    where
        T: Serialize + DeserializeOwned,
        E: From<S::Error>,
    {
        let step = self.begin_step(StepKind::Step, name).map_err(S::Error::from)?;
        if let Some(kept) = step.find().map_err(S::Error::from)? {
            return Ok(step.replay(&kept).map_err(S::Error::from)?);
        }
        let (store, mut is_lost) = (self.access.pq.store(), false);
        let done = store.transaction(conn, |conn| {
            // A transaction of its own would be one more commit.
            if step.needs_kept() {
                step.set_kept(store.steps(conn, &self.job)?).map_err(S::Error::from)?;
                if let Some(kept) = step.find().map_err(S::Error::from)? {
                    return Ok(Err(kept));
                }
            }
            let result = store.with_call_timeout(conn, None, work)?;
            let new = step.with_result(&result).map_err(S::Error::from)?;
            let keeping = store.keep_step(conn, &self.job, &new)?;
            is_lost = keeping == Keeping::LeaseLost;
            match step.refusal(&keeping) {
                Some(refusal) => Err(E::from(S::Error::from(refusal))),
                None => Ok(Ok(result)),
            }
        });
        if is_lost && !self.is_settled() && self.extend_lease().is_ok() {
            return Err(S::Error::from(step.elsewhere()).into());
        }
        match done? {
            Ok(result) => {
                match store.is_in_transaction(conn)? {
                    true => step.finish_in_transaction(),
                    false => step.finish(),
                }
                Ok(result)
            }
            Err(kept) => Ok(step.replay(&kept).map_err(S::Error::from)?),
        }
    }

    /// Lets the job wait for this time, without a worker, and goes on after it in a new attempt.
    ///
    /// The first call commits that the job sleeps, returns the job to its queue, and fails with [`Error::Suspended`].
    /// The handler must return that error, and nothing that it does after it is part of the job. When the time has
    /// passed on the store's clock, the job runs again as the same attempt: its steps return their kept results, and
    /// this returns at once.
    ///
    /// # Errors
    ///
    /// [`Error::Suspended`] if the attempt ends here; else see [`Context::step`].
    pub fn sleep(&self, duration: Duration) -> Result<(), S::Error> {
        let step = self.begin_step(StepKind::Sleep, StepRecord::SLEEP)?;
        let store = self.access.pq.store();
        let kept = self.find_step(&step)?;
        let remaining = match kept.as_ref().and_then(|kept| kept.until) {
            Some(_) if step.is_followed() => Duration::ZERO,
            Some(until) => (until - self.access.pq.now()?).to_std().unwrap_or_default(),
            None => duration,
        };
        if kept.is_some() && remaining.is_zero() {
            step.finish();
            return Ok(());
        }
        let keeping = store.with_connection(|conn| {
            store.transaction(conn, |conn| {
                if kept.is_none() {
                    let keeping = store.keep_step(conn, &self.job, &step.lasting(duration))?;
                    if step.refusal(&keeping).is_some() {
                        return Ok(keeping);
                    }
                }
                self.leave(conn, Some(remaining).filter(|remaining| !remaining.is_zero()))
            })
        })?;
        self.go_on(step, keeping).map(drop)
    }

    /// Lets the job wait for a signal of this name, without a worker, and returns its value.
    ///
    /// If the signal has come, returns at once; it is delivered once. Else the call ends the attempt, as
    /// [`Context::sleep`] does. The job goes on as soon as the signal comes, and returns `None` if it has not come
    /// within `timeout` of the first call. [`crate::Pq::signal`] sends signals.
    ///
    /// # Errors
    ///
    /// [`Error::Suspended`] if the attempt ends here; [`Error::StepRefused`] if the value has another type: the
    /// signal is removed, the log of the job has its value, and the next attempt waits for another one, as long as
    /// this one; else see [`Context::step`].
    pub fn wait_for_signal<T: DeserializeOwned>(
        &self,
        name: &str,
        timeout: Duration,
    ) -> Result<Option<T>, S::Error> {
        let step = self.begin_step(StepKind::Waiting, name)?;
        let store = self.access.pq.store();
        match self.find_step(&step)? {
            Some(kept) if kept.kind == StepKind::Signal => return Ok(Some(step.replay(&kept)?)),
            Some(kept) if kept.kind == StepKind::Timeout => {
                return self.go_on(step, Keeping::Kept(None)).map(|()| None);
            }
            _ => {}
        }
        let keeping = store.with_connection(|conn| {
            store.transaction(conn, |conn| {
                match store.await_signal(conn, &self.job, &step.lasting(timeout))? {
                    Keeping::Waits(remaining) => self.leave(conn, Some(remaining)),
                    keeping => {
                        if step.is_misfit::<T>(&keeping) {
                            store.forget_steps(conn, &self.job, step.position())?;
                        }
                        Ok(keeping)
                    }
                }
            })
        })?;
        let value = step.receive(&keeping)?;
        self.go_on(step, keeping)?;
        Ok(value)
    }

    /// Returns the job to its queue for this time, if one is given.
    fn leave(&self, conn: &mut S::Conn, remaining: Option<Duration>) -> Result<Keeping, S::Error> {
        let Some(remaining) = remaining else { return Ok(Keeping::Kept(None)) };
        self.settle_with(conn, Outcome::snooze(remaining))?;
        Ok(Keeping::Waits(remaining))
    }

    /// Ends a step that was kept, or the attempt.
    pub(super) fn go_on(&self, step: StepRun<'_, S>, keeping: Keeping) -> Result<(), S::Error> {
        if let Some(refusal) = step.refusal(&keeping) {
            return Err(refusal.into());
        }
        if let Keeping::Waits(remaining) = keeping {
            return Err(step.suspend(Outcome::snooze(remaining)).into());
        }
        step.finish();
        Ok(())
    }

    /// Returns the kept step, and reads the kept ones once.
    pub(super) fn find_step(&self, step: &StepRun<'_, S>) -> Result<Option<StepRecord>, S::Error> {
        if step.needs_kept() {
            let store = self.access.pq.store();
            step.set_kept(store.with_connection(|conn| store.steps(conn, &self.job))?)?;
        }
        Ok(step.find()?)
    }
}
