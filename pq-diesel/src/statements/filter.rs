//! The conditions of a filter, which the statements that list and change jobs share.
//!
//! The parameters are $1 queue, $2 job, $3 id of the last job before, $4 serialization key, $5 states, $6 task, $7
//! part of the error, $8 latest time and $9 annotations that a job must contain. A parameter that is null selects all
//! jobs, and the plan of a statement, which is made for its values, leaves its condition out.

/// Declares the parameters. A statement begins with this.
macro_rules! filter {
    () => {
        "WITH filter AS (
            SELECT $1::text AS queue, $2::bigint AS job, $3::bigint AS behind, $4::text AS key, $5::text[] AS states,
                $6::text AS task, $7::text AS error, $8::timestamptz AS until,
                $9::jsonb AS annotations
        )"
    };
}

/// The condition on the task of a payload, given as text.
///
/// An escape such as \u0000 in any string of a document makes `->>` fail. A document with escapes is therefore compared
/// as text, in the two forms in which calls are written. `chr` spells the backslash and the brace, whose meaning in a
/// literal depends on settings, and in these texts on placeholders.
macro_rules! calls_task {
    ($data:literal) => {
        concat!(
            "($6 IS NULL OR CASE WHEN strpos(",
            $data,
            ", chr(92) || 'u') = 0 THEN coalesce(",
            $data,
            "::json ->> 'function' = $6, false) ELSE starts_with(",
            $data,
            ", chr(123) || '\"function\":' || to_json($6)) OR starts_with(",
            $data,
            ", chr(123) || '\"function\": ' || to_json($6)) END)"
        )
    };
}

/// The condition on the annotations of a row. It is that of the index on them, unless a group is wanted, which the
/// index may lack.
macro_rules! has_annotations {
    ($row:literal) => {
        concat!(
            "($9 IS NULL OR ($9::jsonb ? 'group' OR ",
            $row,
            ".annotations ?| ARRAY['tags', 'metadata', 'workflow']) AND ",
            $row,
            ".annotations - 'trace' @> $9::jsonb)"
        )
    };
}

/// Whether jobs of its serialization key that were due at once come before a row `$job`. The index of ready jobs with
/// keys answers it.
macro_rules! comes_behind {
    ($job:literal) => {
        concat!(
            "EXISTS (
                SELECT FROM {jobs} AS before
                WHERE before.q_name = ",
            $job,
            ".q_name AND before.serial_key = ",
            $job,
            ".serial_key AND before.dequeued_at IS NULL AND before.schedule_at IS NULL
                    AND (-before.priority::bigint, coalesce(before.expected_at, 'infinity'::timestamptz), before.id)
                        < (-",
            $job,
            ".priority::bigint, coalesce(",
            $job,
            ".expected_at, 'infinity'::timestamptz), ",
            $job,
            ".id))"
        )
    };
}

/// The keys of which a scheduled job that is due comes first, and that job. A statement that looks for blocked jobs
/// declares it. It is read once and only if needed: to look for such jobs behind each blocked one would take the
/// square of their number.
macro_rules! scheduled_first {
    () => {
        concat!(
            ", due_first AS MATERIALIZED (
                SELECT DISTINCT ON (q_name, serial_key) q_name, serial_key, priority, expected_at, id FROM {jobs}
                WHERE dequeued_at IS NULL AND schedule_at <= statement_timestamp() AND serial_key IS NOT NULL
                    AND ($1 IS NULL OR q_name = $1) AND ($4 IS NULL OR serial_key = $4)
                    AND ($2 IS NULL OR (q_name, serial_key) = (SELECT q_name, serial_key FROM {jobs} WHERE id = $2))
                ORDER BY q_name, serial_key, -priority::bigint, coalesce(expected_at, 'infinity'::timestamptz), id
            ), scheduled_first AS MATERIALIZED (
                SELECT q_name, serial_key, id FROM due_first WHERE NOT ",
            comes_behind!("due_first"),
            ")"
        )
    };
}

/// Whether a job waits for its retry and keeps its serialization key meanwhile.
macro_rules! is_kept {
    ($job:literal) => {
        concat!(
            $job,
            ".dequeued_at IS NULL AND ",
            $job,
            ".serial_key IS NOT NULL AND ",
            $job,
            ".schedule_at IS NOT NULL AND ",
            $job,
            ".attempt > 0 AND ",
            $job,
            ".annotations ? 'strict'"
        )
    };
}
pub(super) use is_kept;

/// Whether a due job waits for its serialization key: it is in use or kept, or another job of the key comes first.
macro_rules! is_blocked {
    () => {
        concat!(
            "(job.serial_key IS NOT NULL AND (
            EXISTS (SELECT FROM {keys} AS busy WHERE busy.q_name = job.q_name AND busy.serial_key = job.serial_key)
            OR coalesce(job.id <> (
                    SELECT min(keeper.id) FROM {jobs} AS keeper
                    WHERE keeper.q_name = job.q_name AND keeper.serial_key = job.serial_key AND ",
            is_kept!("keeper"),
            "),
                ",
            comes_behind!("job"),
            " OR (job.q_name, job.serial_key) IN (SELECT q_name, serial_key FROM scheduled_first)
                AND job.id NOT IN (SELECT id FROM scheduled_first))))"
        )
    };
}

