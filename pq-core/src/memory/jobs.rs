//! Adding, taking and settling jobs.

use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;

use super::state::{Lease, Row, Subscribed};
use super::take::Ready;
use super::transaction::MemoryConn;
use super::{MemoryStore, Subscription, archive, follow_ups, put, settle, take};
use crate::store::{Accepted, Extension, Jobs, Scan, Taken, Undecodable};
use crate::{Claim, Error, Held, NewJob, Outcome, Payload, Put, QueueName, Settlement, WakeSignal};

impl Jobs for MemoryStore {
    type Subscription = Subscription;

    fn put(&self, conn: &mut MemoryConn, queue: &QueueName, jobs: &[NewJob]) -> Result<Vec<Put>, Error> {
        let now = Utc::now();
        conn.operate(|state, open| {
            follow_ups::check_batches(state, open, jobs)?;
            let puts: Vec<Put> = jobs.iter().map(|job| put::put(state, open, queue, job, now)).collect();
            follow_ups::link(state, open, jobs, &puts);
            Ok(puts)
        })
    }

    fn take(&self, conn: &mut MemoryConn, queue: &QueueName, count: usize, _: Scan) -> Result<Taken, Error> {
        let now = Utc::now();
        conn.operate(|state, open| {
            let Ready { rows, limited, next_due } = take::take(state, open, queue, count, now);
            if rows.is_empty() {
                return Ok(Taken { next_due, ..Taken::default() });
            }
            let token = state.next_tx();
            let claim = |row: &Row| Arc::new(row.claim(token, Held::Transaction, limited));
            let jobs = rows.iter().map(claim).collect();
            let rolled_back = rows.iter().any(|row| row.rolled_back);
            for row in rows {
                open.set(state, Row { held_by: Some(open.tx), token, ..row });
            }
            Ok(Taken { jobs, next_due: None, rolled_back })
        })
    }

    fn retake(&self, conn: &mut MemoryConn, claim: &Claim) -> Result<bool, Error> {
        conn.operate(|state, open| {
            let busy = state.busy_keys(&claim.queue, open.tx);
            let is_unchanged = |row: &&Row| {
                row.free_for(open.tx)
                    && (&row.job.queue, row.job.attempt + 1) == (&claim.queue, claim.attempt)
                    && row.job.annotations == claim.annotations
                    && row.job.serialization_key.as_ref().is_none_or(|key| !busy.contains(key))
            };
            let Some(row) = state.rows.get(&claim.id).filter(is_unchanged).cloned() else { return Ok(false) };
            open.set(state, Row { held_by: Some(open.tx), token: claim.token, ..row });
            Ok(true)
        })
    }

    fn lease(
        &self,
        conn: &mut MemoryConn,
        queue: &QueueName,
        count: usize,
        lease: Duration,
        _: Scan,
    ) -> Result<Taken, Error> {
        let now = Utc::now();
        conn.operate(|state, open| {
            let Ready { rows, limited, next_due } = take::take(state, open, queue, count, now);
            if rows.is_empty() {
                return Ok(Taken { next_due, ..Taken::default() });
            }
            let size = u32::try_from(rows.len()).unwrap_or(u32::MAX);
            let (token, until) = (state.next_tx(), take::after(now, lease));
            let lease = Lease { token, until, size, cancel_requested: false };
            let claim = |row: &Row| Arc::new(row.claim(token, Held::Lease { jobs: size }, limited));
            let jobs = rows.iter().map(claim).collect();
            for mut row in rows {
                row.job.attempt += 1;
                row.job.error = None;
                open.set(state, Row { lease: Some(lease), ..row });
            }
            Ok(Taken { jobs, ..Taken::default() })
        })
    }

    fn extend(
        &self,
        conn: &mut MemoryConn,
        leases: &[i64],
        lease: Duration,
    ) -> Result<Vec<Extension>, Error> {
        let until = take::after(Utc::now(), lease);
        conn.operate(|state, open| {
            Ok(leases.iter().filter_map(|token| settle::extend(state, open, *token, until)).collect())
        })
    }

    fn settle(&self, conn: &mut MemoryConn, settlements: &[Settlement<'_>]) -> Result<Accepted, Error> {
        let now = Utc::now();
        conn.operate(|state, open| {
            let accepted = settlements.iter().map(|settlement| settle::settle(state, open, settlement, now));
            Ok(Accepted::new(accepted.collect()))
        })
    }

    fn update(&self, conn: &mut MemoryConn, claim: &Claim, payload: &Payload) -> Result<(), Error> {
        conn.operate(|state, open| {
            let mut row = settle::held(state, claim, open.tx).ok_or_else(|| settle::refusal(claim))?;
            row.job.payload = payload.clone();
            open.set(state, row);
            Ok(())
        })
    }

    fn give_back(&self, conn: &mut MemoryConn, claim: &Claim) -> Result<(), Error> {
        let now = Utc::now();
        conn.operate(|state, open| {
            let mut row = settle::held(state, claim, open.tx).ok_or_else(|| settle::refusal(claim))?;
            if claim.lease().is_some() {
                settle::settle(state, open, &Settlement { job: claim, outcome: Outcome::GiveBack }, now);
            } else {
                row.job.attempt = claim.attempt;
                settle::requeue(state, open, row);
            }
            Ok(())
        })
    }

    fn move_to_dead(&self, conn: &mut MemoryConn, jobs: &[Undecodable]) -> Result<(), Error> {
        let now = Utc::now();
        conn.operate(|state, open| {
            jobs.iter().for_each(|undecodable| archive::move_to_dead(state, open, undecodable, now));
            Ok(())
        })
    }

    fn subscribe(&self, queue: &QueueName, signal: &Arc<WakeSignal>) -> Subscription {
        self.subscribe_to(Subscribed::Queue(queue.clone()), signal)
    }

    fn poll_interval(&self) -> Duration {
        Duration::from_secs(5)
    }
}
