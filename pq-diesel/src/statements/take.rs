//! How jobs are taken.
//!
//! A take deletes the rows of the jobs: one dead row a job and no second statement. In a transaction a
//! rollback brings them back in their place. Under a lease the same statement keeps them in one row of the
//! table of leases.
//!
//! Four statements do it (and a fifth in `walk.rs`, which does nothing but the first one's part), and each but the
//! last says in its last column, where it took nothing, whether the next should be asked. The first walks the index of
//! the line from its start, and takes nothing where that is not the whole line: where scheduled jobs are due, or where
//! there are jobs with serialization keys. The second and the third sort those in, and of each kind of jobs they look
//! at the first few, or the first many: nothing behind them is taken. If all those belong to busy keys, or are held by
//! others, the fourth enumerates the keys and looks at all.
//!
//! SKIP LOCKED passes over what others hold. The picks are materialised and gathered into an array
//! before the DELETE, for a subquery that locks may otherwise be run more than once and take too many.
//! A row that was locked in a newer version than this statement may see (somebody has just updated
//! it) is not deleted; the column before the last then says that a new look is due. It says so as well where a
//! key's lock was had and its job was gone: until the transaction ends nobody else can have the key, and those
//! who tried meanwhile are told by nothing but the end of a job.
//!
//! A take in a transaction notes a token in a setting that is local to the transaction. It is there exactly
//! as long as the transaction holds the jobs: a savepoint that is rolled back takes it away, and so does the
//! end. A lease's token is its row's number.
//!
//! Where nothing was taken, one row says after how many microseconds the next job falls due.
//! $1 queue, {count} the most jobs; for a lease $3 its length in microseconds.

/// What holds the jobs that are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hold {
    /// Nothing: the take commits by itself.
    Nothing,
    Transaction,
    Lease,
}

/// The statements, in the order in which they are asked.
pub(super) fn levels(hold: Hold) -> [String; 4] {
    let plain = assemble(
        "WITH ",
        &format!("{}{PLAIN}", others(ANY_KEY)),
        "(SELECT cardinality(places) > 0 FROM first)",
        "(SELECT other FROM others)",
        "false",
        hold,
    );
    let reaching = |statement: String, reach: &str, few: &str| {
        statement.replace("{free}", FREE).replace("{reach}", reach).replace("{few}", few)
    };
    let within = |window: &str, reach: &str, few: &str| {
        let heads = WINDOW.replace("{window}", window);
        let line = MERGED.replace("{within}", WITHIN).replace("{full}", " OR EXISTS (SELECT FROM edge)");
        let statement = assemble("WITH ", &format!("{heads}{line}"), RACED, BEYOND, MISSED, hold);
        reaching(statement, reach, few)
    };
    let line = MERGED.replace("{within}", "").replace("{full}", "");
    let all = assemble("WITH RECURSIVE ", &format!("{KEYS}), {HEADS}{line}"), RACED, "false", MISSED, hold);
    [
        plain,
        within("least(500, 60 * {count}) + 2 * {count}", "(10000 + {count})", "least(500, 60 * {count})"),
        within("20000", "(100000 + {count})", "5000"),
        reaching(all, "1000000000", "1000000000"),
    ]
}

/// Whether something was locked, or a key was had for nothing.
const RACED: &str = "(SELECT cardinality(first.places || merged.places) > 0 FROM first, merged) OR {missed}";

/// Whether there is more behind what was looked at.
const BEYOND: &str = "(SELECT open FROM open) AND (EXISTS (SELECT FROM edge)
        OR EXISTS (
            SELECT FROM {jobs}
            WHERE q_name = $1 AND dequeued_at IS NULL AND schedule_at IS NULL AND serial_key IS NULL
            OFFSET {reach} - 1)
        OR (SELECT are_many FROM many) AND EXISTS (
            SELECT FROM {jobs}
            WHERE q_name = $1 AND dequeued_at IS NULL AND schedule_at IS NOT NULL
            OFFSET {reach} - 1))";

/// Whether a key was had for nothing, and is this transaction's until it ends.
const MISSED: &str =
    "(SELECT coalesce(current_setting('pq.missed_at', true) = statement_timestamp()::text, false))";

fn assemble(with: &str, line: &str, raced: &str, other: &str, missed: &str, hold: Hold) -> String {
    let (token, kept, noted) = match hold {
        Hold::Nothing | Hold::Transaction => (TOKEN, NOTED, "noted"),
        Hold::Lease => (LEASE_TOKEN, LEASED, "given"),
    };
    let tail = TAIL
        .replace("{due}", DUE)
        .replace("{raced}", raced)
        .replace("{missed}", missed)
        .replace("{other}", other)
        .replace("{noted}", noted);
    let lease = if hold == Hold::Lease { "(SELECT token FROM given)" } else { "NULL::bigint" };
    let line =
        line.replace("{first}", &format!("), {}", FIRST.replace("{from}", ""))).replace("{lease}", lease);
    format!("{with}{token}{OPEN}{line}{kept}\n{tail}")
}

