//! Statements that archive, requeue, prune and delete jobs.

use super::follow_ups::{
    cancelled_workflows, gone_from_archive, has_locked_workflow, locked_workflows, reopened,
    requeued_annotations,
};

/// Archives a job whose payload cannot be decoded as dead, and counts it. Does nothing if that was done already.
pub(super) const INSERT_DEAD: &str = "\
WITH given AS (
    SELECT $1::bigint AS id, $2::json AS data, $3::text AS q_name, $4::timestamptz AS enqueued_at,
        $5::timestamptz AS schedule_at, $6::timestamptz AS expected_at, $7::integer AS priority, $8::integer AS attempt,
        $9::integer AS crashes, $10::text AS serial_key, $11::text AS unique_key, $12::text AS error,
        $13::jsonb AS annotations, $14::jsonb AS attempt_log, 'dead' AS ended_as
), kept AS (
    INSERT INTO {archive}
        (id, data, q_name, enqueued_at, schedule_at, expected_at, priority, attempt, crashes, serial_key, unique_key,
        error, annotations, outcome, attempt_log)
    SELECT id, data, q_name, enqueued_at, schedule_at, expected_at, priority, attempt, crashes, serial_key, unique_key,
        error, annotations, ended_as, {attempt_log}
    FROM given
    WHERE NOT EXISTS (SELECT FROM {archive} AS same
        WHERE same.id = given.id AND same.enqueued_at = given.enqueued_at AND same.attempt = given.attempt
            AND same.outcome = 'dead')
    RETURNING q_name, data
)
INSERT INTO {counters} (q_name, task, counts) SELECT q_name, {task}, json_build_object('dead', 1) FROM kept";

/// Archives waiting jobs as cancelled, counts them, and returns their ids. $1 queue, or null for any, $2 jobs, $3
/// reason or null.
///
/// A workflow is only made due, because it cancels its jobs first. Order: by id. Locks: the rows of the jobs. SKIP
/// LOCKED skips jobs that transactions have taken.
pub(super) const CANCEL_WAITING: &str = concat!(
    "\
WITH free AS MATERIALIZED (
    SELECT ctid, q_name = {workflows} AS is_workflow FROM {jobs}
    WHERE ($1::text IS NULL OR q_name = $1) AND id = ANY ($2::bigint[]) AND dequeued_at IS NULL
    FOR UPDATE SKIP LOCKED
), ",
    cancelled_workflows!(),
    ", gone AS (
    DELETE FROM {jobs} WHERE ctid = ANY (ARRAY(SELECT ctid FROM free WHERE NOT is_workflow)) RETURNING *
), cleared AS (
    DELETE FROM {unique} AS claimed USING gone
    WHERE claimed.q_name = gone.q_name AND claimed.unique_key = gone.unique_key AND claimed.job = gone.id
), counted AS (
    INSERT INTO {counters} (q_name, task, counts)
    SELECT q_name, task, json_build_object('cancelled', count(*))
    FROM (SELECT q_name, {task} AS task FROM gone) AS job GROUP BY q_name, task
), kept AS (
    INSERT INTO {archive} (id, q_name, data, enqueued_at, schedule_at, expected_at, priority, attempt, crashes,
        serial_key, unique_key, outcome, error, annotations, attempt_log)
    SELECT id, q_name, data, enqueued_at, schedule_at, expected_at, priority, attempt, crashes, serial_key, unique_key,
        'cancelled', coalesce($3, error), annotations, attempt_log
    FROM gone ORDER BY id
    RETURNING id
)
SELECT id FROM kept UNION ALL SELECT id FROM woken"
);

/// Requests that the owner of a job's lease cancels the job. $1 job, $2 queue.
///
/// Returns `requested`, or `held` if an open transaction holds the lease for longer than half a second, or null if no
/// lease holds the job.
///
/// Locks: the row of the lease.
pub(super) const CANCEL_LEASED: &str = "SELECT {cancel_leased}($1, $2)";

/// Lists the archived jobs of a queue in a state, the last ended first, with the columns of LIST. $1 queue, $2 state,
/// $3 and $4 `ended_at` and id of the last job of the page before or null, $5 most rows.
pub(super) const ARCHIVED: &str = "\
SELECT id, q_name, outcome, data::text, enqueued_at, schedule_at, expected_at, ROW(priority, attempt, crashes),
    serial_key, unique_key, error, result::text, NULL::timestamptz, ended_at,
    ROW(annotations::text, attempt_log::text)
FROM {archive}
WHERE q_name = $1 AND outcome = $2
    AND ($3::timestamptz IS NULL OR (ended_at, id) < ($3, $4::bigint))
ORDER BY ended_at DESC, id DESC
LIMIT $5";

/// Locks the workflows of the jobs that REQUEUE requeues, and returns them as `locked_workflows` does. $1 queue, $2
/// jobs, or null for all dead ones.
pub(super) const LOCK_WORKFLOWS: &str = concat!(
    "\
WITH wanted AS MATERIALIZED (
    SELECT ctid AS place FROM {archive}
    WHERE q_name = $1 AND CASE WHEN $2::bigint[] IS NULL THEN outcome = 'dead' ELSE id = ANY ($2) END
), ",
    locked_workflows!()
);

