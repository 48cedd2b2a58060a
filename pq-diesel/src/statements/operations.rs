//! Statements that change the jobs that a filter selects, one batch each.
//!
//! The first nine parameters are those of the filter. $10 is the position behind which the batch begins, and $11 the
//! maximum number of jobs. Each statement returns how many jobs were selected, the position of the last one, how many
//! of them were changed, and the queues into which jobs came.
//!
//! Jobs are selected without a lock, and then SKIP LOCKED skips those that transactions hold.

use super::filter::{
    calls_task, comes_behind, filter, has_annotations, is_archived, is_blocked, is_kept, is_waiting, leased,
    scheduled_first,
};
use super::follow_ups::{
    cancelled_workflows, gone_from_archive, has_locked_workflow, locked_workflows, reopened,
    requeued_annotations,
};

/// The first jobs of the table of jobs that the filter selects, by id.
macro_rules! chosen {
    () => {
        concat!(
            "chosen AS MATERIALIZED (
                SELECT job.ctid AS place, job.id FROM {jobs} AS job WHERE job.id > $10 AND ",
            is_waiting!(),
            " ORDER BY job.id LIMIT $11)"
        )
    };
}

/// The parameters of a batch.
macro_rules! given {
    () => {
        ", given AS (
        SELECT $10::bigint AS position, $11::bigint AS most
    ), "
    };
}

/// The first jobs under leases that the filter selects, by id.
macro_rules! chosen_running {
    () => {
        concat!(
            "chosen AS MATERIALIZED (
        SELECT held.job, lease.id AS lease FROM ",
            leased!("lease.data"),
            " AND held.job > $10 ORDER BY held.job LIMIT $11
    )"
        )
    };
}

/// The condition on a row `job` of the archive that an operation changes it. Of several jobs with one id that is the
/// one that ended last, as in a list.
macro_rules! is_selected_archived {
    () => {
        concat!(
            is_archived!(),
            " AND ($2 IS NULL OR NOT EXISTS (
                SELECT FROM {archive} AS newer
                WHERE newer.id = job.id AND ($1 IS NULL OR newer.q_name = $1)
                    AND (newer.ended_at, newer.entry) > (job.ended_at, job.entry)))"
        )
    };
}

/// The first entries of the archive that the filter selects.
macro_rules! chosen_archived {
    () => {
        concat!(
            "chosen AS MATERIALIZED (
        SELECT job.ctid AS place, job.entry FROM {archive} AS job WHERE job.entry > $10 AND ",
            is_selected_archived!(),
            " ORDER BY job.entry LIMIT $11
    )"
        )
    };
}

/// Releases the unique keys of the jobs in `gone`. SKIP LOCKED skips keys that an open put moves to another job.
macro_rules! cleared {
    () => {
        "unclaimed AS MATERIALIZED (
        SELECT claimed.q_name, claimed.unique_key
        FROM gone JOIN {unique} AS claimed
            ON claimed.q_name = gone.q_name AND claimed.unique_key = gone.unique_key AND claimed.job = gone.id
        FOR UPDATE OF claimed SKIP LOCKED
    ), cleared AS (
        DELETE FROM {unique} AS claimed USING unclaimed
        WHERE claimed.q_name = unclaimed.q_name AND claimed.unique_key = unclaimed.unique_key
    )"
    };
}

