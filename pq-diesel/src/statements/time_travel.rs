//! The statement that lets time pass, for tests.

/// The log of a job's attempts, given as jsonb, with earlier times.
macro_rules! earlier_log {
    ($log:literal) => {
        concat!(
            "(SELECT jsonb_agg(
                jsonb_set(entry, ARRAY['at'], to_jsonb((entry ->> 'at')::timestamptz - span)) ORDER BY place)
            FROM jsonb_array_elements(",
            $log,
            ") WITH ORDINALITY AS logged (entry, place))"
        )
    };
}

/// Moves all stored times back, and returns the queues that have waiting jobs. $1 microseconds.
///
/// A tick of a schedule that has passed by more than a minute would be missed, so a tick that would pass is due now.
/// Locks: all rows that have times. Waits for transactions that hold them.
pub(super) const ADVANCE: &str = concat!(
    "\
WITH passed AS MATERIALIZED (
    SELECT $1 * interval '1 microsecond' AS span
), waiting AS (
    UPDATE {jobs} SET enqueued_at = enqueued_at - span, schedule_at = schedule_at - span,
        expected_at = expected_at - span, dequeued_at = dequeued_at - span, attempt_log = ",
    earlier_log!("attempt_log"),
    "
    FROM passed RETURNING q_name
), leased AS (
    UPDATE {leases} SET lease_until = lease_until - span,
        enqueued_at = ARRAY(
            SELECT at - span FROM unnest(enqueued_at) WITH ORDINALITY AS job (at, place) ORDER BY place),
        schedule_at = CASE WHEN schedule_at IS NOT NULL THEN
            ARRAY(SELECT at - span FROM unnest(schedule_at) WITH ORDINALITY AS job (at, place) ORDER BY place) END,
        expected_at = CASE WHEN expected_at IS NOT NULL THEN
            ARRAY(SELECT at - span FROM unnest(expected_at) WITH ORDINALITY AS job (at, place) ORDER BY place) END,
        attempt_log = CASE WHEN attempt_log IS NOT NULL THEN ARRAY(SELECT ",
    earlier_log!("log"),
    " FROM unnest(attempt_log) WITH ORDINALITY AS job (log, place) ORDER BY place) END
    FROM passed
), archived AS (
    UPDATE {archive} SET enqueued_at = enqueued_at - span, schedule_at = schedule_at - span,
        expected_at = expected_at - span, ended_at = ended_at - span, attempt_log = ",
    earlier_log!("attempt_log"),
    "
    FROM passed
), kept AS (
    UPDATE {steps} SET enqueued_at = enqueued_at - span, kept_at = kept_at - span, wait_until = wait_until - span
    FROM passed
), sent AS (
    UPDATE {signals} SET enqueued_at = enqueued_at - span FROM passed
), periodic AS (
    UPDATE {cron} SET next_at = least(next_at, greatest(next_at - span, statement_timestamp())),
        last_at = last_at - span, retry_at = retry_at - span, paused_at = paused_at - span
    FROM passed
), paused AS (
    UPDATE {controls} SET paused_at = paused_at - span FROM passed
), tokens AS (
    UPDATE {buckets} SET at = at - span FROM passed
), audited AS (
    UPDATE {audit} SET at = at - span FROM passed
), noted AS (
    UPDATE {notes} SET at = at - span FROM passed
), working AS (
    UPDATE {workers} SET started_at = started_at - span, heartbeat_at = heartbeat_at - span FROM passed
)
SELECT DISTINCT q_name FROM waiting"
);
