//! Statements about the limits of queues. [`super::take::TAKE_LIMITED`] takes their jobs.

/// Returns the limits of a queue as JSON. $1 queue. No locks.
pub(super) const LIMITS: &str =
    "SELECT limits::text FROM {controls} WHERE q_name = $1 AND limits IS NOT NULL";

/// Replaces the limits of a queue. $1 queue, $2 JSON, or null to remove the limits.
///
/// Locks: the row of the queue in the table of controls.
pub(super) const SET_LIMITS: &str = "SELECT {set_limits}($1, $2::text::jsonb)::text";

/// Corrects the cost of a leased job. Returns by how much it is higher than before, or null if the lease is lost.
///
/// $1 queue, $2 lease, $3 job, $4 time of its put, $5 attempt, $6 group or null, $7 cost that the put stated,
/// $8 corrected cost.
///
/// Locks: those of KEEP_STEP, and the buckets of the queue and of the group, for which it waits.
pub(super) const CORRECT_COST: &str = "SELECT {correct_cost}($1, $2, $3, $4, $5, $6, $7, $8)";

/// Returns the limits of a waiting job's queue, and how much of them is used. Returns no row for a queue without
/// limits. $1 job, $2 largest number of jobs ahead that is counted. No locks.
///
/// Only jobs under leases count as running, because jobs that open transactions have taken cannot be seen. The jobs
/// ahead are counted in a fair queue only: those of the same group and priority.
pub(super) const LIMIT_USE: &str = "\
WITH job AS MATERIALIZED (
    SELECT job.q_name, nullif(job.annotations ->> 'group', '') AS group_key, control.limits::text AS limits,
        control.limits ? 'fair' AS is_fair, -job.priority::bigint AS level,
        coalesce(job.expected_at, 'infinity'::timestamptz) AS expected_at, job.id,
        CASE WHEN jsonb_typeof(job.annotations -> 'cost') = 'number'
            THEN least(greatest((job.annotations ->> 'cost')::numeric, 1), 1000000)::bigint ELSE 1 END AS cost
    FROM {jobs} AS job JOIN {controls} AS control ON control.q_name = job.q_name AND control.limits IS NOT NULL
    WHERE job.id = $1 AND job.dequeued_at IS NULL
), ahead AS (
    SELECT count(*) AS jobs FROM (
        (SELECT FROM job CROSS JOIN (VALUES (0), (1)) AS of (keys) JOIN {jobs} AS other ON other.q_name = job.q_name
        WHERE job.is_fair AND other.dequeued_at IS NULL AND other.schedule_at IS NULL
            AND other.annotations ->> 'group' <> '' AND other.annotations ->> 'group' = job.group_key
            AND -other.priority::bigint = job.level AND num_nonnulls(other.serial_key) = of.keys
            AND (coalesce(other.expected_at, 'infinity'::timestamptz), other.id) < (job.expected_at, job.id)
        LIMIT $2)
        UNION ALL
        (SELECT FROM (
            SELECT other.annotations ->> 'group' AS group_key FROM job JOIN {jobs} AS other ON other.q_name = job.q_name
            WHERE job.is_fair AND job.group_key IS NULL AND other.dequeued_at IS NULL AND other.schedule_at IS NULL
                AND other.serial_key IS NULL AND -other.priority::bigint = job.level
                AND (coalesce(other.expected_at, 'infinity'::timestamptz), other.id) < (job.expected_at, job.id)
            LIMIT $2) AS first
        WHERE coalesce(first.group_key, '') = '')
        UNION ALL
        (SELECT FROM job JOIN {jobs} AS other ON other.q_name = job.q_name
        WHERE job.is_fair AND other.dequeued_at IS NULL AND other.schedule_at <= statement_timestamp()
            AND nullif(other.annotations ->> 'group', '') IS NOT DISTINCT FROM job.group_key
            AND -other.priority::bigint = job.level
            AND (coalesce(other.expected_at, 'infinity'::timestamptz), other.id) < (job.expected_at, job.id)
        LIMIT $2)
        LIMIT $2) AS one
), running AS (
    SELECT count(*) AS jobs, count(*) FILTER (WHERE held.annotations ->> 'group' = job.group_key) AS of_group
    FROM job JOIN {leases} AS lease ON lease.q_name = job.q_name
    CROSS JOIN LATERAL unnest(lease.jobs, lease.annotations) AS held (job, annotations)
    WHERE NOT EXISTS (SELECT FROM {settled} AS done WHERE done.lease = lease.id AND done.job = held.job)
)
SELECT job.limits, job.group_key, job.cost, running.jobs, running.of_group,
    bucket.tokens::double precision, bucket.at, group_bucket.tokens::double precision, group_bucket.at,
    ahead.jobs
