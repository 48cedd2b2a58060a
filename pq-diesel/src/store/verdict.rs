//! Verdicts on taken jobs, leases that are extended, and leases that are over.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::pg::PgConnection;
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Bool, Nullable, Text};
use pq_core::{
    Claim, EndedAs, Extended, Held, JobId, Key, Outcome, Payload, QueueName, RawJob, Retention, Store, Swept,
    Verdict, WorkerInfo,
};

use super::{PgStore, age_micros, micros, storable};
use crate::Error;
use crate::prepared::Value;

/// A job, and the settings that say that the transaction has let go of it and of its serialization key.
type LetGo = (BigInt, Text, Nullable<Text>);

/// How a job that a transaction holds goes back into the line.
pub(super) struct Return<'a> {
    attempt: i32,
    after: Option<i64>,
    payload: Option<&'a Payload>,
    error: Option<String>,
}

impl Return<'_> {
    /// With the times that it had.
    pub(super) fn in_place(attempt: i32) -> Self {
        Self { attempt, after: None, payload: None, error: None }
    }
}

impl PgStore {
    pub(super) fn settle_all(
        &self,
        conn: &mut PgConnection,
        verdicts: &[Verdict<'_>],
    ) -> Result<Vec<bool>, Error> {
        // Those that take more than one statement are one transaction all the same.
        let mut leased = BTreeMap::<i64, Vec<usize>>::new();
        let mut held = Vec::new();
        for (position, verdict) in verdicts.iter().enumerate() {
            match verdict.job.claim.lease() {
                Some(lease) => leased.entry(lease).or_default().push(position),
                None => held.push(position),
            }
        }
        let mut accepted = vec![false; verdicts.len()];
        if held.is_empty()
            && leased.len() == 1
            && let Some((lease, group)) = leased.first_key_value()
            && is_whole(verdicts, group)
            && is_plain(verdicts, group)
            && self.finish(conn, *lease)?
        {
            accepted.fill(true);
            return Ok(accepted);
        }
        self.transaction(conn, |conn| {
            for position in held {
                accepted[position] = self.settle_held(conn, &verdicts[position])?;
            }
            self.settle_leased(conn, verdicts, leased, &mut accepted)?;
            Ok(accepted)
        })
    }

    /// Completes a whole lease of which nothing is to be kept: its row goes, and no more is done. `false` where it is
    /// lost, or has verdicts already.
    fn finish(&self, conn: &mut PgConnection, lease: i64) -> Result<bool, Error> {
        let values = [Value::BigInt(lease)];
        let finish = self.statements.finish.with::<BigInt>(&values);
        let gone: Option<i64> = finish.get_result(conn).optional().map_err(|e| self.error(e))?;
        Ok(gone.is_some())
    }

    fn settle_leased(
        &self,
        conn: &mut PgConnection,
        verdicts: &[Verdict<'_>],
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
        if freed.is_empty() { Ok(()) } else { self.ring(conn, freed) }
    }

    /// Settles jobs of one lease, `whole` where all of it are meant to be among them.
    fn settle_lease(
        &self,
        conn: &mut PgConnection,
        verdicts: &[Verdict<'_>],
        positions: &[usize],
        lease: i64,
        whole: bool,
        accepted: &mut [bool],
    ) -> Result<(), Error> {
        for verdict in
            positions.iter().map(|position| &verdicts[*position]).filter(|verdict| puts_back(verdict))
        {
            self.heads.changed(&verdict.job.queue);
        }
        let mut seen = HashSet::new();
        let given: Vec<usize> =
            positions.iter().copied().filter(|position| seen.insert(verdicts[*position].job.id)).collect();
        let chosen = || given.iter().map(|position| &verdicts[*position]);
        let words: Vec<Words<'_>> = chosen().map(|verdict| Words::of(&verdict.outcome)).collect();
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
        let settle = self.statements.settle.with::<BigInt>(&values);
        let ended: Vec<i64> = settle.load(conn).map_err(|e| self.error(e))?;
        let ended: HashSet<i64> = ended.into_iter().collect();
        for position in given {
            accepted[position] = ended.contains(&verdicts[position].job.id.0);
        }
        Ok(())
    }

    /// A verdict on a job that this transaction has taken.
    fn settle_held(&self, conn: &mut PgConnection, verdict: &Verdict<'_>) -> Result<bool, Error> {
        let job = verdict.job;
        match &verdict.outcome {
            Outcome::Complete => {
                let values = [Value::BigInt(job.id.0), Value::BigInt(job.claim.token)];
                let holds: Option<i64> = self
                    .statements
                    .holds
                    .with::<BigInt>(&values)
                    .get_result(conn)
                    .optional()
                    .map_err(|e| self.error(e))?;
                Ok(holds.is_some())
            }
            Outcome::Keep { result } => self.keep(conn, job, EndedAs::Done, None, result.as_ref()),
            Outcome::Dead { error } => self.keep(conn, job, EndedAs::Dead, Some(error), None),
            Outcome::Cancel { reason } => self.keep(conn, job, EndedAs::Cancelled, reason.as_deref(), None),
            Outcome::Retry { after, error, payload } => {
                let back = Return {
                    attempt: job.attempt,
                    after: Some(micros(*after)),
                    payload: payload.as_ref(),
                    error: Some(storable(error)),
                };
                self.put_back(conn, job, &back)
            }
            Outcome::Snooze { after } => {
                let back = Return { after: Some(micros(*after)), ..Return::in_place(job.attempt - 1) };
                self.put_back(conn, job, &back)
            }
            Outcome::GiveBack => self.put_back(conn, job, &Return::in_place(job.attempt - 1)),
        }
    }

    /// Puts a job that this transaction holds back into the line; `false` where it does not hold it.
    pub(super) fn put_back(
        &self,
        conn: &mut PgConnection,
        job: &RawJob,
        back: &Return<'_>,
    ) -> Result<bool, Error> {
        self.heads.changed(&job.queue);
        let mut values = columns(job, back.attempt);
        values.insert(1, Value::BigInt(job.claim.token));
        values.extend([
            Value::OptionalBigInt(back.after),
            Value::OptionalText(back.payload.map(Payload::as_str)),
            Value::OptionalText(back.error.as_deref()),
        ]);
        let statement = self.statements.give_back.with::<LetGo>(&values);
        let id: Option<(i64, String, Option<String>)> =
            statement.get_result(conn).optional().map_err(|e| self.error(e))?;
        Ok(id.is_some())
    }

    /// Archives a job that this transaction holds; `false` where it does not hold it.
    fn keep(
        &self,
        conn: &mut PgConnection,
        job: &RawJob,
        ended: EndedAs,
        error: Option<&str>,
        result: Option<&Payload>,
    ) -> Result<bool, Error> {
        let error = error.map(storable);
        let mut values = columns(job, job.attempt);
        values.insert(1, Value::BigInt(job.claim.token));
        values.extend([
            Value::Text(ended.as_str()),
            Value::OptionalText(error.as_deref()),
            Value::OptionalText(result.map(Payload::as_str)),
        ]);
        let statement = self.statements.keep.with::<LetGo>(&values);
        let id: Option<(i64, String, Option<String>)> =
            statement.get_result(conn).optional().map_err(|e| self.error(e))?;
        Ok(id.is_some())
    }

    pub(super) fn replace_payload(
        &self,
        conn: &mut PgConnection,
        claim: &Claim,
        payload: &Payload,
    ) -> Result<(), Error> {
        if let Some(lease) = claim.lease() {
            let values = [Value::BigInt(claim.id.0), Value::Text(payload.as_str()), Value::BigInt(lease)];
            let statement = self.statements.update_leased.with::<BigInt>(&values);
            let stored: Option<i64> = statement.get_result(conn).optional().map_err(|e| self.error(e))?;
            return stored.map(drop).ok_or_else(|| pq_core::Error::lease_lost(claim.id).into());
        }
        let values = [Value::BigInt(claim.id.0), Value::BigInt(claim.token), Value::Text(payload.as_str())];
        let statement = self.statements.update.with::<Text>(&values);
        let noted: Option<String> = statement.get_result(conn).optional().map_err(|e| self.error(e))?;
        noted.map(drop).ok_or_else(|| pq_core::Error::not_yours(claim.id).into())
    }

    pub(super) fn extend_leases(
        &self,
        conn: &mut PgConnection,
        leases: &[i64],
        lease: Duration,
    ) -> Result<Vec<Extended>, Error> {
        let values = [Value::BigInts(leases.to_vec()), Value::BigInt(micros(lease))];
        let statement = self.statements.extend.with::<(BigInt, Array<BigInt>)>(&values);
        let rows: Vec<(i64, Vec<i64>)> = statement.load(conn).map_err(|e| self.error(e))?;
        let extended = |(lease, cancelled): (i64, Vec<i64>)| Extended {
            lease,
            cancelled: cancelled.into_iter().map(JobId).collect(),
        };
        Ok(rows.into_iter().map(extended).collect())
    }

    pub(super) fn sweep_once(
        &self,
        conn: &mut PgConnection,
        retention: &Retention,
    ) -> Result<Option<Swept>, Error> {
        self.transaction(conn, |conn| {
            // Each statement must see what was committed before it, whatever the session's default is. And a process
            // that is put to sleep between two of them must not keep all others from sweeping for as long.
            conn.batch_execute(
                "SET TRANSACTION ISOLATION LEVEL READ COMMITTED; SET LOCAL idle_in_transaction_session_timeout TO '5s'",
            )?;
            let turn = self.statements.sweep_turn.with::<Bool>(&[]).get_result::<bool>(conn);
            if !turn.map_err(|e| self.error(e))? {
                return Ok(None);
            }
            let mut swept = Swept::default();
            let over: Vec<i64> =
                self.statements.sweep_over.with::<BigInt>(&[]).load(conn).map_err(|e| self.error(e))?;
            if !over.is_empty() {
                let values = [Value::BigInts(over)];
                let returned = self.statements.sweep_expire.with::<BigInt>(&values).get_result::<i64>(conn);
                swept.returned = returned.map_err(|e| self.error(e))?.max(0).unsigned_abs();
            }
            let forget = self.statements.sweep_forget.with::<BigInt>(&[]);
            forget.execute(conn).map_err(|e| self.error(e))?;
            self.forget_silent(conn, WorkerInfo::FORGOTTEN_AFTER)?;
            for ended in [EndedAs::Done, EndedAs::Dead, EndedAs::Cancelled] {
                let Some(age) = retention.of(ended) else { continue };
                let values = [Value::Text(ended.as_str()), Value::BigInt(age_micros(age))];
                let pruned = self.statements.prune_all.with::<BigInt>(&values).execute(conn);
                swept.pruned += pruned.map_err(|e| self.error(e))? as u64;
            }
            Ok(Some(swept))
        })
    }
}

/// A job as the statements take it that write it whole.
pub(super) fn columns(job: &RawJob, attempt: i32) -> Vec<Value<'_>> {
    vec![
        Value::BigInt(job.id.0),
        Value::Text(job.payload.as_str()),
        Value::Text(job.queue.as_str()),
        Value::Instant(Some(job.enqueued_at)),
        Value::Instant(job.schedule_at),
        Value::Instant(job.expected_at),
        Value::Integer(job.priority),
        Value::Integer(attempt),
        Value::OptionalText(job.serialization_key.as_ref().map(Key::as_str)),
        Value::OptionalText(job.unique_key.as_ref().map(Key::as_str)),
    ]
}

/// Whether the job may be in the line again.
fn puts_back(verdict: &Verdict<'_>) -> bool {
    matches!(verdict.outcome, Outcome::Retry { .. } | Outcome::Snooze { .. } | Outcome::GiveBack)
}

/// Whether the verdicts at these positions are on all jobs of their lease.
fn is_whole(verdicts: &[Verdict<'_>], group: &[usize]) -> bool {
    let Some(first) = group.first() else { return false };
    let Held::Lease { jobs } = verdicts[*first].job.claim.held else { return false };
    // They are in order, mostly, and then this is quicker than a set.
    let mut ids: Vec<JobId> = group.iter().map(|position| verdicts[*position].job.id).collect();
    ids.sort_unstable();
    ids.dedup();
    ids.len() == group.len() && u32::try_from(ids.len()) == Ok(jobs)
}

/// Whether the jobs at these positions are complete, and nothing need be kept or freed.
fn is_plain(verdicts: &[Verdict<'_>], group: &[usize]) -> bool {
    group.iter().all(|position| {
        let Verdict { job, outcome } = &verdicts[*position];
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
}
