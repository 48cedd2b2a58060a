//! Adding, taking and settling jobs.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use diesel::pg::PgConnection;
use diesel::sql_types::{Array, BigInt, Nullable, Text};
use pq_core::store::{Accepted, Connect, Extension, Jobs, Scan, Taken, Undecodable};
use pq_core::{
    Claim, Extended, JobId, Key, NewJob, Outcome, Payload, Put, QueueName, Settlement, WakeSignal,
};

use super::settle::{is_plain, is_whole};
use super::take::{Owner, TakeRequest};
use super::transaction::depth;
use super::{PgStore, micros};
use crate::Error;
use crate::listener::Subscription;
use crate::prepared::Value;
use crate::statements::Trigger;

impl Jobs for PgStore {
    type Subscription = Option<Subscription>;

    fn put(&self, conn: &mut PgConnection, queue: &QueueName, jobs: &[NewJob]) -> Result<Vec<Put>, Error> {
        let trigger = self.trigger_in(conn, queue, jobs);
        self.insert(conn, queue, jobs, trigger)
    }

    fn put_all(
        &self,
        conn: &mut PgConnection,
        queue: &QueueName,
        jobs: &mut dyn Iterator<Item = Result<NewJob, pq_core::Error>>,
    ) -> Result<u64, Error> {
        self.copy_all(conn, queue, jobs, Trigger::Fires)
    }

    fn take(
        &self,
        conn: &mut PgConnection,
        queue: &QueueName,
        count: usize,
        scan: Scan,
    ) -> Result<Taken, Error> {
        self.take_for(conn, queue, TakeRequest { count, scan }, Owner::Transaction)
    }

    fn retake(&self, conn: &mut PgConnection, job: &Claim) -> Result<bool, Error> {
        let values = [
            Value::BigInt(job.id.0),
            Value::Text(job.queue.as_str()),
            Value::Integer(job.attempt - 1),
            Value::BigInt(job.token),
        ];
        let noted: Option<String> = self.one::<Text, _>(conn, &self.statements.retake, &values)?;
        if noted.is_some() {
            self.release_keys(conn, &job.queue, std::slice::from_ref(job))?;
        }
        Ok(noted.is_some())
    }

    fn lease(
        &self,
        conn: &mut PgConnection,
        queue: &QueueName,
        count: usize,
        lease: Duration,
        scan: Scan,
    ) -> Result<Taken, Error> {
        self.take_for(conn, queue, TakeRequest { count, scan }, Owner::Lease(lease))
    }

    fn extend(
        &self,
        conn: &mut PgConnection,
        leases: &[i64],
        lease: Duration,
    ) -> Result<Vec<Extension>, Error> {
        let values = [Value::BigInts(leases.to_vec()), Value::BigInt(micros(lease))];
        let statement = self.statements.extend.with::<(BigInt, Nullable<Array<BigInt>>)>(&values);
        let rows: Vec<(i64, Option<Vec<i64>>)> =
            self.autocommit(conn, |conn| statement.load(conn).map_err(|e| self.error(e)))?;
        let answer = |(lease, cancelled): (i64, Option<Vec<i64>>)| match cancelled {
            Some(jobs) => {
                Extension::Extended(Extended { lease, cancelled: jobs.into_iter().map(JobId).collect() })
            }
            None => Extension::Locked(lease),
        };
        Ok(rows.into_iter().map(answer).collect())
    }

