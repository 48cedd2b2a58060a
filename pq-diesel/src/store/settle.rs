//! Settling claims, of leases and of transactions.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};

use diesel::sql_types::BigInt;
use pq_core::{Claim, Held, JobId, Key, Outcome, QueueName, Settlement};

use super::chunks::chunks;
use super::encoding::Encoding;
use super::transaction::single_statement;
use super::{PgStore, SqlConnection, micros, storable};
use crate::prepared::Value;
use crate::table::notified_channels;
use crate::{Error, Notify};

/// The settlement of a job that a transaction holds, as the statement takes it.
struct HeldSettlement<'a> {
    job: &'a Claim,
    attempt: i32,
    outcome: OutcomeValues<'a>,
    log: Option<String>,
}

impl<'a> HeldSettlement<'a> {
    fn new(job: &'a Claim, attempt: i32, outcome: OutcomeValues<'a>) -> Self {
        Self { job, attempt, outcome, log: log_value(job) }
    }

    /// Returns the limit of the next lease with this job, or 0 if there is none.
    fn lease_limit(&self) -> i32 {
        let limit = if self.outcome.word == "back" { self.job.lease_limit } else { None };
        limit.map_or(0, |limit| i32::try_from(limit).unwrap_or(i32::MAX))
    }

    fn bytes(&self) -> usize {
        let OutcomeValues { error, payload, result, .. } = &self.outcome;
        let texts = [error.as_deref(), payload.as_deref(), result.as_deref(), self.log.as_deref()];
        let texts = texts.into_iter().flatten();
        let annotations = self.job.annotations.as_json().map_or(0, str::len);
        self.job.payload.as_str().len() + annotations + texts.map(str::len).sum::<usize>()
    }
}

impl PgStore {
    /// Completes all jobs of a lease by deleting its row, if none of them is kept.
    ///
    /// Returns `false` if the lease was lost, or if some of its jobs were settled before.
    pub(super) async fn finish(&self, conn: &mut impl SqlConnection, lease: i64) -> Result<bool, Error> {
        let as_single = single_statement(conn)?;
        let complete = &self.statements.complete_lease;
        let gone: Option<i64> =
            self.one::<BigInt, _>(conn, complete, &[Value::BigInt(lease)]).await.map_err(as_single)?;
        Ok(gone.is_some())
    }