FROM job CROSS JOIN running CROSS JOIN ahead
LEFT JOIN {buckets} AS bucket ON bucket.q_name = job.q_name AND bucket.group_key = ''
LEFT JOIN {buckets} AS group_bucket ON group_bucket.q_name = job.q_name AND group_bucket.group_key = job.group_key";

/// Returns the limits of queues and how much of them is used. $1 queue, or null for the first hundred queues with
/// limits, $2 largest number of due jobs of each kind (ready, ready with a key, scheduled) that is counted.
///
/// The row of a queue has an empty group, the queue's tokens, and the jobs without a group. A row follows for each
/// group that has due jobs, running jobs, or limits of its own. Jobs under leases count as running. Order: by queue
/// and group. No locks.
pub(super) const LIMITED: &str = "\
WITH limited AS MATERIALIZED (
    SELECT q_name, limits FROM {controls} WHERE limits IS NOT NULL AND ($1::text IS NULL OR q_name = $1)
    ORDER BY q_name LIMIT 100
), held AS (
    SELECT lease.q_name, coalesce(job.annotations ->> 'group', '') AS group_key, count(*) AS jobs
    FROM limited JOIN {leases} AS lease ON lease.q_name = limited.q_name
    CROSS JOIN LATERAL unnest(lease.jobs, lease.annotations) AS job (id, annotations)
    WHERE NOT EXISTS (SELECT FROM {settled} AS done WHERE done.lease = lease.id AND done.job = job.id)
    GROUP BY 1, 2
), due AS (
    SELECT limited.q_name, coalesce(job.annotations ->> 'group', '') AS group_key, count(*) AS jobs,
        min(CASE WHEN jsonb_typeof(job.annotations -> 'cost') = 'number'
            THEN least(greatest((job.annotations ->> 'cost')::numeric, 1), 1000000)::bigint ELSE 1 END) AS cost
    FROM limited CROSS JOIN LATERAL (
        (SELECT annotations FROM {jobs} AS plain WHERE plain.q_name = limited.q_name AND dequeued_at IS NULL
            AND schedule_at IS NULL AND serial_key IS NULL LIMIT $2)
        UNION ALL
        (SELECT annotations FROM {jobs} AS keyed WHERE keyed.q_name = limited.q_name AND dequeued_at IS NULL
            AND schedule_at IS NULL AND serial_key IS NOT NULL LIMIT $2)
        UNION ALL
        (SELECT annotations FROM {jobs} AS delayed WHERE delayed.q_name = limited.q_name AND dequeued_at IS NULL
            AND schedule_at <= statement_timestamp() LIMIT $2)
    ) AS job
    GROUP BY 1, 2
), known AS (
    SELECT q_name, '' AS group_key FROM limited
    UNION SELECT q_name, jsonb_object_keys(limits -> 'groups') FROM limited
    UNION SELECT q_name, group_key FROM held UNION SELECT q_name, group_key FROM due
)
SELECT known.q_name, limited.limits::text, known.group_key,
    coalesce(due.jobs, 0), coalesce(due.cost, 1), coalesce(held.jobs, 0),
    bucket.tokens::double precision, bucket.at, clock_timestamp()
FROM known JOIN limited USING (q_name) LEFT JOIN held USING (q_name, group_key) LEFT JOIN due USING (q_name, group_key)
LEFT JOIN {buckets} AS bucket ON bucket.q_name = known.q_name AND bucket.group_key = known.group_key
ORDER BY known.q_name COLLATE \"C\", known.group_key COLLATE \"C\"";

