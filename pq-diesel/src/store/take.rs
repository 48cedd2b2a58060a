//! Taking jobs for an owner, and releasing the keys of jobs that no lease holds.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use diesel::sql_types::{BigInt, Nullable, Text};
use pq_core::store::MAX_TAKE_BYTES;
use pq_core::{Claim, Key, QueueName, Scan, Taken};

use super::fast_path::LimitedStart;
use super::{PgStore, SqlConnection, micros};
use crate::prepared::{Statement, Value};
use crate::rows::{TakeResult, TakeRow, TakeSql};
use crate::statements::{Measure, Sized};
use crate::table::notified_channels;
use crate::{Error, Notify};

/// The number of times a take is repeated that lost all of its jobs to other transactions.
const MAX_RACES: usize = 8;

/// The statement with which takes of a queue begin.
#[derive(Clone, Copy, Debug)]
enum FirstStatement {
    /// The fallback of this level. At level 0 the fast path comes before it.
    Fallback(usize),
    /// The statement for limited queues.
    Limited,
}

/// Which statement the last full scan of each queue needed.
///
/// Each take of such a queue would first run all earlier statements, only to find that a later one is needed. So for
/// a while the queue's takes begin with that statement. This is a hint: the result of a statement is right at any
/// level.
#[derive(Debug, Default)]
pub(crate) struct FallbackLevels(RwLock<HashMap<QueueName, (FirstStatement, Instant)>>);

impl FallbackLevels {
    fn of(&self, queue: &QueueName) -> FirstStatement {
        let levels = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let known = levels.get(queue).filter(|(_, until)| Instant::now() < *until);
        known.map_or(FirstStatement::Fallback(0), |(first, _)| *first)
    }

    /// Notes that this statement was needed and how long it took. The hint of a fast one lasts longer.
    fn note(&self, queue: &QueueName, first: FirstStatement, took: Duration) {
        let is_fast = took < Duration::from_millis(5);
        let now = Instant::now();
        let until = now + Duration::from_secs(if is_fast { 10 } else { 1 });
        let mut levels = self.0.write().unwrap_or_else(PoisonError::into_inner);
        levels.retain(|_, (_, until)| now < *until);
        levels.insert(queue.clone(), (first, until));
    }

    fn forget(&self, queue: &QueueName) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(queue);
    }
}

/// The pause after which a take of a limited queue is repeated if another transaction has locked what is missing.
///
/// In most cases that is a short take, whose end notifies no wait. It can also be a transaction of an application that
/// stays open, so the pause doubles.
#[derive(Debug, Default)]
pub(crate) struct BusyPauses(Mutex<HashMap<QueueName, Duration>>);

impl BusyPauses {
    const FIRST: Duration = Duration::from_millis(2);
    const LONGEST: Duration = Duration::from_secs(1);

    fn next(&self, queue: &QueueName) -> Duration {
        let mut pauses = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let pause = pauses.entry(queue.clone()).or_insert(Self::FIRST);
        std::mem::replace(pause, (*pause * 2).min(Self::LONGEST))
    }

    fn end(&self, queue: &QueueName) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(queue);
    }
}

/// Whether the table stored so many bytes of large payloads that a take of many jobs has to measure them.
///
/// Large payloads may be put at any time, so this is known for [`LOOK_AGAIN`] only.
#[derive(Debug, Default)]
pub(crate) struct PayloadStorage(Mutex<Option<(Measure, Instant)>>);

/// The time after which the table is looked at again.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// The owner of the jobs of a take.
#[derive(Clone, Copy, Debug)]
pub(super) enum Owner {
    /// The caller: the take commits by itself and completes its jobs.
    Caller,
    Transaction,
    /// A lease of this length.
    Lease(Duration),
}

/// The maximum number of jobs of a take, and how thoroughly it scans if there are none.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TakeRequest {
    pub(super) count: usize,
    pub(super) scan: Scan,
}

impl PgStore {
    /// Takes jobs for a transaction or a lease.
    pub(super) async fn take_for(
        &self,
        conn: &mut impl SqlConnection,
        queue: &QueueName,
        request: TakeRequest,
        owner: Owner,
    ) -> Result<Taken, Error> {
        let taken = self.take_only(conn, queue, request, owner).await?;
        if matches!(owner, Owner::Transaction) {
            self.release_keys(conn, queue, &taken.jobs).await?;
        }
        if taken.rolled_back {
            // A caller that rolls this take back, too, must find the jobs again at once.
            self.fast_path.forget_position(queue);
        }
        Ok(taken)
    }