const TOKEN: &str = "given AS MATERIALIZED (
    SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS token
), ";

/// Whether the queue goes on. Where it is paused no candidate is looked for.
pub(super) const OPEN: &str = "open AS MATERIALIZED (
    SELECT NOT EXISTS (SELECT FROM {paused} WHERE q_name = $1) AS open
), ";

const LEASE_TOKEN: &str = "given AS MATERIALIZED (
    SELECT nextval({tokens_name}) AS token
), ";

const NOTED: &str = ", noted AS MATERIALIZED (
    SELECT token, set_config('pq.takes',
        coalesce(nullif(current_setting('pq.takes', true), ''), ',') || token || ',', true)
    FROM given
)";

/// Takes one job anew that stands in the line as it did, and notes the token that it was taken with. No row where it
/// does not, or is held. $1 job, $2 queue, $3 attempt, $4 the token.
pub(super) const RETAKE: &str = "\
WITH place AS MATERIALIZED (
    SELECT ctid FROM {jobs}
    WHERE id = $1 AND q_name = $2 AND attempt = $3 AND dequeued_at IS NULL
        AND (serial_key IS NULL OR {lock_keyed_job}(ctid, q_name, serial_key,
            hashtextextended(serial_key, hashtextextended(q_name, {jobs_name}::regclass::oid::bigint)), NULL))
    FOR UPDATE SKIP LOCKED
), taken AS (
    DELETE FROM {jobs} WHERE ctid = ANY (ARRAY(SELECT ctid FROM place)) RETURNING id
)
SELECT set_config('pq.takes',
    coalesce(nullif(current_setting('pq.takes', true), ''), ',') || $4::bigint || ',', true)
FROM taken";

/// The start of the index, if that is the whole line, or what comes next `{from}` a place in it.
pub(super) const FIRST: &str = "first AS MATERIALIZED (
    SELECT ARRAY(
        SELECT ctid FROM {jobs}
        WHERE q_name = $1 AND dequeued_at IS NULL AND schedule_at IS NULL AND serial_key IS NULL{from}
            AND (SELECT open FROM open) AND NOT (SELECT other FROM others)
        ORDER BY -priority::bigint, coalesce(expected_at, 'infinity'::timestamptz), id
        LIMIT {count}
        FOR UPDATE SKIP LOCKED) AS places
)";

/// What keeps it from being that: jobs that are due, and what `keyed` finds.
pub(super) fn others(keyed: &str) -> String {
    format!(
        "others AS MATERIALIZED (
    SELECT (SELECT open FROM open) AND (
        EXISTS (
            SELECT FROM {{jobs}}
            WHERE q_name = $1 AND dequeued_at IS NULL AND schedule_at IS NOT NULL
                AND schedule_at <= statement_timestamp())
        OR EXISTS ({keyed})) AS other
"
    )
}

pub(super) const ANY_KEY: &str = "
            SELECT FROM {jobs}
            WHERE q_name = $1 AND dequeued_at IS NULL AND schedule_at IS NULL AND serial_key IS NOT NULL";

const PLAIN: &str = "{first}, taken AS (
    DELETE FROM {jobs}
    WHERE ctid = ANY ((SELECT places FROM first)::tid[])
    RETURNING id, data, enqueued_at, schedule_at, expected_at, priority, attempt, serial_key, unique_key
)";