/// Deletes places and token buckets that are not needed.
///
/// Places are not needed if their queue or group is not limited any more, or if the group has no ready job of the first
/// hundred priorities. They stay while a lease uses one of them, so that limits which are set again count its job. A
/// bucket is not needed if it is full, because a bucket without a row counts as full. The bucket of a limited queue
/// stays if it has turns, which later takes need.
///
/// Locks: the deleted rows. SKIP LOCKED skips those that a take has locked.
pub(super) const FORGET_LIMITS: &str = "\
WITH priorities AS MATERIALIZED (
    SELECT queue.q_name, of_queue.level
    FROM (SELECT DISTINCT q_name FROM {places} WHERE group_key <> '') AS queue CROSS JOIN LATERAL (
        WITH RECURSIVE next AS (
            (SELECT -job.priority::bigint AS level FROM {jobs} AS job
            WHERE job.q_name = queue.q_name AND job.dequeued_at IS NULL AND job.schedule_at IS NULL
                AND job.annotations ->> 'group' <> ''
            ORDER BY -job.priority::bigint LIMIT 1)
            UNION ALL
            SELECT (
                SELECT -job.priority::bigint FROM {jobs} AS job
                WHERE job.q_name = queue.q_name AND job.dequeued_at IS NULL AND job.schedule_at IS NULL
                    AND job.annotations ->> 'group' <> '' AND -job.priority::bigint > next.level
                ORDER BY -job.priority::bigint LIMIT 1)
            FROM next WHERE next.level IS NOT NULL
        )
        SELECT next.level FROM next WHERE next.level IS NOT NULL LIMIT 100
    ) AS of_queue
), unused AS MATERIALIZED (
    SELECT place.ctid AS tid FROM {places} AS place
    LEFT JOIN {controls} AS control ON control.q_name = place.q_name AND control.limits IS NOT NULL
    WHERE CASE WHEN place.group_key = '' THEN control.limits -> 'running' IS NULL
            ELSE NOT coalesce(control.limits ?| ARRAY['running_per_group', 'groups'], false)
                OR NOT EXISTS (
                    SELECT FROM priorities CROSS JOIN LATERAL (
                        SELECT FROM {jobs} AS job
                        WHERE job.q_name = place.q_name AND job.dequeued_at IS NULL AND job.schedule_at IS NULL
                            AND job.annotations ->> 'group' <> '' AND job.annotations ->> 'group' = place.group_key
                            AND -job.priority::bigint = priorities.level
                        LIMIT 1) AS ready
                    WHERE priorities.q_name = place.q_name) END
        AND NOT EXISTS (
            SELECT FROM {places} AS used JOIN {leases} AS lease ON lease.id = used.lease
            WHERE used.q_name = place.q_name AND used.group_key = place.group_key)
    FOR UPDATE OF place SKIP LOCKED
), gone AS (
    DELETE FROM {places} WHERE ctid = ANY (ARRAY(SELECT tid FROM unused))
), full_ones AS MATERIALIZED (
    SELECT bucket.ctid AS tid FROM {buckets} AS bucket
    LEFT JOIN {controls} AS control ON control.q_name = bucket.q_name AND control.limits IS NOT NULL
    CROSS JOIN LATERAL (
        SELECT CASE WHEN bucket.group_key = '' THEN control.limits -> 'rate'
            ELSE coalesce(control.limits #> ARRAY['groups', bucket.group_key, 'rate'],
                control.limits -> 'rate_per_group') END AS rate
    ) AS current
    WHERE NOT (bucket.group_key = '' AND bucket.turns IS NOT NULL AND control.limits IS NOT NULL)
        AND (rate IS NULL OR bucket.tokens + (rate ->> 'tokens')::numeric * 1000000 / (rate ->> 'per_us')::numeric
            * extract(epoch FROM clock_timestamp() - bucket.at)::numeric >= (rate ->> 'burst')::numeric)
    FOR UPDATE OF bucket SKIP LOCKED
)
DELETE FROM {buckets} WHERE ctid = ANY (ARRAY(SELECT tid FROM full_ones))";