/// Counts jobs. $10 highest number.
pub(super) const TALLY: &str = concat!(
    filter!(),
    scheduled_first!(),
    " SELECT count(*) FROM (
        (SELECT FROM {jobs} AS job WHERE ",
    is_waiting!(),
    " LIMIT $10) UNION ALL (SELECT FROM ",
    leased!("lease.data"),
    " LIMIT $10) UNION ALL (SELECT FROM {archive} AS job WHERE ",
    is_selected_archived!(),
    " LIMIT $10) LIMIT $10) AS one"
);

/// Changes waiting jobs. $12 new queue or null, $13 payload that they must have or null, $14 new payload or null,
/// $15 whether the time changes (0 or 1), $16 and $17 new time as an instant or as microseconds from now, or null,
/// $18 new priority or null.
///
/// It skips a job that is in the new queue already, or whose unique key is in use there or in an uncommitted put.
/// Only an insert fires the trigger that notifies waiting sessions, so the rows are deleted and inserted, not
/// updated.
///
/// Order: by id. Locks: the rows of the jobs.
pub(super) const CHANGE_WAITING: &str = concat!(
    filter!(),
    scheduled_first!(),
    ", given AS (
        SELECT $10::bigint AS position, $11::bigint AS most, $12::text AS queue, $13::text AS old, $14::text AS new,
            $15::integer AS is_moved, $16::timestamptz AS at, $17::bigint AS delay, $18::integer AS priority
    ), ",
    chosen!(),
    ", locked AS MATERIALIZED (
        SELECT job.ctid AS place, job.id, job.unique_key FROM {jobs} AS job
        WHERE job.ctid = ANY (ARRAY(SELECT place FROM chosen)) AND job.dequeued_at IS NULL
            AND ($12 IS NULL OR job.q_name <> $12) AND ($13 IS NULL OR job.data::text = $13)
        FOR UPDATE SKIP LOCKED
    ), free AS MATERIALIZED (
        SELECT place FROM locked
        WHERE $12 IS NULL OR unique_key IS NULL OR {try_claim_unique}($12, unique_key, id)
    ), gone AS (
        DELETE FROM {jobs} WHERE ctid = ANY (ARRAY(SELECT place FROM free)) RETURNING *
    ), cleared AS (
        DELETE FROM {unique} AS claimed USING gone
        WHERE $12 IS NOT NULL AND claimed.q_name = gone.q_name AND claimed.unique_key = gone.unique_key
            AND claimed.job = gone.id
    ), back AS (
        INSERT INTO {jobs} (id, q_name, data, enqueued_at, schedule_at, expected_at, priority, attempt, crashes,
            lease_limit, serial_key, unique_key, error, annotations, attempt_log)
        SELECT id, coalesce($12, q_name), coalesce($14::json, data), enqueued_at,
            CASE WHEN $15 = 0 THEN schedule_at
                ELSE coalesce($16, statement_timestamp() + $17 * interval '1 microsecond') END,
            expected_at, coalesce($18, priority), attempt, crashes, lease_limit, serial_key, unique_key, error,
            annotations, attempt_log
        FROM gone ORDER BY id
        RETURNING q_name
    )
    SELECT (SELECT count(*) FROM chosen), (SELECT max(id) FROM chosen), (SELECT count(*) FROM back),
        ARRAY(SELECT DISTINCT q_name FROM back)"
);

/// Archives waiting jobs as cancelled, and counts them. Workflows are only made due. Order: by id. Locks: the rows of
/// the jobs.
pub(super) const CANCEL_SELECTED: &str = concat!(
    filter!(),
    scheduled_first!(),
    given!(),
    chosen!(),
    ", free AS MATERIALIZED (
        SELECT ctid, q_name = {workflows} AS is_workflow FROM {jobs}
        WHERE ctid = ANY (ARRAY(SELECT place FROM chosen)) AND dequeued_at IS NULL
        FOR UPDATE SKIP LOCKED
    ), ",
    cancelled_workflows!(),
    ", gone AS (
        DELETE FROM {jobs} WHERE ctid = ANY (ARRAY(SELECT ctid FROM free WHERE NOT is_workflow)) RETURNING *
    ), ",
    cleared!(),
    ", counted AS (
        INSERT INTO {counters} (q_name, task, counts)
        SELECT q_name, task, json_build_object('cancelled', count(*))
        FROM (SELECT q_name, {task} AS task FROM gone) AS job GROUP BY q_name, task
    ), kept AS (
        INSERT INTO {archive} (id, q_name, data, enqueued_at, schedule_at, expected_at, priority, attempt, crashes,
            serial_key, unique_key, outcome, error, annotations, attempt_log)
        SELECT id, q_name, data, enqueued_at, schedule_at, expected_at, priority, attempt, crashes, serial_key,
            unique_key, 'cancelled', error, annotations, attempt_log
        FROM gone ORDER BY id
        RETURNING id
    )
    SELECT (SELECT count(*) FROM chosen), (SELECT max(id) FROM chosen),
        (SELECT count(*) FROM kept) + (SELECT count(*) FROM woken), '{}'::text[]"
);

/// Deletes jobs that are not leased. Locks: the rows of the jobs.
pub(super) const DELETE_SELECTED: &str = concat!(
    filter!(),
    scheduled_first!(),
    given!(),
    chosen!(),
    ", free AS MATERIALIZED (
        SELECT ctid FROM {jobs}
        WHERE ctid = ANY (ARRAY(SELECT place FROM chosen)) AND (q_name <> {workflows} OR dequeued_at IS NOT NULL)
        FOR UPDATE SKIP LOCKED
    ), gone AS (
        DELETE FROM {jobs} WHERE ctid = ANY (ARRAY(SELECT ctid FROM free)) RETURNING id, q_name, unique_key
    ), ",
    cleared!(),
    "
    SELECT (SELECT count(*) FROM chosen), (SELECT max(id) FROM chosen), (SELECT count(*) FROM gone), '{}'::text[]"
);

