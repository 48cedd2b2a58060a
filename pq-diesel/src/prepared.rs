//! Statements that diesel prepares by their text, because their tables are chosen at run time.

use std::marker::PhantomData;

use diesel::pg::data_types::{PgInterval, PgTimestamp};
use diesel::pg::{Pg, PgConnection};
use diesel::prelude::*;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::sql_types::{Array, BigInt, Integer, Interval, Nullable, Text, Timestamptz};

use chrono::{DateTime, Utc};

use crate::isolation::run_single;

/// A statement's text, cut at the first use of each parameter.
///
/// diesel writes a parameter when its value is bound, so the first uses of `$1`, `$2` and so on must stand in this
/// order. Later uses are plain text.
#[derive(Debug)]
pub(crate) struct Statement {
    pieces: Vec<String>,
}

impl Default for Statement {
    fn default() -> Self {
        Self { pieces: vec![String::new()] }
    }
}

impl Statement {
    /// Appends text, which may contain anything.
    pub(crate) fn push_text(&mut self, text: &str) {
        if let Some(last) = self.pieces.last_mut() {
            last.push_str(text);
        }
    }

    /// Appends the parameter `$number`.
    pub(crate) fn push_param(&mut self, number: usize) {
        if number == self.pieces.len() {
            self.pieces.push(String::new());
        } else {
            debug_assert!(number < self.pieces.len(), "${number} out of order in {}", self.text());
            self.push_text(&format!("${number}"));
        }
    }

    /// Returns the text that PostgreSQL is sent.
    pub(crate) fn text(&self) -> String {
        let (first, rest) = self.pieces.split_first().map_or(("", &[][..]), |(first, rest)| (first, rest));
        rest.iter().zip(1..).fold(first.to_owned(), |text, (piece, number)| format!("{text}${number}{piece}"))
    }

    /// Binds values to the parameters. The result is a query for rows of the SQL type `Row`.
    pub(crate) fn with<'a, Row>(&'a self, values: &'a [Value<'a>]) -> Bound<'a, Row> {
        debug_assert_eq!(values.len() + 1, self.pieces.len(), "a value for each parameter");
        Bound { statement: self, values, row: PhantomData }
    }
}

