//! Statements of jobs that wait until other jobs have ended.
//!
//! A follow-up that waits is a job that is scheduled in the year 9999. A comparison with the year 9000 tells it from
//! other scheduled jobs, because tests that let time pass move it to an earlier time. The table of waits has a row
//! for each job that a follow-up waits for.
//!
//! A job could be added to a batch while its follow-up becomes due, and the follow-up would not wait for it. So a put
//! that adds a job locks the row of the follow-up FOR SHARE, and maintenance locks it FOR UPDATE before it looks which
//! jobs the follow-up still waits for.
//!
//! Maintenance runs ENDED_WAITS, LOCK_FOLLOW_UPS, MARK_WAITS, CANCEL_FOLLOW_UPS and RELEASE one after the other in one
//! transaction. Each has a snapshot that is younger than the locks before it.

/// Returns whether a job can be added to the batch of a follow-up: it waits, or is a workflow that is due. $1
/// follow-up.
///
/// Locks: its row, so that this stays true until the transaction ends. Waits for maintenance that makes it due.
pub(super) const LOCK_BATCH: &str = "\
SELECT EXISTS (
    SELECT FROM {jobs}
    WHERE id = $1 AND dequeued_at IS NULL AND (schedule_at >= '9000-01-01 00:00:00+00' OR q_name = {workflows})
    FOR SHARE)";

/// Lets follow-ups wait for jobs. Skips a job for which the follow-up waits already, such as one that a put has kept
/// because of its unique key. $1 follow-ups, $2 jobs, $3 whether the job must be done (0 or 1).
pub(super) const ADD_WAITS: &str = "\
INSERT INTO {waits} (follow_up, job, only_done)
SELECT follow_up, job, bool_or(only_done = 1)
FROM unnest($1::bigint[], $2::bigint[], $3::integer[]) AS given (follow_up, job, only_done)
GROUP BY follow_up, job ORDER BY follow_up, job
ON CONFLICT DO NOTHING";

/// Lets a follow-up wait again for jobs that it has waited for. $1 follow-up, $2 jobs.
pub(super) const WAIT_AGAIN: &str = "\
UPDATE {waits} SET outcome = NULL WHERE follow_up = $1 AND job = ANY ($2::bigint[]) AND outcome IS NOT NULL";

/// Returns the jobs that have ended, with their outcomes, among the next jobs that follow-ups wait for. $1 and $2
/// follow-up and job behind which it begins, $3 maximum number of jobs that are read. No locks.
///
/// One more row has no outcome: it has the follow-up and the job that were read last, and how many were read.
pub(super) const ENDED_WAITS: &str = "\
WITH seen AS MATERIALIZED (
    SELECT follow_up, job FROM {waits}
    WHERE outcome IS NULL AND (follow_up, job) > ($1, $2) ORDER BY follow_up, job LIMIT $3
), leased AS MATERIALIZED (
    SELECT held.job FROM {leases} AS lease, unnest(lease.jobs) AS held (job)
    WHERE EXISTS (SELECT FROM seen)
        AND NOT EXISTS (SELECT FROM {settled} AS done WHERE done.lease = lease.id AND done.job = held.job)
)
(SELECT follow_up, job,
    coalesce((
        SELECT ended.outcome FROM {archive} AS ended WHERE ended.id = seen.job ORDER BY entry DESC LIMIT 1), 'done'),
    NULL::bigint
FROM seen
WHERE NOT EXISTS (SELECT FROM {jobs} AS live WHERE live.id = seen.job AND live.dequeued_at IS NULL)
    AND NOT EXISTS (SELECT FROM leased WHERE leased.job = seen.job))
UNION ALL
(SELECT follow_up, job, NULL, (SELECT count(*) FROM seen) FROM seen ORDER BY follow_up DESC, job DESC LIMIT 1)";

/// Locks those follow-ups that still wait, and workflows that have not ended. Returns their ids. $1 follow-ups.
///
/// Order: by id. Locks: their rows. SKIP LOCKED skips a follow-up to whose batch an open transaction adds a job. It
/// also skips a workflow about which another session decides, because that session would not see outcomes that are
/// stored meanwhile.
pub(super) const LOCK_FOLLOW_UPS: &str = "\
SELECT id FROM {jobs}
WHERE id = ANY ($1::bigint[]) AND dequeued_at IS NULL
    AND (schedule_at >= '9000-01-01 00:00:00+00' OR q_name = {workflows})
