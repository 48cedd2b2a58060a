//! Transactional handlers: each takes its job, runs, and completes it in one transaction.

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use diesel_async::AsyncPgConnection;
use pq_core::{Attempt, AttemptFuture, Claim, Failure, Isolation, Outcome, Settlement};
use pq_diesel::Error;
use pq_diesel::store::PgStore;

use crate::connection::failed;
use crate::context::Context;
use crate::pool::{BoxFuture, Lent};
use crate::shared::Shared;

/// How long a job is looked for after the transaction that held it was rolled back, if the server was asked to cancel
/// it.
const RETAKE_WITHIN: Duration = Duration::from_secs(3);
const RETAKE_EVERY: Duration = Duration::from_millis(20);

/// The delay before a leased job runs again whose transaction was refused for a reason that may pass.
const RUN_AGAIN_AFTER: Duration = Duration::from_secs(1);

const MAX_RERUNS: u32 = Attempt::<PgStore>::MAX_RERUNS;

/// A handler on the connection of the transaction that holds its job.
///
/// Its future sets the flag if the handler's error is a conflict with another transaction.
pub(crate) type OnConnection = Box<
    dyn for<'c> Fn(
            &'c mut AsyncPgConnection,
            &Arc<Claim>,
            &'c AtomicBool,
        ) -> Result<AttemptFuture<'c>, Failure>
        + Send
        + Sync,
>;

/// What became of a transaction that held a job.
enum Ended {
    Committed(Option<Outcome>),
    /// It was rolled back, and the job has this result.
    RolledBack {
        result: Result<Outcome, Failure>,
        reason: Reason,
    },
}

/// Why a transaction was rolled back.
#[derive(Clone, Copy, PartialEq)]
enum Reason {
    Ended,
    Conflict,
    /// The future of the handler was dropped, so the server may not have rolled back yet.
    Dropped,
}

/// Takes a job of the attempt's queue in a transaction, and runs it in the same.
pub(crate) fn run_attempt(shared: Arc<Shared>, attempt: Attempt<PgStore>) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        let mut attempt = attempt;
        match take_and_run(&shared, &mut attempt).await {
            Ok(None) => {}
            Ok(Some(Settled::As(outcome))) => attempt.record(outcome.as_ref()),
            Ok(Some(Settled::ByAnother)) => attempt.record_lost(),
            Err(error) => attempt.fail(error),
        }
    })
}

enum Settled {
    As(Option<Outcome>),
    /// Another worker has taken the job after the rollback.
    ByAnother,
}

/// Returns `None` if there was no job to run.
async fn take_and_run(shared: &Shared, attempt: &mut Attempt<PgStore>) -> Result<Option<Settled>, Error> {
    let mut lent = shared.begin().await?;
    let taken = {
        let mut sql = lent.sql();
        let taking = shared.store().take_on(&mut sql, attempt.queue(), 1, attempt.scan());
        attempt.take(shared.within_limit(taking)).await
    };
    let taken = match taken {
        Ok(taken) => taken,
        Err(error) => return shared.end(lent, Err(error)).await,
    };
    let Some(job) = attempt.begin(&taken) else {
        if taken.jobs.is_empty() {
            // A take without jobs commits, too: it may have to notify others.
            shared.end(lent, Ok::<_, Error>(())).await?;
        } else {
            shared.roll_back(lent).await?;
        }
        return Ok(None);
    };
    let isolation = attempt.isolation();
    if isolation != Isolation::ReadCommitted {
        shared.roll_back(lent).await?;
        let Some(retaken) = retake(shared, &job, isolation).await? else {
            return Ok(Some(Settled::ByAnother));
        };
        lent = retaken;
    }
    let mut reruns = 0;
    loop {
        let (result, reason) = match run_and_commit(shared, attempt, &job, lent).await? {
            Ended::Committed(outcome) => return Ok(Some(Settled::As(outcome))),
            Ended::RolledBack { result, reason } => (result, reason),
        };
        if reason != Reason::Conflict || reruns == MAX_RERUNS {
            return settle_after_rollback(shared, attempt, &job, result, reason).await.map(Some);
        }
        reruns += 1;
        tracing::info!(job_id = %job.id, reruns, "handler conflicted with another transaction");
        let Some(retaken) = retake(shared, &job, isolation).await? else {
            return Ok(Some(Settled::ByAnother));
        };
        lent = retaken;
    }
}

