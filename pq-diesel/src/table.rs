//! Names of schemas, tables and derived objects, and their quoting. No other module quotes names.

use std::fmt;

use md5::{Digest, Md5};

use crate::Error;

/// The longest identifier of PostgreSQL, in bytes. It truncates longer ones without an error.
pub(crate) const MAX_IDENTIFIER_BYTES: usize = 63;

/// A SQL identifier. Its [`fmt::Display`] quotes it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Ident(String);

impl Ident {
    /// Checks an identifier. `what` is the kind of object for the error.
    pub(crate) fn new(what: &'static str, name: &str) -> Result<Self, Error> {
        let reason = if name.is_empty() {
            "it must not be empty".to_owned()
        } else if name.len() > MAX_IDENTIFIER_BYTES {
            format!("it must have at most {MAX_IDENTIFIER_BYTES} bytes, and has {}", name.len())
        } else if name.contains('\0') {
            "it must not contain a NUL character".to_owned()
        } else {
            return Ok(Self(name.to_owned()));
        };
        Err(Error::InvalidIdentifier { what, name: name.chars().take(40).collect(), reason })
    }

    /// Returns the identifier of a derived object: `base_suffix`.
    ///
    /// PostgreSQL truncates long identifiers, and two of them with a common prefix would collide. A long one therefore
    /// consists of the start of the base, eight digits of its md5, and the suffix.
    fn derived(&self, suffix: &str) -> Self {
        let plain = format!("{}_{suffix}", self.0);
        if plain.len() <= MAX_IDENTIFIER_BYTES {
            return Self(plain);
        }
        let tail = format!("_{}_{suffix}", &md5_hex(&self.0)[..8]);
        let start = cut(&self.0, MAX_IDENTIFIER_BYTES - tail.len());
        Self(format!("{start}{tail}"))
    }

    /// Returns the identifier of a channel, from a name that [`channel`] or [`notified_channels`] returned.
    pub(crate) fn of_channel(name: &str) -> Self {
        Self(name.to_owned())
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the name as a SQL string literal.
    pub(crate) fn literal(&self) -> String {
        literal(&self.0)
    }
}

impl fmt::Display for Ident {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.replace('"', "\"\""))
    }
}

/// The table of jobs and its schema. Default: `queue` in `pq`.
///
/// Any name of 1 to 63 bytes without NUL is allowed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Table {
    pub(crate) schema: Ident,
    pub(crate) name: Ident,
}

impl Table {
    /// The default schema.
    pub const DEFAULT_SCHEMA: &'static str = "pq";
    /// The default table.
    pub const DEFAULT_NAME: &'static str = "queue";
    /// The suffixes of the other tables that the migrations create.
    const DERIVED: [&'static str; 17] = [
        "archive",
        "leases",
        "settled",
        "steps",
        "signals",
        "keys",
        "unique",
        "controls",
        "places",
        "buckets",
        "workers",
        "counters",
        "cron",
        "audit",
        "notes",
        "waits",
        "migrations",
    ];

    /// Checks the two names, without a connection.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidIdentifier`].
    pub fn new(schema: &str, name: &str) -> Result<Self, Error> {
        Ok(Self { schema: Ident::new("schema", schema)?, name: Ident::new("table", name)? })
    }

    /// Returns the quoted name of the table, with its schema.
    pub(crate) fn jobs(&self) -> String {
        self.qualified(&self.name)
    }

    /// Returns the quoted name of the archive, with its schema.
    pub(crate) fn archive(&self) -> String {
        self.qualified(&self.named("archive"))
    }

    /// Returns the quoted name of the table of applied migrations, with its schema.
    pub(crate) fn migrations(&self) -> String {
        self.qualified(&self.named("migrations"))
    }

    /// Returns the quoted name of a derived object, with its schema.
    pub(crate) fn derived(&self, suffix: &str) -> String {
        self.qualified(&self.named(suffix))
    }

    /// Returns the unquoted names of all tables that the migrations create.
    pub(crate) fn names(&self) -> Vec<String> {
        let names = Self::DERIVED.map(|suffix| self.named(suffix).0);
        std::iter::once(self.name.0.clone()).chain(names).collect()
    }

    /// Returns the quoted name of the table as a SQL string literal, for functions that take a name.
    pub(crate) fn jobs_literal(&self) -> String {
        literal(&self.jobs())
    }

    /// Returns the quoted name of a derived object as a SQL string literal.
    pub(crate) fn literal(&self, suffix: &str) -> String {
        literal(&self.derived(suffix))
    }

