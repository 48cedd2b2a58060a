//! Taking jobs, whatever is to hold them, and leaving their keys to others.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};
use std::time::{Duration, Instant};

use diesel::pg::PgConnection;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Text};
use pq_core::{Key, QueueName, RawJob, Scan, Taken};

use super::head::Way;
use super::{PgStore, micros};
use crate::prepared::Value;
use crate::rows::{Found, TakenRow, TakenSql, found};
use crate::statements::Sized;
use crate::table::told_on;
use crate::{Error, Notify};

/// How often a take that locked something in vain, and took nothing, is tried anew.
const RACES: usize = 8;

/// How far down the statements of a take the last look at a queue had to go. For a while its takes begin there,
/// which saves them the ones that only find out. A hint: each statement is right where it takes anything.
#[derive(Debug, Default)]
pub(crate) struct Levels(RwLock<HashMap<QueueName, (usize, Instant)>>);

impl Levels {
    fn of(&self, queue: &QueueName) -> usize {
        let levels = self.0.read().unwrap_or_else(PoisonError::into_inner);
        levels.get(queue).filter(|(_, until)| Instant::now() < *until).map_or(0, |(level, _)| *level)
    }

    /// The statement of this level had to be asked, and took so long. A quick one is asked first for longer.
    fn note(&self, queue: &QueueName, level: usize, cost: Duration) {
        let quick = cost < Duration::from_millis(5);
        let now = Instant::now();
        let until = now + Duration::from_secs(if quick { 10 } else { 1 });
        let mut levels = self.0.write().unwrap_or_else(PoisonError::into_inner);
        levels.retain(|_, (_, until)| now < *until);
        levels.insert(queue.clone(), (level, until));
    }
}

/// What holds the jobs that are taken.
#[derive(Clone, Copy, Debug)]
pub(super) enum Hold {
    /// Nothing: the take commits by itself, and they are gone.
    Nothing,
    Transaction,
    /// A lease of this length.
    Lease(Duration),
}

/// What a take is to get.
#[derive(Clone, Copy, Debug)]
pub(super) struct Want<'q> {
    pub(super) queue: &'q QueueName,
    /// The most jobs.
    pub(super) count: usize,
    pub(super) hold: Hold,
}

impl Want<'_> {
    /// The most jobs, where a statement does not have the number in its text.
    pub(super) fn most(&self, fixed: bool) -> Option<Value<'static>> {
        (!fixed).then(|| Value::BigInt(i64::try_from(self.count).unwrap_or(i64::MAX)))
    }
}

impl PgStore {
    pub(super) fn take_by(
        &self,
        conn: &mut PgConnection,
        want: Want<'_>,
        scan: Scan,
    ) -> Result<Taken, Error> {
        let taken = self.find(conn, want, scan)?;
        if matches!(want.hold, Hold::Transaction) {
            self.let_go(conn, want.queue, &taken.jobs)?;
        }
        Ok(taken)
    }

    pub(super) fn take_again(&self, conn: &mut PgConnection, job: &RawJob) -> Result<bool, Error> {
        let values = [
            Value::BigInt(job.id.0),
            Value::Text(job.queue.as_str()),
            Value::Integer(job.attempt - 1),
            Value::BigInt(job.claim.token),
        ];
        let noted: Option<String> = self.one::<Text, _>(conn, &self.statements.retake, &values)?;
        if noted.is_some() {
            self.let_go(conn, &job.queue, std::slice::from_ref(job))?;
        }
        Ok(noted.is_some())
    }

    /// Takes, and leaves what the jobs have besides.
    pub(super) fn find(&self, conn: &mut PgConnection, want: Want<'_>, scan: Scan) -> Result<Taken, Error> {
        let Want { queue, count, hold } = want;
        let statements = match hold {
            Hold::Lease(_) => &self.statements.lease,
            Hold::Nothing | Hold::Transaction => &self.statements.take,
        };
        let first = self.levels.of(queue);
        let taken = match first {
            0 => self.walk(conn, want, scan)?,
            level if level + 1 == statements.len() => self.walk_past_keys(conn, want)?,
            _ => None,
        };
        if let Some(taken) = taken {
            return Ok(taken);
        }
        let begun_at = Instant::now();
        let (mut looked, mut raced) = (Found::default(), false);
        for (level, statement) in statements.iter().enumerate().skip(first) {
            let begun = Instant::now();
            looked = self.look(conn, statement, want, scan)?;
            raced |= looked.raced;
            if !looked.other {
                if level > first {
                    self.levels.note(queue, level, begun.elapsed());
                }
                break;
            }
        }
        if first == 0 {
            self.heads.took(queue, Way::Ask, &looked.jobs, count, begun_at);
        }
        if raced {
            // Others may have gone away because of what was locked here in vain, and found nothing.
            let rung = self.ring(conn, [queue]);
            match hold {
                Hold::Transaction => rung?,
                // The jobs are the caller's whatever comes of it.
                Hold::Nothing | Hold::Lease(_) => warn_of(queue, rung),
            }
        }
        Ok(Taken { jobs: looked.jobs, next_due: looked.next_due })
    }

