//! Taking jobs, in a transaction or under a lease.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{PoisonError, RwLock};
use std::time::{Duration, Instant};

use diesel::connection::DefaultLoadingMode;
use diesel::pg::PgConnection;
use diesel::pg::data_types::PgTimestamp;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Bool, Nullable, Text};
use pq_core::{Key, QueueName, RawJob, Search, Store, Taken};

use super::head::{Place, Way};
use super::together::{Fate, Lead, Together, Turn};
use super::trail::End;
use super::{PgStore, micros};
use crate::prepared::Value;
use crate::rows::{Found, TakenRow, TakenSql, found, span, walk};
use crate::statements::{Sized, Walks};
use crate::table::told_on;
use crate::{Error, Notify};

/// The tokens of takes in transactions: no two of one transaction are the same.
static TAKES: AtomicI64 = AtomicI64::new(1);

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

/// What goes together with the gets of other threads: no more jobs in one call than this.
const SHARED_JOBS: usize = 64;

/// The most jobs that they take together.
const SHARED_TAKE: usize = 1024;

/// The gets of a handle's own that are under way, and which jobs were taken.
pub(crate) type Gets = Together<Ask, Result<Taken, Error>>;

/// How many jobs a get wants, and what it has to know where there are none.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ask {
    pub(super) count: usize,
    pub(super) search: Search,
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

impl PgStore {
    /// Takes and commits, together with the threads that take from the queue at the same time.
    pub(super) fn take_with_others(&self, queue: &QueueName, ask: Ask) -> Result<Taken, Error> {
        if !(1..=SHARED_JOBS).contains(&ask.count) {
            return self.take_alone(queue, ask);
        }
        match self.gets.turn(queue, || ask, |line| company(ask.count, line)) {
            Turn::Lead(lead) => self.take_together(queue, ask, lead),
            Turn::Done(taken) => {
                let taken = taken?;
                if has_keys(&taken.jobs) {
                    let done = self.with_connection(|conn| {
                        self.let_go_after_all(conn, queue, &taken.jobs);
                        Ok(())
                    });
                    warn_of(queue, done);
                }
                Ok(taken)
            }
            Turn::Alone => self.take_alone(queue, ask),
            Turn::Lost => Err(Error::Unavailable("the thread that took the jobs has panicked".to_owned())),
        }
    }

    fn take_together(
        &self,
        queue: &QueueName,
        ask: Ask,
        lead: Lead<'_, Ask, Result<Taken, Error>>,
    ) -> Result<Taken, Error> {
        let counts: Vec<usize> = lead.asks().map(|ask| ask.count).collect();
        let wanted = ask.count + counts.iter().sum::<usize>();
        let is_whole = lead.asks().chain([&ask]).any(|ask| ask.search == Search::Whole);
        let search = if is_whole { Search::Whole } else { Search::Along };
        let mut lead = Some(lead);
        let taken: Result<_, Error> = self.with_connection(|conn| {
            let mut taken = self.find(conn, queue, wanted, Hold::Nothing, search)?;
            let mut fates = deal(&mut taken, ask.count, &counts);
            if has_keys(&taken.jobs) {
                // This may wait for whoever puts the same key, and nobody else is to wait for it.
                if let Some(lead) = lead.take() {
                    lead.tell(std::mem::take(&mut fates));
                }
                self.let_go_after_all(conn, queue, &taken.jobs);
            }
            Ok((taken, fates))
        });
        match (taken, lead) {
            (Ok((taken, fates)), lead) => {
                if let Some(lead) = lead {
                    lead.tell(fates);
                }
                Ok(taken)
            }
            (Err(error), Some(lead)) => lead.fail(error, || self.take_alone(queue, ask)),
            // They were told already, and this call has its jobs.
            (Err(error), None) => Err(error),
        }
    }

    fn take_alone(&self, queue: &QueueName, ask: Ask) -> Result<Taken, Error> {
        self.with_connection(|conn| {
            let taken = self.find(conn, queue, ask.count, Hold::Nothing, ask.search)?;
            self.let_go_after_all(conn, queue, &taken.jobs);
            Ok(taken)
        })
    }

    pub(super) fn take_by(
        &self,
        conn: &mut PgConnection,
        queue: &QueueName,
        count: usize,
        hold: Hold,
        search: Search,
    ) -> Result<Taken, Error> {
        let taken = self.find(conn, queue, count, hold, search)?;
        if matches!(hold, Hold::Transaction) {
            self.let_go(conn, queue, &taken.jobs)?;
        }
        Ok(taken)
    }

