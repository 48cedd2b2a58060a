//! What an asynchronous leased handler can ask and do while it runs.

use std::fmt;
use std::sync::Arc;

use diesel_async::AsyncPgConnection;
use pq_core::{
    CancellationToken, Claim, Error as Refused, Isolation, LogLevel, NewNotes, Outcome, Settlement, Trace,
};
use pq_diesel::Error;
use pq_diesel::store::PgStore;
use serde::Serialize;

use crate::connection::OnAsync;
use crate::shared::{Shared, change_on_connection};

/// An asynchronous leased handler's view of its job. Cheap to clone.
///
/// The worker extends the lease while the handler runs. A handler that runs for long should end early when
/// [`Context::cancelled`] is ready, or ask [`Context::should_stop`] from time to time.
///
/// If the process crashes, the lease expires, and another worker begins the next attempt. To write to the database
/// exactly once, complete the job in the same transaction with [`Context::complete_with`].
#[derive(Clone)]
pub struct Context {
    pub(crate) shared: Arc<Shared>,
    pub(crate) context: Arc<pq_core::Context<PgStore>>,
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.context.fmt(f)
    }
}

impl Context {
    pub(crate) fn new(shared: &Arc<Shared>, context: Arc<pq_core::Context<PgStore>>) -> Self {
        Self { shared: Arc::clone(shared), context }
    }

    /// Returns the job with its encoded payload.
    #[must_use]
    pub fn job(&self) -> &Claim {
        self.context.job()
    }

    pub(crate) fn isolation_level(&self) -> Isolation {
        self.context.isolation()
    }

    /// Returns the trace context in which the job was put.
    #[must_use]
    pub fn trace(&self) -> &Trace {
        self.context.trace()
    }

    /// Returns whether the handler should return early. See [`pq_core::Context::should_stop`].
    #[must_use]
    pub fn should_stop(&self) -> bool {
        self.context.should_stop()
    }

    /// Returns whether cancellation of the job was requested. See [`pq_core::Context::is_cancelled`].
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.context.is_cancelled()
    }

    /// Returns whether the lease was lost, or must be assumed to be lost. See [`pq_core::Context::is_lease_lost`].
    #[must_use]
    pub fn is_lease_lost(&self) -> bool {
        self.context.is_lease_lost()
    }

    /// Returns whether the worker was stopped with [`pq_core::StopMode::Abort`].
    #[must_use]
    pub fn is_aborting(&self) -> bool {
        self.context.is_aborting()
    }

    /// Waits until the handler should return early: its job is to be cancelled, its lease was lost, or the worker
    /// aborts.
    ///
    /// Ready within a tenth of a second after [`Context::should_stop`] became true. An error that the handler returns
    /// after an abort gives its job back, and the attempt is not counted.
    pub async fn cancelled(&self) {
        self.cancellation_token().cancelled().await;
    }

    /// Returns the token that [`Context::cancelled`] waits for, to pass it to other code.
    #[must_use]
    pub fn cancellation_token(&self) -> CancellationToken {
        self.context.cancellation_token()
    }

    /// Returns the outcome with which the job is settled, by the rules of its task.
    pub(crate) fn outcome_of(&self, outcome: Outcome) -> Outcome {
        self.context.outcome_of(outcome)
    }

    /// Notes how many units of work are done, of how many, and what the handler does. See
    /// [`pq_core::Context::progress`].
    pub fn progress(&self, done: u64, total: u64, note: &str) {
        self.context.progress(done, total, note);
    }

    /// Adds a line to the log of the job. See [`pq_core::Context::log`].
    pub fn log(&self, text: impl AsRef<str>) {
        self.context.log(text);
    }

    /// Adds a line to the log of the job at a level. See [`pq_core::Context::log`].
    pub fn log_at(&self, level: LogLevel, text: impl AsRef<str>) {
        self.context.log_at(level, text);
    }

    /// Corrects the cost of the job when it is known, in tokens. See [`pq_core::Context::cost`].
    ///
    /// If the future is dropped, the cost was corrected or not. The call can be repeated.
    ///
    /// # Errors
    ///
    /// [`Refused::LeaseLost`] if the lease has expired or the job is settled; [`Error::Refused`] for a cost above
    /// 1,000,000; the database's own.
    pub async fn cost(&self, tokens: u32) -> Result<(), Error> {
        let job = self.context.job();
        if !job.is_cost_correctable(tokens)? {
            return Ok(());
        }
        let store = self.shared.store();
        let is_held = change_on_connection!(self.shared, |conn| store.correct_cost_on(conn, job, tokens))?;
        if is_held { Ok(()) } else { Err(Refused::lease_lost(job.id).into()) }
    }

    /// Extends the lease at once. See [`pq_core::Context::extend_lease`].
    ///
    /// # Errors
    ///
    /// [`Refused::LeaseLost`] if the lease has expired, [`Refused::LeaseLocked`] if an open transaction settles the
    /// job; the database's own.
    pub async fn extend_lease(&self) -> Result<(), Error> {
        let context = Arc::clone(&self.context);
        let extended = tokio::task::spawn_blocking(move || context.extend_lease()).await;
        extended.unwrap_or_else(|_| Err(Error::Unavailable("the runtime shuts down".to_owned())))
    }

    /// Completes the job in the caller's transaction, on the caller's connection.
    ///
    /// The caller's writes and the completion commit together. What the handler returns has no effect then. If the
    /// transaction is rolled back, the handler's result holds.
    ///
    /// # Errors
    ///
    /// [`Refused::LeaseLost`] if the lease has expired. Return it from the transaction, so that it is rolled back:
    /// the next attempt does the work. The database's own.
    pub async fn complete_with(&self, conn: &mut AsyncPgConnection) -> Result<(), Error> {
        self.settle_with(conn, Outcome::Complete).await
    }

    /// Settles the job with any outcome in the caller's transaction. See [`Context::complete_with`].
    ///
    /// # Errors
    ///
    /// See [`Context::complete_with`].
    pub async fn settle_with(&self, conn: &mut AsyncPgConnection, outcome: Outcome) -> Result<(), Error> {
        self.settle_on(&mut OnAsync::new(conn), outcome).await
    }

    pub(crate) async fn settle_on(&self, conn: &mut OnAsync<'_>, outcome: Outcome) -> Result<(), Error> {
        let job = self.context.job();
        let settlements = [Settlement { job, outcome: outcome.clone() }];
        let span = self.context.settle_span(&settlements);
        if let Some((lines, progress)) = self.context.held_back_notes() {
            let notes = [NewNotes { job, lines: &lines, progress: progress.as_ref() }];
            let _are_refused_with_the_outcome =
                self.shared.store().write_notes_on(conn, &notes, true).await?;
        }
        let accepted = span.run_async(self.shared.store().settle_on(conn, &settlements)).await?;
        if !accepted.all() {
            return Err(Refused::lease_lost(job.id).into());
        }
        self.context.note_settled(outcome);
        Ok(())
    }

    /// Replaces the job's payload at once, and commits. The next attempt begins with it. For a task it replaces the
    /// arguments.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] for the payload, or if the lease has expired; the database's own.
    pub async fn checkpoint<T: Serialize>(&self, data: &T) -> Result<(), Error> {
        let checkpoint = self.context.encode_checkpoint(data)?;
        let job = self.context.job();
        change_on_connection!(self.shared, |conn| self.shared.store().update_on(
            conn,
            job,
            checkpoint.payload()
        ))?;
        self.context.note_checkpoint(checkpoint);
        Ok(())
    }
}