/// Locks the leases of running jobs and returns their ids, for CANCEL_RUNNING.
///
/// Order: by id. Locks: the rows of the leases.
pub(super) const LOCK_LEASES: &str = concat!(
    filter!(),
    given!(),
    chosen_running!(),
    "
    SELECT id FROM {leases} WHERE id = ANY (ARRAY(SELECT lease FROM chosen)) ORDER BY id FOR UPDATE SKIP LOCKED"
);

/// Requests that the owners of leases cancel jobs. $12 leases that LOCK_LEASES has locked in this transaction.
///
/// Its snapshot is younger than these locks, so it shows all jobs of the leases that were settled before.
pub(super) const CANCEL_RUNNING: &str = concat!(
    filter!(),
    ", given AS (
        SELECT $10::bigint AS position, $11::bigint AS most, $12::bigint[] AS locked
    ), ",
    chosen_running!(),
    ", asked AS (
        UPDATE {leases} AS lease SET cancelled = lease.cancelled || ARRAY(
            SELECT job FROM chosen WHERE chosen.lease = lease.id AND job <> ALL (lease.cancelled))
        WHERE lease.id = ANY ($12) AND lease.id IN (SELECT chosen.lease FROM chosen)
    )
    SELECT count(*), max(job), count(*) FILTER (WHERE lease = ANY ($12)), '{}'::text[] FROM chosen"
);

/// Locks the workflows of the jobs that RETRY_SELECTED requeues, and returns them as `locked_workflows` does.
pub(super) const LOCK_SELECTED_WORKFLOWS: &str = concat!(
    filter!(),
    given!(),
    chosen_archived!(),
    ", wanted AS MATERIALIZED (
        SELECT place FROM chosen
    ), ",
    locked_workflows!()
);

/// Requeues dead and cancelled jobs. The position is that of the entry in the archive. $12 workflows that
/// LOCK_SELECTED_WORKFLOWS has locked in the same transaction.
///
/// It skips the jobs that REQUEUE skips. Order: by entry, and jobs are inserted by id. Locks: the archived rows.
pub(super) const RETRY_SELECTED: &str = concat!(
    filter!(),
    given!(),
    chosen_archived!(),
    ", locked AS MATERIALIZED (
        SELECT entry, id, q_name, unique_key FROM {archive} AS job
        WHERE ctid = ANY (ARRAY(SELECT place FROM chosen))
            AND ",
    has_locked_workflow!("$12"),
    "
            AND NOT EXISTS (SELECT FROM {archive} AS newer WHERE newer.id = job.id AND newer.entry > job.entry)
            AND NOT EXISTS (SELECT FROM {jobs} AS live WHERE live.id = job.id)
            AND id NOT IN (SELECT held FROM {leases} AS lease, unnest(lease.jobs) AS held
                WHERE NOT EXISTS (SELECT FROM {settled} AS done WHERE done.lease = lease.id AND done.job = held))
        FOR UPDATE SKIP LOCKED
    ), first AS MATERIALIZED (
        SELECT DISTINCT ON (q_name, unique_key, CASE WHEN unique_key IS NULL THEN id END)
            entry, id, q_name, unique_key
        FROM locked ORDER BY q_name, unique_key, CASE WHEN unique_key IS NULL THEN id END, id
    ), claimed AS MATERIALIZED (
        SELECT entry FROM first WHERE unique_key IS NULL OR {try_claim_unique}(q_name, unique_key, id)
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
        RETURNING q_name
    )
    SELECT (SELECT count(*) FROM chosen), (SELECT max(entry) FROM chosen),
        (SELECT count(*) FROM back) + (SELECT count(*) FROM run_again), ARRAY(SELECT DISTINCT q_name FROM back)"
);

/// Deletes archived jobs. The position is that of the entry in the archive. Locks: the archived rows.
pub(super) const DELETE_ARCHIVED: &str = concat!(
    filter!(),
    given!(),
    chosen_archived!(),
    ", free AS MATERIALIZED (
        SELECT ctid FROM {archive} WHERE ctid = ANY (ARRAY(SELECT place FROM chosen)) FOR UPDATE SKIP LOCKED
    ), gone AS (
        DELETE FROM {archive} WHERE ctid = ANY (ARRAY(SELECT ctid FROM free)) RETURNING entry
    )
    SELECT (SELECT count(*) FROM chosen), (SELECT max(entry) FROM chosen), (SELECT count(*) FROM gone), '{}'::text[]"
);