/// Takes the same job in a new transaction. Returns `None` if another worker has taken it since the rollback.
async fn retake(shared: &Shared, job: &Arc<Claim>, isolation: Isolation) -> Result<Option<Lent>, Error> {
    let mut lent = shared.begin_at(isolation).await?;
    let retaken = shared.within_limit(shared.store().retake_on(&mut lent.sql(), job)).await;
    match retaken {
        Ok(true) => Ok(Some(lent)),
        Ok(false) => shared.roll_back(lent).await.map(|()| None),
        Err(error) => {
            // If the rollback fails, the server has rolled back.
            drop(shared.roll_back(lent).await);
            Err(error)
        }
    }
}

/// Runs the handler, settles its job, and commits. Rolls back if the handler's writes are not kept.
async fn run_and_commit(
    shared: &Shared,
    attempt: &Attempt<PgStore>,
    job: &Arc<Claim>,
    mut lent: Lent,
) -> Result<Ended, Error> {
    let is_conflict = AtomicBool::new(false);
    let result = {
        let (conn, is_conflict) = (lent.connection(), &is_conflict);
        attempt.run::<Arc<OnConnection>>(move |handler| handler(conn, job, is_conflict)).await
    };
    let outcome = match result {
        Ok(Outcome::RolledBack(outcome)) => {
            shared.roll_back(lent).await?;
            return Ok(Ended::RolledBack { result: Ok(*outcome), reason: Reason::Ended });
        }
        Ok(outcome) => outcome,
        Err(failure @ (Failure::Timeout { .. } | Failure::Panic(_))) => {
            // A statement may have no answer yet. The connection is closed, and the statement cancelled.
            drop(lent);
            return Ok(Ended::RolledBack { result: Err(failure), reason: Reason::Dropped });
        }
        Err(failure) => {
            // The handler may have failed because the connection was lost. The rollback fails then, too.
            shared.roll_back(lent).await?;
            let is_conflict = is_conflict.load(Ordering::Relaxed);
            let reason = if is_conflict { Reason::Conflict } else { Reason::Ended };
            return Ok(Ended::RolledBack { result: Err(failure), reason });
        }
    };
    let outcome = attempt.outcome(Ok(outcome));
    attempt.may_commit()?;
    let span = attempt.settle_span(outcome.as_ref());
    let settling = async {
        let settled = settle(shared, &mut lent, job, outcome.as_ref()).await;
        shared.end(lent, settled).await
    };
    match span.run_async(settling).await {
        Ok(()) => Ok(Ended::Committed(outcome)),
        Err(error) if error.is_passing() && !error.is_conflict() => Err(error),
        Err(error) => {
            let reason = if error.is_conflict() { Reason::Conflict } else { Reason::Ended };
            Ok(Ended::RolledBack { result: Err(Failure::not_kept(&error)), reason })
        }
    }
}

/// Settles the job in a new transaction, unless another worker has taken it since the rollback.
///
/// After a crash between the two transactions the job is run again, under a lease.
async fn settle_after_rollback(
    shared: &Shared,
    attempt: &Attempt<PgStore>,
    job: &Arc<Claim>,
    result: Result<Outcome, Failure>,
    reason: Reason,
) -> Result<Settled, Error> {
    let outcome = attempt.outcome(result);
    attempt.may_commit()?;
    let began = Instant::now();
    loop {
        if let Some(mut lent) = retake(shared, job, Isolation::ReadCommitted).await? {
            let span = attempt.settle_span(outcome.as_ref());
            let settling = async {
                let settled = settle(shared, &mut lent, job, outcome.as_ref()).await;
                shared.end(lent, settled).await
            };
            span.run_async(settling).await?;
            return Ok(Settled::As(outcome));
        }
        if reason != Reason::Dropped || began.elapsed() >= RETAKE_WITHIN {
            tracing::warn!(job_id = %job.id, attempt = job.attempt, "failed job was taken by another worker");
            return Ok(Settled::ByAnother);
        }
        tokio::time::sleep(RETAKE_EVERY).await;
    }
}

