//! The steps of jobs, and signals for them.

use serde::Serialize;

use super::Pq;
use crate::audit::Action;
use crate::{
    ChangeOutcome, CodecError, Error, Filter, JobId, JobRecord, JobState, Operation, Payload, SentSignal,
    StepRecord, Store,
};

/// The reason why a retry from a step is rolled back.
enum Refused<E> {
    Because(ChangeOutcome),
    Store(E),
}

impl<E> From<E> for Refused<E> {
    fn from(error: E) -> Self {
        Self::Store(error)
    }
}

impl<S: Store> Pq<S> {
    /// Sends a signal to a job that waits or runs. See [`crate::Context::wait_for_signal`].
    ///
    /// It is kept if the job does not wait for it yet, and is delivered once. If the job waits for it, the job is due
    /// at once. The audit log records it if the handle acts as an operator ([`Pq::acting_as`]).
    ///
    /// # Errors
    ///
    /// [`Error::NotLive`] if no job with this id waits or runs; [`Error::InvalidSetting`] for the name; the errors of
    /// [`crate::Queue::put`] for the value; the store's errors.
    pub fn signal<T: Serialize + ?Sized>(&self, id: JobId, name: &str, value: &T) -> Result<(), S::Error> {
        self.operation(|conn| self.signal_on(conn, id, name, value))
    }

    /// Sends a signal on the caller's connection, inside the caller's transaction. See [`Pq::signal`].
    ///
    /// The job gets it if that transaction commits.
    ///
    /// # Errors
    ///
    /// See [`Pq::signal`].
    pub fn signal_on<T: Serialize + ?Sized>(
        &self,
        conn: &mut S::Conn,
        id: JobId,
        name: &str,
        value: &T,
    ) -> Result<(), S::Error> {
        let value = self.encode_signal(name, value)?;
        let action = Action::new("signal").job(id).details(name);
        let sent = |is_sent: &bool| u64::from(*is_sent);
        match self.recorded_on(conn, &action, sent, |conn| self.store.signal(conn, id, name, &value))? {
            true => Ok(()),
            false => Err(Error::not_live(id).into()),
        }
    }

    /// Checks the name of a signal and encodes its value, for a crate with connections of another kind.
    ///
    /// # Errors
    ///
    /// See [`Pq::signal`].
    pub fn encode_signal<T: Serialize + ?Sized>(&self, name: &str, value: &T) -> Result<Payload, Error> {
        StepRecord::check_name(name)?;
        self.json_payload(value)
    }

    /// Returns the kept steps of a job, by their positions. See [`crate::Context::step`].
    ///
    /// # Errors
    ///
    /// The store's errors.
    pub fn steps(&self, job: &JobRecord) -> Result<Vec<StepRecord>, S::Error> {
        self.store.with_connection(|conn| self.store.steps(conn, job))
    }

    /// Returns the first `count` signals that were sent to a job and are not delivered, in the order in which they
    /// were sent.
    ///
    /// # Errors
    ///
    /// The store's errors.
    pub fn signals(&self, job: &JobRecord, count: usize) -> Result<Vec<SentSignal>, S::Error> {
        self.store.with_connection(|conn| self.store.signals(conn, job, count))
    }

    /// Forgets a step of a job and all later ones, and makes the job due at once: it goes on before that step.
    ///
    /// `step` is a label such as `charge` or `charge#2`, see [`StepRecord::label`]. A dead or cancelled job is
    /// requeued. A job that runs or is done is not changed.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidSetting`] if the job has no such step; the store's errors. Nothing was changed.
    pub fn retry_from_step(&self, id: JobId, step: &str) -> Result<ChangeOutcome, S::Error> {
        self.operation(|conn| {
            let done = self.store.transaction(conn, |conn| self.forget_from(conn, id, step));
            match done {
                Ok(outcome) | Err(Refused::Because(outcome)) => Ok(outcome),
                Err(Refused::Store(error)) => Err(error),
            }
        })
    }

    fn forget_from(
        &self,
        conn: &mut S::Conn,
        id: JobId,
        step: &str,
    ) -> Result<ChangeOutcome, Refused<S::Error>> {
        let Some(job) = self.store.list(conn, &Filter::id(id), 1)?.pop() else {
            return Ok(ChangeOutcome::NotFound);
        };
        if matches!(job.state, JobState::Running | JobState::Dequeued | JobState::Done) {
            return Ok(ChangeOutcome::WrongState(job.state));
        }
        let label = step.strip_suffix("#1").unwrap_or(step);
        let steps = self.store.steps(conn, &job)?;
        let Some(first) = steps.iter().find(|step| step.label() == label) else {
            let known: Vec<String> = steps.iter().map(StepRecord::label).collect();
            let unknown = Error::InvalidSetting(match known.is_empty() {
                true => format!("unknown step {step:?} of job {id}: it has kept no step"),
                false => format!("unknown step {step:?} of job {id}; expected {}", known.join(", ")),
            });
            return Err(Refused::Store(unknown.into()));
        };
        let details = format!("from step {}", first.label());
        let action = Action::new("retry").job(id).queue(job.queue.as_str()).details(details);
        let operation = match job.state {
            state if state.is_ended() => Operation::Retry,
            JobState::Scheduled => Operation::RunNow,
            // It changes nothing, and keeps others from taking the job before its steps are forgotten.
            _ => Operation::SetPriority { to: job.priority },
        };
        match self.change_on(conn, id, &operation)? {
            ChangeOutcome::Changed => {}
            refused => return Err(Refused::Because(refused)),
        }
        self.recorded_on(conn, &action, |_| 1, |conn| self.store.forget_steps(conn, &job, first.position))?;
        Ok(ChangeOutcome::Changed)
    }

    /// Encodes a value as JSON within the limits of payloads, whatever the codec is.
    pub(crate) fn json_payload<T: Serialize + ?Sized>(&self, value: &T) -> Result<Payload, Error> {
        let json = serde_json::to_string(value)
            .map_err(|found| Error::Encode(CodecError::new(found.to_string())))?;
        Payload::written(json, self.limits)
    }
}
