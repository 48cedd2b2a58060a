//! Removes the jobs and leases of the bench.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use pq_core::store::{Connect, Jobs};
use pq_diesel::{Error, JobId, JobState, Pq, Queue, Retention, Wait};

use super::payload::Payload;

/// The leases that the bench's workers have had.
///
/// A lease may outlive its worker: if its jobs were settled in parts, until maintenance removes it, or if the outcomes
/// did not reach the server.
#[derive(Clone, Default)]
pub(super) struct Leases(Arc<Mutex<BTreeSet<i64>>>);

impl Leases {
    pub(super) fn record(&self, lease: Option<i64>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend(lease);
    }

    fn all(&self) -> Vec<i64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect()
    }
}

/// Returns a retention that deletes nothing, because the archive belongs to other users of the table.
pub(super) fn keep_everything() -> Retention {
    let mut retention = Retention::default();
    (retention.done, retention.dead, retention.cancelled) = (None, None, None);
    retention
}

/// Time for which an unreachable server is retried. Longer than the pool trusts a connection.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Removes the jobs and leases of the bench. Returns the number of foreign jobs that were set aside and requeued.
pub(super) fn clear(pq: &Pq, queue: &Queue<Payload>, leases: &Leases) -> Result<u64, Error> {
    let begun = Instant::now();
    loop {
        match end_leases(pq, leases).and_then(|()| take_remaining(queue)).and_then(|()| requeue_dead(queue)) {
            Err(error) if error.is_unavailable() && begun.elapsed() < TIMEOUT => {
                std::thread::sleep(Duration::from_millis(100));
            }
            done => return done,
        }
    }
}

/// Ends the remaining leases, so that their jobs are requeued.
fn end_leases(pq: &Pq, leases: &Leases) -> Result<(), Error> {
    let leases = leases.all();
    // Maintenance may be running in another process, which then does the work. The limit leaves enough time for that.
    for _ in 0..500 {
        let left: Vec<_> = pq.store().with_connection(|conn| {
            let some =
                leases.chunks(1_000).map(|some| pq.store().extend(conn, some, Duration::from_millis(1)));
            Ok::<_, Error>(some.collect::<Result<Vec<_>, _>>()?.concat())
        })?;
        if left.is_empty() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(10));
        pq.maintain(&keep_everything())?;
    }
    Ok(())
}

/// Takes the remaining jobs of the bench. Foreign jobs cannot be decoded and become dead.
pub(super) fn take_remaining(queue: &Queue<Payload>) -> Result<(), Error> {
    while !queue.get_many(1_000, Wait::No)?.is_empty() {}
    Ok(())
}

/// Requeues the dead jobs. The queue had none when the bench began, so they are all foreign.
fn requeue_dead(queue: &Queue<Payload>) -> Result<u64, Error> {
    let mut back = 0;
    loop {
        let dead: Vec<JobId> =
            queue.archived(JobState::Dead, None, 1_000)?.iter().map(|job| job.id).collect();
        let some = if dead.is_empty() { 0 } else { queue.retry_many(&dead)? };
        if some == 0 {
            return Ok(back);
        }
        back += some;
    }
}

#[cfg(test)]
mod tests {
    use diesel::prelude::*;
    use diesel::sql_types::BigInt;
    use pq_core::{Outcome, Scan, Settlement};
    use pq_testing::Server;

    use super::*;

    #[test]
    fn partly_settled_and_unsettled_leases_end() -> Result<(), Box<dyn std::error::Error>> {
        let database = Server::shared()?.database()?;
        let pq = Pq::connect(database.url())?;
        pq.migrate()?;
        let (queue, store, leases) = (pq.queue::<Payload>("bench")?, pq.store(), Leases::default());
        queue.put_many(std::iter::repeat_n(&Payload::of(16), 5))?;
        let an_hour = Duration::from_secs(3_600);
        for settled in [2, 1, 0] {
            let jobs = pq
                .transaction(|conn| store.lease(conn, queue.name(), settled.max(1), an_hour, Scan::Full))?
                .jobs;
            leases.record(jobs.first().and_then(|job| job.lease()));
            for job in &jobs[..settled] {
                let settlement = Settlement { job, outcome: Outcome::Complete };
                assert!(pq.transaction(|conn| store.settle(conn, &[settlement]))?.all());
            }
        }
        pq.queue::<i64>("bench")?.put(&7)?;

        assert_eq!(clear(&pq, &queue, &leases)?, 1);
        assert_eq!((queue.counts()?.ready, queue.counts()?.live()), (1, 1), "the foreign job");
        for table in ["queue_leases", "queue_settled", "queue_archive"] {
            let count = diesel::dsl::sql::<BigInt>(&format!("SELECT count(*) FROM pq.{table}"));
            assert_eq!(count.get_result::<i64>(&mut database.connect()?)?, 0, "{table}");
        }
        Ok(())
    }
}
