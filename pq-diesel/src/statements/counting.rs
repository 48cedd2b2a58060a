//! Statements of the counters of what became of jobs.

/// Adds to the counters. $1 queues, $2 tasks, $3 counters as JSON.
///
/// Each call adds rows of its own, so that no transaction waits for another one.
pub(super) const COUNT: &str = "\
INSERT INTO {counters} (q_name, task, counts)
SELECT q_name, task, counts::json FROM unnest($1::text[], $2::text[], $3::text[]) AS counted (q_name, task, counts)";

/// Returns all counters, several rows for a task. No locks.
pub(super) const COUNTED: &str = "SELECT q_name, task, counts::text FROM {counters}";

/// Deletes and returns all counters, to be merged, if there are many rows for the same tasks. Maintenance runs it.
pub(super) const TAKE_COUNTED: &str = "\
DELETE FROM {counters}
WHERE (SELECT count(*) > 2 * count(DISTINCT (q_name, task)) + 100 FROM {counters})
RETURNING q_name, task, counts::text";
