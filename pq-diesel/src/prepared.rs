//! Statements that are prepared by name, although their tables are chosen at run time.

use std::marker::PhantomData;

use diesel::pg::data_types::{PgInterval, PgTimestamp};
use diesel::pg::{Pg, PgConnection};
use diesel::prelude::*;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::sql_types::{Array, BigInt, Integer, Interval, Nullable, Text, Timestamptz};

use chrono::{DateTime, Utc};

/// A statement's text, cut at the first use of each of its parameters `$1`, `$2` and so on, which
/// must stand in that order. diesel writes those itself; later uses are plain text.
#[derive(Debug)]
pub(crate) struct Statement {
    pieces: Vec<String>,
}

impl Statement {
    pub(crate) fn new(sql: &str) -> Self {
        let mut pieces = Vec::new();
        let mut rest = sql;
        while let Some(at) = rest.find(&format!("${}", pieces.len() + 1)) {
            let (piece, tail) = rest.split_at(at);
            rest = &tail[1 + (pieces.len() + 1).to_string().len()..];
            pieces.push(piece.to_owned());
        }
        pieces.push(rest.to_owned());
        debug_assert!(!sql.contains(&format!("${}", pieces.len())), "parameters out of order: {sql}");
        Self { pieces }
    }

    /// The statement as PostgreSQL is sent it.
    pub(crate) fn text(&self) -> String {
        let (first, rest) = self.pieces.split_first().map_or(("", &[][..]), |(first, rest)| (first, rest));
        rest.iter().zip(1..).fold(first.to_owned(), |text, (piece, number)| format!("{text}${number}{piece}"))
    }

    /// The statement with its values, as a query of rows of the SQL type `Row`.
    pub(crate) fn with<'a, Row>(&'a self, values: &'a [Value<'a>]) -> Bound<'a, Row> {
        debug_assert_eq!(values.len() + 1, self.pieces.len(), "a value for each parameter");
        Bound { statement: self, values, row: PhantomData }
    }
}

/// A parameter's value.
pub(crate) enum Value<'a> {
    Text(&'a str),
    BigInt(i64),
    Integer(i32),
    Instant(Option<DateTime<Utc>>),
    Timestamp(PgTimestamp),
    OptionalText(Option<&'a str>),
    OptionalBigInt(Option<i64>),
    Texts(Vec<&'a str>),
    SomeTexts(Option<Vec<&'a str>>),
    OptionalTexts(Vec<Option<&'a str>>),
    BigInts(Vec<i64>),
    OptionalBigInts(Option<Vec<i64>>),
    Integers(Vec<i32>),
    Instants(Vec<Option<DateTime<Utc>>>),
    Delays(Vec<Option<PgInterval>>),
}

pub(crate) struct Bound<'a, Row> {
    statement: &'a Statement,
    values: &'a [Value<'a>],
    row: PhantomData<Row>,
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
                Value::Instant(value) => out.push_bind_param::<Nullable<Timestamptz>, _>(value)?,
                Value::Timestamp(value) => out.push_bind_param::<Timestamptz, _>(value)?,
                Value::OptionalText(value) => out.push_bind_param::<Nullable<Text>, _>(value)?,
                Value::OptionalBigInt(value) => out.push_bind_param::<Nullable<BigInt>, _>(value)?,
                Value::OptionalTexts(values) => out.push_bind_param::<Array<Nullable<Text>>, _>(values)?,
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

/// No static id: diesel would cache by the Rust type, and a handle on another table would be given
/// this one's statement. Without one it caches by the SQL text.
impl<Row> QueryId for Bound<'_, Row> {
    type QueryId = ();
    const HAS_STATIC_QUERY_ID: bool = false;
}

impl<Row> Query for Bound<'_, Row> {
    type SqlType = Row;
}

impl<Row> RunQueryDsl<PgConnection> for Bound<'_, Row> {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parameter_that_is_used_twice_is_bound_once() {
        let statement = Statement::new("SELECT $1, $2 WHERE a = $1");
        assert_eq!(statement.pieces, ["SELECT ", ", ", " WHERE a = $1"]);
        assert_eq!(statement.text(), "SELECT $1, $2 WHERE a = $1");
        let values = [Value::Text("a"), Value::BigInt(1)];
        let query = statement.with::<Text>(&values);
        let sql = diesel::debug_query::<Pg, _>(&query).to_string();
        assert!(sql.starts_with("SELECT $1, $2 WHERE a = $1"), "{sql}");
    }
}
