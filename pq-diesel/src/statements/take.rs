//! Statements that take jobs.
//!
//! A take deletes the rows of its jobs: one dead tuple for each job, and no second statement. If a transaction holds
//! the jobs, its rollback restores them in their place. If a lease holds them, the same statement moves them into one
//! row of the table of leases.
//!
//! There are two sets of statements. Those of the fast path serve a queue that has only ready jobs without keys, return
//! four columns, and do nothing that helps only if there is nothing to take. If they take nothing, the fallbacks run
//! in order until one takes jobs or has seen the whole queue.
//!
//! A transaction's take stores a token in a setting that is local to the transaction. The setting exists exactly as
//! long as the transaction holds the jobs: a rollback, to a savepoint or altogether, removes both. The token of a lease
//! is its id.

use std::sync::OnceLock;

use pq_core::store::{MAX_KEYED_TAKE, MAX_TAKE_BYTES};

use super::names::Names;
use super::template::{Limit, Template};
use crate::prepared::{Statement, Value};

/// The size classes of takes. Each is eight times the one before, for the reason given at [`Sized`].
const SIZES: [usize; 5] = [1, 8, 64, 512, 4_096];

/// A statement that takes jobs, with a text for each size class.
///
/// If a parameter limits the rows of a statement, PostgreSQL plans it at each call, which takes longer than to take a
/// job. So the limit in the text is the number of the size class, and the parameter limits the rows of the query
/// around it. PostgreSQL expects that query to return a tenth of the rows. The parameter is more than an eighth of the
/// class, so a plan for its value never seems less expensive, and the server keeps the plan without the value.
///
/// The one text for larger counts is planned at each call.
///
/// Each text has two forms. The second one measures payloads, which takes a tenth longer. It is used if the table has
/// large payloads.
#[derive(Debug)]
pub(crate) struct Sized {
    plain: Texts,
    measuring: Texts,
}

/// The texts of one form of a statement.
#[derive(Debug)]
struct Texts {
    template: Template,
    by_size: [OnceLock<Statement>; SIZES.len()],
    larger: OnceLock<Statement>,
}

/// Whether a take measures payloads, and stops at the job with which they reach [`MAX_TAKE_BYTES`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Measure {
    No,
    Yes,
}

/// Returns the template of a take.
/// Its jobs are selected between `{bounded}` and `{end_bounded}`, with their bytes as stored.
///
/// A take must not lock jobs that it does not take. So a take that measures reads them through a query that is
/// materialised on demand: one query reads up to the job that reaches the bound, and another one returns what the
/// first one has read. The window ends before the current row, because it would read one job more otherwise.
fn template(sql: &str, names: &Names, measure: Measure) -> Template {
    let (begin, end) = match measure {
        Measure::No => ("(", ") AS bounded".to_owned()),
        Measure::Yes => (
            "(WITH locked AS MATERIALIZED (",
            format!(
                ") SELECT * FROM locked LIMIT (\
                    SELECT position FROM (\
                        SELECT row_number() OVER before AS position, bytes, \
                            coalesce(sum(bytes) OVER before, 0) AS sum \
                        FROM locked WINDOW before AS (ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)\
                    ) AS measured \
                    WHERE sum + bytes >= {MAX_TAKE_BYTES} LIMIT 1)) AS bounded"
            ),
        ),
    };
    Template::parse(sql, &names.with([("bounded", begin.to_owned()), ("end_bounded", end)]))
}

impl Sized {
    /// The largest number of jobs whose payloads need not be measured.
    pub(crate) const UNMEASURED: usize = SIZES[1];

    fn new(sql: &str, names: &Names) -> Self {
        let texts = |measure| Texts {
            template: template(sql, names, measure),
            by_size: [const { OnceLock::new() }; SIZES.len()],
            larger: OnceLock::new(),
        };
        Self { plain: texts(Measure::No), measuring: texts(Measure::Yes) }
    }

