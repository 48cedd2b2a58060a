//! Adding, taking and settling jobs.

use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;

use super::transaction::MemoryConn;
use super::{MemoryStore, Subscription, archive, put, settle, state, take};
use crate::store::{Jobs, Scan, Taken, Undecodable};
use crate::{
    Claim, Error, Extended, Held, NewJob, Outcome, Payload, Put, QueueName, RawJob, Settlement, WakeSignal,
};

impl Jobs for MemoryStore {
    type Subscription = Subscription;

    fn put(&self, conn: &mut MemoryConn, queue: &QueueName, jobs: &[NewJob]) -> Result<Vec<Put>, Error> {
        let now = Utc::now();
        conn.operate(|state, open| {
            Ok(jobs.iter().map(|job| put::put(state, open, queue, job, now)).collect())
        })
    }

    fn take(&self, conn: &mut MemoryConn, queue: &QueueName, count: usize, _: Scan) -> Result<Taken, Error> {
        let now = Utc::now();
        conn.operate(|state, open| {
            let line = take::first(state, queue, count, open.tx, now);
            let take = state.next_tx();
            let jobs = line.iter().map(|(id, row)| row.taken(*id, take, Held::Transaction)).collect();
            let taken = take::taken(state, queue, jobs, open.tx, now);
            for (id, row) in line {
                open.set(state, id, state::Row { held_by: Some(open.tx), take, ..row });
            }
            Ok(taken)
        })
    }

    fn retake(&self, conn: &mut MemoryConn, job: &RawJob) -> Result<bool, Error> {
        conn.operate(|state, open| {
            let busy = state.busy_keys(&job.queue, open.tx);
            let as_it_was = |row: &&state::Row| {
                row.free_for(open.tx)
                    && (&row.queue, row.attempt + 1) == (&job.queue, job.attempt)
                    && row.serialization_key.as_ref().is_none_or(|key| !busy.contains(key))
            };
            let Some(row) = state.rows.get(&job.id).filter(as_it_was).cloned() else { return Ok(false) };
            open.set(state, job.id, state::Row { held_by: Some(open.tx), take: job.claim.token, ..row });
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
            let line = take::first(state, queue, count, open.tx, now);
            let (token, jobs) = (state.next_tx(), line.len() as u32);
            let raw = line.iter().map(|(id, row)| row.taken(*id, token, Held::Lease { jobs })).collect();
            let taken = take::taken(state, queue, raw, open.tx, now);
            let lease = state::Lease { token, until: take::after(now, lease), cancel: false };
            for (id, row) in line {
                open.set(state, id, state::Row { lease: Some(lease), attempt: row.attempt + 1, ..row });
            }
            Ok(taken)
        })
    }

    fn extend(&self, conn: &mut MemoryConn, leases: &[i64], lease: Duration) -> Result<Vec<Extended>, Error> {
        let until = take::after(Utc::now(), lease);
        conn.operate(|state, open| {
            Ok(leases.iter().filter_map(|token| settle::extend(state, open, *token, until)).collect())
        })
    }

    fn settle(&self, conn: &mut MemoryConn, verdicts: &[Settlement<'_>]) -> Result<Vec<bool>, Error> {
        let now = Utc::now();
        conn.operate(|state, open| {
            Ok(verdicts.iter().map(|verdict| settle::settle(state, open, verdict, now)).collect())
        })
    }

    fn update(&self, conn: &mut MemoryConn, claim: &Claim, payload: &Payload) -> Result<(), Error> {
        conn.operate(|state, open| {
            let row = settle::held(state, claim, open.tx).ok_or_else(|| settle::refusal(claim))?;
            open.set(state, claim.id, state::Row { payload: payload.clone(), ..row });
            Ok(())
        })
    }

    fn give_back(&self, conn: &mut MemoryConn, job: &RawJob) -> Result<(), Error> {
        let now = Utc::now();
        conn.operate(|state, open| {
            let row = settle::held(state, &job.claim, open.tx).ok_or_else(|| settle::refusal(&job.claim))?;
            if job.claim.lease().is_some() {
                settle::settle(state, open, &Settlement { job, outcome: Outcome::GiveBack }, now);
            } else {
                settle::put_back(state, open, job.id, state::Row { attempt: job.attempt, ..row });
            }
            Ok(())
        })
    }

    fn move_to_dead(&self, conn: &mut MemoryConn, jobs: &[Undecodable]) -> Result<(), Error> {
        let now = Utc::now();
        conn.operate(|state, open| {
            jobs.iter().for_each(|dead| archive::move_to_dead(state, open, dead, now));
            Ok(())
        })
    }

    fn subscribe(&self, queue: &QueueName, signal: &Arc<WakeSignal>) -> Subscription {
        let signal = Arc::downgrade(signal);
        self.shared.lock().signals.entry(queue.clone()).or_default().push(signal.clone());
        Subscription { shared: Arc::clone(&self.shared), queue: queue.clone(), signal }
    }

    fn poll_interval(&self) -> Duration {
        Duration::from_secs(5)
    }
}
