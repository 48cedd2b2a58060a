//! The statement that explains why a job waits.

use super::filter::is_kept;

/// Returns the circumstances of a waiting job, without locks. $1 job, $2 most jobs that come first.
///
/// A transaction that takes or changes a row leaves its id in xmax, and holds a lock on that id until it ends. The
/// locks are those of the whole server, so a transaction of any client is found. Statistics of other roles' sessions
/// are hidden, except for the name of the application.
///
/// The jobs that come first are counted in the order of each index, so that counting stops at the bound.
pub(super) const CIRCUMSTANCES: &str = concat!(
    "\
WITH job AS MATERIALIZED (
    SELECT q_name, priority, expected_at, id, serial_key, xmax AS locker FROM {jobs}
    WHERE id = $1::bigint AND dequeued_at IS NULL
), bound AS (
    SELECT $2::bigint AS most
), locker AS MATERIALIZED (
    SELECT held.pid, session.application_name, session.xact_start
    FROM job, pg_catalog.pg_locks AS held LEFT JOIN pg_catalog.pg_stat_activity AS session ON session.pid = held.pid
    WHERE held.locktype = 'transactionid' AND held.transactionid = job.locker AND held.mode = 'ExclusiveLock'
        AND held.granted AND held.pid IS DISTINCT FROM pg_catalog.pg_backend_pid()
    LIMIT 1
), key_locker AS MATERIALIZED (
    SELECT held.pid, session.application_name, session.xact_start
    FROM (SELECT hashtextextended(serial_key, hashtextextended(q_name, {jobs_name}::regclass::oid::bigint)) AS lock
            FROM job WHERE serial_key IS NOT NULL) AS key,
        pg_catalog.pg_locks AS held LEFT JOIN pg_catalog.pg_stat_activity AS session ON session.pid = held.pid
    WHERE held.locktype = 'advisory' AND held.objsubid = 1 AND held.granted
        AND held.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
        AND (held.classid::bigint << 32 | held.objid::bigint) = key.lock
        AND held.pid IS DISTINCT FROM pg_catalog.pg_backend_pid()
    LIMIT 1
), key_holder AS MATERIALIZED (
    SELECT held.job
    FROM job JOIN {keys} AS busy ON busy.q_name = job.q_name AND busy.serial_key = job.serial_key
        JOIN {leases} AS lease ON lease.id = busy.lease, unnest(lease.jobs, lease.serial_key) AS held (job, serial_key)
    WHERE held.serial_key = job.serial_key
        AND NOT EXISTS (SELECT FROM {settled} AS done WHERE done.lease = lease.id AND done.job = held.job)
    LIMIT 1
), keeper AS MATERIALIZED (
    SELECT other.id FROM job JOIN {jobs} AS other ON other.q_name = job.q_name AND other.serial_key = job.serial_key
    WHERE ",
    is_kept!("other"),
    "
    ORDER BY other.id LIMIT 1
), first_of_key AS MATERIALIZED (
    SELECT id FROM keeper WHERE id <> (SELECT id FROM job)
    UNION ALL
    (SELECT other.id FROM job JOIN {jobs} AS other ON other.q_name = job.q_name AND other.serial_key = job.serial_key
    WHERE other.dequeued_at IS NULL AND (other.schedule_at IS NULL OR other.schedule_at <= statement_timestamp())
        AND (-other.priority::bigint, coalesce(other.expected_at, 'infinity'::timestamptz), other.id)
            < (-job.priority::bigint, coalesce(job.expected_at, 'infinity'::timestamptz), job.id)
        AND NOT EXISTS (SELECT FROM keeper)
    ORDER BY -other.priority::bigint, coalesce(other.expected_at, 'infinity'::timestamptz), other.id
    LIMIT 1)
), ahead AS MATERIALIZED (
    SELECT count(*) AS jobs FROM (
        (SELECT FROM job JOIN {jobs} AS other ON other.q_name = job.q_name
        WHERE other.dequeued_at IS NULL AND other.schedule_at IS NULL AND other.serial_key IS NULL
            AND (-other.priority::bigint, coalesce(other.expected_at, 'infinity'::timestamptz), other.id)
                < (-job.priority::bigint, coalesce(job.expected_at, 'infinity'::timestamptz), job.id)
        LIMIT $2)
        UNION ALL
        (SELECT FROM job JOIN {jobs} AS other ON other.q_name = job.q_name
        WHERE other.dequeued_at IS NULL AND other.schedule_at IS NULL AND other.serial_key IS NOT NULL
            AND (-other.priority::bigint, coalesce(other.expected_at, 'infinity'::timestamptz), other.id)
                < (-job.priority::bigint, coalesce(job.expected_at, 'infinity'::timestamptz), job.id)
        LIMIT $2)
        UNION ALL
        (SELECT FROM job JOIN {jobs} AS other ON other.q_name = job.q_name
        WHERE other.dequeued_at IS NULL AND other.schedule_at <= statement_timestamp()
            AND (-other.priority::bigint, coalesce(other.expected_at, 'infinity'::timestamptz), other.id)
                < (-job.priority::bigint, coalesce(job.expected_at, 'infinity'::timestamptz), job.id)
        LIMIT $2)
        LIMIT $2) AS one
)
SELECT clock_timestamp(), row_security_active({jobs_name}::regclass), paused.paused_at, paused.paused_by,
    EXISTS (SELECT FROM locker), locker.pid, locker.application_name,
    (extract(epoch FROM clock_timestamp() - locker.xact_start) * 1000000)::bigint,
    key_holder.job,
    EXISTS (SELECT FROM key_locker), key_locker.pid, key_locker.application_name,
    (extract(epoch FROM clock_timestamp() - key_locker.xact_start) * 1000000)::bigint,
    first_of_key.id, ahead.jobs
FROM bound LEFT JOIN job ON true LEFT JOIN {controls} AS paused ON paused.q_name = job.q_name
    LEFT JOIN locker ON true LEFT JOIN key_locker ON true LEFT JOIN key_holder ON true
    LEFT JOIN first_of_key ON true LEFT JOIN ahead ON true"
);
