//! Verdicts on taken jobs, and payloads that are replaced.

use std::collections::{BTreeMap, HashSet};

use diesel::pg::PgConnection;
use diesel::prelude::*;
use diesel::sql_types::BigInt;
use pq_core::{Claim, Held, JobId, Key, Outcome, Payload, QueueName, Settlement};

use super::chunks::chunks;
use super::{PgStore, micros, storable};
use crate::Error;
use crate::prepared::Value;

/// A verdict on a job that a transaction has taken, as the statement takes it.
struct Given<'a> {
    job: &'a Claim,
    attempt: i32,
    words: Words<'a>,
}

impl Given<'_> {
    fn bytes(&self) -> usize {
        let Words { error, payload, result, .. } = &self.words;
        let words = [error.as_deref(), *payload, *result].into_iter().flatten();
        self.job.payload.as_str().len() + words.map(str::len).sum::<usize>()
    }
}

impl PgStore {
    /// Completes a whole lease of which nothing is to be kept: its row goes, and no more is done. `false` where it is
    /// lost, or has verdicts already.
    pub(super) fn finish(&self, conn: &mut PgConnection, lease: i64) -> Result<bool, Error> {
        let gone: Option<i64> =
            self.one::<BigInt, _>(conn, &self.statements.complete_lease, &[Value::BigInt(lease)])?;
        Ok(gone.is_some())
    }