ORDER BY id FOR UPDATE SKIP LOCKED";

/// Stores the outcomes of jobs. Returns the follow-ups of which a job has failed that must be done. $1 follow-ups,
/// $2 jobs, $3 outcomes, $4 follow-ups that LOCK_FOLLOW_UPS has locked.
///
/// Skips the jobs of a follow-up that waits and is not locked, and jobs that were requeued since they were read. Locks:
/// the rows. SKIP LOCKED skips failed jobs that an open transaction requeues, because it has locked these rows.
pub(super) const MARK_WAITS: &str = "\
WITH ended AS MATERIALIZED (
    SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::text[]) AS ended (follow_up, job, outcome)
), free AS MATERIALIZED (
    SELECT wait.ctid FROM ended JOIN {waits} AS wait ON wait.follow_up = ended.follow_up AND wait.job = ended.job
    WHERE ended.outcome <> 'done' FOR UPDATE OF wait SKIP LOCKED
), marked AS (
    UPDATE {waits} AS wait SET outcome = ended.outcome
    FROM ended
    WHERE wait.follow_up = ended.follow_up AND wait.job = ended.job AND wait.outcome IS NULL
        AND (ended.outcome = 'done' OR wait.ctid IN (SELECT ctid FROM free))
        AND (wait.follow_up = ANY ($4::bigint[]) OR NOT EXISTS (
            SELECT FROM {jobs} AS job
            WHERE job.id = wait.follow_up AND job.dequeued_at IS NULL
                AND (job.schedule_at >= '9000-01-01 00:00:00+00' OR job.q_name = {workflows})))
        AND NOT EXISTS (SELECT FROM {jobs} AS live WHERE live.id = wait.job AND live.dequeued_at IS NULL)
    RETURNING wait.follow_up, wait.only_done AND wait.outcome <> 'done' AS has_failed
)
SELECT DISTINCT follow_up FROM marked WHERE has_failed";

/// Archives follow-ups as cancelled if a job that must be done was not, and counts them. $1 follow-ups.
///
/// It skips workflows, which RELEASE makes due. Order: by id. Locks: the rows of the follow-ups.
pub(super) const CANCEL_FOLLOW_UPS: &str = "\
WITH refused AS MATERIALIZED (
    SELECT DISTINCT ON (follow_up) follow_up, job, outcome FROM {waits}
    WHERE follow_up = ANY ($1::bigint[]) AND only_done AND outcome <> 'done'
    ORDER BY follow_up, job
), free AS MATERIALIZED (
    SELECT ctid FROM {jobs}
    WHERE id IN (SELECT follow_up FROM refused) AND dequeued_at IS NULL AND schedule_at >= '9000-01-01 00:00:00+00'
        AND q_name <> {workflows}
    FOR UPDATE SKIP LOCKED
), gone AS (
    DELETE FROM {jobs} WHERE ctid = ANY (ARRAY(SELECT ctid FROM free)) RETURNING *
), counted AS (
    INSERT INTO {counters} (q_name, task, counts)
    SELECT q_name, task, json_build_object('cancelled', count(*))
    FROM (SELECT q_name, {task} AS task FROM gone) AS job GROUP BY q_name, task
)
INSERT INTO {archive} (id, q_name, data, enqueued_at, schedule_at, expected_at, priority, attempt, crashes, serial_key,
    outcome, error, annotations, attempt_log)
SELECT id, q_name, data, enqueued_at, schedule_at, expected_at, priority, attempt, crashes, serial_key, 'cancelled',
    format('job %s, for which it waited, is %s', refused.job, refused.outcome), annotations, attempt_log
FROM gone JOIN refused ON refused.follow_up = gone.id
ORDER BY id";