/// Requeues archived jobs, and counts them. $1 queue, $2 jobs, or null for all dead ones, $3 workflows that
/// LOCK_WORKFLOWS has locked in the same transaction.
///
/// It skips a job if its workflow is not locked, if a job with its id waits or runs, or if its unique key belongs to
/// a job that waits or runs or is in an uncommitted put. Of several jobs with the same id it requeues the newest. An
/// id in $2 means the job that ended last, also if that is done. Of several jobs with the same unique key it requeues
/// the one with the lowest id.
///
/// Order: by id. Locks: the archived rows. SKIP LOCKED skips jobs that another session requeues or prunes.
pub(super) const REQUEUE: &str = concat!(
    "\
WITH wanted AS MATERIALIZED (
    SELECT entry, id, unique_key FROM {archive} AS job
    WHERE q_name = $1
        AND CASE WHEN $2::bigint[] IS NULL THEN outcome = 'dead'
            ELSE id = ANY ($2) AND outcome <> 'done' AND NOT EXISTS (
                SELECT FROM {archive} AS newer
                WHERE newer.q_name = $1 AND newer.id = job.id
                    AND (newer.ended_at, newer.entry) > (job.ended_at, job.entry)) END
        AND ",
    has_locked_workflow!("$3"),
    "
        AND NOT EXISTS (SELECT FROM {jobs} AS live WHERE live.id = job.id)
        AND id NOT IN (SELECT held FROM {leases} AS lease, unnest(lease.jobs) AS held
            WHERE NOT EXISTS (SELECT FROM {settled} AS done WHERE done.lease = lease.id AND done.job = held))
    FOR UPDATE SKIP LOCKED
), newest AS MATERIALIZED (
    SELECT max(entry) AS entry, id FROM wanted GROUP BY id
), chosen AS MATERIALIZED (
    SELECT DISTINCT ON (unique_key, CASE WHEN unique_key IS NULL THEN id END) entry, id, unique_key
    FROM newest JOIN wanted USING (entry, id)
    ORDER BY unique_key, CASE WHEN unique_key IS NULL THEN id END, id
), claimed AS MATERIALIZED (
    SELECT entry FROM chosen WHERE unique_key IS NULL OR {try_claim_unique}($1, unique_key, id)
), ",
    gone_from_archive!(),
    ", ",
    reopened!(),
    ", back AS (
    INSERT INTO {jobs} (id, q_name, data, enqueued_at, expected_at, priority, serial_key, unique_key, error,
        annotations, attempt_log)
    SELECT id, q_name, data, enqueued_at, expected_at, priority, serial_key, unique_key, error, ",
    requeued_annotations!(),
    ", attempt_log
    FROM gone ORDER BY id
    RETURNING id
)
SELECT (SELECT count(*) FROM back) + (SELECT count(*) FROM run_again)"
);

/// Deletes archived jobs of a queue. $1 queue, $2 outcome, $3 least age in microseconds. Keeps what PRUNE_ALL keeps.
pub(super) const PRUNE: &str = "\
DELETE FROM {archive} AS ended
WHERE q_name = $1 AND outcome = $2 AND ended_at <= statement_timestamp() - $3 * interval '1 microsecond'
    AND NOT EXISTS (SELECT FROM {waits} AS wait WHERE wait.job = ended.id AND wait.outcome IS NULL)
    AND NOT EXISTS (SELECT FROM {jobs} AS own
        WHERE own.id = (ended.annotations -> 'workflow' ->> 'id')::bigint AND own.q_name = {workflows})";

/// Deletes up to 10,000 archived jobs of any queue. $1 outcome, $2 least age in microseconds.
///
/// A job stays if a follow-up does not know its outcome yet, or if its workflow has not ended. Order: the oldest first.
/// SKIP LOCKED skips rows that another session has locked.
pub(super) const PRUNE_ALL: &str = "\
DELETE FROM {archive} WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM {archive} AS ended
    WHERE outcome = $1 AND ended_at <= statement_timestamp() - $2 * interval '1 microsecond'
        AND NOT EXISTS (SELECT FROM {waits} AS wait WHERE wait.job = ended.id AND wait.outcome IS NULL)
        AND NOT EXISTS (SELECT FROM {jobs} AS own
            WHERE own.id = (ended.annotations -> 'workflow' ->> 'id')::bigint AND own.q_name = {workflows})
    ORDER BY ended_at LIMIT 10000 FOR UPDATE SKIP LOCKED))";

/// Deletes the jobs of a queue that are neither leased nor locked. $1 queue.
///
/// Locks: the rows of the jobs. SKIP LOCKED skips jobs that transactions have taken, and unique keys that an open put
/// moves to another job.
pub(super) const CLEAR: &str = "\
WITH free AS MATERIALIZED (
    SELECT ctid FROM {jobs} WHERE q_name = $1 FOR UPDATE SKIP LOCKED
), gone AS (
    DELETE FROM {jobs} WHERE ctid = ANY (ARRAY(SELECT ctid FROM free)) RETURNING id, unique_key
), unclaimed AS MATERIALIZED (
    SELECT claimed.unique_key
    FROM gone JOIN {unique} AS claimed
        ON claimed.q_name = $1 AND claimed.unique_key = gone.unique_key AND claimed.job = gone.id
    FOR UPDATE OF claimed SKIP LOCKED
), cleared AS (
    DELETE FROM {unique} AS claimed USING unclaimed
    WHERE claimed.q_name = $1 AND claimed.unique_key = unclaimed.unique_key
)
SELECT count(*) FROM gone";