    /// Returns a SQL expression for the number of a channel's notifier lock, an advisory lock. `channel` is a SQL
    /// expression. The table's trigger computes the same number.
    pub(crate) fn notifier_lock(&self, channel: &str) -> String {
        format!(
            "hashtextextended(concat('pq notifier ', {channel}), {}::regclass::oid::bigint)",
            self.jobs_literal()
        )
    }

    /// Returns the name of a derived object.
    pub(crate) fn named(&self, suffix: &str) -> Ident {
        self.name.derived(suffix)
    }

    fn qualified(&self, name: &Ident) -> String {
        format!("{}.{name}", self.schema)
    }
}

impl Default for Table {
    fn default() -> Self {
        Self { schema: Ident(Self::DEFAULT_SCHEMA.into()), name: Ident(Self::DEFAULT_NAME.into()) }
    }
}

/// Displays the table as PostgreSQL's error messages do, without quotes.
impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.schema.as_str(), self.name.as_str())
    }
}

/// Returns the channel on which puts to a queue are notified, as the identifier that LISTEN takes.
pub(crate) fn channel(queue: &str) -> Ident {
    if queue.len() > MAX_IDENTIFIER_BYTES {
        Ident(format!("pq_{}", md5_hex(queue)))
    } else {
        Ident(queue.to_owned())
    }
}

/// Returns the channel on which the ends of awaited jobs of a table are notified. The trigger of its archive computes
/// the same name.
pub(crate) fn end_channel(table: &Table) -> Ident {
    let archive = table.named("archive");
    Ident(format!("pq_{}", md5_hex(&format!("{}.{}", table.schema.as_str(), archive.as_str()))))
}

/// Returns all channels on which a put to a queue is notified: [`channel`], and the one on which Python's pq
/// listens if it differs, because Python counts characters and PostgreSQL counts bytes. The table's trigger
/// notifies the same channels.
pub(crate) fn notified_channels(queue: &str) -> Vec<Ident> {
    let mut channels = vec![channel(queue)];
    if queue.len() > MAX_IDENTIFIER_BYTES && queue.chars().count() <= MAX_IDENTIFIER_BYTES {
        channels.push(Ident(cut(queue, MAX_IDENTIFIER_BYTES).to_owned()));
    }
    channels
}

/// Returns a SQL string literal, in the form whose meaning does not depend on the server's settings.
fn literal(text: &str) -> String {
    format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}

fn md5_hex(text: &str) -> String {
    Md5::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Returns at most the first `bytes` bytes of a text, up to a character boundary.
fn cut(text: &str, bytes: usize) -> &str {
    let mut end = bytes.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_are_quoted_and_quotes_doubled() -> Result<(), Error> {
        let table = Table::new("My \"own\"; --", "a'b")?;
        assert_eq!(table.jobs(), "\"My \"\"own\"\"; --\".\"a'b\"");
        Ok(())
    }

    #[test]
    fn names_in_string_literals_are_escaped() -> Result<(), Error> {
        let table = Table::new("a\\b", "it's")?;
        assert_eq!(table.jobs_literal(), "E'\"a\\\\b\".\"it''s\"'");
        Ok(())
    }

    #[test]
    fn identifiers_that_postgres_would_truncate_are_refused() {
        let long = "x".repeat(64);
        let message = Table::new("pq", &long).map_err(|e| e.to_string());
        assert!(message.is_err_and(|m| m.contains("at most 63 bytes, and has 64") && m.contains("table")));
        assert!(Table::new("", "queue").is_err());
        assert!(Table::new("p\0q", "queue").is_err());
        assert!(Table::new("pq", &"ж".repeat(31)).is_ok());
    }

    #[test]
    fn derived_names_of_long_tables_are_distinct_and_fit() -> Result<(), Error> {
        let (one, two) = ("ж".repeat(31), format!("{}a", "ж".repeat(31)));
        let (one, two) = (Table::new("pq", &one)?, Table::new("pq", &two)?);
        assert_ne!(one.archive(), two.archive());
        for suffix in ["archive_outcome_check", "q_name_check", "migrations"] {
            assert!(one.named(suffix).as_str().len() <= MAX_IDENTIFIER_BYTES);
        }
        Ok(())
    }

    #[test]
    fn channels_of_names_over_63_bytes_are_their_md5() {
        assert_eq!(channel(&"x".repeat(63)).as_str().len(), 63);
        assert_eq!(channel(&"x".repeat(64)).as_str(), "pq_c1bb4f81d892b2d57947682aeb252456");
        assert!(channel(&"ж".repeat(32)).as_str().starts_with("pq_"));
    }
}