    fn settle(&self, conn: &mut PgConnection, settlements: &[Settlement<'_>]) -> Result<Accepted, Error> {
        let mut leased = BTreeMap::<i64, Vec<usize>>::new();
        let mut held = Vec::new();
        for (position, settlement) in settlements.iter().enumerate() {
            match settlement.job.lease() {
                Some(lease) => leased.entry(lease).or_default().push(position),
                None => held.push(position),
            }
        }
        let mut accepted = vec![false; settlements.len()];
        if held.is_empty()
            && leased.len() == 1
            && let Some((lease, group)) = leased.first_key_value()
            && is_whole(settlements, group)
            && is_plain(settlements, group)
            && self.finish(conn, *lease)?
        {
            accepted.fill(true);
            return Ok(Accepted::new(accepted));
        }
        let settle = |conn: &mut PgConnection| -> Result<Accepted, Error> {
            self.settle_held(conn, settlements, &held, &mut accepted)?;
            self.settle_leased(conn, settlements, leased, &mut accepted)?;
            Ok(Accepted::new(accepted))
        };
        // These are several statements, which must take effect together.
        if depth(conn)? == 0 { self.transaction(conn, settle) } else { settle(conn) }
    }

    fn update(&self, conn: &mut PgConnection, claim: &Claim, payload: &Payload) -> Result<(), Error> {
        if let Some(lease) = claim.lease() {
            let values = [Value::BigInt(claim.id.0), Value::Text(payload.as_str()), Value::BigInt(lease)];
            let updated: Option<i64> = self.autocommit(conn, |conn| {
                self.one::<BigInt, _>(conn, &self.statements.update_leased, &values)
            })?;
            return updated.map(drop).ok_or_else(|| pq_core::Error::lease_lost(claim.id).into());
        }
        let values = [Value::BigInt(claim.id.0), Value::BigInt(claim.token), Value::Text(payload.as_str())];
        let updated: Option<String> = self.one::<Text, _>(conn, &self.statements.update_held, &values)?;
        updated.map(drop).ok_or_else(|| pq_core::Error::not_yours(claim.id).into())
    }

    fn give_back(&self, conn: &mut PgConnection, job: &Claim) -> Result<(), Error> {
        let (accepted, refusal) = match job.lease() {
            Some(_) => {
                let settlement = Settlement { job, outcome: Outcome::GiveBack };
                (self.settle(conn, &[settlement])?.all(), pq_core::Error::lease_lost(job.id))
            }
            None => (self.give_back_held(conn, job)?, pq_core::Error::not_yours(job.id)),
        };
        if accepted { Ok(()) } else { Err(refusal.into()) }
    }

    /// Archives one job at a time, because there may be many large ones.
    fn move_to_dead(&self, conn: &mut PgConnection, jobs: &[Undecodable]) -> Result<(), Error> {
        for Undecodable { job, reason } in jobs {
            let reason = self.storable_on(conn, reason)?;
            let values = [
                Value::BigInt(job.id.0),
                Value::Text(job.payload.as_str()),
                Value::Text(job.queue.as_str()),
                Value::Instant(Some(job.enqueued_at)),
                Value::Instant(job.schedule_at),
                Value::Instant(job.expected_at),
                Value::Integer(job.priority),
                Value::Integer(job.attempt),
                Value::Integer(job.crashes),
                Value::OptionalText(job.serialization_key.as_ref().map(Key::as_str)),
                Value::OptionalText(job.unique_key.as_ref().map(Key::as_str)),
                Value::Text(&reason),
            ];
            self.statements.insert_dead.with::<BigInt>(&values).execute(conn).map_err(|e| self.error(e))?;
        }
        Ok(())
    }

    fn put_now(&self, queue: &QueueName, jobs: &[NewJob]) -> Result<Vec<Put>, Error> {
        self.put_grouped(queue, jobs)
    }

    fn put_all_now(
        &self,
        queue: &QueueName,
        jobs: &mut dyn Iterator<Item = Result<NewJob, pq_core::Error>>,
    ) -> Result<u64, Error> {
        let count = self.with_connection(|conn| self.copy_all(conn, queue, jobs, self.own_trigger()))?;
        self.has_put(queue);
        Ok(count)
    }

    fn take_now(&self, queue: &QueueName, count: usize, scan: Scan) -> Result<Taken, Error> {
        self.take_grouped(queue, TakeRequest { count, scan })
    }

    fn subscribe(&self, queue: &QueueName, signal: &Arc<WakeSignal>) -> Option<Subscription> {
        self.listener.as_ref().map(|listener| listener.subscribe(queue, signal))
    }

    fn poll_interval(&self) -> Duration {
        self.poll_interval
    }
}