    /// Takes jobs without releasing their keys.
    ///
    /// The fast path runs first. If it takes nothing, or cannot serve the queue, the fallback statements run in order
    /// until one of them takes jobs or has seen the whole queue.
    pub(super) async fn take_only(
        &self,
        conn: &mut impl SqlConnection,
        queue: &QueueName,
        request: TakeRequest,
        owner: Owner,
    ) -> Result<Taken, Error> {
        self.forget_keys_in_test(conn).await?;
        let statements = &self.statements.fallbacks;
        let first = match self.fallback_levels.of(queue) {
            FirstStatement::Fallback(level) => level,
            FirstStatement::Limited => match self.take_limited(conn, queue, request, owner).await? {
                Some(taken) => return Ok(taken),
                None => 0,
            },
        };
        let taken = match first {
            0 => self.fast_path.take(self, conn, queue, request, owner).await?,
            level if level + 1 == statements.len() => {
                self.fast_path.take_past_keys(self, conn, queue, request, owner).await?
            }
            _ => None,
        };
        if let Some(taken) = taken {
            return Ok(taken);
        }
        let scan_begun = Instant::now();
        let (mut result, mut raced) = (TakeResult::default(), false);
        for (level, statement) in statements.iter().enumerate().skip(first) {
            let begun = Instant::now();
            result = self.take_at_level(conn, statement, queue, request, owner).await?;
            raced |= result.raced;
            if !result.falls_back {
                if level > first {
                    self.fallback_levels.note(queue, FirstStatement::Fallback(level), begun.elapsed());
                }
                break;
            }
        }
        if result.is_limited {
            self.fallback_levels.note(queue, FirstStatement::Limited, Duration::ZERO);
            if let Some(taken) = self.take_limited(conn, queue, request, owner).await? {
                return Ok(taken);
            }
            // The limits were removed meanwhile.
            result.next_due = Some(Duration::ZERO);
        }
        if first == 0 {
            self.fast_path.note_full_scan(queue, &result.jobs, request, scan_begun);
        }
        if raced {
            // Other takes may have skipped what this one locked without taking it, and found nothing. They must poll
            // again.
            self.notify_others(conn, queue, owner).await?;
        }
        Ok(Taken { jobs: result.jobs, next_due: result.next_due, rolled_back: result.rolled_back })
    }

    /// Takes jobs of a limited queue. Returns `None` if the queue is not limited.
    async fn take_limited(
        &self,
        conn: &mut impl SqlConnection,
        queue: &QueueName,
        request: TakeRequest,
        owner: Owner,
    ) -> Result<Option<Taken>, Error> {
        let (lease, most) = (lease_length(owner), i32::try_from(request.count).unwrap_or(i32::MAX));
        // The rollback of a transaction returns its jobs, which come before the position then.
        let start = match owner {
            Owner::Transaction => LimitedStart::QUEUE,
            Owner::Caller | Owner::Lease(_) => self.fast_path.limited_start(queue),
        };
        let mut values =
            vec![Value::Text(queue.as_str()), Value::Integer(most), Value::OptionalBigInt(lease)];
        values.extend(start.values());
        let statement = &self.statements.take_limited;
        let begun = Instant::now();
        let rows: Vec<TakeRow> = self.rows::<TakeSql, _>(conn, statement, &values).await?;
        let result = TakeResult::new(queue, rows, lease.is_some(), true);
        if result.falls_back {
            self.fallback_levels.forget(queue);
            return Ok(None);
        }
        if !matches!(owner, Owner::Transaction) {
            self.fast_path.note_limited(queue, &start, &result.jobs, begun);
        }
        let awaits_end = matches!(owner, Owner::Transaction) && !result.jobs.is_empty();
        if result.raced || awaits_end {
            // The end of the transaction frees what the jobs have, or a key that was locked for no job.
            self.notify_others(conn, queue, owner).await?;
        }
        let is_busy = result.jobs.is_empty() && result.next_due == Some(Duration::ZERO);
        let next_due = if is_busy { Some(self.busy_pauses.next(queue)) } else { result.next_due };
        if !is_busy {
            self.busy_pauses.end(queue);
        }
        Ok(Some(Taken { jobs: result.jobs, next_due, rolled_back: false }))
    }

    /// Notifies other takes of the queue when the transaction of a take commits.
    async fn notify_others(
        &self,
        conn: &mut impl SqlConnection,
        queue: &QueueName,
        owner: Owner,
    ) -> Result<(), Error> {
        let notified = self.notify_queues(conn, [queue]).await;
        match owner {
            Owner::Transaction => notified,
            // The jobs are the caller's already, so this must not fail.
            Owner::Caller | Owner::Lease(_) => {
                warn_unreleased(queue, notified);
                Ok(())
            }
        }
    }

    async fn take_at_level(
        &self,
        conn: &mut impl SqlConnection,
        statement: &Sized,
        queue: &QueueName,
        request: TakeRequest,
        owner: Owner,
    ) -> Result<TakeResult, Error> {
        let (statement, limit) = self.of_size(conn, statement, request.count).await?;
        let mut values = vec![Value::Text(queue.as_str()), Value::OptionalBigInt(lease_length(owner))];
        values.extend(limit);
        let (mut result, mut raced) = (TakeResult::default(), false);
        for _ in 0..MAX_RACES {
            let rows: Vec<TakeRow> = self.rows::<TakeSql, _>(conn, statement, &values).await?;
            result = TakeResult::new(queue, rows, matches!(owner, Owner::Lease(_)), false);
            raced |= result.raced;
            if !result.raced || !result.jobs.is_empty() {
                break;
            }
            // The transaction keeps the locks of keys without a job until it ends, and a job that a repeated take finds
            // may be a long one. Other takes could not have those keys for as long. With `Scan::Resume` the caller
            // comes back at once, in a transaction without locks.
            if matches!(owner, Owner::Transaction) && request.scan == Scan::Resume {
                (result.falls_back, result.next_due) = (false, Some(Duration::ZERO));
                break;
            }
        }
        Ok(TakeResult { raced, ..result })
    }

