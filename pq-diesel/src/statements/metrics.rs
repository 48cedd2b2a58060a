//! Statements that measure queues and the database, at a cost that does not grow with the number of jobs.

use super::filter::is_kept;

/// Whether no job of the serialization key of a row `job` can be taken: one runs, or one that waits for its retry
/// keeps the key.
///
/// The planner could read all kept keys at once for an EXISTS, so the second condition looks up one key.
macro_rules! is_busy {
    () => {
        concat!(
            "(EXISTS (SELECT FROM {keys} AS busy WHERE busy.q_name = job.q_name AND busy.serial_key = job.serial_key)
                OR coalesce((SELECT true FROM {jobs} AS keeper
                    WHERE keeper.q_name = job.q_name AND keeper.serial_key = job.serial_key
                        AND keeper.schedule_at > statement_timestamp() AND ",
            is_kept!("keeper"),
            " LIMIT 1), false))"
        )
    };
}

/// Counts the jobs of each queue by state, up to a bound for each part of a state. $1 most queues, $2 bound.
///
/// A queue is included if it has a job, live or archived, or counters, or is paused or limited, or if a worker or a
/// periodic job names it. The recursive queries jump from one queue to the next in an index. Each part is read from
/// an index that holds nothing else, so the statement must run with sequential and bitmap scans disabled. The
/// comparisons of rows keep the planner from the index for pruning, which would be read for each queue as a whole. No
/// locks.
pub(super) const GAUGES: &str = concat!(
    "\
WITH RECURSIVE ready AS (
    (SELECT q_name FROM {jobs} WHERE dequeued_at IS NULL AND schedule_at IS NULL AND serial_key IS NULL
        ORDER BY q_name LIMIT 1)
    UNION ALL
    SELECT (SELECT job.q_name FROM {jobs} AS job
        WHERE job.dequeued_at IS NULL AND job.schedule_at IS NULL AND job.serial_key IS NULL
            AND job.q_name > ready.q_name
        ORDER BY job.q_name LIMIT 1)
    FROM ready WHERE ready.q_name IS NOT NULL
), keyed AS (
    (SELECT q_name FROM {jobs} WHERE dequeued_at IS NULL AND schedule_at IS NULL AND serial_key IS NOT NULL
        ORDER BY q_name LIMIT 1)
    UNION ALL
    SELECT (SELECT job.q_name FROM {jobs} AS job
        WHERE job.dequeued_at IS NULL AND job.schedule_at IS NULL AND job.serial_key IS NOT NULL
            AND job.q_name > keyed.q_name
        ORDER BY job.q_name LIMIT 1)
    FROM keyed WHERE keyed.q_name IS NOT NULL
), scheduled AS (
    (SELECT q_name FROM {jobs} WHERE dequeued_at IS NULL AND schedule_at IS NOT NULL ORDER BY q_name LIMIT 1)
    UNION ALL
    SELECT (SELECT job.q_name FROM {jobs} AS job
        WHERE job.dequeued_at IS NULL AND job.schedule_at IS NOT NULL AND job.q_name > scheduled.q_name
        ORDER BY job.q_name LIMIT 1)
    FROM scheduled WHERE scheduled.q_name IS NOT NULL
), ended AS (
    (SELECT q_name FROM {archive} ORDER BY q_name LIMIT 1)
    UNION ALL
    SELECT (SELECT job.q_name FROM {archive} AS job WHERE job.q_name > ended.q_name ORDER BY job.q_name LIMIT 1)
    FROM ended WHERE ended.q_name IS NOT NULL
), queues AS MATERIALIZED (
    SELECT q_name FROM (
        (SELECT q_name FROM ready LIMIT $1) UNION (SELECT q_name FROM keyed LIMIT $1)
        UNION (SELECT q_name FROM scheduled LIMIT $1) UNION (SELECT q_name FROM ended LIMIT $1)
        UNION SELECT q_name FROM {leases} UNION SELECT q_name FROM {counters} UNION SELECT q_name FROM {controls}
        UNION SELECT unnest(queues) FROM {workers} UNION SELECT q_name FROM {cron}
    ) AS known WHERE q_name IS NOT NULL ORDER BY q_name LIMIT $1
), running AS (
    SELECT q_name, sum(size - (SELECT count(*) FROM {settled} AS done WHERE done.lease = lease.id)) AS running
    FROM {leases} AS lease GROUP BY q_name
)
SELECT queues.q_name, due.plain, due.keyed, due.after_delay, due.first_per_key, later.scheduled, held.follow_ups,
    coalesce(running, 0)::bigint, dead.count, cancelled.count, done.count,
    CASE WHEN oldest IS NOT NULL
        THEN (extract(epoch FROM statement_timestamp() - greatest(oldest, '2000-01-01')) * 1000000)::bigint END,
    paused_at
FROM queues
CROSS JOIN LATERAL (
    SELECT count(*) FILTER (WHERE part = 1) AS plain, count(*) FILTER (WHERE part = 2) AS keyed,
        count(*) FILTER (WHERE part = 3) AS after_delay,
        count(*) FILTER (WHERE serial_key IS NULL)
            + count(DISTINCT serial_key) FILTER (WHERE NOT busy) AS first_per_key,
        min(since) AS oldest
    FROM (
        (SELECT 1 AS part, serial_key, false AS busy, enqueued_at AS since FROM {jobs} AS job
            WHERE job.q_name = queues.q_name AND dequeued_at IS NULL AND schedule_at IS NULL AND serial_key IS NULL
            LIMIT $2)
        UNION ALL
        (SELECT 2, serial_key, ",
    is_busy!(),
    ", enqueued_at FROM {jobs} AS job
            WHERE job.q_name = queues.q_name AND dequeued_at IS NULL AND schedule_at IS NULL
                AND serial_key IS NOT NULL
            LIMIT $2)
        UNION ALL
        (SELECT 3, serial_key, serial_key IS NOT NULL AND ",
    is_busy!(),
    ",
                greatest(enqueued_at, schedule_at) FROM {jobs} AS job
            WHERE job.q_name = queues.q_name AND dequeued_at IS NULL AND schedule_at <= statement_timestamp()
            ORDER BY schedule_at LIMIT $2)
    ) AS first_jobs
) AS due
CROSS JOIN LATERAL (
    SELECT count(*) AS scheduled FROM (SELECT FROM {jobs} AS job
        WHERE job.q_name = queues.q_name AND dequeued_at IS NULL AND schedule_at > statement_timestamp()
        ORDER BY schedule_at LIMIT $2) AS first_jobs
) AS later
CROSS JOIN LATERAL (
    SELECT count(*) AS follow_ups FROM (SELECT FROM {jobs} AS job
        WHERE job.q_name = queues.q_name AND dequeued_at IS NULL AND schedule_at >= '9000-01-01 00:00:00+00'
        ORDER BY schedule_at LIMIT $2) AS first_jobs
) AS held
CROSS JOIN LATERAL (
    SELECT count(*) FROM (SELECT FROM {archive} AS job
        WHERE (job.q_name, outcome) >= (queues.q_name, 'dead') AND (job.q_name, outcome) <= (queues.q_name, 'dead')
        LIMIT $2) AS first_jobs
) AS dead
CROSS JOIN LATERAL (
    SELECT count(*) FROM (SELECT FROM {archive} AS job
        WHERE (job.q_name, outcome) >= (queues.q_name, 'cancelled')
            AND (job.q_name, outcome) <= (queues.q_name, 'cancelled')
        LIMIT $2) AS first_jobs
) AS cancelled
CROSS JOIN LATERAL (
    SELECT count(*) FROM (SELECT FROM {archive} AS job
        WHERE (job.q_name, outcome) >= (queues.q_name, 'done') AND (job.q_name, outcome) <= (queues.q_name, 'done')
        LIMIT $2) AS first_jobs
) AS done
LEFT JOIN running USING (q_name) LEFT JOIN {controls} USING (q_name)
ORDER BY queues.q_name COLLATE \"C\""
);

/// Estimates how many jobs of a queue are in each part of a state, from the planner's statistics. $1 queue.
///
/// Returns the plan as JSON: an Append with a child for each part, and each child has the number. In the order ready
/// without a key, ready with a key, due after a delay, scheduled for later, and in the archive dead, cancelled and
/// done.
pub(super) const ESTIMATES: &str = "\
EXPLAIN (FORMAT JSON)
SELECT 1 FROM {jobs} WHERE q_name = $1 AND dequeued_at IS NULL AND schedule_at IS NULL AND serial_key IS NULL
UNION ALL
SELECT 2 FROM {jobs} WHERE q_name = $1 AND dequeued_at IS NULL AND schedule_at IS NULL AND serial_key IS NOT NULL
UNION ALL
SELECT 3 FROM {jobs} WHERE q_name = $1 AND dequeued_at IS NULL AND schedule_at <= statement_timestamp()
UNION ALL
SELECT 4 FROM {jobs} WHERE q_name = $1 AND dequeued_at IS NULL AND schedule_at > statement_timestamp()
UNION ALL
SELECT 5 FROM {archive} WHERE q_name = $1 AND outcome = 'dead'
UNION ALL
SELECT 6 FROM {archive} WHERE q_name = $1 AND outcome = 'cancelled'
UNION ALL
SELECT 7 FROM {archive} WHERE q_name = $1 AND outcome = 'done'";

/// Measures the database: the time, ids that were given to jobs, dead tuples of the jobs and of the leases, the age
/// of the oldest snapshot in microseconds, the numbers of workers with and without a recent heartbeat, the kept
/// steps, and how many jobs sleep and wait for a signal. $1 longest silence in microseconds, $2 the most jobs that
/// are counted. No locks.
///
/// A role without pg_read_all_stats does not see the times of other roles' sessions, so their snapshots are not
/// measured.
pub(super) const DATABASE: &str = "\
SELECT statement_timestamp(),
    CASE WHEN has_sequence_privilege(ids, 'USAGE, SELECT')
        THEN coalesce(pg_sequence_last_value(ids::regclass), 0) END,
    (SELECT sum(n_dead_tup)::bigint FROM pg_stat_all_tables
        WHERE relid IN ({jobs_name}::regclass, {leases_name}::regclass)),
    (SELECT (extract(epoch FROM clock_timestamp() - min(xact_start)) * 1000000)::bigint FROM pg_stat_activity
        WHERE (backend_xid IS NOT NULL OR backend_xmin IS NOT NULL) AND pid <> pg_backend_pid()
            AND datname = current_database() AND backend_type NOT IN ('autovacuum worker', 'walsender')),
    (SELECT count(*) FROM {workers} WHERE heartbeat_at >= statement_timestamp() - $1 * interval '1 microsecond'),
    (SELECT count(*) FROM {workers} WHERE heartbeat_at < statement_timestamp() - $1 * interval '1 microsecond'),
    pg_stat_get_live_tuples({steps_name}::regclass),
    (SELECT count(*) FROM (
        SELECT FROM {steps} WHERE kind = 'sleep' AND wait_until > statement_timestamp() LIMIT $2) AS asleep),
    (SELECT count(*) FROM (SELECT FROM {steps} WHERE kind = 'waiting' LIMIT $2) AS waiting)
FROM pg_get_serial_sequence({jobs_name}, 'id') AS ids";
