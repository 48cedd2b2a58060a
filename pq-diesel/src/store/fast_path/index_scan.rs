//! Takes by an index scan.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Instant;

use diesel::connection::DefaultLoadingMode;
use diesel::pg::PgConnection;
use diesel::pg::data_types::PgTimestamp;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Bool, Nullable};
use pq_core::{Claim, QueueName, Scan, Taken};

use super::super::take::{Owner, TakeRequest};
use super::super::{PgStore, micros};
use super::FastPath;
use super::scan_checkpoints::RangeEnd;
use super::scan_planner::Plan;
use super::sort_key::SortKey;
use crate::Error;
use crate::prepared::Value;
use crate::rows::span;
use crate::rows::{LeaseRow, LeaseSql, ScannedRow, ScannedSql};
use crate::statements::{Sized, Walks};

/// Gives each take in a transaction a token. No two takes of one transaction have the same.
static NEXT_TOKEN: AtomicI64 = AtomicI64::new(1);

impl FastPath {
    /// Takes jobs by an index scan. Returns `None` if it took none, or the plan is a full scan.
    ///
    /// With [`Scan::Resume`], returns the time of the next look before the position if nothing was behind it.
    pub(in crate::store) fn take(
        &self,
        store: &PgStore,
        conn: &mut PgConnection,
        queue: &QueueName,
        request: TakeRequest,
        owner: Owner,
    ) -> Result<Option<Taken>, Error> {
        loop {
            let plan = self.planner.plan(queue);
            let (after, end) = match plan {
                Plan::Full => return Ok(None),
                Plan::FromStart => (None, None),
                Plan::Backfill(range) => (Some(range.after), Some(range.end)),
                Plan::ResumeEarlier(key) | Plan::Resume(key) => (Some(key), None),
            };
            let begun = Instant::now();
            let jobs = scan(store, conn, queue, request, owner, after, end)?;
            self.planner.note(queue, plan, &jobs, request.count, begun);
            if !jobs.is_empty() {
                return Ok(Some(Taken { jobs, next_due: None }));
            }
            // A take that finds nothing in a range goes on to look behind the position.
            if end.is_some() {
                continue;
            }
            if after.is_none() || request.scan == Scan::Full {
                return Ok(None);
            }
            return self.nothing_behind_position(store, conn, queue);
        }
    }

    /// Takes jobs without keys by an index scan, if the keys of all jobs that have one are busy. Returns `None` if it
    /// took none.
    pub(in crate::store) fn take_past_keys(
        &self,
        store: &PgStore,
        conn: &mut PgConnection,
        queue: &QueueName,
        request: TakeRequest,
        owner: Owner,
    ) -> Result<Option<Taken>, Error> {
        let statement = &statements(store, owner).past_keys;
        let jobs = execute(store, conn, statement, queue, request, owner, Vec::new())?;
        Ok((!jobs.is_empty()).then_some(Taken { jobs, next_due: None }))
    }

    /// Returns when to look again if nothing is behind the position. Returns `None` if the queue has jobs that are not
    /// in the index.
    fn nothing_behind_position(
        &self,
        store: &PgStore,
        conn: &mut PgConnection,
        queue: &QueueName,
    ) -> Result<Option<Taken>, Error> {
        let values = [Value::Text(queue.as_str())];
        let beside = store.statements.beside.with::<(Bool, Nullable<BigInt>)>(&values);
        let (other, due): (bool, Option<i64>) = beside.get_result(conn).map_err(|e| store.error(e))?;
        let again = self.planner.due_in(queue);
        let next_due = Some(due.map_or(again, |due| span(due).min(again)));
        Ok((!other).then_some(Taken { jobs: Vec::new(), next_due }))
    }
}

fn statements(store: &PgStore, owner: Owner) -> &Walks {
    match owner {
        Owner::Caller => &store.statements.walk_gone,
        Owner::Transaction => &store.statements.walk,
        Owner::Lease(_) => &store.statements.walk_leased,
    }
}

fn scan(
    store: &PgStore,
    conn: &mut PgConnection,
    queue: &QueueName,
    request: TakeRequest,
    owner: Owner,
    after: Option<SortKey>,
    end: Option<RangeEnd>,
) -> Result<Vec<Claim>, Error> {
    let statements = statements(store, owner);
    let (statement, end) = match end {
        None if after.is_none() => (&statements.from_start, None),
        None => (&statements.from_place, None),
        Some(RangeEnd::Priority(neg_priority)) => {
            (&statements.before_rank, Some(Value::BigInt(neg_priority)))
        }
        Some(RangeEnd::ExpectedAt(expected_at)) => {
            (&statements.before_wanted, Some(Value::Timestamp(PgTimestamp(expected_at))))
        }
        Some(RangeEnd::Id(id)) => (&statements.to_id, Some(Value::BigInt(id))),
    };
    let after = after.map(|key| {
        let expected_at = Value::Timestamp(PgTimestamp(key.expected_at));
        [Value::BigInt(key.neg_priority), expected_at, Value::BigInt(key.id)]
    });
    let bounds: Vec<Value<'_>> = after.into_iter().flatten().chain(end).collect();
    execute(store, conn, statement, queue, request, owner, bounds)
}

fn execute(
    store: &PgStore,
    conn: &mut PgConnection,
    statement: &Sized,
    queue: &QueueName,
    request: TakeRequest,
    owner: Owner,
    bounds: Vec<Value<'_>>,
) -> Result<Vec<Claim>, Error> {
    let (statement, is_in_text) = statement.of(request.count);
    let token = NEXT_TOKEN.fetch_add(1, Ordering::Relaxed);
    let owned_by = match owner {
        Owner::Caller => None,
        Owner::Transaction => Some(token),
        Owner::Lease(length) => Some(micros(length)),
    };
    let mut values = vec![Value::Text(queue.as_str())];
    values.extend(owned_by.map(Value::BigInt).into_iter().chain(bounds).chain(request.limit(is_in_text)));
    let jobs = match owner {
        Owner::Lease(_) => {
            let row = statement.with::<LeaseSql>(&values).get_result::<LeaseRow>(conn).optional();
            row.map(|row| row.map_or_else(Vec::new, |row| row.claims(queue)))
        }
        // Rows are read one by one from the result, because a list of wide rows in between is most of the work.
        Owner::Caller | Owner::Transaction => {
            let rows = statement.with::<ScannedSql>(&values);
            rows.load_iter::<ScannedRow, DefaultLoadingMode>(conn)
                .and_then(|rows| ScannedRow::claims(queue, token, rows))
        }
    };
    jobs.map_err(|e| store.error(e))
}
