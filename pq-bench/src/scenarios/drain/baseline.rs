//! Baseline SQL that takes and settles jobs of the queue's table, as pgbench scripts.

use crate::baseline::first_jobs;

/// Creates the table of [`batch_lease`].
pub(super) const LEASES: &str = "CREATE TABLE IF NOT EXISTS bench_leases \
    (id bigserial PRIMARY KEY, jobs bigint[] NOT NULL, data text[] NOT NULL); TRUNCATE bench_leases";

/// Takes jobs into one row that holds them as arrays, and settles them by deleting that row.
pub(super) fn batch_lease(queue: &str, size: usize) -> String {
    format!(
        "WITH taken AS (DELETE FROM pq.queue WHERE {} RETURNING id, data) \
        INSERT INTO bench_leases (jobs, data) \
        SELECT coalesce(array_agg(id), '{{}}'), coalesce(array_agg(data::text), '{{}}') FROM taken \
        RETURNING id, jobs, data \\gset\n\
        DELETE FROM bench_leases WHERE id = :id;",
        first_jobs(queue, size)
    )
}

/// Marks jobs as taken, and deletes them afterwards.
pub(super) fn update_then_delete(queue: &str, size: usize) -> String {
    format!(
        "WITH taken AS (UPDATE pq.queue SET dequeued_at = now(), attempt = attempt + 1 WHERE {} \
        RETURNING id, data) \
        SELECT coalesce(array_agg(id), '{{}}') AS ids, array_agg(data::text) AS data FROM taken \\gset\n\
        DELETE FROM pq.queue WHERE id = ANY (:ids::bigint[]);",
        first_jobs(queue, size)
    )
}

/// Moves jobs to the archive.
pub(super) fn archive(queue: &str, size: usize) -> String {
    format!(
        "WITH taken AS (DELETE FROM pq.queue WHERE {} RETURNING *) \
        INSERT INTO pq.queue_archive (id, q_name, data, enqueued_at, schedule_at, expected_at, priority, attempt, \
            serial_key, unique_key, outcome) \
        SELECT id, q_name, data, enqueued_at, schedule_at, expected_at, priority, attempt + 1, serial_key, \
            unique_key, 'done' FROM taken RETURNING id, data;",
        first_jobs(queue, size)
    )
}