    /// Takes, and leaves what the jobs have besides.
    fn find(
        &self,
        conn: &mut PgConnection,
        queue: &QueueName,
        count: usize,
        hold: Hold,
        search: Search,
    ) -> Result<Taken, Error> {
        let statements = match hold {
            Hold::Lease(_) => &self.statements.lease,
            Hold::Nothing | Hold::Transaction => &self.statements.take,
        };
        let first = self.levels.of(queue);
        let taken = match first {
            0 => self.walk(conn, queue, count, hold, search)?,
            level if level + 1 == statements.len() => self.walk_past_keys(conn, queue, count, hold)?,
            _ => None,
        };
        if let Some(taken) = taken {
            return Ok(taken);
        }
        let begun_at = Instant::now();
        let (mut looked, mut raced) = (Found::default(), false);
        for (level, statement) in statements.iter().enumerate().skip(first) {
            let begun = Instant::now();
            looked = self.look(conn, statement, queue, count, hold)?;
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
            self.ring(conn, [queue])?;
        }
        Ok(Taken { jobs: looked.jobs, next_due: looked.next_due })
    }

    /// Takes along the index of the line, where that is likely to be all there is to it; `None` where it came to
    /// nothing, or was not tried. Who looks along is told where a walk from the start is to be spared.
    fn walk(
        &self,
        conn: &mut PgConnection,
        queue: &QueueName,
        count: usize,
        hold: Hold,
        search: Search,
    ) -> Result<Option<Taken>, Error> {
        loop {
            let way = self.heads.way(queue);
            let (from, end) = match way {
                Way::Ask => return Ok(None),
                Way::Start => (None, None),
                Way::Between(piece) => (Some(piece.after), Some(piece.end)),
                Way::Since(place) | Way::On(place) => (Some(place), None),
            };
            let begun = Instant::now();
            let jobs = self.walk_from(conn, queue, count, hold, from, end)?;
            self.heads.took(queue, way, &jobs, count, begun);
            if !jobs.is_empty() {
                return Ok(Some(Taken { jobs, next_due: None }));
            }
            // A piece of the way is walked on the way to what is behind the last place.
            if end.is_some() {
                continue;
            }
            if from.is_none() || search == Search::Whole {
                return Ok(None);
            }
            return self.nothing_along(conn, queue);
        }
    }

    /// What there is to say of a queue where nothing is behind the last place; `None` where it has jobs that are not
    /// in the index of the line.
    fn nothing_along(&self, conn: &mut PgConnection, queue: &QueueName) -> Result<Option<Taken>, Error> {
        let values = [Value::Text(queue.as_str())];
        let beside = self.statements.beside.with::<(Bool, Nullable<BigInt>)>(&values);
        let (other, due): (bool, Option<i64>) = beside.get_result(conn).map_err(|e| self.error(e))?;
        let again = self.heads.due_in(queue);
        let next_due = Some(due.map_or(again, |due| span(due).min(again)));
        Ok((!other).then_some(Taken { jobs: Vec::new(), next_due }))
    }

    /// Takes along the index of the line where the jobs with keys in front of it all belong to busy ones; `None` where
    /// it came to nothing.
    fn walk_past_keys(
        &self,
        conn: &mut PgConnection,
        queue: &QueueName,
        count: usize,
        hold: Hold,
    ) -> Result<Option<Taken>, Error> {
        let jobs = self.walk_by(conn, &self.walks(hold).past_keys, queue, count, hold, Vec::new())?;
        Ok((!jobs.is_empty()).then_some(Taken { jobs, next_due: None }))
    }

    fn walks(&self, hold: Hold) -> &Walks {
        match hold {
            Hold::Nothing => &self.statements.walk_gone,
            Hold::Transaction => &self.statements.walk,
            Hold::Lease(_) => &self.statements.walk_leased,
        }
    }

    fn walk_from(
        &self,
        conn: &mut PgConnection,
        queue: &QueueName,
        count: usize,
        hold: Hold,
        from: Option<Place>,
        end: Option<End>,
    ) -> Result<Vec<RawJob>, Error> {
        let walks = self.walks(hold);
        let (statement, end) = match end {
            None if from.is_none() => (&walks.from_start, None),
            None => (&walks.from_place, None),
            Some(End::Rank(rank)) => (&walks.before_rank, Some(Value::BigInt(rank))),
            Some(End::Wanted(wanted)) => (&walks.before_wanted, Some(Value::Timestamp(PgTimestamp(wanted)))),
            Some(End::Id(id)) => (&walks.to_id, Some(Value::BigInt(id))),
        };
        let place = from.map(|place| {
            [Value::BigInt(place.rank), Value::Timestamp(PgTimestamp(place.wanted)), Value::BigInt(place.id)]
        });
        let bounds: Vec<Value<'_>> = place.into_iter().flatten().chain(end).collect();
        self.walk_by(conn, statement, queue, count, hold, bounds)
    }