/// Makes follow-ups due that wait for no more jobs, and workflows with a new failure. Returns their queues.
/// $1 follow-ups, $2 those of which MARK_WAITS has stored a failure now.
///
/// A failure that was stored before does not make a workflow due. Otherwise each later end of a job would lead to one
/// more decision about the workflow.
///
/// Only an insert fires the trigger that notifies waiting sessions, so the rows are deleted and inserted, not updated.
/// Order: by id. Locks: the rows of the follow-ups.
pub(super) const RELEASE: &str = "\
WITH free AS MATERIALIZED (
    SELECT ctid FROM {jobs} AS job
    WHERE id = ANY ($1::bigint[]) AND dequeued_at IS NULL AND schedule_at >= '9000-01-01 00:00:00+00'
        AND (NOT EXISTS (SELECT FROM {waits} AS wait WHERE wait.follow_up = job.id AND wait.outcome IS NULL)
            OR q_name = {workflows} AND id = ANY ($2::bigint[]))
    FOR UPDATE SKIP LOCKED
), gone AS (
    DELETE FROM {jobs} WHERE ctid = ANY (ARRAY(SELECT ctid FROM free)) RETURNING *
), back AS (
    INSERT INTO {jobs} (id, q_name, data, enqueued_at, expected_at, priority, attempt, crashes, lease_limit, serial_key,
        unique_key, error, annotations, attempt_log)
    SELECT id, q_name, data, enqueued_at, expected_at, priority, attempt, crashes, lease_limit, serial_key, unique_key,
        error, jsonb_build_object('ended', ended.counts) || coalesce(annotations, '{}') - 'wake', attempt_log
    FROM gone, LATERAL (
        SELECT coalesce(jsonb_object_agg(outcome, jobs), '{}') AS counts FROM (
            SELECT outcome, count(*) AS jobs FROM {waits} AS wait
            WHERE wait.follow_up = gone.id AND outcome IS NOT NULL GROUP BY outcome
        ) AS by_outcome
    ) AS ended
    ORDER BY id
    RETURNING q_name
)
SELECT DISTINCT q_name FROM back";

/// Deletes the waits of follow-ups that are gone, among the next ten follow-ups. $1 follow-up behind which it begins.
///
/// Returns the tenth follow-up with 1. Also returns, with 0, follow-ups that wait although all of their jobs have
/// ended: an open transaction let such a one wait again while the end of its last job was stored, and RELEASE skipped
/// it.
///
/// Follow-ups are found one by one with an index probe each, however many jobs each waits for.
pub(super) const FORGET_WAITS: &str = "\
WITH RECURSIVE seen (follow_up, number) AS (
    (SELECT follow_up, 1 FROM {waits} WHERE follow_up > $1 ORDER BY follow_up LIMIT 1)
    UNION ALL
    SELECT (SELECT later.follow_up FROM {waits} AS later
        WHERE later.follow_up > seen.follow_up ORDER BY later.follow_up LIMIT 1), seen.number + 1
    FROM seen WHERE seen.number < 10 AND seen.follow_up IS NOT NULL
), leased AS MATERIALIZED (
    SELECT unnest(jobs) AS job FROM {leases} WHERE EXISTS (SELECT FROM seen)
), gone AS MATERIALIZED (
    SELECT follow_up FROM seen
    WHERE NOT EXISTS (SELECT FROM {jobs} AS live WHERE live.id = seen.follow_up)
        AND NOT EXISTS (SELECT FROM {archive} AS ended WHERE ended.id = seen.follow_up)
        AND NOT EXISTS (SELECT FROM leased WHERE leased.job = seen.follow_up)
), forgotten AS (
    DELETE FROM {waits} AS wait USING gone WHERE wait.follow_up = gone.follow_up
)
SELECT follow_up, 1::bigint FROM seen WHERE number = 10 AND follow_up IS NOT NULL
UNION ALL
SELECT follow_up, 0 FROM seen
WHERE NOT EXISTS (SELECT FROM {waits} AS wait WHERE wait.follow_up = seen.follow_up AND outcome IS NULL)
    AND EXISTS (
        SELECT FROM {jobs} AS job
        WHERE job.id = seen.follow_up AND job.dequeued_at IS NULL AND job.schedule_at >= '9000-01-01 00:00:00+00')";

/// Returns the jobs for which a job waits or has waited. $1 job, $2 most rows. Order: by job. No locks.
pub(super) const PREDECESSORS: &str = "\
SELECT job, only_done, outcome FROM {waits} WHERE follow_up = $1 ORDER BY job LIMIT $2";

/// Returns the jobs that wait for the end of a job. $1 job, $2 most rows. Order: by id. No locks.
pub(super) const FOLLOWERS: &str = "\
SELECT follow_up FROM {waits} WHERE job = $1 AND outcome IS NULL ORDER BY follow_up LIMIT $2";

/// Returns how many jobs a job waits for, and the first of them. $1 job, $2 largest number that is counted. No locks.
pub(super) const OPEN_WAITS: &str = "\
SELECT count(*), coalesce(min(job), 0) FROM (
    SELECT job FROM {waits} WHERE follow_up = $1 AND outcome IS NULL ORDER BY job LIMIT $2
) AS open_wait";