/// The first jobs that have keys, and of those each first of a key that no lease holds. Where there are more than
/// are looked at, the last of them is the edge.
const WINDOW: &str = "seen AS MATERIALIZED (
    SELECT ctid AS place, tableoid AS home, id, serial_key, -priority::bigint AS rank,
        coalesce(expected_at, 'infinity'::timestamptz) AS wanted
    FROM {jobs}
    WHERE q_name = $1 AND dequeued_at IS NULL AND schedule_at IS NULL AND serial_key IS NOT NULL
    ORDER BY -priority::bigint, coalesce(expected_at, 'infinity'::timestamptz), id
    LIMIT {window}
), heads AS MATERIALIZED (
    SELECT DISTINCT ON (seen.serial_key) seen.*
    FROM seen
    WHERE NOT EXISTS (SELECT FROM {keys} AS busy WHERE busy.q_name = $1 AND busy.serial_key = seen.serial_key)
    ORDER BY seen.serial_key, rank, wanted, id
), edge AS MATERIALIZED (
    SELECT rank, wanted, id FROM seen
    WHERE (SELECT count(*) FROM seen) = {window}
    ORDER BY rank DESC, wanted DESC, id DESC LIMIT 1
";

/// What lies behind the edge is not taken, for a job before it that was not looked at may be ready.
const WITHIN: &str = "
            AND (NOT EXISTS (SELECT FROM edge)
                OR (line.rank, line.wanted, line.id) <= (SELECT rank, wanted, id FROM edge))";

/// The keys are enumerated by jumping through their index from one to the next.
pub(super) const KEYS: &str = "keys AS (
    (SELECT serial_key FROM {jobs}
    WHERE q_name = $1 AND dequeued_at IS NULL AND schedule_at IS NULL AND serial_key IS NOT NULL
    ORDER BY serial_key LIMIT 1)
    UNION ALL
    SELECT (
        SELECT job.serial_key FROM {jobs} AS job
        WHERE q_name = $1 AND dequeued_at IS NULL AND schedule_at IS NULL AND job.serial_key > keys.serial_key
        ORDER BY job.serial_key LIMIT 1)
    FROM keys WHERE keys.serial_key IS NOT NULL
";

/// Each key that no lease holds sends its first job.
const HEADS: &str = "heads AS MATERIALIZED (
    SELECT head.*
    FROM keys CROSS JOIN LATERAL (
        SELECT ctid AS place, tableoid AS home, id, serial_key, -priority::bigint AS rank,
            coalesce(expected_at, 'infinity'::timestamptz) AS wanted
        FROM {jobs}
        WHERE q_name = $1 AND dequeued_at IS NULL AND schedule_at IS NULL AND serial_key = keys.serial_key
        ORDER BY -priority::bigint, coalesce(expected_at, 'infinity'::timestamptz), id
        LIMIT 1
    ) AS head
    WHERE keys.serial_key IS NOT NULL
        AND NOT EXISTS (SELECT FROM {keys} AS busy WHERE busy.q_name = $1 AND busy.serial_key = keys.serial_key)
";

/// Where no key sends a job and nothing scheduled is due, the line is the index as above: jobs behind busy keys
/// cost nothing. Otherwise candidates are read in order without a lock, and locked one by one until there are
/// enough, so that nothing is ever locked that is not taken. Of those that wait without a key the first `reach` are
/// read: PostgreSQL walks an index for some where it would sort the whole line for all. It does not see how many are
/// some, for where they are about as many as there are it would sort them too. The last of them is an edge.
///
/// Where few are due they are found by their time, and sorted. Where more are, the first `reach` of all that are
/// scheduled are read in the same way, and those of them that are due are candidates.
const MERGED: &str = "), few AS MATERIALIZED (
    SELECT ctid AS place, tableoid AS home, id, serial_key, -priority::bigint AS rank,
        coalesce(expected_at, 'infinity'::timestamptz) AS wanted
    FROM {jobs}
    WHERE q_name = $1 AND dequeued_at IS NULL AND schedule_at IS NOT NULL AND schedule_at <= statement_timestamp()
    ORDER BY schedule_at
    LIMIT {few}
), many AS MATERIALIZED (
    SELECT count(*) = {few} AS are_many FROM few
), others AS MATERIALIZED (
    SELECT (SELECT open FROM open) AND (EXISTS (SELECT FROM heads){full} OR EXISTS (SELECT FROM few)) AS other
{first}, merged AS MATERIALIZED (
    SELECT ARRAY(
        SELECT held.ctid
        FROM (
            SELECT *, count(waiting) OVER before AS waited, count(scheduled) OVER before AS passed
            FROM (
                (SELECT ctid AS place, tableoid AS home, id, serial_key, -priority::bigint AS rank,
                    coalesce(expected_at, 'infinity'::timestamptz) AS wanted, true AS waiting, NULL::boolean AS scheduled,
                    true AS ready
                FROM {jobs}
                WHERE q_name = $1 AND dequeued_at IS NULL AND schedule_at IS NULL AND serial_key IS NULL
                ORDER BY -priority::bigint, coalesce(expected_at, 'infinity'::timestamptz), id
                LIMIT (SELECT {reach}))
                UNION ALL
                (SELECT few.*, NULL, true, true
                FROM few
                WHERE NOT (SELECT are_many FROM many)
                    AND {free}
                ORDER BY rank, wanted, id)
                UNION ALL
                SELECT place, home, id, serial_key, rank, wanted, NULL, true,
                    schedule_at <= statement_timestamp() AND {free}
                FROM (
                    SELECT ctid AS place, tableoid AS home, id, serial_key, -priority::bigint AS rank,
                        coalesce(expected_at, 'infinity'::timestamptz) AS wanted, schedule_at
                    FROM {jobs}
                    WHERE q_name = $1 AND dequeued_at IS NULL AND schedule_at IS NOT NULL
                        AND (SELECT are_many FROM many)
                    ORDER BY -priority::bigint, coalesce(expected_at, 'infinity'::timestamptz), id
                    LIMIT (SELECT {reach})
                ) AS scheduled
                UNION ALL
                SELECT *, NULL, NULL, true FROM heads
            ) AS candidates
            WINDOW before AS (ORDER BY rank, wanted, id ROWS UNBOUNDED PRECEDING)
            ORDER BY rank, wanted, id
        ) AS line
        CROSS JOIN LATERAL (
            SELECT ctid FROM {jobs} WHERE id = line.id AND dequeued_at IS NULL FOR UPDATE SKIP LOCKED
        ) AS held
        WHERE (SELECT other FROM others) AND line.ready AND line.waited < {reach} AND line.passed < {reach}{within}
            AND (line.serial_key IS NULL OR {lock_keyed_job}(line.place, $1, line.serial_key,
                hashtextextended(line.serial_key, hashtextextended($1, line.home::bigint)), {lease}))
        LIMIT {count}) AS places
), taken AS (
    DELETE FROM {jobs}
    WHERE ctid = ANY ((SELECT first.places || merged.places FROM first, merged)::tid[])
    RETURNING id, data, enqueued_at, schedule_at, expected_at, priority, attempt, serial_key, unique_key
)";

/// Of those that are due, the ones whose key no lease has.
const FREE: &str = "(serial_key IS NULL OR serial_key NOT IN (
                        SELECT busy.serial_key FROM {keys} AS busy WHERE busy.q_name = $1))";

