//! Taking jobs along the index of the line, by the leanest of the statements.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Instant;

use diesel::connection::DefaultLoadingMode;
use diesel::pg::PgConnection;
use diesel::pg::data_types::PgTimestamp;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Bool, Nullable};
use pq_core::{QueueName, RawJob, Scan, Taken};

use super::head::Way;
use super::line::{Hold, Want};
use super::place::Place;
use super::trail::End;
use super::{PgStore, micros};
use crate::Error;
use crate::prepared::Value;
use crate::rows::span;
use crate::rows::walk::{LeasedSql, TakenSql, leased, taken};
use crate::statements::{Sized, Walks};

/// The tokens of takes in transactions: no two of one transaction are the same.
static TAKES: AtomicI64 = AtomicI64::new(1);

impl PgStore {
    /// Takes along the index of the line, where that is likely to be all there is to it; `None` where it came to
    /// nothing, or was not tried. Who looks along is told where a walk from the start is to be spared.
    pub(super) fn walk(
        &self,
        conn: &mut PgConnection,
        want: Want<'_>,
        scan: Scan,
    ) -> Result<Option<Taken>, Error> {
        loop {
            let way = self.heads.way(want.queue);
            let (from, end) = match way {
                Way::Ask => return Ok(None),
                Way::Start => (None, None),
                Way::Between(piece) => (Some(piece.after), Some(piece.end)),
                Way::Since(place) | Way::On(place) => (Some(place), None),
            };
            let begun = Instant::now();
            let jobs = self.walk_from(conn, want, from, end)?;
            self.heads.took(want.queue, way, &jobs, want.count, begun);
            if !jobs.is_empty() {
                return Ok(Some(Taken { jobs, next_due: None }));
            }
            // A piece of the way is walked on the way to what is behind the last place.
            if end.is_some() {
                continue;
            }
            if from.is_none() || scan == Scan::Full {
                return Ok(None);
            }
            return self.nothing_along(conn, want.queue);
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
    pub(super) fn walk_past_keys(
        &self,
        conn: &mut PgConnection,
        want: Want<'_>,
    ) -> Result<Option<Taken>, Error> {
        let jobs = self.walk_by(conn, &self.walks(want.hold).past_keys, want, Vec::new())?;
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
        want: Want<'_>,
        from: Option<Place>,
        end: Option<End>,
    ) -> Result<Vec<RawJob>, Error> {
        let walks = self.walks(want.hold);
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
        self.walk_by(conn, statement, want, bounds)
    }

    fn walk_by(
        &self,
        conn: &mut PgConnection,
        statement: &Sized,
        want: Want<'_>,
        bounds: Vec<Value<'_>>,
    ) -> Result<Vec<RawJob>, Error> {
        let Want { queue, count, hold } = want;
        let (statement, fixed) = statement.of(count);
        let token = TAKES.fetch_add(1, Ordering::Relaxed);
        let given = match hold {
            Hold::Nothing => None,
            Hold::Transaction => Some(token),
            Hold::Lease(length) => Some(micros(length)),
        };
        let mut values = vec![Value::Text(queue.as_str())];
        values.extend(given.map(Value::BigInt).into_iter().chain(bounds).chain(want.most(fixed)));
        let jobs = match hold {
            Hold::Lease(_) => {
                let row = statement.with::<LeasedSql>(&values).get_result(conn).optional();
                row.map(|row| row.map_or_else(Vec::new, |row| leased(queue, row)))
            }
            // Row by row from the answer, for a list of wide rows on the way is most of the work.
            Hold::Nothing | Hold::Transaction => {
                let rows = statement.with::<TakenSql>(&values);
                rows.load_iter::<_, DefaultLoadingMode>(conn).and_then(|rows| taken(queue, token, rows))
            }
        };
        jobs.map_err(|e| self.error(e))
    }
}