/// Returns whether a job is among others, or one of these waits for it, directly or through others. $1 others, $2 job.
/// No locks.
pub(super) const REACHES: &str = "\
WITH RECURSIVE reached (job) AS (
    SELECT unnest($1::bigint[])
    UNION
    SELECT wait.job FROM reached JOIN {waits} AS wait ON wait.follow_up = reached.job AND wait.outcome IS NULL
)
SELECT EXISTS (SELECT FROM reached WHERE job = $2)";

/// Returns whether a workflow is due. No locks.
pub(super) const DUE_WORKFLOWS: &str = "\
SELECT EXISTS (
        SELECT FROM {jobs}
        WHERE q_name = {workflows} AND dequeued_at IS NULL AND schedule_at IS NULL AND serial_key IS NULL)
    OR EXISTS (
        SELECT FROM {jobs}
        WHERE q_name = {workflows} AND dequeued_at IS NULL AND schedule_at <= statement_timestamp())";

/// Requeues archived jobs of a workflow, and lets the workflow wait for them again. Returns their queues. $1 workflow,
/// $2 jobs, $3 whether the jobs wait for those before them (1), or are due at once (0).
///
/// It skips a job if a job with its id waits or runs. Order: by id. Locks: the archived rows, and the rows of waits.
/// SKIP LOCKED skips jobs that another session requeues or prunes.
pub(super) const RUN_AGAIN: &str = "\
WITH given AS (
    SELECT $1::bigint AS workflow, $2::bigint[] AS jobs, $3::integer AS is_held
), locked AS MATERIALIZED (
    SELECT entry FROM {archive} AS job
    WHERE id = ANY ($2)
        AND NOT EXISTS (SELECT FROM {archive} AS newer WHERE newer.id = job.id AND newer.entry > job.entry)
        AND NOT EXISTS (SELECT FROM {jobs} AS live WHERE live.id = job.id)
        AND id NOT IN (SELECT held FROM {leases} AS lease, unnest(lease.jobs) AS held
            WHERE NOT EXISTS (SELECT FROM {settled} AS done WHERE done.lease = lease.id AND done.job = held))
    FOR UPDATE SKIP LOCKED
), gone AS (
    DELETE FROM {archive} WHERE entry IN (SELECT entry FROM locked) RETURNING *
), waits AS (
    UPDATE {waits} SET outcome = NULL
    WHERE outcome IS NOT NULL
        AND (follow_up = ANY ($2) AND $3 = 1 OR follow_up = $1 AND job = ANY ($2))
), back AS (
    INSERT INTO {jobs} (id, q_name, data, enqueued_at, schedule_at, expected_at, priority, serial_key, annotations,
        attempt_log)
    SELECT id, q_name, data, enqueued_at, CASE WHEN $3 = 1 THEN '9999-12-31 00:00:00+00'::timestamptz END, expected_at,
        priority, serial_key, annotations - 'ended', attempt_log
    FROM gone ORDER BY id
    RETURNING q_name
)
SELECT DISTINCT q_name FROM back";

/// Makes a workflow due that waits or is archived, and notes why. Returns false if there is none, or if a transaction
/// holds it. $1 workflow, $2 why or null, $3 microseconds until it is due.
///
/// Locks: the row of the workflow. SKIP LOCKED skips a row that a transaction holds.
pub(super) const WAKE: &str = "\
WITH given AS (
    SELECT $1::bigint AS workflow, $2::text AS why, CASE WHEN $3::bigint > 0
        THEN statement_timestamp() + $3 * interval '1 microsecond' END AS at
), free AS MATERIALIZED (
    SELECT ctid FROM {jobs} WHERE id = $1 AND q_name = {workflows} AND dequeued_at IS NULL FOR UPDATE SKIP LOCKED
), waiting AS (
    DELETE FROM {jobs} WHERE ctid = ANY (ARRAY(SELECT ctid FROM free))
    RETURNING id, q_name, data, enqueued_at, expected_at, priority, error, annotations, attempt_log
), ended AS MATERIALIZED (
    SELECT entry FROM {archive}
    WHERE id = $1 AND q_name = {workflows} AND NOT EXISTS (SELECT FROM {jobs} AS live WHERE live.id = $1)
    ORDER BY entry DESC LIMIT 1 FOR UPDATE SKIP LOCKED
), gone AS (
    DELETE FROM {archive} WHERE entry IN (SELECT entry FROM ended)
    RETURNING id, q_name, data, enqueued_at, expected_at, priority, error, annotations, attempt_log
), back AS (
    INSERT INTO {jobs} (id, q_name, data, enqueued_at, schedule_at, expected_at, priority, error, annotations,
        attempt_log)
    SELECT id, q_name, data, enqueued_at, given.at, expected_at, priority, error,
        coalesce(annotations, '{}') - 'wake' || jsonb_strip_nulls(jsonb_build_object('wake', given.why)), attempt_log
    FROM (SELECT * FROM waiting UNION ALL SELECT * FROM gone) AS workflow, given
    RETURNING id
)
SELECT EXISTS (SELECT FROM back)";

