//! Taking jobs, in a transaction or under a lease.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{PoisonError, RwLock};
use std::time::{Duration, Instant};

use diesel::connection::DefaultLoadingMode;
use diesel::pg::PgConnection;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Text};
use pq_core::{Key, QueueName, RawJob, Taken};

use super::head::{Place, Way};
use super::{PgStore, micros};
use crate::prepared::Value;
use crate::rows::{Found, TakenRow, TakenSql, found, walk};
use crate::statements::Sized;
use crate::table::told_on;
use crate::{Error, Notify};

/// The tokens of takes in transactions: no two of one transaction are the same.
static TAKES: AtomicI64 = AtomicI64::new(1);

/// How often a take that locked rows it could not see is tried anew.
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

impl PgStore {
    pub(super) fn take_by(
        &self,
        conn: &mut PgConnection,
        queue: &QueueName,
        count: usize,
        lease: Option<Duration>,
    ) -> Result<Taken, Error> {
        if self.levels.of(queue) == 0
            && let Some(jobs) = self.walk(conn, queue, count, lease)?
        {
            return Ok(Taken { jobs, next_due: None });
        }
        let statements = match lease {
            Some(_) => &self.statements.lease,
            None => &self.statements.take,
        };
        let first = self.levels.of(queue);
        let begun_at = Instant::now();
        let mut looked = Found::default();
        for (level, statement) in statements.iter().enumerate().skip(first) {
            let begun = Instant::now();
            looked = self.look(conn, statement, queue, count, lease)?;
            if !looked.other {
                if level > first {
                    self.levels.note(queue, level, begun.elapsed());
                }
                break;
            }
        }
        if first == 0 {
            self.heads.took(queue, Way::Ask, &looked.jobs, count, begun_at.elapsed());
        }
        if lease.is_none() {
            self.let_go_of_unique_keys(conn, queue, &looked.jobs)?;
            if looked.jobs.iter().any(|job| job.serialization_key.is_some()) {
                // With the commit the key is free; a rollback is found by the poll.
                self.ring(conn, [queue])?;
            }
        }
        Ok(Taken { jobs: looked.jobs, next_due: looked.next_due })
    }

    /// Takes along the index of the line, where that is likely to be all there is to it; `None` where it came to
    /// nothing, or was not tried.
    fn walk(
        &self,
        conn: &mut PgConnection,
        queue: &QueueName,
        count: usize,
        lease: Option<Duration>,
    ) -> Result<Option<Vec<RawJob>>, Error> {
        let mut way = self.heads.way(queue);
        loop {
            let from = match way {
                Way::Ask => return Ok(None),
                Way::Start => None,
                Way::From(place) => Some(place),
            };
            let begun = Instant::now();
            let jobs = self.walk_from(conn, queue, count, lease, from)?;
            self.heads.took(queue, way, &jobs, count, begun.elapsed());
            if !jobs.is_empty() {
                if lease.is_none() {
                    self.let_go_of_unique_keys(conn, queue, &jobs)?;
                }
                return Ok(Some(jobs));
            }
            if from.is_none() {
                return Ok(None);
            }
            way = Way::Start;
        }
    }

    fn walk_from(
        &self,
        conn: &mut PgConnection,
        queue: &QueueName,
        count: usize,
        lease: Option<Duration>,
        from: Option<Place>,
    ) -> Result<Vec<RawJob>, Error> {
        let walks = if lease.is_some() { &self.statements.walk_leased } else { &self.statements.walk };
        let (statement, fixed) = walks[usize::from(from.is_some())].of(count);
        let token = TAKES.fetch_add(1, Ordering::Relaxed);
        let mut values = vec![Value::Text(queue.as_str()), Value::BigInt(lease.map_or(token, micros))];
        if let Some(place) = from {
            values.extend([
                Value::BigInt(place.rank),
                Value::Timestamp(place.wanted()),
                Value::BigInt(place.id),
            ]);
        }
        if !fixed {
            values.push(Value::BigInt(i64::try_from(count).unwrap_or(i64::MAX)));
        }
        let jobs = match lease {
            Some(_) => {
                let row = statement.with::<walk::LeasedSql>(&values).get_result(conn).optional();
                row.map(|row| row.map_or_else(Vec::new, |row| walk::leased(queue, row)))
            }
            // Row by row from the answer, for a list of wide rows on the way is most of the work.
            None => {
                let rows = statement.with::<walk::TakenSql>(&values);
                rows.load_iter::<_, DefaultLoadingMode>(conn).and_then(|rows| walk::taken(queue, token, rows))
            }
        };
        jobs.map_err(|e| self.error(e))
    }

    fn look(
        &self,
        conn: &mut PgConnection,
        statement: &Sized,
        queue: &QueueName,
        count: usize,
        lease: Option<Duration>,
    ) -> Result<Found, Error> {
        let (statement, fixed) = statement.of(count);
        let mut values = vec![Value::Text(queue.as_str())];
        if !fixed {
            values.push(Value::BigInt(i64::try_from(count).unwrap_or(i64::MAX)));
        }
        if let Some(lease) = lease {
            values.push(Value::BigInt(micros(lease)));
        }
        let mut looked = Found::default();
        for _ in 0..RACES {
            let rows: Vec<TakenRow> =
                statement.with::<TakenSql>(&values).load(conn).map_err(|e| self.error(e))?;
            looked = found(queue, rows, lease.is_some());
            if !looked.look_again {
                break;
            }
        }
        Ok(looked)
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
