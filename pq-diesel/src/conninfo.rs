//! Connection strings: parsed by libpq, and shown without anything secret.

use std::fmt;

use crate::libpq;

/// A libpq connection string: a URL or `key=value` words.
///
/// Only libpq gets the text. `Debug` and every error show the server and the database, never a password.
#[derive(Clone)]
pub(crate) struct ConnInfo {
    text: String,
    /// The text with [`DEFAULTS`] for what it leaves open.
    complete: String,
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
        let options = libpq::parse_conninfo(&text);
        let complete = options.as_ref().map_or_else(|_| text.clone(), |options| complete(options));
        let shown = options.map_err(Unshown::Invalid).and_then(|options| show(&text, &options));
        Self { text, complete, shown }
    }

    /// Returns the text as it was given.
    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }

    /// Returns the connection string to connect with.
    pub(crate) fn complete(&self) -> &str {
        &self.complete
    }

    /// Returns the server and the database, without user names and passwords.
    pub(crate) fn server(&self) -> String {
        match &self.shown {
            Ok(server) => server.clone(),
            Err(_) => "the server of the connection string".to_owned(),
        }
    }

    /// Returns why libpq cannot parse the string, or `None` if it can.
    pub(crate) fn invalid(&self) -> Option<String> {
        match &self.shown {
            Err(Unshown::Invalid(reason)) => Some(format!(
                "{reason}; expected a URL like postgres://user:password@host:5432/database, or key=value pairs"
            )),
            _ => None,
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

/// Options of libpq that a connection string gets unless it, a service or an environment variable sets them.
///
/// libpq's own defaults wait without limit for a server that does not answer, and for hours for one that is gone.
const DEFAULTS: [(&str, &str); 5] = [
    // Seconds.
    ("connect_timeout", "10"),
    ("keepalives_idle", "30"),
    ("keepalives_interval", "10"),
    ("keepalives_count", "3"),
    // Milliseconds.
    ("tcp_user_timeout", "30000"),
];

/// Returns these options as `key=value` words, completed by [`DEFAULTS`].
fn complete(options: &[(String, String)]) -> String {
    let is_set = |keyword: &str| options.iter().any(|(key, _)| key == keyword);
    // What a service sets is unknown here, and libpq prefers the string to the service.
    let (preset, names_service) = (libpq::preset_options(), is_set("service"));
    let is_open =
        |keyword: &str| !names_service && !is_set(keyword) && !preset.iter().any(|key| key == keyword);
    let given = options.iter().map(|(key, value)| (key.as_str(), value.as_str()));
    let words = given.chain(DEFAULTS.into_iter().filter(|(keyword, _)| is_open(keyword)));
    words.map(|(key, value)| format!("{key}={}", quote(value))).collect::<Vec<_>>().join(" ")
}

/// Quotes a value for a `key=value` connection string.
pub(crate) fn quote(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
}

fn show(text: &str, options: &[(String, String)]) -> Result<String, Unshown> {
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
    fn what_a_connection_string_leaves_open_gets_a_default() {
        let all = "connect_timeout='10' keepalives_idle='30' keepalives_interval='10' keepalives_count='3' \
                   tcp_user_timeout='30000'";
        assert_eq!(ConnInfo::new("").complete(), all);
        let url = "postgres://bob:it%27s%20%5C%20x@db/shop?connect_timeout=3&tcp_user_timeout=0";
        let complete = ConnInfo::new(url).complete().to_owned();
        let options = libpq::parse_conninfo(&complete).unwrap_or_default();
        let value = |key: &str| options.iter().find(|(found, _)| found == key).map(|(_, value)| &**value);
        for (key, expected) in [
            ("user", "bob"),
            ("password", "it's \\ x"),
            ("host", "db"),
            ("dbname", "shop"),
            ("connect_timeout", "3"),
            ("tcp_user_timeout", "0"),
            ("keepalives_idle", "30"),
        ] {
            assert_eq!(value(key), Some(expected), "{key}");
        }
        assert_eq!(ConnInfo::new("service=shop").complete(), "service='shop'");
        assert_eq!(ConnInfo::new("no such").complete(), "no such", "libpq reports what it cannot parse");
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