/// Locks the workflows of the archived jobs whose places are in `wanted`, and returns them with 1, or with 0 those that
/// another session has replaced meanwhile: these are not locked.
///
/// A requeue must see what a decision or maintenance that holds the workflow has done. Order: by id. Locks: the rows
/// of the workflows. Waits for these sessions.
macro_rules! locked_workflows {
    () => {
        "own AS MATERIALIZED (
        SELECT DISTINCT (annotations -> 'workflow' ->> 'id')::bigint AS id FROM {archive}
        WHERE ctid = ANY (ARRAY(SELECT place FROM wanted)) AND annotations ? 'workflow'
    ), live AS MATERIALIZED (
        SELECT id FROM {jobs}
        WHERE id IN (SELECT id FROM own) AND q_name = {workflows} AND dequeued_at IS NULL
        ORDER BY id FOR UPDATE
    ), ended AS MATERIALIZED (
        SELECT id, entry FROM {archive} WHERE id IN (SELECT id FROM own) AND q_name = {workflows} ORDER BY id FOR UPDATE
    ), replaced AS (
        SELECT id FROM {jobs}
        WHERE id IN (SELECT id FROM own) AND q_name = {workflows} AND dequeued_at IS NULL
            AND id NOT IN (SELECT id FROM live)
        UNION
        SELECT id FROM {archive}
        WHERE id IN (SELECT id FROM own) AND q_name = {workflows} AND entry NOT IN (SELECT entry FROM ended)
    )
    SELECT own.id, CASE WHEN replaced.id IS NULL THEN 1 ELSE 0 END::bigint
    FROM own LEFT JOIN replaced ON replaced.id = own.id WHERE own.id IS NOT NULL"
    };
}