    pub(super) fn settle_leased(
        &self,
        conn: &mut PgConnection,
        verdicts: &[Settlement<'_>],
        leased: BTreeMap<i64, Vec<usize>>,
        accepted: &mut [bool],
    ) -> Result<(), Error> {
        if leased.is_empty() {
            return Ok(());
        }
        for (lease, mut positions) in leased {
            if is_whole(verdicts, &positions) {
                self.settle_lease(conn, verdicts, &positions, lease, true, accepted)?;
                // A lease that was taken for whole and is not is lost, or has verdicts already: jobs of it can
                // still be settled one by one.
                positions.retain(|position| !accepted[*position]);
            }
            if !positions.is_empty() {
                self.settle_lease(conn, verdicts, &positions, lease, false, accepted)?;
            }
        }
        let freed: HashSet<&QueueName> = verdicts
            .iter()
            .zip(accepted.iter())
            .filter(|(verdict, accepted)| **accepted && verdict.job.serialization_key.is_some())
            .map(|(verdict, _)| &verdict.job.queue)
            .collect();
        if freed.is_empty() { Ok(()) } else { self.notify_queues(conn, freed) }
    }

    /// Settles jobs of one lease, `whole` where all of it are meant to be among them.
    fn settle_lease(
        &self,
        conn: &mut PgConnection,
        verdicts: &[Settlement<'_>],
        positions: &[usize],
        lease: i64,
        whole: bool,
        accepted: &mut [bool],
    ) -> Result<(), Error> {
        let mut seen = HashSet::new();
        let given: Vec<usize> =
            positions.iter().copied().filter(|position| seen.insert(verdicts[*position].job.id)).collect();
        let chosen = || given.iter().map(|position| &verdicts[*position]);
        let words: Vec<Words<'_>> = chosen().map(|verdict| Words::of(&verdict.outcome)).collect();
        self.come_back(chosen().map(|verdict| verdict.job).zip(&words));
        let values = [
            Value::BigInts(chosen().map(|verdict| verdict.job.id.0).collect()),
            Value::Texts(words.iter().map(|words| words.verdict).collect()),
            Value::BigInts(words.iter().map(|words| words.after).collect()),
            Value::OptionalTexts(words.iter().map(|words| words.error.as_deref()).collect()),
            Value::OptionalTexts(words.iter().map(|words| words.payload).collect()),
            Value::OptionalTexts(words.iter().map(|words| words.result).collect()),
            Value::OptionalBigInt(whole.then_some(lease)),
            Value::OptionalBigInt((!whole).then_some(lease)),
        ];
        let settle = self.statements.settle_leased.with::<BigInt>(&values);
        let ended: Vec<i64> = settle.load(conn).map_err(|e| self.error(e))?;
        let ended: HashSet<i64> = ended.into_iter().collect();
        for position in given {
            accepted[position] = ended.contains(&verdicts[position].job.id.0);
        }
        Ok(())
    }

    /// Verdicts on jobs that this transaction has taken.
    pub(super) fn settle_held(
        &self,
        conn: &mut PgConnection,
        verdicts: &[Settlement<'_>],
        positions: &[usize],
        accepted: &mut [bool],
    ) -> Result<(), Error> {
        // A verdict that ends the claim is the last on it.
        let mut over = HashSet::new();
        let positions: Vec<usize> = positions
            .iter()
            .copied()
            .filter(|position| {
                let Settlement { job, outcome } = &verdicts[*position];
                let claim = (job.id, job.token);
                match outcome {
                    Outcome::Complete => !over.contains(&claim),
                    _ => over.insert(claim),
                }
            })
            .collect();
        let given: Vec<Given<'_>> = positions
            .iter()
            .map(|position| &verdicts[*position])
            .map(|verdict| Given {
                job: verdict.job,
                attempt: match verdict.outcome {
                    Outcome::Snooze { .. } | Outcome::GiveBack => verdict.job.attempt - 1,
                    _ => verdict.job.attempt,
                },
                words: Words::of(&verdict.outcome),
            })
            .collect();
        for position in self.end_held(conn, &given)? {
            accepted[positions[position]] = true;
        }
        Ok(())
    }

    /// Gives a job back that this transaction has taken, and counts the attempt; `false` where it does not hold it.
    pub(super) fn give_back_held(&self, conn: &mut PgConnection, job: &Claim) -> Result<bool, Error> {
        let given = [Given { job, attempt: job.attempt, words: Words::of(&Outcome::GiveBack) }];
        Ok(!self.end_held(conn, &given)?.is_empty())
    }

    /// Some of these may be in the line again, before the place where takes of their queue look next.
    fn come_back<'v>(&self, jobs: impl Iterator<Item = (&'v Claim, &'v Words<'v>)>) {
        let queues: HashSet<&QueueName> =
            jobs.filter(|(_, words)| words.puts_back()).map(|(job, _)| &job.queue).collect();
        queues.into_iter().for_each(|queue| self.fast_path.forget_position(queue));
    }

    /// The positions of those that this transaction held.
    fn end_held(&self, conn: &mut PgConnection, given: &[Given<'_>]) -> Result<Vec<usize>, Error> {
        self.come_back(given.iter().map(|given| (given.job, &given.words)));
        let (mut held, mut before) = (Vec::new(), 0);
        for chunk in chunks(given, Given::bytes) {
            held.extend(self.end_some(conn, chunk)?.into_iter().map(|position| before + position));
            before += chunk.len();
        }
        Ok(held)
    }

    fn end_some(&self, conn: &mut PgConnection, given: &[Given<'_>]) -> Result<Vec<usize>, Error> {
        let job = || given.iter().map(|given| given.job);
        let words = || given.iter().map(|given| &given.words);
        let values = [
            Value::BigInts(job().map(|job| job.id.0).collect()),
            Value::BigInts(job().map(|job| job.token).collect()),
            Value::Texts(words().map(|words| words.verdict).collect()),
            Value::Texts(job().map(|job| job.payload.as_str()).collect()),
            Value::Texts(job().map(|job| job.queue.as_str()).collect()),
            Value::Instants(job().map(|job| Some(job.enqueued_at)).collect()),
            Value::Instants(job().map(|job| job.schedule_at).collect()),
            Value::Instants(job().map(|job| job.expected_at).collect()),
            Value::Integers(job().map(|job| job.priority).collect()),
            Value::Integers(given.iter().map(|given| given.attempt).collect()),
            Value::OptionalTexts(job().map(|job| job.serialization_key.as_ref().map(Key::as_str)).collect()),
            Value::OptionalTexts(job().map(|job| job.unique_key.as_ref().map(Key::as_str)).collect()),
            Value::BigInts(words().map(|words| words.after).collect()),
            Value::OptionalTexts(words().map(|words| words.error.as_deref()).collect()),
            Value::OptionalTexts(words().map(|words| words.payload).collect()),
            Value::OptionalTexts(words().map(|words| words.result).collect()),
        ];
        let statement = self.statements.settle_held.with::<BigInt>(&values);
        let held: Vec<i64> = statement.load(conn).map_err(|e| self.error(e))?;
        // PostgreSQL counts from one.
        Ok(held.into_iter().filter_map(|position| usize::try_from(position - 1).ok()).collect())
    }
}

/// Whether the verdicts at these positions are on all jobs of their lease.
pub(super) fn is_whole(verdicts: &[Settlement<'_>], group: &[usize]) -> bool {
    let Some(first) = group.first() else { return false };
    let Held::Lease { jobs } = verdicts[*first].job.held else { return false };
    // They are in order, mostly, and then this is quicker than a set.
    let mut ids: Vec<JobId> = group.iter().map(|position| verdicts[*position].job.id).collect();
    ids.sort_unstable();
    ids.dedup();
    ids.len() == group.len() && u32::try_from(ids.len()) == Ok(jobs)
}

/// Whether the jobs at these positions are complete, and nothing need be kept or freed.
pub(super) fn is_plain(verdicts: &[Settlement<'_>], group: &[usize]) -> bool {
    group.iter().all(|position| {
        let Settlement { job, outcome } = &verdicts[*position];
        matches!(outcome, Outcome::Complete) && job.serialization_key.is_none() && job.unique_key.is_none()
    })
}

/// An outcome as the statement takes it.
struct Words<'a> {
    verdict: &'static str,
    after: i64,
    error: Option<String>,
    payload: Option<&'a str>,
    result: Option<&'a str>,
}

impl<'a> Words<'a> {
    fn of(outcome: &'a Outcome) -> Self {
        let plain = |verdict| Self { verdict, after: 0, error: None, payload: None, result: None };
        match outcome {
            Outcome::Complete => plain("complete"),
            Outcome::Keep { result } => {
                Self { result: result.as_ref().map(Payload::as_str), ..plain("done") }
            }
            Outcome::Retry { after, error, payload } => Self {
                after: micros(*after),
                error: Some(storable(error)),
                payload: payload.as_ref().map(Payload::as_str),
                ..plain("retry")
            },
            Outcome::Snooze { after } => Self { after: micros(*after), ..plain("snooze") },
            Outcome::Dead { error } => Self { error: Some(storable(error)), ..plain("dead") },
            Outcome::Cancel { reason } => {
                Self { error: reason.as_deref().map(storable), ..plain("cancelled") }
            }
            Outcome::GiveBack => plain("back"),
        }
    }

    /// Whether the job may be in the line again.
    fn puts_back(&self) -> bool {
        matches!(self.verdict, "retry" | "snooze" | "back")
    }
}