/// Settles a job that the transaction holds. Without an outcome the commit completes it.
async fn settle(
    shared: &Shared,
    lent: &mut Lent,
    job: &Arc<Claim>,
    outcome: Option<&Outcome>,
) -> Result<(), Error> {
    let Some(outcome) = outcome else { return Ok(()) };
    let settlements = [Settlement { job, outcome: outcome.clone() }];
    let mut sql = lent.sql();
    let accepted = shared.within_limit(shared.store().settle_on(&mut sql, &settlements)).await?;
    if accepted.all() { Ok(()) } else { Err(pq_core::Error::not_yours(job.id).into()) }
}

/// Runs a transactional handler under a lease. Its writes and its job's outcome commit together.
pub(crate) async fn run_under_lease(
    shared: Arc<Shared>,
    context: Context,
    handler: Arc<OnConnection>,
) -> Result<Outcome, String> {
    let (job, mut reruns) = (Arc::new(context.job().clone()), 0);
    loop {
        let is_conflict = AtomicBool::new(false);
        let result = run_once_under_lease(&shared, &context, &handler, &job, &is_conflict).await;
        if result.is_ok() || !is_conflict.load(Ordering::Relaxed) || reruns == MAX_RERUNS {
            return result;
        }
        reruns += 1;
        tracing::info!(job_id = %job.id, reruns, "handler conflicted with another transaction");
    }
}

async fn run_once_under_lease(
    shared: &Shared,
    context: &Context,
    handler: &OnConnection,
    job: &Arc<Claim>,
    is_conflict: &AtomicBool,
) -> Result<Outcome, String> {
    let mut lent = match shared.begin_at(context.isolation_level()).await {
        Ok(lent) => lent,
        Err(error) => return Ok(run_again(context, &error)),
    };
    let returned = match handler(lent.connection(), job, is_conflict) {
        Ok(future) => future.await,
        Err(failure) => Err(failure),
    };
    let outcome = match returned {
        // The worker settles the job.
        Ok(Outcome::RolledBack(outcome)) => {
            let rolled_back = shared.roll_back(lent).await;
            return Ok(rolled_back.map_or_else(|error| run_again(context, &error), |()| *outcome));
        }
        Ok(outcome) => outcome,
        // The handler may have failed because the connection was lost. The rollback fails then, too.
        Err(failure) => {
            let rolled_back = shared.roll_back(lent).await;
            return rolled_back
                .map_or_else(|error| Ok(run_again(context, &error)), |()| Err(failure.to_string()));
        }
    };
    let settled_as = context.outcome_of(outcome.clone());
    let settled = shared.within_limit(context.settle_with(lent.connection(), settled_as)).await;
    match shared.end(lent, settled).await {
        Ok(()) => Ok(outcome),
        Err(error) if error.is_passing() && !error.is_conflict() => Ok(run_again(context, &error)),
        Err(error) => {
            is_conflict.store(error.is_conflict(), Ordering::Relaxed);
            Err(Failure::not_kept(&error).to_string())
        }
    }
}

/// Returns the outcome of a job that runs again, without counting the attempt.
///
/// If the commit has succeeded although its answer was lost, the store refuses this outcome.
fn run_again(context: &Context, error: &Error) -> Outcome {
    tracing::warn!(job_id = %context.job().id, %error, "transaction was refused; the job will run again");
    Outcome::snooze(RUN_AGAIN_AFTER)
}

/// Converts the result of a handler. The text of an error has its causes, for errors that print them with `{:#}`.
pub(crate) fn outcome_of<R: Into<Outcome>, E: fmt::Display + 'static>(
    returned: Result<R, E>,
    conflicts: &AtomicBool,
) -> Result<Outcome, Failure> {
    returned.map(Into::into).map_err(|error| {
        let text = format!("{error:#}");
        conflicts.store(is_conflict(error), Ordering::Relaxed);
        Failure::Error(text)
    })
}

/// Returns whether an error of diesel or of this crate is a conflict with another transaction.
fn is_conflict(error: impl Any) -> bool {
    let mut error = Some(error);
    let error: &mut dyn Any = &mut error;
    if let Some(error) = error.downcast_mut::<Option<diesel::result::Error>>() {
        return error.take().is_some_and(|error| Error::from(failed(error)).is_conflict());
    }
    error.downcast_ref::<Option<Error>>().is_some_and(|error| error.as_ref().is_some_and(Error::is_conflict))
}
