//! Connection strings: parsed by libpq, and shown without anything secret.

use std::fmt;

use crate::libpq;

/// A libpq connection string: a URL or `key=value` words.
///
/// Only libpq gets the text. `Debug` and every error show the server and the database, never a password.
#[derive(Clone)]
pub(crate) struct ConnInfo {
    text: String,
    /// The server and the database, or why neither can be shown.
    shown: Result<String, Unshown>,
}

/// The reason why a connection string cannot be shown.
#[derive(Clone)]
enum Unshown {
    /// libpq cannot parse it. Holds the reason, without any part of the string.
    Invalid(String),
    /// A part of the password may have become a part of the server's name.
    Ambiguous,
}

impl ConnInfo {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        let text = text.into();
        let shown = show(&text);
        Self { text, shown }
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }

    /// Returns the server and the database, without user names and passwords.
    pub(crate) fn server(&self) -> String {
        match &self.shown {
            Ok(server) => server.clone(),
            Err(_) => "the server of the connection string".to_owned(),
        }
    }

    /// Returns a connection error of libpq without anything secret.
    ///
    /// libpq never shows a password that it recognised as one. But it repeats a connection string that it cannot parse,
    /// and host names and databases that hold a part of a password, so of such strings its message is not shown.
    pub(crate) fn redact(&self, message: &str) -> String {
        match &self.shown {
            Ok(_) => message.trim().to_owned(),
            Err(Unshown::Invalid(reason)) => format!(
                "invalid connection string ({reason}): expected a URL like \
                 postgres://user:password@host:5432/database, or key=value pairs"
            ),
            Err(Unshown::Ambiguous) => "invalid connection string: it may hold a password with a special \
                 character, so it is not shown; in a URL write \"@\" as %40, \"/\" as %2F, \":\" as %3A"
                .to_owned(),
        }
    }
}

fn show(text: &str) -> Result<String, Unshown> {
    let options = libpq::parse_conninfo(text).map_err(Unshown::Invalid)?;
    let value = |keyword: &str| options.iter().find(|(key, _)| key == keyword).map(|(_, value)| &**value);
    let host = value("host").or(value("hostaddr")).unwrap_or_default();
    let (port, database) = (value("port").unwrap_or_default(), value("dbname").unwrap_or_default());
    // libpq ends the user part of a URL at the first "@" or "/". If the password holds one of them, its rest becomes
    // host, port or database, together with the "@" that should end the user part.
    let after_user = text.split_once("://").and_then(|(_, rest)| rest.split_once(['@', '/']));
    let is_ambiguous = [host, port, database].iter().any(|value| value.contains('@'))
        || after_user.is_some_and(|(_, rest)| rest.contains('@'))
        || !port.chars().all(|c| c.is_ascii_digit() || c == ',');
    if is_ambiguous {
        return Err(Unshown::Ambiguous);
    }
    let mut shown = host.to_owned();
    if !port.is_empty() {
        shown = format!("{shown}:{port}");
    }
    if !database.is_empty() {
        shown = format!("{shown}/{database}");
    }
    Ok(if shown.is_empty() { "the default server".to_owned() } else { shown })
}

/// Shows the server and the database.
impl fmt::Debug for ConnInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ConnInfo({})", self.server())
    }
}

#[cfg(test)]
mod tests {
    use diesel::{Connection, PgConnection};

    use super::*;

    /// The message of libpq if it cannot connect with a connection string or parse it.
    fn message(text: &str) -> String {
        PgConnection::establish(text).map_err(|error| error.to_string()).err().unwrap_or_default()
    }

    #[test]
    fn a_message_is_shown_without_a_connection_string() {
        assert_eq!(ConnInfo::new("").redact("no server there\n"), "no server there");
        assert_eq!(ConnInfo::new("").server(), "the default server");
    }

    #[test]
    fn the_server_and_the_database_are_shown() {
        for (text, server) in [
            ("postgres://bob:x@db.example:5432/shop?sslmode=require", "db.example:5432/shop"),
            ("postgres://bob:x@db.example/gr%C3%B6%C3%9Fe", "db.example/größe"),
            ("postgresql://a,b:1/shop", "a,b:,1/shop"),
            ("postgresql:///shop?host=/run/postgresql", "/run/postgresql/shop"),
            ("host = db.example dbname='my shop' password=x", "db.example/my shop"),
            ("hostaddr=127.0.0.1 port=5433", "127.0.0.1:5433"),
            ("dbname=shop", "/shop"),
        ] {
            assert_eq!(ConnInfo::new(text).server(), server, "{text}");
        }
    }

    #[test]
    fn no_part_of_a_password_is_shown() {
        // Each password contains "s3cr" and "tail", and no other part of a string does.
        let strings = [
            "postgres://bob:s3cr%21tail@127.0.0.1:1/shop?sslmode=disable",
            "postgres://bob@127.0.0.1:1/shop?password=s3crtail",
            "postgres://bob@127.0.0.1:1/shop?password=s3cr@tail",
            "postgres://bob:s3cr@tail@127.0.0.1:1/shop",
            "postgres://bob:s3cr/tail@127.0.0.1:1/shop",
            "postgres://bob:s3cr@x/tail@127.0.0.1:1/shop",
            "postgres://bob:s3cr@tail:x@127.0.0.1:1/shop",
            "postgres://bob:s3cr:@tail@127.0.0.1:1/shop",
            "postgres://bob:s3cr@x?tail@127.0.0.1:1/shop",
            "postgres://bob:s3cr@tail?application_name=x@127.0.0.1:1/shop",
            "postgres://bob:s3cr#tail@127.0.0.1:1/shop",
            "postgres://bob:s3cr?tail@127.0.0.1:1/shop",
            "postgres://bob:s3cr%tail@127.0.0.1:1/shop",
            "postgres://bob:s3cr tail@127.0.0.1:1/shop",
            "postgres://bob:s3cr%00tail@127.0.0.1:1/shop",
            "postgres://bob:s3cr\"tail@127.0.0.1:1/shop",
            "postgres://bob:s3cr[tail@127.0.0.1:1/shop",
            "postgres://bob:s3crtail",
            "host=127.0.0.1 port=1 user=bob password=s3crtail",
            "host=127.0.0.1 port=1 user=bob password=s3cr1 password=tail2",
            "host=127.0.0.1 port=1 password = 's3cr\\'tail' user=bob",
            "host=127.0.0.1 port=1 password='s3crtail",
            "host=127.0.0.1 port=1 password=s3cr tail",
            "host=127.0.0.1 port=1 password=s3cr tail=1",
            "host=127.0.0.1 port=1 password=s3crtail sslmode=sometimes",
            "host=127.0.0.1 port=1 passwort=s3crtail",
            "dbname=postgres://bob:s3crtail@127.0.0.1:1/shop host=127.0.0.1 port=1",
            "s3crtail",
            "s3cr\0tail",
        ];
        for string in strings {
            let info = ConnInfo::new(string);
            let parsed = crate::Settings::from_lookup(|name| (name == "PQ_URL").then(|| string.to_owned()));
            let reason = info.redact(&message(string));
            let connected =
                crate::Pq::connect(string).map(drop).map_err(|error| format!("{error} {error:?}"));
            let shown = format!(
                "{reason} {} {info:?} {parsed:?} {}",
                info.server(),
                connected.err().unwrap_or_default()
            );
            assert!(!shown.contains("s3cr") && !shown.contains("tail"), "{string}: {shown}");
        }
    }
}