    /// Returns the statement that takes `count` jobs at most, and the value of its last parameter if it has one for the
    /// count.
    pub(crate) fn of(&self, count: usize, measure: Measure) -> (&Statement, Option<Value<'static>>) {
        let texts = match measure {
            Measure::Yes if count > Self::UNMEASURED => &self.measuring,
            _ => &self.plain,
        };
        // A take of no jobs is of the second class, because the text of the first has no parameter.
        let at_least = if count == 0 { SIZES[1] } else { count };
        let class = SIZES.iter().zip(&texts.by_size).find(|(size, _)| at_least <= **size);
        let (statement, limit) = match class {
            Some((1, statement)) => (statement, Limit::Exact(1)),
            Some((size, statement)) => (statement, Limit::AtMost(*size)),
            None => (&texts.larger, Limit::Any),
        };
        let parameter = match limit {
            Limit::Exact(_) => None,
            _ => Some(Value::count(count)),
        };
        (statement.get_or_init(|| texts.template.statement(limit)), parameter)
    }

    /// Returns all texts of the statement.
    #[cfg(test)]
    pub(super) fn texts(&self) -> Vec<String> {
        let sizes = || SIZES.into_iter().chain([SIZES[SIZES.len() - 1] + 1]);
        let of = |measure| sizes().map(move |size| self.of(size, measure).0.text());
        of(Measure::No).chain(of(Measure::Yes)).collect()
    }
}

/// The statements of the fast path, for one kind of owner.
#[derive(Debug)]
pub(crate) struct FastStatements {
    /// A take from the start begins behind a key that sorts before every job.
    pub(crate) behind_key: Sized,
    pub(crate) past_keys: Sized,
    /// Scans of a range are rare, so this has no size classes: it is planned at each call. It always measures.
    pub(crate) range: Statement,
}

impl FastStatements {
    /// For a transaction, or for a take that commits by itself.
    pub(super) fn for_transaction(names: &Names) -> Self {
        Self {
            behind_key: Sized::new(include_str!("take/take_fast.sql"), names),
            past_keys: Sized::new(include_str!("take/take_fast_past_keys.sql"), names),
            range: template(include_str!("take/take_fast_range.sql"), names, Measure::Yes)
                .statement(Limit::Any),
        }
    }

    pub(super) fn for_lease(names: &Names) -> Self {
        Self {
            behind_key: Sized::new(include_str!("take/lease_fast.sql"), names),
            past_keys: Sized::new(include_str!("take/lease_fast_past_keys.sql"), names),
            range: template(include_str!("take/lease_fast_range.sql"), names, Measure::Yes)
                .statement(Limit::Any),
        }
    }
}

/// Returns the fallbacks, in the order in which they run. The second and the third differ in how many jobs they read.
pub(super) fn fallbacks(names: &Names) -> [Sized; 4] {
    const MERGED: &str = include_str!("take/fallback_merged.sql");
    let names = &names.with([("max_keyed", MAX_KEYED_TAKE)]);
    let few = names.with([
        ("few_keys", 16),
        ("window_limit", 500),
        ("window_per_job", 60),
        ("due_limit", 500),
        ("reach", 10_000),
    ]);
    let many = names.with([
        ("few_keys", 500),
        ("window_limit", 20_000),
        ("window_per_job", 20_000),
        ("due_limit", 5_000),
        ("reach", 100_000),
    ]);
    [
        Sized::new(include_str!("take/fallback_ready.sql"), names),
        Sized::new(MERGED, &few),
        Sized::new(MERGED, &many),
        Sized::new(include_str!("take/fallback_all_keys.sql"), names),
    ]
}

/// Returns the bytes of the payloads that the table stores out of line. All large payloads are. No locks.
pub(super) const LARGE_PAYLOADS: &str = "\
SELECT pg_relation_size(reltoastrelid) FROM pg_class WHERE oid = {jobs_name}::regclass";

/// Returns whether the queue may have jobs that the fast path cannot take: due scheduled jobs, jobs with a
/// serialization key, or those of a limited queue. Also returns the time in microseconds until the next scheduled job
/// is due. $1 queue. No locks.
pub(super) const BEYOND_INDEX: &str = "\
SELECT EXISTS (SELECT FROM {controls} WHERE q_name = $1 AND limits IS NOT NULL AND paused_at IS NULL)
    OR NOT EXISTS (SELECT FROM {controls} WHERE q_name = $1) AND (
        EXISTS (
            SELECT FROM {jobs}
            WHERE q_name = $1 AND dequeued_at IS NULL AND schedule_at IS NOT NULL
                AND schedule_at <= statement_timestamp())
        OR EXISTS (
            SELECT FROM {jobs}
            WHERE q_name = $1 AND dequeued_at IS NULL AND schedule_at IS NULL AND serial_key IS NOT NULL)),
    (SELECT (extract(epoch FROM min(schedule_at) - statement_timestamp()) * 1000000)::bigint
    FROM {jobs}
    WHERE q_name = $1 AND dequeued_at IS NULL AND schedule_at IS NOT NULL
        AND schedule_at > statement_timestamp() AND schedule_at < 'infinity')";

