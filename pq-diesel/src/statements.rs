//! All of the SQL that puts, takes and counts jobs, each statement with its order and its locks.

use crate::prepared::Statement;
use crate::table::Table;

/// The statements for one table.
#[derive(Debug)]
pub(crate) struct Statements {
    pub(crate) put_one: Statement,
    pub(crate) put_one_quietly: Statement,
    pub(crate) put: Statement,
    pub(crate) put_quietly: Statement,
    pub(crate) take_one: Statement,
    pub(crate) take: Statement,
    pub(crate) update: Statement,
    pub(crate) give_back: Statement,
    pub(crate) bury: Statement,
    pub(crate) counts: Statement,
    pub(crate) clear: Statement,
}

impl Statements {
    pub(crate) fn new(table: &Table) -> Self {
        let (jobs, archive) = (table.jobs(), table.archive());
        let statement =
            |sql: &str| Statement::new(&sql.replace("{jobs}", &jobs).replace("{archive}", &archive));
        let put = |sql: &str, quiet: &str| statement(&sql.replace("{quiet}", quiet));
        Self {
            put_one: put(PUT_ONE, ""),
            put_one_quietly: put(PUT_ONE, QUIET),
            put: put(PUT, ""),
            put_quietly: put(PUT, QUIET),
            take_one: statement(&TAKE.replace("$2", "1")),
            take: statement(TAKE),
            update: statement(UPDATE),
            give_back: statement(GIVE_BACK),
            bury: statement(BURY),
            counts: statement(COUNTS),
            clear: statement(CLEAR),
        }
    }
}

/// A job that is due at once, of priority 0. $1 queue, $2 payload.
const PUT_ONE: &str = "\
INSERT INTO {jobs} (q_name, data) SELECT $1, $2::json{quiet} RETURNING id";

/// Switches the trigger off for this transaction, before it asks. Only for statements that are a
/// transaction of their own.
const QUIET: &str = " FROM (SELECT set_config('pq.notify', 'off', true)) AS quiet";

/// Many jobs, in order: the ids ascend as they are inserted, and they are returned as inserted.
/// A delay is added to the clock at the statement's start, not at the transaction's.
/// $1 queue; arrays of a value a job: $2 payloads, $3 and $4 `schedule_at` as instant or delay, $5 and $6
/// `expected_at` likewise, $7 priorities.
const PUT: &str = "\
INSERT INTO {jobs} (q_name, data, schedule_at, expected_at, priority)
SELECT $1, put.data::json,
    coalesce(put.schedule_at, statement_timestamp() + put.schedule_in),
    coalesce(put.expected_at, statement_timestamp() + put.expected_in),
    put.priority
FROM (
    SELECT * FROM unnest($2::text[], $3::timestamptz[], $4::interval[], $5::timestamptz[], $6::interval[],
        $7::integer[])
    WITH ORDINALITY AS given (data, schedule_at, schedule_in, expected_at, expected_in, priority, position)
    CROSS JOIN (SELECT true{quiet}) AS quietly
    ORDER BY position
) AS put
RETURNING id";

/// Takes the first ready jobs by deleting them: one dead row a job and no second statement. A rollback
/// brings the row back in its place.
///
/// While no scheduled job is due the line is an index, walked from its start. Where some are, they
/// are sorted in: candidates are read in order without a lock, and locked one by one until there are
/// enough, so that nothing is ever locked that is not taken.
///
/// SKIP LOCKED passes over what others hold. The picks are materialised and gathered into an array
/// before the DELETE, for a subquery that locks may otherwise be run more than once and take too many.
/// A row that was locked in a newer version than this statement may see (somebody has just updated
/// it) is not deleted; the last column then says that a new look is due.
///
/// The take notes a token in a setting that is local to the transaction. It is there exactly as long as
/// the transaction holds the jobs: a savepoint that is rolled back takes it away, and so does the end.
///
/// Where nothing was taken, one row says after how many microseconds the next job falls due.
/// To take one job is a statement of its own, with the number in its text: what it costs is then known
/// without the parameters, so PostgreSQL plans it once for all. With a parameter there it would plan anew at
/// each call, which takes longer than the rest.
/// $1 queue, $2 the most jobs.
const TAKE: &str = "\
WITH first AS MATERIALIZED (
    SELECT ctid FROM {jobs}
    WHERE q_name = $1 AND dequeued_at IS NULL AND schedule_at IS NULL
        AND NOT EXISTS (
            SELECT FROM {jobs}
            WHERE q_name = $1 AND dequeued_at IS NULL AND schedule_at <= statement_timestamp())
    ORDER BY -priority::bigint, coalesce(expected_at, 'infinity'::timestamptz), id
    LIMIT $2
    FOR UPDATE SKIP LOCKED
), merged AS MATERIALIZED (
    SELECT held.ctid
    FROM (
        (SELECT id, -priority::bigint AS rank, coalesce(expected_at, 'infinity'::timestamptz) AS wanted
        FROM {jobs}
        WHERE q_name = $1 AND dequeued_at IS NULL AND schedule_at IS NULL
        ORDER BY -priority::bigint, coalesce(expected_at, 'infinity'::timestamptz), id
        LIMIT 10000)
        UNION ALL
        SELECT id, -priority::bigint, coalesce(expected_at, 'infinity'::timestamptz)
        FROM {jobs}
        WHERE q_name = $1 AND dequeued_at IS NULL AND schedule_at <= statement_timestamp()
        ORDER BY rank, wanted, id
    ) AS line
    CROSS JOIN LATERAL (
        SELECT ctid FROM {jobs} WHERE id = line.id AND dequeued_at IS NULL FOR UPDATE SKIP LOCKED
    ) AS held
    WHERE EXISTS (
        SELECT FROM {jobs}
        WHERE q_name = $1 AND dequeued_at IS NULL AND schedule_at <= statement_timestamp())
    LIMIT $2
), taken AS (
    DELETE FROM {jobs}
    WHERE ctid = ANY (ARRAY(SELECT ctid FROM first UNION ALL SELECT ctid FROM merged))
    RETURNING id, data::text, enqueued_at, schedule_at, expected_at, priority, attempt
), noted AS MATERIALIZED (
    SELECT token, set_config('pq.takes',
        coalesce(nullif(current_setting('pq.takes', true), ''), ',') || token || ',', true)
    FROM (SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS token) AS given
)
SELECT id, data, enqueued_at, schedule_at, expected_at, priority, attempt, token, NULL::bigint, false
FROM taken CROSS JOIN noted
UNION ALL
SELECT NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
    (SELECT (extract(epoch FROM min(schedule_at) - statement_timestamp()) * 1000000)::bigint
    FROM {jobs}
    WHERE q_name = $1 AND dequeued_at IS NULL
        AND schedule_at > statement_timestamp() AND schedule_at < 'infinity'),
    EXISTS (SELECT FROM first) OR EXISTS (SELECT FROM merged)
