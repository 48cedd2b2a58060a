//! How jobs are taken from a line that is nothing but its index, which is how nearly all are.
//!
//! They do what the first statement of `take.rs` does, and nothing that is of use only where nothing is taken:
//! the jobs are not copied on their way, and each row of the answer has four columns and not thirteen. Where they
//! take nothing the others are asked, which know why.
//!
//! Each can begin at a place in the line instead of its start. Entries of jobs that are gone stay in the index
//! until a vacuum may remove them, and a walk from the start passes by all of them.
//!
//! $1 queue, then what [`walks`] says, at the end the most jobs.

use super::Sized;
use super::take::{ANY_KEY, DUE, FIRST, Hold, KEYS, OPEN, others};

/// The statements of the walks along the line, and past jobs with keys. In a transaction $2 is the take's token, for a
/// lease its length in microseconds; a take that commits by itself has neither. The next three are the place from
/// behind which the line is walked: rank, wanted, id; and the one after them is where the walk ends.
pub(super) fn walks(hold: Hold, names: impl Fn(&str) -> String) -> Walks {
    let first = if hold == Hold::Nothing { 2 } else { 3 };
    let sized = |with: &str, others: &str, from: &str, values: usize| {
        let (given, take) = match hold {
            Hold::Nothing => ("", TAKE.to_owned()),
            Hold::Transaction => (TOKEN, format!("{NOTED}{TAKE} AND (SELECT takes FROM noted) IS NOT NULL")),
            Hold::Lease => (LEASE, LEASED.to_owned()),
        };
        let returned = if hold == Hold::Lease { "" } else { RETURNED };
        let walk = FIRST.replace("{from}", from);
        let text = format!("{with}{OPEN}{given}{others}), {walk}{take}{returned}");
        let text = ["{rank}", "{wanted}", "{id}", "{end}"]
            .into_iter()
            .zip(first..)
            .fold(text, |text, (name, number)| text.replace(name, &format!("${number}")));
        Sized::new(names(&text), first + values)
    };
    let from = |from: &str, values| sized("WITH ", &others(ANY_KEY), from, values);
    Walks {
        from_start: from("", 0),
        past_keys: sized("WITH RECURSIVE ", &format!("{KEYS}), {}", others(FREE_KEY)), "", 0),
        from_place: from(FROM, 3),
        before_rank: from(BEFORE_RANK, 4),
        before_wanted: from(BEFORE_WANTED, 4),
        to_id: from(TO_ID, 4),
    }
}

/// Statements that take along the line: from its start, past jobs of busy keys, from a place to its end, and from a
/// place to where the rank, the wanted or the id is another.
#[derive(Debug)]
pub(crate) struct Walks {
    pub(crate) from_start: Sized,
    pub(crate) past_keys: Sized,
    pub(crate) from_place: Sized,
    pub(crate) before_rank: Sized,
    pub(crate) before_wanted: Sized,
    pub(crate) to_id: Sized,
}

/// Whether the queue has more than the index of the line, and how many microseconds it is until its next scheduled job
/// falls due.
pub(super) fn beside() -> String {
    format!("WITH {OPEN}{}) SELECT other, {DUE} AS due FROM others", others(ANY_KEY))
}

/// A key that no lease has.
const FREE_KEY: &str = "
            SELECT FROM keys
            WHERE serial_key IS NOT NULL AND NOT EXISTS (
                SELECT FROM {keys} AS busy WHERE busy.q_name = $1 AND busy.serial_key = keys.serial_key)";

/// The index has its columns in this order and ascending, so that a comparison of rows begins the scan there.
const FROM: &str = "
            AND (-priority::bigint, coalesce(expected_at, 'infinity'::timestamptz), id)
                > ({rank}::bigint, {wanted}::timestamptz, {id}::bigint)";

const BEFORE_RANK: &str = "
            AND (-priority::bigint, coalesce(expected_at, 'infinity'::timestamptz), id)
                > ({rank}::bigint, {wanted}::timestamptz, {id}::bigint)
            AND -priority::bigint < {end}::bigint";

const BEFORE_WANTED: &str = "
            AND -priority::bigint = {rank}::bigint
            AND (coalesce(expected_at, 'infinity'::timestamptz), id) > ({wanted}::timestamptz, {id}::bigint)
            AND coalesce(expected_at, 'infinity'::timestamptz) < {end}::timestamptz";

const TO_ID: &str = "
            AND -priority::bigint = {rank}::bigint
            AND coalesce(expected_at, 'infinity'::timestamptz) = {wanted}::timestamptz
            AND id > {id}::bigint AND id <= {end}::bigint";

const TOKEN: &str = "given AS MATERIALIZED (
    SELECT $2::bigint AS token
), ";

const NOTED: &str = ", noted AS MATERIALIZED (
    SELECT CASE WHEN cardinality(places) > 0 THEN set_config('pq.takes',
        coalesce(nullif(current_setting('pq.takes', true), ''), ',') || token || ',', true) END AS takes
    FROM first, given
)";

const TAKE: &str = "
DELETE FROM {jobs} WHERE ctid = ANY ((SELECT places FROM first)::tid[])";

/// What few jobs have is one column, which is null for the others. What none of this line has is not there.
const RETURNED: &str = "
RETURNING id, data, enqueued_at,
    CASE WHEN attempt <> 0 OR priority <> 0 OR expected_at IS NOT NULL OR unique_key IS NOT NULL
        THEN ROW(attempt, priority, expected_at, unique_key) END";

const LEASE: &str = "given AS MATERIALIZED (
    SELECT nextval({tokens_name}) AS token, $2::bigint AS length
), ";

/// The row of the batch is the answer. What few jobs have is gathered only where one of the batch has it.
const LEASED: &str = ", taken AS (
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
