//! Takes by an index scan.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Instant;

use diesel::sql_types::{BigInt, Bool, Nullable};
use pq_core::{QueueName, Scan, Taken};

use super::super::take::{Owner, TakeRequest};
use super::super::{PgStore, SqlConnection, micros};
use super::FastPath;
use super::scan_checkpoints::KeyRange;
use super::scan_planner::Plan;
use super::sort_key::SortKey;
use crate::Error;
use crate::prepared::Value;
use crate::rows::span;
use crate::rows::{LeaseRow, LeaseSql, ScannedSql};
use crate::statements::FastStatements;

/// Numbers the takes in transactions, so that no two takes of one transaction have the same token.
static NEXT_TOKEN: AtomicI64 = AtomicI64::new(1);

impl FastPath {
    /// Takes jobs by an index scan. Returns `None` if it took none, or the plan is a full scan.
    ///
    /// With [`Scan::Resume`], returns the time until the next scan before the position if nothing was behind it.
    pub(in crate::store) async fn take(
        &self,
        store: &PgStore,
        conn: &mut impl SqlConnection,
        queue: &QueueName,
        request: TakeRequest,
        owner: Owner,
    ) -> Result<Option<Taken>, Error> {
        loop {
            let plan = self.planner.plan(queue);
            let start = match plan {
                Plan::Full => return Ok(None),
                Plan::FromStart => Start::Behind(SortKey::FIRST),
                Plan::Backfill(range) => Start::Range(range),
                Plan::ResumeEarlier(key) | Plan::Resume(key) => Start::Behind(key),
            };
            let begun = Instant::now();
            let taken = scan(store, conn, queue, request, owner, start).await?;
            self.planner.note(queue, plan, &taken.jobs, request.count, begun);
            if !taken.jobs.is_empty() {
                return Ok(Some(taken));
            }
            match start {
                // The next plan resumes behind the position.
                Start::Range(_) => {}
                Start::Behind(key) if key != SortKey::FIRST && request.scan == Scan::Resume => {
                    return self.nothing_behind_position(store, conn, queue).await;
                }
                _ => return Ok(None),
            }
        }
    }

    /// Takes jobs without keys by an index scan, if the keys of all jobs that have one are busy. Returns `None` if it
    /// took none.
    pub(in crate::store) async fn take_past_keys(
        &self,
        store: &PgStore,
        conn: &mut impl SqlConnection,
        queue: &QueueName,
        request: TakeRequest,
        owner: Owner,
    ) -> Result<Option<Taken>, Error> {
        let taken = scan(store, conn, queue, request, owner, Start::QueuePastKeys).await?;
        Ok((!taken.jobs.is_empty()).then_some(taken))
    }

    /// Returns the time until the next poll if nothing is behind the position. Returns `None` if the queue has jobs
    /// that are not in the index.
    async fn nothing_behind_position(
        &self,
        store: &PgStore,
        conn: &mut impl SqlConnection,
        queue: &QueueName,
    ) -> Result<Option<Taken>, Error> {
        let values = [Value::Text(queue.as_str())];
        let beyond_index = &store.statements.beyond_index;
        let (has_jobs, due): (bool, Option<i64>) =
            store.only::<(Bool, Nullable<BigInt>), _>(conn, beyond_index, &values).await?;
        let again = self.planner.due_in(queue);
        let next_due = Some(due.map_or(again, |due| span(due).min(again)));
        Ok((!has_jobs).then_some(Taken { next_due, ..Taken::default() }))
    }
}

/// The start of an index scan.
#[derive(Clone, Copy, Debug)]
enum Start {
    /// At the start of the queue, if the keys of all jobs that have one are busy.
    QueuePastKeys,
    Behind(SortKey),
    /// At the start of a range, and it stops at the end of the range.
    Range(KeyRange),
}

async fn scan(
    store: &PgStore,
    conn: &mut impl SqlConnection,
    queue: &QueueName,
    request: TakeRequest,
    owner: Owner,
    start: Start,
) -> Result<Taken, Error> {
    let FastStatements { behind_key, past_keys, range } = match owner {
        Owner::Caller | Owner::Transaction => &store.statements.fast_take,
        Owner::Lease(_) => &store.statements.fast_lease,
    };
    let token = NEXT_TOKEN.fetch_add(1, Ordering::Relaxed);
    let owned_by = match owner {
        Owner::Caller | Owner::Transaction => token,
        Owner::Lease(length) => micros(length),
    };
    let mut values = vec![Value::Text(queue.as_str()), Value::BigInt(owned_by)];
    let (statement, limit) = match start {
        Start::QueuePastKeys => store.of_size(conn, past_keys, request.count).await?,
        Start::Behind(key) => {
            values.extend(key.values());
            store.of_size(conn, behind_key, request.count).await?
        }
        Start::Range(KeyRange { after, upto }) => {
            values.extend(after.values().into_iter().chain(upto.values()));
            (range, Some(Value::count(request.count)))
        }
    };
    values.extend(limit);
    match owner {
        Owner::Lease(_) => {
            let row: Option<LeaseRow> = store.one::<LeaseSql, _>(conn, statement, &values).await?;
            let jobs = row.map_or_else(Vec::new, |row| row.claims(queue));
            Ok(Taken { jobs, ..Taken::default() })
        }
        Owner::Caller | Owner::Transaction => {
            let rows = statement.with::<ScannedSql>(&values);
            conn.scan(rows, queue, token).await.map_err(|e| store.error(e))
        }
    }
}