    fn walk_by(
        &self,
        conn: &mut PgConnection,
        statement: &Sized,
        queue: &QueueName,
        count: usize,
        hold: Hold,
        bounds: Vec<Value<'_>>,
    ) -> Result<Vec<RawJob>, Error> {
        let (statement, fixed) = statement.of(count);
        let token = TAKES.fetch_add(1, Ordering::Relaxed);
        let given = match hold {
            Hold::Nothing => None,
            Hold::Transaction => Some(token),
            Hold::Lease(length) => Some(micros(length)),
        };
        let mut values = vec![Value::Text(queue.as_str())];
        values.extend(given.map(Value::BigInt).into_iter().chain(bounds));
        if !fixed {
            values.push(Value::BigInt(i64::try_from(count).unwrap_or(i64::MAX)));
        }
        let jobs = match hold {
            Hold::Lease(_) => {
                let row = statement.with::<walk::LeasedSql>(&values).get_result(conn).optional();
                row.map(|row| row.map_or_else(Vec::new, |row| walk::leased(queue, row)))
            }
            // Row by row from the answer, for a list of wide rows on the way is most of the work.
            Hold::Nothing | Hold::Transaction => {
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
        hold: Hold,
    ) -> Result<Found, Error> {
        let (statement, fixed) = statement.of(count);
        let mut values = vec![Value::Text(queue.as_str())];
        if !fixed {
            values.push(Value::BigInt(i64::try_from(count).unwrap_or(i64::MAX)));
        }
        if let Hold::Lease(length) = hold {
            values.push(Value::BigInt(micros(length)));
        }
        let (mut looked, mut raced) = (Found::default(), false);
        for _ in 0..RACES {
            let rows: Vec<TakenRow> =
                statement.with::<TakenSql>(&values).load(conn).map_err(|e| self.error(e))?;
            looked = found(queue, rows, matches!(hold, Hold::Lease(_)));
            raced |= looked.raced;
            if !looked.raced || !looked.jobs.is_empty() {
                break;
            }
        }
        Ok(Found { raced, ..looked })
    }

    /// [`Self::let_go`] after the commit of the take. The jobs are the caller's whatever comes of it: a unique key
    /// is found free by its next put, and a serialization key by the poll.
    fn let_go_after_all(&self, conn: &mut PgConnection, queue: &QueueName, jobs: &[RawJob]) {
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

/// How many of those in line a get of so many jobs takes along: of the numbers of jobs that makes, the largest
/// for which there is a statement that is planned once; all where there is none.
fn company(count: usize, line: &mut dyn Iterator<Item = &Ask>) -> usize {
    let sums = line.scan(count, |sum, more| {
        *sum += more.count;
        (*sum <= SHARED_TAKE).then_some(*sum)
    });
    let (mut all, mut fixed) = (0, Sized::is_fixed(count).then_some(0));
    for (calls, sum) in (1..).zip(sums) {
        all = calls;
        if Sized::is_fixed(sum) {
            fixed = Some(calls);
        }
    }
    fixed.unwrap_or(all)
}

/// Leaves the first of the jobs to the call that leads, and deals out the others in the order of the calls.
fn deal(taken: &mut Taken, count: usize, counts: &[usize]) -> Vec<Fate<Result<Taken, Error>>> {
    let next_due = taken.next_due;
    let mut others = taken.jobs.split_off(taken.jobs.len().min(count)).into_iter();
    let found = !taken.jobs.is_empty();
    let fate = |count: &usize| {
        let jobs: Vec<RawJob> = others.by_ref().take(*count).collect();
        // Where some were found it is not known when the next falls due, nor whether there is one whose key is
        // free now.
        if jobs.is_empty() && found { Fate::Again } else { Fate::Done(Ok(Taken { jobs, next_due })) }
    };
    counts.iter().map(fate).collect()
}

fn has_keys(jobs: &[RawJob]) -> bool {
    jobs.iter().any(|job| job.unique_key.is_some() || job.serialization_key.is_some())
}

fn warn_of(queue: &QueueName, done: Result<(), Error>) {
    if let Err(error) = done {
        tracing::warn!(%queue, %error, "keys of jobs that were taken could not be left to others");
    }
}