/// The condition that the requeued archived row `job` is in no workflow, or in one that LOCK_WORKFLOWS or
/// LOCK_SELECTED_WORKFLOWS has locked in this transaction.
///
/// The snapshot is younger than that of these statements, so it shows jobs of other workflows, too, that have ended
/// in between.
macro_rules! has_locked_workflow {
    ($workflows: literal) => {
        concat!(
            "(annotations -> 'workflow' ->> 'id' IS NULL
            OR (annotations -> 'workflow' ->> 'id')::bigint IN (SELECT unnest(",
            $workflows,
            "::bigint[])))"
        )
    };
}

/// Deletes the entries in `claimed` from the archive, as `gone`, so that they can be requeued.
///
/// Jobs of workflows that are being undone, or have been, stay in the archive, as `undone`. They run again together
/// with all jobs of their workflows.
macro_rules! gone_from_archive {
    () => {
        "own AS MATERIALIZED (
        SELECT entry, (annotations -> 'workflow' ->> 'id')::bigint AS workflow FROM {archive}
        WHERE entry IN (SELECT entry FROM claimed)
            AND annotations ? 'workflow' AND annotations -> 'workflow' -> 'undoes' IS NULL
    ), undone_workflows AS MATERIALIZED (
        SELECT id FROM {jobs}
        WHERE id IN (SELECT workflow FROM own) AND q_name = {workflows} AND data ->> 'is_undone' = 'true'
        UNION
        SELECT id FROM {archive}
        WHERE id IN (SELECT workflow FROM own) AND q_name = {workflows} AND data ->> 'is_undone' = 'true'
    ), undone AS MATERIALIZED (
        SELECT entry, workflow FROM own WHERE workflow IN (SELECT id FROM undone_workflows)
    ), gone AS (
        DELETE FROM {archive}
        WHERE entry IN (SELECT entry FROM claimed) AND entry NOT IN (SELECT entry FROM undone)
        RETURNING *
    )"
    };
}

/// Lets follow-ups wait again for the requeued jobs, whose archived rows are in `gone`. Makes the workflows of these
/// jobs and of the jobs in `undone` due. `run_again` has the entries of the `undone` jobs whose workflows are due
/// now.
///
/// A workflow does not become due for a call that undoes another job, because that is only repeated, nor for a job that
/// was added to it. If a workflow is due already, for example because of its cancellation, that reason stays.
///
/// Maintenance could note the earlier end of a requeued job before this transaction ends. So the rows of ends that are
/// not noted yet are updated, too, and maintenance skips them.
///
/// Locks: the rows of waits, where it waits for maintenance that notes an end, and the rows of the workflows. SKIP
/// LOCKED skips workflows that a transaction holds.
macro_rules! reopened {
    () => {
        "reopened AS (
        UPDATE {waits} AS wait SET outcome = NULL FROM gone
        WHERE wait.job = gone.id AND wait.outcome IS DISTINCT FROM 'done'
        RETURNING wait.follow_up, (gone.annotations -> 'workflow' ->> 'id')::bigint = wait.follow_up
            AND gone.annotations -> 'workflow' -> 'undoes' IS NULL AS wakes
    ), wanted_workflows AS MATERIALIZED (
        SELECT follow_up AS id FROM reopened WHERE wakes UNION SELECT workflow FROM undone
    ), free_workflows AS MATERIALIZED (
        SELECT ctid FROM {jobs}
        WHERE id IN (SELECT id FROM wanted_workflows) AND q_name = {workflows} AND dequeued_at IS NULL
        FOR UPDATE SKIP LOCKED
    ), waiting_workflows AS (
        DELETE FROM {jobs} WHERE ctid = ANY (ARRAY(SELECT ctid FROM free_workflows))
        RETURNING id, q_name, data, enqueued_at, expected_at, priority, error,
            jsonb_build_object('wake', 'reopen') || coalesce(annotations, '{}') AS annotations, attempt_log
    ), ended_workflows AS MATERIALIZED (
        SELECT entry FROM {archive} AS job
        WHERE id IN (SELECT id FROM wanted_workflows) AND q_name = {workflows}
            AND id NOT IN (SELECT id FROM gone)
            AND NOT EXISTS (SELECT FROM {archive} AS newer WHERE newer.id = job.id AND newer.entry > job.entry)
            AND NOT EXISTS (SELECT FROM {jobs} AS live WHERE live.id = job.id)
        FOR UPDATE SKIP LOCKED
    ), gone_workflows AS (
        DELETE FROM {archive} WHERE entry IN (SELECT entry FROM ended_workflows)
        RETURNING id, q_name, data, enqueued_at, expected_at, priority, error,
            coalesce(annotations, '{}') || jsonb_build_object('wake', 'reopen') AS annotations, attempt_log
    ), workflows AS (
        INSERT INTO {jobs} (id, q_name, data, enqueued_at, expected_at, priority, error, annotations, attempt_log)
        SELECT id, q_name, data, enqueued_at, expected_at, priority, error, annotations, attempt_log
        FROM (SELECT * FROM waiting_workflows UNION ALL SELECT * FROM gone_workflows) AS workflow
        RETURNING id
    ), run_again AS (
        SELECT entry FROM undone WHERE workflow IN (SELECT id FROM workflows UNION ALL SELECT id FROM gone)
    )"
    };
}

/// The annotations of a requeued job. A workflow is a job, too, and notes that it was requeued.
macro_rules! requeued_annotations {
    () => {
        "CASE WHEN q_name = {workflows}
            THEN coalesce(annotations, '{}') || jsonb_build_object('wake', 'retry') ELSE annotations END"
    };
}

/// Makes the waiting workflows in `free` due to be cancelled, instead of archiving them: they cancel their jobs first.
macro_rules! cancelled_workflows {
    () => {
        "waiting_workflows AS (
        DELETE FROM {jobs} WHERE ctid = ANY (ARRAY(SELECT ctid FROM free WHERE is_workflow)) RETURNING *
    ), woken AS (
        INSERT INTO {jobs} (id, q_name, data, enqueued_at, expected_at, priority, error, annotations, attempt_log)
        SELECT id, q_name, data, enqueued_at, expected_at, priority, error,
            coalesce(annotations, '{}') || jsonb_build_object('wake', 'cancel'), attempt_log
        FROM waiting_workflows
        RETURNING id
    )"
    };
}

pub(super) use {
    cancelled_workflows, gone_from_archive, has_locked_workflow, locked_workflows, reopened,
    requeued_annotations,
};