/// Takes jobs of a limited queue. Its rows are those of a fallback. If the queue is not limited, a fallback must run.
///
/// $1 queue, $2 maximum number of jobs, $3 length of the lease in microseconds, or null if a transaction owns the
/// jobs, $4 to $6 position behind which it may begin.
///
/// Order, locks: those of the function `queue_take_limited` in the migration. It waits for no lock. If another
/// transaction has locked what is missing, the next job is due in 0 microseconds.
pub(super) const TAKE_LIMITED: &str = "\
SELECT (job).id, (job).data, (job).enqueued_at, (job).schedule_at, (job).expected_at, (job).priority, (job).attempt,
    (job).serial_key, (job).unique_key,
    CASE WHEN (job).id IS NOT NULL
        THEN ROW((job).crashes, (job).lease_limit, (job).annotations::text, (job).attempt_log::text) END,
    false, token, next_due, raced, NOT is_limited, is_limited
FROM {take_limited}($1, $2, $3, CASE WHEN $3::bigint IS NULL
        THEN (extract(epoch FROM clock_timestamp()) * 1000000)::bigint ELSE nextval({tokens_name}) END,
    $4, $5, $6) AS taken
WHERE CASE WHEN row_security_active({controls_name}::regclass) THEN {refuse_hidden_controls}() ELSE true END";

/// Takes one job again if it is unchanged in the queue, and stores the token of its first take. Returns no row if the
/// job has changed or is locked. $1 job, $2 queue, $3 attempt, $4 annotations, $5 token.
///
/// Locks: the job's row and its serialization key. SKIP LOCKED leaves the job to another transaction that has taken it
/// meanwhile.
pub(super) const RETAKE: &str = "\
WITH place AS MATERIALIZED (
    SELECT ctid FROM {jobs}
    WHERE id = $1 AND q_name = $2 AND attempt = $3 AND dequeued_at IS NULL
        AND annotations IS NOT DISTINCT FROM $4::jsonb
        AND (serial_key IS NULL OR {lock_keyed_job}(ctid, q_name, serial_key,
            hashtextextended(serial_key, hashtextextended(q_name, {jobs_name}::regclass::oid::bigint)), NULL))
    FOR UPDATE SKIP LOCKED
), taken AS (
    DELETE FROM {jobs} WHERE ctid = ANY (ARRAY(SELECT ctid FROM place)) RETURNING id
)
SELECT set_config('pq.takes',
    coalesce(nullif(current_setting('pq.takes', true), ''), ',') || $5::bigint || ',', true)
FROM taken";

/// Releases the unique keys of jobs that were taken without a lease, which complete with their transaction. $1 keys,
/// $2 jobs, $3 queue.
///
/// Locks: the rows of the keys. The statement waits for a transaction that puts one of the keys.
pub(super) const RELEASE_UNIQUE: &str = "\
DELETE FROM {unique} AS claimed USING unnest($1::text[], $2::bigint[]) AS taken (unique_key, job)
WHERE claimed.q_name = $3 AND claimed.unique_key = taken.unique_key AND claimed.job = taken.job";

/// Notifies the waiters of channels when the transaction commits. $1 channels.
///
/// It does nothing for a channel whose notifier lock is held, because a handle notifies on behalf of all sessions
/// then. The transaction must have an id before it looks at that lock. A take that took nothing has none, so the
/// statement assigns one. The trigger `queue_notify` in the migration does the same and gives the reason.
pub(super) const NOTIFY: &str = "\
SELECT CASE
    WHEN pg_current_xact_id() IS NULL THEN ''
    WHEN CASE WHEN pg_try_advisory_lock_shared(notifier_lock)
        THEN pg_advisory_unlock_shared(notifier_lock) ELSE false END
    THEN pg_notify(channel, '')::text
    ELSE ''
    END
FROM unnest($1::text[]) AS channel, {notifier_lock} AS notifier_lock";