/// The condition on a row `job` of the table of jobs.
///
/// Whether a job is blocked is looked up only if ready and blocked ones are told apart.
macro_rules! is_waiting {
    () => {
        concat!(
            "($5 IS NULL OR $5 && ARRAY['ready', 'blocked', 'scheduled', 'dequeued'])
            AND ($1 IS NULL OR job.q_name = $1) AND ($2 IS NULL OR job.id = $2) AND ($3 IS NULL OR job.id > $3)
            AND ($4 IS NULL OR job.serial_key = $4) AND ($7 IS NULL OR strpos(job.error, $7) > 0)
            AND ($8 IS NULL OR job.enqueued_at <= $8) AND ",
            has_annotations!("job"),
            "
            AND ($5 IS NULL OR CASE WHEN job.dequeued_at IS NOT NULL THEN 'dequeued' = ANY ($5)
                WHEN job.schedule_at > statement_timestamp() THEN 'scheduled' = ANY ($5)
                WHEN $5 @> ARRAY['ready', 'blocked'] THEN true
                WHEN NOT $5 && ARRAY['ready', 'blocked'] THEN false
                ELSE CASE WHEN ",
            is_blocked!(),
            " THEN 'blocked' ELSE 'ready' END = ANY ($5) END)
            AND ",
            calls_task!("job.data::text")
        )
    };
}

/// The leases `lease` with their jobs `held` that are not settled, and the condition on these. `$data` is an
/// expression for the payloads. A condition on the task reads those of all leases.
macro_rules! leased {
    ($data:literal) => {
        concat!(
            "{leases} AS lease, unnest(lease.jobs, ",
            $data,
            ", lease.enqueued_at, lease.schedule_at, lease.expected_at,
                lease.priority, lease.attempt, lease.crashes, lease.serial_key, lease.unique_key, lease.annotations,
                lease.attempt_log)
                AS held (job, data, enqueued_at, schedule_at, expected_at, priority, attempt, crashes, serial_key,
                    unique_key, annotations, attempt_log)
            WHERE ($5 IS NULL OR 'running' = ANY ($5))
            AND ($1 IS NULL OR lease.q_name = $1) AND ($2 IS NULL OR held.job = $2) AND ($3 IS NULL OR held.job > $3)
            AND ($4 IS NULL OR held.serial_key = $4) AND $7 IS NULL AND ($8 IS NULL OR held.enqueued_at <= $8)
            AND ",
            has_annotations!("held"),
            "
            AND NOT EXISTS (SELECT FROM {settled} AS done WHERE done.lease = lease.id AND done.job = held.job)
            AND ",
            calls_task!("held.data")
        )
    };
}

/// The condition on a row `job` of the archive.
macro_rules! is_archived {
    () => {
        concat!(
            "($5 IS NULL OR $5 && ARRAY['dead', 'cancelled', 'done'])
            AND ($1 IS NULL OR job.q_name = $1) AND ($2 IS NULL OR job.id = $2) AND ($3 IS NULL OR job.id > $3)
            AND ($4 IS NULL OR job.serial_key = $4) AND ($7 IS NULL OR strpos(job.error, $7) > 0)
            AND ($8 IS NULL OR job.ended_at <= $8) AND ($5 IS NULL OR job.outcome = ANY ($5))
            AND ",
            has_annotations!("job"),
            " AND ",
            calls_task!("job.data::text")
        )
    };
}

pub(super) use {
    calls_task, comes_behind, filter, has_annotations, is_archived, is_blocked, is_waiting, leased,
    scheduled_first,
};