/// One row for the batch. An array of nothing but nulls is null.
const LEASED: &str = ", leased AS (
    INSERT INTO {leases} (id, q_name, lease_until, size, jobs, data, enqueued_at, schedule_at, expected_at, priority,
        attempt, serial_key, unique_key)
    SELECT given.token, $1, statement_timestamp() + $3 * interval '1 microsecond', count(*),
        array_agg(id), array_agg(data::text), array_agg(enqueued_at),
        CASE WHEN count(schedule_at) > 0 THEN array_agg(schedule_at) END,
        CASE WHEN count(expected_at) > 0 THEN array_agg(expected_at) END,
        array_agg(priority), array_agg(attempt + 1),
        CASE WHEN count(serial_key) > 0 THEN array_agg(serial_key) END,
        CASE WHEN count(unique_key) > 0 THEN array_agg(unique_key) END
    FROM taken CROSS JOIN given GROUP BY given.token
), marked AS (
    UPDATE {unique} AS had SET lease = given.token
    FROM taken CROSS JOIN given
    WHERE taken.unique_key IS NOT NULL AND had.q_name = $1 AND had.unique_key = taken.unique_key
        AND had.job = taken.id
)";

/// How many microseconds it is until the queue's next scheduled job falls due.
pub(super) const DUE: &str =
    "(SELECT (extract(epoch FROM min(schedule_at) - statement_timestamp()) * 1000000)::bigint
    FROM {jobs}
    WHERE q_name = $1 AND dequeued_at IS NULL AND schedule_at IS NOT NULL
        AND schedule_at > statement_timestamp() AND schedule_at < 'infinity')";

const TAIL: &str = "\
SELECT id, data, enqueued_at, schedule_at, expected_at, priority, attempt, serial_key, unique_key,
    (SELECT token FROM {noted}), NULL::bigint, {missed}, false
FROM taken
UNION ALL
SELECT NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
    {due},
    {raced}, {other}
WHERE NOT EXISTS (SELECT FROM taken)";

/// Unique keys of jobs that were taken without a lease, which complete with their transaction.
/// $1 keys, $2 jobs, $3 queue.
pub(super) const FREE_UNIQUE: &str = "\
DELETE FROM {unique} AS had USING unnest($1::text[], $2::bigint[]) AS taken (unique_key, job)
WHERE had.q_name = $3 AND had.unique_key = taken.unique_key AND had.job = taken.job";

/// Wakes waiters at the commit: a serialization key has come free. $1 channels. Where a listener tells for all, it is
/// left to it, as by the table's trigger.
pub(super) const RING: &str = "\
SELECT CASE
    WHEN CASE WHEN pg_try_advisory_lock_shared(notifier_lock) THEN pg_advisory_unlock_shared(notifier_lock) ELSE false END
    THEN pg_notify(channel, '')::text
    ELSE pg_advisory_xact_lock_shared(writers_lock)::text
    END
FROM unnest($1::text[]) AS channel, {notifier_lock} AS notifier_lock, {writers_lock} AS writers_lock";