    /// Returns the form of a take that takes `count` jobs at most, and the value of its last parameter.
    pub(super) async fn of_size<'s>(
        &self,
        conn: &mut impl SqlConnection,
        sized: &'s Sized,
        count: usize,
    ) -> Result<(&'s Statement, Option<Value<'static>>), Error> {
        let measure = if count > Sized::UNMEASURED { self.measure(conn).await? } else { Measure::No };
        Ok(sized.of(count, measure))
    }

    async fn measure(&self, conn: &mut impl SqlConnection) -> Result<Measure, Error> {
        let known = *self.payload_storage.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((measure, _)) = known.filter(|(_, until)| Instant::now() < *until) {
            return Ok(measure);
        }
        let bytes: Option<Option<i64>> =
            self.one::<Nullable<BigInt>, _>(conn, &self.statements.large_payloads, &[]).await?;
        let is_large = bytes.flatten().is_some_and(|bytes| bytes >= MAX_TAKE_BYTES as i64);
        let measure = if is_large { Measure::Yes } else { Measure::No };
        let known = Some((measure, Instant::now() + LOOK_AGAIN));
        *self.payload_storage.0.lock().unwrap_or_else(PoisonError::into_inner) = known;
        Ok(measure)
    }

    /// Releases the keys of jobs whose take has committed. The jobs are the caller's already, so a failure is only
    /// logged: the next put of a unique key finds the key free, and polling finds the serialization key free.
    pub(super) async fn release_keys_after_commit(
        &self,
        conn: &mut impl SqlConnection,
        queue: &QueueName,
        jobs: &[Arc<Claim>],
    ) {
        warn_unreleased(queue, self.release_keys(conn, queue, jobs).await);
    }

    /// Releases the keys of jobs that were taken without a lease.
    pub(super) async fn release_keys(
        &self,
        conn: &mut impl SqlConnection,
        queue: &QueueName,
        jobs: &[impl Borrow<Claim> + Sync],
    ) -> Result<(), Error> {
        self.release_unique_keys(conn, queue, jobs).await?;
        if jobs.iter().any(|job| job.borrow().serialization_key.is_some()) {
            // The commit frees the serialization key. After a rollback polling finds the job.
            self.notify_queues(conn, [queue]).await?;
        }
        Ok(())
    }

    /// Releases the unique keys of jobs that were taken without a lease: the jobs complete with the transaction. If
    /// the release is lost, the next put of the key finds that its job has ended.
    async fn release_unique_keys(
        &self,
        conn: &mut impl SqlConnection,
        queue: &QueueName,
        jobs: &[impl Borrow<Claim> + Sync],
    ) -> Result<(), Error> {
        let with_key: Vec<(&Key, i64)> = jobs
            .iter()
            .map(Borrow::borrow)
            .filter_map(|job| Some((job.unique_key.as_ref()?, job.id.0)))
            .collect();
        if with_key.is_empty() {
            return Ok(());
        }
        let values = [
            Value::Texts(with_key.iter().map(|(key, _)| key.as_str()).collect()),
            Value::BigInts(with_key.iter().map(|(_, id)| *id).collect()),
            Value::Text(queue.as_str()),
        ];
        self.changed(conn, &self.statements.release_unique, &values).await.map(drop)
    }

    /// Notifies the waiters of the queues when the transaction commits.
    pub(super) async fn notify_queues<'q>(
        &self,
        conn: &mut impl SqlConnection,
        queues: impl IntoIterator<Item = &'q QueueName>,
    ) -> Result<(), Error> {
        if self.notify == Notify::Off {
            return Ok(());
        }
        let channels: Vec<_> =
            queues.into_iter().flat_map(|queue| notified_channels(queue.as_str())).collect();
        let values = [Value::Texts(channels.iter().map(|channel| channel.as_str()).collect())];
        let notified: Result<Vec<String>, _> =
            self.rows::<Text, _>(conn, &self.statements.notify, &values).await;
        notified.map(drop)
    }
}

/// Returns the length of the lease in microseconds, if a lease owns the jobs.
fn lease_length(owner: Owner) -> Option<i64> {
    match owner {
        Owner::Caller | Owner::Transaction => None,
        Owner::Lease(length) => Some(micros(length)),
    }
}

/// Logs that the keys of taken jobs were not released.
pub(super) fn warn_unreleased(queue: &QueueName, released: Result<(), Error>) {
    if let Err(error) = released {
        tracing::warn!(%queue, %error, "keys of taken jobs not released");
    }
}