    /// Completes all jobs of a lease of a limited queue as [`Self::finish`] does, and notifies that their places are
    /// free, in one statement. Returns `false` also if it may not be used for them.
    pub(super) async fn finish_limited(
        &self,
        conn: &mut impl SqlConnection,
        settlements: &[Settlement<'_>],
    ) -> Result<bool, Error> {
        let positions: Vec<usize> = (0..settlements.len()).collect();
        let Some(first) = settlements.first() else { return Ok(false) };
        let Some(lease) = first.job.lease() else { return Ok(false) };
        let is_one = settlements.iter().all(|settlement| settlement.job.lease() == Some(lease));
        if !is_one || self.notify == Notify::Off || !is_whole(settlements, &positions) {
            return Ok(false);
        }
        if !is_plain(settlements, &positions) || conn.depth()? > 0 {
            return Ok(false);
        }
        let as_single = single_statement(conn)?;
        let channels = notified_channels(first.job.queue.as_str());
        let channels = channels.iter().map(|channel| channel.as_str()).collect();
        let values = [Value::BigInt(lease), Value::Texts(channels)];
        let complete = &self.statements.complete_limited;
        let gone: Option<i64> = self.one::<BigInt, _>(conn, complete, &values).await.map_err(as_single)?;
        Ok(gone.is_some())
    }

    pub(super) async fn settle_leased(
        &self,
        conn: &mut impl SqlConnection,
        settlements: &[Settlement<'_>],
        leased: BTreeMap<i64, Vec<usize>>,
        accepted: &mut [bool],
    ) -> Result<(), Error> {
        if leased.is_empty() {
            return Ok(());
        }
        for (lease, mut positions) in leased {
            if is_whole(settlements, &positions) {
                self.settle_lease(conn, settlements, &positions, lease, true, accepted).await?;
                // If nothing was accepted, some of its jobs were settled before, or the lease was lost. The rest
                // may still be settled as jobs of an incomplete lease.
                positions.retain(|position| !accepted[*position]);
            }
            if !positions.is_empty() {
                self.settle_lease(conn, settlements, &positions, lease, false, accepted).await?;
            }
        }
        let freed: HashSet<&QueueName> = settlements
            .iter()
            .zip(accepted.iter())
            .filter(|(settlement, accepted)| **accepted && settlement.job.serialization_key.is_some())
            .map(|(settlement, _)| &settlement.job.queue)
            .collect();
        if freed.is_empty() { Ok(()) } else { self.notify_queues(conn, freed).await }
    }

    /// Settles jobs of one lease. If `whole`, they should be all of its jobs.
    pub(super) async fn settle_lease(
        &self,
        conn: &mut impl SqlConnection,
        settlements: &[Settlement<'_>],
        positions: &[usize],
        lease: i64,
        whole: bool,
        accepted: &mut [bool],
    ) -> Result<(), Error> {
        let mut seen = HashSet::new();
        let given: Vec<usize> =
            positions.iter().copied().filter(|position| seen.insert(settlements[*position].job.id)).collect();
        let chosen = || given.iter().map(|position| &settlements[*position]);
        let mut outcomes: Vec<OutcomeValues<'_>> = chosen().map(OutcomeValues::of_settlement).collect();
        self.make_storable(conn, outcomes.iter_mut().collect()).await?;
        self.forget_positions(chosen().map(|settlement| settlement.job).zip(&outcomes));
        let values = [
            Value::BigInts(chosen().map(|settlement| settlement.job.id.0).collect()),
            Value::Texts(outcomes.iter().map(|outcome| outcome.word).collect()),
            Value::BigInts(outcomes.iter().map(|outcome| outcome.after).collect()),
            Value::OptionalTexts(outcomes.iter().map(|outcome| outcome.error.as_deref()).collect()),
            Value::OptionalTexts(outcomes.iter().map(|outcome| outcome.payload.as_deref()).collect()),
            Value::OptionalTexts(outcomes.iter().map(|outcome| outcome.result.as_deref()).collect()),
            Value::OptionalBigInt(whole.then_some(lease)),
            Value::OptionalBigInt((!whole).then_some(lease)),
        ];
        let ended: Vec<i64> = self.rows::<BigInt, _>(conn, &self.statements.settle_leased, &values).await?;
        let ended: HashSet<i64> = ended.into_iter().collect();
        for position in given {
            accepted[position] = ended.contains(&settlements[position].job.id.0);
        }
        Ok(())
    }

    /// Settles jobs that this transaction holds.
    pub(super) async fn settle_held(
        &self,
        conn: &mut impl SqlConnection,
        settlements: &[Settlement<'_>],
        positions: &[usize],
        accepted: &mut [bool],
    ) -> Result<(), Error> {
        // Nothing is accepted after an outcome that ends the claim.
        let mut ended = HashSet::new();
        let positions: Vec<usize> = positions
            .iter()
            .copied()
            .filter(|position| {
                let Settlement { job, outcome } = &settlements[*position];
                let claim = (job.id, job.token);
                match outcome {
                    Outcome::Complete => !ended.contains(&claim),
                    _ => ended.insert(claim),
                }
            })
            .collect();
        let mut given: Vec<HeldSettlement<'_>> = positions
            .iter()
            .map(|position| &settlements[*position])
            .map(|settlement| {
                let (job, outcome) = (settlement.job, OutcomeValues::of_settlement(settlement));
                let attempt = if outcome.is_counted() { job.attempt } else { job.attempt - 1 };
                HeldSettlement::new(job, attempt, outcome)
            })
            .collect();
        self.make_storable(conn, given.iter_mut().map(|given| &mut given.outcome).collect()).await?;
        for position in self.end_held(conn, &given).await? {
            accepted[positions[position]] = true;
        }
        Ok(())
    }

    /// Returns a job of this transaction to the queue and counts the attempt.
    ///
    /// Returns `false` if the transaction does not hold the job.
    pub(super) async fn give_back_held(
        &self,
        conn: &mut impl SqlConnection,
        job: &Claim,
    ) -> Result<bool, Error> {
        let given = [HeldSettlement::new(job, job.attempt, OutcomeValues::of(&Outcome::GiveBack))];
        Ok(!self.end_held(conn, &given).await?.is_empty())
    }

    /// Changes characters of the outcomes' texts that the database cannot store.
    async fn make_storable(
        &self,
        conn: &mut impl SqlConnection,
        mut outcomes: Vec<&mut OutcomeValues<'_>>,
    ) -> Result<(), Error> {
        let texts = outcomes.iter().flat_map(|outcome| {
            [outcome.error.as_deref(), outcome.payload.as_deref(), outcome.result.as_deref()]
        });
        let is_ascii = texts.flatten().all(str::is_ascii);
        let encoding = self.encoding_for(conn, is_ascii).await?;
        if encoding == Encoding::Utf8 {
            return Ok(());
        }
        for outcome in &mut outcomes {
            outcome.error = outcome.error.take().map(|error| encoding.reduce(error));
            for json in [&mut outcome.payload, &mut outcome.result] {
                if let Some(Cow::Borrowed(text)) = *json {
                    *json = Some(encoding.escape_json(text));
                }
            }
        }
        Ok(())
    }

    /// Makes takes scan from the start again, because requeued jobs may precede the position of the last take.
    fn forget_positions<'v>(&self, jobs: impl Iterator<Item = (&'v Claim, &'v OutcomeValues<'v>)>) {
        let queues: HashSet<&QueueName> =
            jobs.filter(|(_, outcome)| outcome.requeues()).map(|(job, _)| &job.queue).collect();
        queues.into_iter().for_each(|queue| self.fast_path.forget_position(queue));
    }

    /// Settles jobs, and returns the positions of those that this transaction held.
    async fn end_held(
        &self,
        conn: &mut impl SqlConnection,
        given: &[HeldSettlement<'_>],
    ) -> Result<Vec<usize>, Error> {
        self.forget_positions(given.iter().map(|given| (given.job, &given.outcome)));
        let (mut held, mut before) = (Vec::new(), 0);
        for chunk in chunks(given, HeldSettlement::bytes) {
            held.extend(self.end_chunk(conn, chunk).await?.into_iter().map(|position| before + position));
            before += chunk.len();
        }
        Ok(held)
    }

    async fn end_chunk(
        &self,
        conn: &mut impl SqlConnection,
        given: &[HeldSettlement<'_>],
    ) -> Result<Vec<usize>, Error> {
        let job = || given.iter().map(|given| given.job);
        let outcomes = || given.iter().map(|given| &given.outcome);
        let values = [
            Value::BigInts(job().map(|job| job.id.0).collect()),
            Value::BigInts(job().map(|job| job.token).collect()),
            Value::Texts(outcomes().map(|outcome| outcome.word).collect()),
            Value::Texts(job().map(|job| job.payload.as_str()).collect()),
            Value::Texts(job().map(|job| job.queue.as_str()).collect()),
            Value::Instants(job().map(|job| Some(job.enqueued_at)).collect()),
            Value::Instants(job().map(|job| job.schedule_at).collect()),
            Value::Instants(job().map(|job| job.expected_at).collect()),
            Value::Integers(job().map(|job| job.priority).collect()),
            Value::Integers(given.iter().map(|given| given.attempt).collect()),
            Value::OptionalTexts(job().map(|job| job.serialization_key.as_ref().map(Key::as_str)).collect()),
            Value::OptionalTexts(job().map(|job| job.unique_key.as_ref().map(Key::as_str)).collect()),
            Value::BigInts(outcomes().map(|outcome| outcome.after).collect()),
            Value::OptionalTexts(outcomes().map(|outcome| outcome.error.as_deref()).collect()),
            Value::OptionalTexts(outcomes().map(|outcome| outcome.payload.as_deref()).collect()),
            Value::OptionalTexts(outcomes().map(|outcome| outcome.result.as_deref()).collect()),
            Value::Integers(job().map(|job| job.crashes).collect()),
            Value::Integers(given.iter().map(HeldSettlement::lease_limit).collect()),
            Value::rare_texts(job().map(|job| job.annotations.as_json())),
            Value::rare_texts(given.iter().map(|given| given.log.as_deref())),
        ];
        let held: Vec<i64> = self.rows::<BigInt, _>(conn, &self.statements.settle_held, &values).await?;
        // PostgreSQL numbers positions from 1.
        Ok(held.into_iter().filter_map(|position| usize::try_from(position - 1).ok()).collect())
    }
}

/// Returns the log of a job's attempts as JSON, or `None` if it has no entry.
pub(super) fn log_value(job: &Claim) -> Option<String> {
    if job.attempt_log.is_empty() { None } else { serde_json::to_string(&job.attempt_log).ok() }
}

/// Returns whether the settlements at these positions are of all jobs of their lease.
pub(super) fn is_whole(settlements: &[Settlement<'_>], group: &[usize]) -> bool {
    let Some(first) = group.first() else { return false };
    let Held::Lease { jobs } = settlements[*first].job.held else { return false };
    // Most are sorted already, and then this is faster than a set.
    let mut ids: Vec<JobId> = group.iter().map(|position| settlements[*position].job.id).collect();
    ids.sort_unstable();
    ids.dedup();
    ids.len() == group.len() && u32::try_from(ids.len()) == Ok(jobs)
}

/// Returns whether the jobs at these positions are completed without a key to release.
pub(super) fn is_plain(settlements: &[Settlement<'_>], group: &[usize]) -> bool {
    group.iter().all(|position| {
        let Settlement { job, outcome } = &settlements[*position];
        matches!(outcome, Outcome::Complete)
            && job.serialization_key.is_none()
            && job.unique_key.is_none()
            && !job.annotations.is_awaited()
    })
}

/// An outcome as the statement takes it.
struct OutcomeValues<'a> {
    word: &'static str,
    after: i64,
    error: Option<String>,
    payload: Option<Cow<'a, str>>,
    result: Option<Cow<'a, str>>,
}

impl<'a> OutcomeValues<'a> {
    /// Returns the outcome of a job. One whose end is awaited is kept when it is done.
    fn of_settlement(settlement: &'a Settlement<'_>) -> Self {
        let values = Self::of(&settlement.outcome);
        let is_kept = values.word == "complete" && settlement.job.annotations.is_awaited();
        if is_kept { Self { word: "done", ..values } } else { values }
    }

    fn of(outcome: &'a Outcome) -> Self {
        let plain = |word| Self { word, after: 0, error: None, payload: None, result: None };
        match outcome {
            Outcome::Complete => plain("complete"),
            Outcome::Keep { result } => {
                Self { result: result.as_ref().map(|result| result.as_str().into()), ..plain("done") }
            }
            Outcome::Retry { after, error, payload } => Self {
                after: micros(*after),
                error: Some(storable(error)),
                payload: payload.as_ref().map(|payload| payload.as_str().into()),
                ..plain("retry")
            },
            Outcome::Snooze { after, reason, payload } => Self {
                after: micros(*after),
                error: reason.as_deref().map(storable),
                payload: payload.as_ref().map(|payload| payload.as_str().into()),
                ..plain("snooze")
            },
            Outcome::Dead { error } => Self { error: Some(storable(error)), ..plain("dead") },
            Outcome::Cancel { reason } => {
                Self { error: reason.as_deref().map(storable), ..plain("cancelled") }
            }
            Outcome::GiveBack => plain("back"),
            Outcome::RolledBack(outcome) => Self::of(outcome),
        }
    }

    /// Returns whether the attempt is counted.
    fn is_counted(&self) -> bool {
        !matches!(self.word, "snooze" | "back")
    }

    /// Returns whether the outcome requeues the job.
    fn requeues(&self) -> bool {
        matches!(self.word, "retry" | "snooze" | "back")
    }
}
