//! How jobs are taken from a line that is nothing but its index, which is how nearly all are.
//!
//! They do what the first statement of `take.rs` does, and nothing that is of use only where nothing is taken:
//! the jobs are not copied on their way, and each row of the answer has four columns and not thirteen. Where they
//! take nothing the others are asked, which know why.
//!
//! Each can begin at a place in the line instead of its start. Entries of jobs that are gone stay in the index
//! until a vacuum may remove them, and a walk from the start passes by all of them.
//!
//! $1 queue, then what [`texts`] says, at the end the most jobs.

use super::take::{DUE, FIRST, Hold, KEYS, OPEN, OTHERS};

/// The statement that walks from the start; the one that walks from behind the place $3, $4, $5: rank, wanted, id; and
/// those that end where the rank, the wanted, or the id of the same rank and wanted is $6. In a transaction $2 is the
/// take's token; for a lease it is its length in microseconds.
pub(super) fn texts(hold: Hold) -> [String; 5] {
    ["", FROM, BEFORE_RANK, BEFORE_WANTED, TO_ID].map(|from| text("WITH ", OTHERS, from, hold))
}

/// The statement that walks from the start past jobs with keys, where leases have all of those.
pub(super) fn past_keys(hold: Hold) -> String {
    text("WITH RECURSIVE ", &format!("{KEYS}), {FREE_KEYS}"), "", hold)
}

fn text(with: &str, others: &str, from: &str, hold: Hold) -> String {
    let (given, take) = match hold {
        Hold::Transaction => (TOKEN, TAKE),
        Hold::Lease => (LEASE, LEASED),
    };
    let first = FIRST.replace("{from}", from);
    format!("{with}{OPEN}{given}{others}), {first}, {take}")
}

/// What keeps the start of the index from being the whole line, where there are jobs with keys.
const FREE_KEYS: &str = "others AS MATERIALIZED (
    SELECT (SELECT open FROM open) AND (
        EXISTS (
            SELECT FROM {jobs}
            WHERE q_name = $1 AND dequeued_at IS NULL AND schedule_at IS NOT NULL
                AND schedule_at <= statement_timestamp())
        OR EXISTS (
            SELECT FROM keys
            WHERE serial_key IS NOT NULL AND NOT EXISTS (
                SELECT FROM {keys} AS busy WHERE busy.q_name = $1 AND busy.serial_key = keys.serial_key))) AS other
";

/// Whether the queue has more than the index of the line, and how many microseconds it is until its next scheduled job
/// falls due.
pub(super) fn beside() -> String {
    format!("WITH {OPEN}{OTHERS}) SELECT other, {DUE} AS due FROM others")
}

/// The index has its columns in this order and ascending, so that a comparison of rows begins the scan there.
const FROM: &str = "
            AND (-priority::bigint, coalesce(expected_at, 'infinity'::timestamptz), id)
                > ($3::bigint, $4::timestamptz, $5::bigint)";

const BEFORE_RANK: &str = "
            AND (-priority::bigint, coalesce(expected_at, 'infinity'::timestamptz), id)
                > ($3::bigint, $4::timestamptz, $5::bigint)
            AND -priority::bigint < $6::bigint";

const BEFORE_WANTED: &str = "
            AND -priority::bigint = $3::bigint
            AND (coalesce(expected_at, 'infinity'::timestamptz), id) > ($4::timestamptz, $5::bigint)
            AND coalesce(expected_at, 'infinity'::timestamptz) < $6::timestamptz";

const TO_ID: &str = "
            AND -priority::bigint = $3::bigint
            AND coalesce(expected_at, 'infinity'::timestamptz) = $4::timestamptz
            AND id > $5::bigint AND id <= $6::bigint";

const TOKEN: &str = "given AS MATERIALIZED (
    SELECT $2::bigint AS token
), ";

/// What few jobs have is one column, which is null for the others. What none of this line has is not there.
const TAKE: &str = "noted AS MATERIALIZED (
    SELECT CASE WHEN cardinality(places) > 0 THEN set_config('pq.takes',
        coalesce(nullif(current_setting('pq.takes', true), ''), ',') || token || ',', true) END AS takes
    FROM first, given
)
DELETE FROM {jobs}
WHERE ctid = ANY ((SELECT places FROM first)::tid[]) AND (SELECT takes FROM noted) IS NOT NULL
RETURNING id, data, enqueued_at,
    CASE WHEN attempt <> 0 OR priority <> 0 OR expected_at IS NOT NULL OR unique_key IS NOT NULL
        THEN ROW(attempt, priority, expected_at, unique_key) END";

const LEASE: &str = "given AS MATERIALIZED (
    SELECT nextval({tokens_name}) AS token, $2::bigint AS length
), ";

/// The row of the batch is the answer. What few jobs have is gathered only where one of the batch has it.
const LEASED: &str = "taken AS (
    DELETE FROM {jobs}
    WHERE ctid = ANY ((SELECT places FROM first)::tid[])
    RETURNING id, data, enqueued_at, expected_at, priority, attempt, unique_key
), batch AS MATERIALIZED (
    SELECT count(*)::integer AS size, array_agg(id) AS jobs, array_agg(data::text) AS data,
        array_agg(enqueued_at) AS enqueued_at,
        bool_or(attempt <> 0 OR priority <> 0 OR expected_at IS NOT NULL OR unique_key IS NOT NULL) AS special
    FROM taken
), marked AS (
    UPDATE {unique} AS had SET lease = given.token
    FROM taken CROSS JOIN given
    WHERE (SELECT special FROM batch) AND taken.unique_key IS NOT NULL
        AND had.q_name = $1 AND had.unique_key = taken.unique_key AND had.job = taken.id
)
INSERT INTO {leases} (id, q_name, lease_until, size, jobs, data, enqueued_at, expected_at, priority, attempt,
    unique_key)
SELECT given.token, $1, statement_timestamp() + given.length * interval '1 microsecond',
    batch.size, batch.jobs, batch.data, batch.enqueued_at,
    CASE WHEN special THEN (SELECT CASE WHEN count(expected_at) > 0 THEN array_agg(expected_at) END FROM taken) END,
    CASE WHEN special THEN (SELECT array_agg(priority) FROM taken) ELSE array_fill(0, ARRAY[batch.size]) END,
    CASE WHEN special THEN (SELECT array_agg(attempt + 1) FROM taken) ELSE array_fill(1, ARRAY[batch.size]) END,
    CASE WHEN special THEN (SELECT CASE WHEN count(unique_key) > 0 THEN array_agg(unique_key) END FROM taken) END
FROM batch CROSS JOIN given
WHERE batch.size > 0
RETURNING id, jobs, data, enqueued_at, expected_at, priority, attempt, unique_key";