WHERE NOT EXISTS (SELECT FROM taken)";

/// Notes a new payload for a job that this transaction has taken. Its row is deleted, so the payload
/// is kept in a setting that is local to the transaction: it follows savepoints, and is gone when the
/// transaction ends. No row where the transaction does not hold the job.
/// $1 job, $2 payload, $3 the take's token.
const UPDATE: &str = "\
SELECT set_config('pq.payloads', (
        coalesce(nullif(current_setting('pq.payloads', true), ''), '{}')::jsonb
        || jsonb_build_object($1::bigint::text, $2::text))::text, true)
WHERE strpos(current_setting('pq.takes', true), ',' || $3::bigint::text || ',') > 0
    AND NOT EXISTS (SELECT FROM {jobs} WHERE id = $1)";

/// Inserts a job that this transaction has taken anew, under its id, with the payload noted last. The
/// trigger tells waiters at the commit. No row where the transaction does not hold the job.
/// $1 job, $2 payload where none was noted, $3 the take's token, $4 queue, then its columns.
const GIVE_BACK: &str = "\
INSERT INTO {jobs} (id, data, q_name, enqueued_at, schedule_at, expected_at, priority, attempt)
SELECT $1::bigint,
    coalesce(nullif(current_setting('pq.payloads', true), '')::jsonb ->> $1::bigint::text, $2::text)::json,
    given.*
FROM (SELECT $3::bigint AS token) AS held,
    (SELECT $4::text, $5::timestamptz, $6::timestamptz, $7::timestamptz, $8::integer, $9::integer) AS given
WHERE strpos(current_setting('pq.takes', true), ',' || held.token::text || ',') > 0
    AND NOT EXISTS (SELECT FROM {jobs} WHERE id = $1)
RETURNING id";

/// Keeps a job that can never be worked. Twice the same one is once.
const BURY: &str = "\
INSERT INTO {archive}
    (id, data, q_name, enqueued_at, schedule_at, expected_at, priority, attempt, error, outcome)
SELECT $1, $2::json, $3, $4, $5, $6, $7, $8, $9, 'dead'
ON CONFLICT (id) DO NOTHING";

/// One snapshot, no locks. $1 queue.
const COUNTS: &str = "\
SELECT
    count(*) FILTER (WHERE dequeued_at IS NULL AND (schedule_at IS NULL OR schedule_at <= statement_timestamp())),
    count(*) FILTER (WHERE dequeued_at IS NULL AND schedule_at > statement_timestamp()),
    count(*) FILTER (WHERE dequeued_at IS NOT NULL),
    (SELECT count(*) FROM {archive} WHERE q_name = $1 AND outcome = 'dead')
FROM {jobs} WHERE q_name = $1";

/// Deletes what nobody holds; what others hold is passed over, not waited for. $1 queue.
const CLEAR: &str = "\
WITH free AS MATERIALIZED (SELECT ctid FROM {jobs} WHERE q_name = $1 FOR UPDATE SKIP LOCKED)
DELETE FROM {jobs} WHERE ctid = ANY (ARRAY(SELECT ctid FROM free))";
