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

use super::settle::{is_plain, is_whole, log_value};
use super::take::{Owner, TakeRequest, warn_unreleased};
use super::transaction::single_statement;
use super::{PgStore, SqlConnection, micros};
use crate::Error;
use crate::connection::blocking;
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
        blocking(self.take_on(conn, queue, count, scan))
    }

    fn retake(&self, conn: &mut PgConnection, job: &Claim) -> Result<bool, Error> {
        blocking(self.retake_on(conn, job))
    }

    fn lease(
        &self,
        conn: &mut PgConnection,
        queue: &QueueName,
        count: usize,
        lease: Duration,
        scan: Scan,
    ) -> Result<Taken, Error> {
        blocking(self.lease_on(conn, queue, count, lease, scan))
    }

    fn extend(
        &self,
        conn: &mut PgConnection,
        leases: &[i64],
        lease: Duration,
    ) -> Result<Vec<Extension>, Error> {
        blocking(self.extend_on(conn, leases, lease))
    }

    fn settle(&self, conn: &mut PgConnection, settlements: &[Settlement<'_>]) -> Result<Accepted, Error> {
        blocking(self.settle_on(conn, settlements))
    }

    fn update(&self, conn: &mut PgConnection, claim: &Claim, payload: &Payload) -> Result<(), Error> {
        blocking(self.update_on(conn, claim, payload))
    }

    fn give_back(&self, conn: &mut PgConnection, job: &Claim) -> Result<(), Error> {
        blocking(self.give_back_on(conn, job))
    }

    fn move_to_dead(&self, conn: &mut PgConnection, jobs: &[Undecodable]) -> Result<(), Error> {
        blocking(self.move_to_dead_on(conn, jobs))
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

/// The methods of [`Jobs`], on a connection of any kind.
#[allow(missing_docs, clippy::missing_errors_doc)]
impl PgStore {
    /// Puts jobs in the transaction of an application, whose end this handle does not see.
    pub async fn put_on(
        &self,
        conn: &mut impl SqlConnection,
        queue: &QueueName,
        jobs: &[NewJob],
    ) -> Result<Vec<Put>, Error> {
        if let Some(listener) = &self.listener {
            listener.record_put(queue);
        }
        self.insert_on(conn, queue, jobs, Trigger::Fires).await
    }

    pub async fn take_on(
        &self,
        conn: &mut impl SqlConnection,
        queue: &QueueName,
        count: usize,
        scan: Scan,
    ) -> Result<Taken, Error> {
        self.take_for(conn, queue, TakeRequest { count, scan }, Owner::Transaction).await
    }

    pub async fn retake_on(&self, conn: &mut impl SqlConnection, job: &Claim) -> Result<bool, Error> {
        let values = [
            Value::BigInt(job.id.0),
            Value::Text(job.queue.as_str()),
            Value::Integer(job.attempt - 1),
            Value::OptionalText(job.annotations.as_json()),
            Value::BigInt(job.token),
        ];
        let noted: Option<String> = self.one::<Text, _>(conn, &self.statements.retake, &values).await?;
        if noted.is_some() {
            self.release_keys(conn, &job.queue, std::slice::from_ref(job)).await?;
        }
        Ok(noted.is_some())
    }

    pub async fn lease_on(
        &self,
        conn: &mut impl SqlConnection,
        queue: &QueueName,
        count: usize,
        lease: Duration,
        scan: Scan,
    ) -> Result<Taken, Error> {
        self.take_for(conn, queue, TakeRequest { count, scan }, Owner::Lease(lease)).await
    }

    pub async fn extend_on(
        &self,
        conn: &mut impl SqlConnection,
        leases: &[i64],
        lease: Duration,
    ) -> Result<Vec<Extension>, Error> {
        let values = [Value::BigInts(leases.to_vec()), Value::BigInt(micros(lease))];
        let as_single = single_statement(conn)?;
        let rows: Vec<(i64, Option<Vec<i64>>)> = self
            .rows::<(BigInt, Nullable<Array<BigInt>>), _>(conn, &self.statements.extend, &values)
            .await
            .map_err(as_single)?;
        let answer = |(lease, cancelled): (i64, Option<Vec<i64>>)| match cancelled {
            Some(jobs) => {
                Extension::Extended(Extended { lease, cancelled: jobs.into_iter().map(JobId).collect() })
            }
            None => Extension::Locked(lease),
        };
        Ok(rows.into_iter().map(answer).collect())
    }

    pub async fn settle_on(
        &self,
        conn: &mut impl SqlConnection,
        settlements: &[Settlement<'_>],
    ) -> Result<Accepted, Error> {
        let is_limited = settlements.iter().all(|settlement| settlement.job.limited);
        if is_limited && self.finish_limited(conn, settlements).await? {
            return Ok(Accepted::new(vec![true; settlements.len()]));
        }
        let accepted = self.settle_only(conn, settlements).await?;
        let mut limited: Vec<&QueueName> = settlements
            .iter()
            .filter(|settlement| settlement.job.limited && settlement.job.lease().is_some())
            .map(|settlement| &settlement.job.queue)
            .collect();
        limited.dedup();
        if limited.is_empty() {
            return Ok(accepted);
        }
        // Others may have the places of these jobs.
        match self.notify_queues(conn, limited).await {
            Err(error) if conn.depth()? > 0 => Err(error),
            notified => {
                warn_unreleased(&settlements[0].job.queue, notified);
                Ok(accepted)
            }
        }
    }

    async fn settle_only(
        &self,
        conn: &mut impl SqlConnection,
        settlements: &[Settlement<'_>],
    ) -> Result<Accepted, Error> {
        let mut leased = BTreeMap::<i64, Vec<usize>>::new();
        let mut held = Vec::new();
        for (position, settlement) in settlements.iter().enumerate() {
            match settlement.job.lease() {
                Some(lease) => leased.entry(lease).or_default().push(position),
                None => held.push(position),
            }
        }
        if held.is_empty()
            && leased.len() == 1
            && let Some((lease, group)) = leased.first_key_value()
            && is_whole(settlements, group)
        {
            if is_plain(settlements, group) && self.finish(conn, *lease).await? {
                return Ok(Accepted::new(vec![true; settlements.len()]));
            }
            // One statement settles a whole lease, if no waiters for a key have to be notified.
            if conn.depth()? == 0 && settlements.iter().all(|one| one.job.serialization_key.is_none()) {
                let (mut accepted, as_single) = (vec![false; settlements.len()], single_statement(conn)?);
                let settled = self.settle_lease(conn, settlements, group, *lease, true, &mut accepted);
                settled.await.map_err(as_single)?;
                if accepted.contains(&true) {
                    return Ok(Accepted::new(accepted));
                }
            }
        }
        if conn.depth()? > 0 {
            return self.settle_all(conn, settlements, &held, leased).await;
        }
        // These are several statements, which must take effect together.
        let around = self.begin(conn).await?;
        let done = self.settle_all(conn, settlements, &held, leased).await;
        self.end(conn, around, done).await
    }

    /// Settles the jobs that the transaction holds, at the positions `held`, and those of each lease.
    async fn settle_all(
        &self,
        conn: &mut impl SqlConnection,
        settlements: &[Settlement<'_>],
        held: &[usize],
        leased: BTreeMap<i64, Vec<usize>>,
    ) -> Result<Accepted, Error> {
        let mut accepted = vec![false; settlements.len()];
        self.settle_held(conn, settlements, held, &mut accepted).await?;
        self.settle_leased(conn, settlements, leased, &mut accepted).await?;
        Ok(Accepted::new(accepted))
    }

    pub async fn update_on(
        &self,
        conn: &mut impl SqlConnection,
        claim: &Claim,
        payload: &Payload,
    ) -> Result<(), Error> {
        if let Some(lease) = claim.lease() {
            let values = [Value::BigInt(claim.id.0), Value::Text(payload.as_str()), Value::BigInt(lease)];
            let as_single = single_statement(conn)?;
            let update = &self.statements.update_leased;
            let updated: Option<i64> =
                self.one::<BigInt, _>(conn, update, &values).await.map_err(as_single)?;
            return updated.map(drop).ok_or_else(|| pq_core::Error::lease_lost(claim.id).into());
        }
        let values = [Value::BigInt(claim.id.0), Value::BigInt(claim.token), Value::Text(payload.as_str())];
        let updated: Option<String> =
            self.one::<Text, _>(conn, &self.statements.update_held, &values).await?;
        updated.map(drop).ok_or_else(|| pq_core::Error::not_yours(claim.id).into())
    }

    pub async fn give_back_on(&self, conn: &mut impl SqlConnection, job: &Claim) -> Result<(), Error> {
        let (accepted, refusal) = match job.lease() {
            Some(_) => {
                let settlement = Settlement { job, outcome: Outcome::GiveBack };
                (self.settle_on(conn, &[settlement]).await?.all(), pq_core::Error::lease_lost(job.id))
            }
            None => (self.give_back_held(conn, job).await?, pq_core::Error::not_yours(job.id)),
        };
        if accepted { Ok(()) } else { Err(refusal.into()) }
    }

    /// Archives one job at a time, because there may be many large ones.
    pub async fn move_to_dead_on(
        &self,
        conn: &mut impl SqlConnection,
        jobs: &[Undecodable],
    ) -> Result<(), Error> {
        for Undecodable { job, reason } in jobs {
            let reason = self.storable_on(conn, reason).await?;
            let log = log_value(job);
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
                Value::OptionalText(job.annotations.as_json()),
                Value::OptionalText(log.as_deref()),
            ];
            self.changed(conn, &self.statements.insert_dead, &values).await?;
        }
        Ok(())
    }
}
