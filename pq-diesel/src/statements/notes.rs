//! Statements of the progress and the logs of jobs.

/// Stores notes of jobs under leases, and returns the positions, from one, of those that were accepted.
///
/// Arrays with a value for each job: $1 job, $2 lease, $3 attempt, $4 size of the lines, $5 lines as a JSON array or
/// null, $6 progress as a JSON object or null. $7 size of the log that a job keeps.
///
/// A note replaces the ones before that have only a progress, and those that the newer ones push out of the log.
///
/// Order: by job. Locks: the rows of the leases. The lock excludes what settles or returns all jobs of a lease. So a
/// note is never younger than the outcome of its job, except for one that is settled beside others of its lease at
/// the same moment.
macro_rules! write_notes {
    ($passes:literal, $trims:literal) => {
        concat!(
            "\
WITH given AS MATERIALIZED (
    SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::integer[], $4::integer[], $5::text[], $6::text[])
        WITH ORDINALITY AS given (job, lease, attempt, size, lines, progress, position)
), locked AS MATERIALIZED (
    SELECT id, jobs FROM {leases} WHERE id = ANY ($2) FOR KEY SHARE",
            $passes,
            "
), held AS MATERIALIZED (
    SELECT given.* FROM given JOIN locked ON locked.id = given.lease AND given.job = ANY (locked.jobs)
    WHERE NOT EXISTS (SELECT FROM {settled} AS done WHERE done.lease = given.lease AND done.job = given.job)
), sized AS (
    SELECT note.job, note.entry, note.size,
        held.size + sum(note.size) OVER (PARTITION BY note.job ORDER BY note.entry DESC) - note.size AS newer
    FROM held JOIN {notes} AS note ON note.job = held.job AND note.cost IS NULL
), trimmed AS (
    DELETE FROM {notes} AS note USING sized
    WHERE note.job = sized.job AND note.entry = sized.entry AND (sized.size = 0 OR sized.newer >= $7::integer)",
            $trims,
            "
), written AS (
    INSERT INTO {notes} (job, lease, attempt, size, lines, progress)
    SELECT job, lease, attempt, size, lines::json, progress::json FROM held ORDER BY job
)
SELECT position FROM held"
        )
    };
}

/// Stores notes while their handlers run. Passes a lease that a transaction has locked.
pub(super) const WRITE_NOTES: &str = write_notes!(" SKIP LOCKED", "");

/// Stores the last notes of jobs. Waits for a transaction that has locked a lease, as the outcomes that follow do.
///
/// In a transaction that has one snapshot nothing is deleted, because others may have deleted it since. The next
/// notes do.
pub(super) const WRITE_LAST_NOTES: &str = write_notes!(
    "",
    "
    AND current_setting('transaction_isolation') = 'read committed'"
);

/// Returns the newest progress of jobs, in the order of their ids. $1 jobs. No locks.
///
/// That of a waiting job is not returned, and neither is that of a running job if it was noted under an earlier lease.
pub(super) const PROGRESS: &str = "\
SELECT noted.job, noted.attempt, noted.at, noted.progress::text
FROM (
    SELECT DISTINCT ON (job) job, lease, attempt, at, progress FROM {notes}
    WHERE job = ANY ($1::bigint[]) AND progress IS NOT NULL
    ORDER BY job, entry DESC
) AS noted
WHERE CASE
    WHEN EXISTS (SELECT FROM {leases} AS lease WHERE lease.id = noted.lease AND noted.job = ANY (lease.jobs)
        AND NOT EXISTS (SELECT FROM {settled} AS done WHERE done.lease = lease.id AND done.job = noted.job)) THEN true
    ELSE EXISTS (SELECT FROM {archive} AS ended WHERE ended.id = noted.job AND ended.attempt = noted.attempt)
        AND NOT EXISTS (SELECT FROM {jobs} AS job WHERE job.id = noted.job) END
ORDER BY noted.job";

/// Returns the lines of a job's log: for each note its position, its attempt, and its lines as a JSON array. $1 job,
/// $2 position after which it begins, or null. Order: by position. No locks.
pub(super) const LOG: &str = "\
SELECT entry, attempt, lines::text FROM {notes}
WHERE job = $1 AND lines IS NOT NULL AND ($2::bigint IS NULL OR entry > $2)
ORDER BY entry";

/// Deletes the notes of jobs that neither wait nor run nor are archived, among the next thousand notes. Returns the
/// job and the entry of the last of these notes. $1 and $2 job and entry of the last note of the call before.
pub(super) const FORGET_NOTES: &str = "\
WITH seen AS MATERIALIZED (
    SELECT job, entry FROM {notes} WHERE (job, entry) > ($1, $2) ORDER BY job, entry LIMIT 1000
), leased AS MATERIALIZED (
    SELECT unnest(jobs) AS job FROM {leases} WHERE EXISTS (SELECT FROM seen)
), gone AS MATERIALIZED (
    SELECT DISTINCT job FROM seen
    WHERE NOT EXISTS (SELECT FROM {jobs} AS live WHERE live.id = seen.job)
        AND NOT EXISTS (SELECT FROM {archive} AS ended WHERE ended.id = seen.job)
        AND NOT EXISTS (SELECT FROM leased WHERE leased.job = seen.job)
), forgotten AS (
    DELETE FROM {notes} AS note USING gone WHERE note.job = gone.job
)
SELECT job, entry FROM seen ORDER BY job DESC, entry DESC LIMIT 1";