    fn look(
        &self,
        conn: &mut PgConnection,
        statement: &Sized,
        want: Want<'_>,
        scan: Scan,
    ) -> Result<Found, Error> {
        let (statement, fixed) = statement.of(want.count);
        let mut values = vec![Value::Text(want.queue.as_str())];
        values.extend(want.most(fixed));
        if let Hold::Lease(length) = want.hold {
            values.push(Value::BigInt(micros(length)));
        }
        let (mut looked, mut raced) = (Found::default(), false);
        for _ in 0..RACES {
            let rows: Vec<TakenRow> =
                statement.with::<TakenSql>(&values).load(conn).map_err(|e| self.error(e))?;
            looked = found(want.queue, rows, matches!(want.hold, Hold::Lease(_)));
            raced |= looked.raced;
            if !looked.raced || !looked.jobs.is_empty() {
                break;
            }
            // Until the transaction ends nobody else can have the keys that were locked for nothing, and a job that it
            // took after all may be a long one. Who looks along comes back at once, in a transaction that has no locks.
            if matches!(want.hold, Hold::Transaction) && scan == Scan::Resume {
                (looked.other, looked.next_due) = (false, Some(Duration::ZERO));
                break;
            }
        }
        Ok(Found { raced, ..looked })
    }

    /// [`Self::let_go`] after the commit of the take. The jobs are the caller's whatever comes of it: a unique key
    /// is found free by its next put, and a serialization key by the poll.
    pub(super) fn let_go_after_all(&self, conn: &mut PgConnection, queue: &QueueName, jobs: &[RawJob]) {
        warn_of(queue, self.let_go(conn, queue, jobs));
    }

    /// Leaves the keys of jobs that were taken without a lease to others.
    fn let_go(&self, conn: &mut PgConnection, queue: &QueueName, jobs: &[RawJob]) -> Result<(), Error> {
        self.let_go_of_unique_keys(conn, queue, jobs)?;
        if jobs.iter().any(|job| job.serialization_key.is_some()) {
            // With the commit the key is free; a rollback is found by the poll.
            self.ring(conn, [queue])?;
        }
        Ok(())
    }

    /// Jobs that are taken without a lease complete with the transaction, and then others may have their
    /// unique keys. Where this is lost, the next put of the key finds out that its job is gone.
    fn let_go_of_unique_keys(
        &self,
        conn: &mut PgConnection,
        queue: &QueueName,
        jobs: &[RawJob],
    ) -> Result<(), Error> {
        let with_key: Vec<(&Key, i64)> =
            jobs.iter().filter_map(|job| Some((job.unique_key.as_ref()?, job.id.0))).collect();
        if with_key.is_empty() {
            return Ok(());
        }
        let values = [
            Value::Texts(with_key.iter().map(|(key, _)| key.as_str()).collect()),
            Value::BigInts(with_key.iter().map(|(_, id)| *id).collect()),
            Value::Text(queue.as_str()),
        ];
        let freed = self.statements.free_unique.with::<BigInt>(&values).execute(conn);
        freed.map(drop).map_err(|e| self.error(e))
    }

    /// Wakes whoever waits on the queues, at the commit.
    pub(super) fn ring<'q>(
        &self,
        conn: &mut PgConnection,
        queues: impl IntoIterator<Item = &'q QueueName>,
    ) -> Result<(), Error> {
        if self.notify == Notify::Off {
            return Ok(());
        }
        let channels: Vec<_> = queues.into_iter().flat_map(|queue| told_on(queue.as_str())).collect();
        let values = [Value::Texts(channels.iter().map(|channel| channel.as_str()).collect())];
        let rung: Result<Vec<String>, _> = self.statements.ring.with::<Text>(&values).load(conn);
        rung.map(drop).map_err(|e| self.error(e))
    }
}

pub(super) fn warn_of(queue: &QueueName, done: Result<(), Error>) {
    if let Err(error) = done {
        tracing::warn!(%queue, %error, "keys of jobs that were taken could not be left to others");
    }
}
