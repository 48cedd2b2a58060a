//! Statements of the counters of what became of jobs.

/// Adds to the counters. $1 queues, $2 tasks, $3 counters as JSON.
///
/// Each call adds rows of its own, so that no transaction waits for another one.
pub(super) const COUNT: &str = "\
INSERT INTO {counters} (q_name, task, counts)
SELECT q_name, task, counts::json FROM unnest($1::text[], $2::text[], $3::text[]) AS counted (q_name, task, counts)";

/// Returns all counters, several rows for a task. No locks.
pub(super) const COUNTED: &str = "SELECT q_name, task, counts::text FROM {counters}";

/// Deletes and returns all counters, to be merged, if they are many more than will be left. $1 most queues and $2 most
/// tasks of a queue that are kept apart. Maintenance runs it.
pub(super) const TAKE_COUNTED: &str = "\
WITH kept AS (
    SELECT sum(rows) AS rows, coalesce(sum(tasks), 0) AS tasks FROM (
        SELECT count(*) AS rows, CASE WHEN row_number() OVER () <= $1 THEN least(count(DISTINCT task), $2) END AS tasks
        FROM {counters} GROUP BY q_name
    ) AS queue
)
DELETE FROM {counters}
WHERE (SELECT rows > 2 * tasks + 100 FROM kept)
RETURNING q_name, task, counts::text";