/// The value of a parameter.
pub(crate) enum Value<'a> {
    Text(&'a str),
    BigInt(i64),
    Integer(i32),
    OptionalInteger(Option<i32>),
    Instant(Option<DateTime<Utc>>),
    Timestamp(PgTimestamp),
    OptionalText(Option<&'a str>),
    OptionalBigInt(Option<i64>),
    Texts(Vec<&'a str>),
    SomeTexts(Option<Vec<&'a str>>),
    OptionalTexts(Vec<Option<&'a str>>),
    /// An array with a null for each absent text, or null if all are absent.
    RareTexts(Option<Vec<Option<&'a str>>>),
    BigInts(Vec<i64>),
    OptionalBigInts(Option<Vec<i64>>),
    Integers(Vec<i32>),
    Instants(Vec<Option<DateTime<Utc>>>),
    Delays(Vec<Option<PgInterval>>),
}

impl Value<'_> {
    /// Returns a number of rows as a `bigint`. A larger number is no limit in practice.
    pub(crate) fn count(count: usize) -> Self {
        Self::BigInt(i64::try_from(count).unwrap_or(i64::MAX))
    }
}

impl<'a> Value<'a> {
    /// Returns an array of texts that few jobs have, which is null if none has one.
    pub(crate) fn rare_texts(texts: impl Iterator<Item = Option<&'a str>> + Clone) -> Self {
        Self::RareTexts(texts.clone().any(|text| text.is_some()).then(|| texts.collect()))
    }
}

/// A statement with the values of its parameters, which returns rows of the SQL type `Row`.
#[allow(missing_debug_implementations, reason = "the values may hold payloads")]
pub struct Bound<'a, Row> {
    statement: &'a Statement,
    values: &'a [Value<'a>],
    row: PhantomData<fn() -> Row>,
}

impl<Row> QueryFragment<Pg> for Bound<'_, Row> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        let (first, rest) = self.statement.pieces.split_first().unwrap_or((const { &String::new() }, &[]));
        out.push_sql(first);
        for (value, piece) in self.values.iter().zip(rest) {
            match value {
                Value::Text(value) => out.push_bind_param::<Text, _>(*value)?,
                Value::BigInt(value) => out.push_bind_param::<BigInt, _>(value)?,
                Value::Integer(value) => out.push_bind_param::<Integer, _>(value)?,
                Value::OptionalInteger(value) => out.push_bind_param::<Nullable<Integer>, _>(value)?,
                Value::Instant(value) => out.push_bind_param::<Nullable<Timestamptz>, _>(value)?,
                Value::Timestamp(value) => out.push_bind_param::<Timestamptz, _>(value)?,
                Value::OptionalText(value) => out.push_bind_param::<Nullable<Text>, _>(value)?,
                Value::OptionalBigInt(value) => out.push_bind_param::<Nullable<BigInt>, _>(value)?,
                Value::OptionalTexts(values) => out.push_bind_param::<Array<Nullable<Text>>, _>(values)?,
                Value::RareTexts(values) => {
                    out.push_bind_param::<Nullable<Array<Nullable<Text>>>, _>(values)?;
                }
                Value::BigInts(values) => out.push_bind_param::<Array<BigInt>, _>(values)?,
                Value::OptionalBigInts(values) => {
                    out.push_bind_param::<Nullable<Array<BigInt>>, _>(values)?;
                }
                Value::Texts(values) => out.push_bind_param::<Array<Text>, _>(values)?,
                Value::SomeTexts(values) => out.push_bind_param::<Nullable<Array<Text>>, _>(values)?,
                Value::Integers(values) => out.push_bind_param::<Array<Integer>, _>(values)?,
                Value::Instants(values) => {
                    out.push_bind_param::<Array<Nullable<Timestamptz>>, _>(values)?;
                }
                Value::Delays(values) => out.push_bind_param::<Array<Nullable<Interval>>, _>(values)?,
            }
            out.push_sql(piece);
        }
        Ok(())
    }
}

/// diesel caches a statement with a static id by its Rust type, so a handle on another table would be given this one's
/// statement. Without a static id it caches by the text.
impl<Row> QueryId for Bound<'_, Row> {
    type QueryId = ();
    const HAS_STATIC_QUERY_ID: bool = false;
}

impl<Row> Query for Bound<'_, Row> {
    type SqlType = Row;
}

impl<Row> Bound<'_, Row> {
    /// Runs the statement by `run`, as [`run_single`] does.
    pub(crate) fn run<T>(
        self,
        conn: &mut PgConnection,
        run: impl Fn(Self, &mut PgConnection) -> QueryResult<T>,
    ) -> QueryResult<T> {
        run_single(conn, |conn| run(self, conn))
    }
}

impl<Row> Clone for Bound<'_, Row> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<Row> Copy for Bound<'_, Row> {}

impl<Row> RunQueryDsl<PgConnection> for Bound<'_, Row> {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parameter_that_is_used_twice_is_bound_once() {
        let mut statement = Statement::default();
        for (text, number) in [("SELECT ", 1), (", ", 2), (" WHERE a = ", 1)] {
            statement.push_text(text);
            statement.push_param(number);
        }
        assert_eq!(statement.pieces, ["SELECT ", ", ", " WHERE a = $1"]);
        assert_eq!(statement.text(), "SELECT $1, $2 WHERE a = $1");
        let values = [Value::Text("a"), Value::BigInt(1)];
        let query = statement.with::<Text>(&values);
        let sql = diesel::debug_query::<Pg, _>(&query).to_string();
        assert!(sql.starts_with("SELECT $1, $2 WHERE a = $1"), "{sql}");
    }
}
