//! Connection strings: switches databases, and removes passwords from errors.

use std::fmt;

use diesel::pg::PgConnection;
use diesel::{Connection, ConnectionError};
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use crate::error::Error;

/// libpq's prefixes for failures of the network or the server. Its other texts are about the connection
/// string, and may quote from it.
const FROM_OUTSIDE: [&str; 4] =
    ["connection to server", "could not connect to server", "could not translate host name", "FATAL"];

/// A connection string, as a URL or in libpq's `key=value` form. `Debug` does not show it.
#[derive(Clone)]
pub(crate) struct Conninfo(String);

impl Conninfo {
    /// Checks a given string, or returns the rule that it breaks.
    pub(crate) fn given(text: &str) -> Result<Self, &'static str> {
        if text.contains('\0') {
            return Err("it must not contain a NUL byte");
        }
        let text = text.trim();
        let conninfo = Self(text.to_owned());
        if text.contains("://") && conninfo.after_scheme().is_none() && !text.contains('=') {
            return Err("a URL must begin with `postgres://` or `postgresql://`");
        }
        Ok(conninfo)
    }

    /// Returns the string of a server that this crate started.
    pub(crate) fn local(host: &str, port: u16, password: &str) -> Self {
        Self(format!("postgres://postgres:{password}@{host}:{port}/postgres"))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the string of another database on the same server, with the same user.
    pub(crate) fn with_database(&self, name: &str) -> Self {
        let Some(start) = self.after_scheme() else {
            let name = name.replace('\\', r"\\").replace('\'', r"\'");
            return Self(format!("{} dbname='{name}'", self.0));
        };
        let (base, query) = match self.0.split_once('?') {
            Some((base, query)) => (base, query),
            None => (self.0.as_str(), ""),
        };
        let path = base[start..].find('/').map_or(base.len(), |at| start + at);
        let name = utf8_percent_encode(name, NON_ALPHANUMERIC).to_string();
        // A `dbname` among the parameters would win over the path.
        let query: Vec<&str> =
            query.split('&').filter(|pair| !pair.is_empty() && !pair.starts_with("dbname=")).collect();
        let mark = if query.is_empty() { "" } else { "?" };
        Self(format!("{}/{name}{mark}{}", &base[..path], query.join("&")))
    }

    /// Connects within 10 s, unless the string sets another limit, so that a server that hangs does not hang
    /// a test.
    pub(crate) fn connect(&self, what: &str) -> Result<PgConnection, Error> {
        PgConnection::establish(&self.with_time_limit())
            .map_err(|error| Error::Connect { what: what.to_owned(), reason: self.reason(&error) })
    }

    fn with_time_limit(&self) -> String {
        const LIMIT: &str = "connect_timeout=10";
        let text = &self.0;
        match (self.after_scheme(), text.contains('?')) {
            _ if text.contains("connect_timeout") => text.clone(),
            (None, _) => format!("{text} {LIMIT}"),
            (Some(_), true) => format!("{text}&{LIMIT}"),
            (Some(_), false) => format!("{text}?{LIMIT}"),
        }
    }

    fn after_scheme(&self) -> Option<usize> {
        ["postgres://", "postgresql://"]
            .iter()
            .find(|scheme| self.0.starts_with(**scheme))
            .map(|scheme| scheme.len())
    }

    fn reason(&self, error: &ConnectionError) -> String {
        match error {
            ConnectionError::BadConnection(text)
                if !FROM_OUTSIDE.iter().any(|known| text.starts_with(known)) =>
            {
                "libpq does not accept the connection string (its reason is not shown, since it \
                 may quote a password)"
                    .to_owned()
            }
            _ => self.redact(error.to_string().trim()),
        }
    }

    /// Returns the text without any part of a password.
    fn redact(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for secret in self.secrets() {
            text = text.replace(&secret, "***");
        }
        text
    }

    /// Returns every part that may be a password, longest first.
    ///
    /// If the string is ambiguous (an unescaped `@` or `/` in a password), libpq may parse a part of the password
    /// as the host, so such parts are included.
    fn secrets(&self) -> Vec<String> {
        let mut whole: Vec<&str> = Vec::new();
        if let Some(start) = self.after_scheme() {
            let rest = &self.0[start..];
            let user_info = rest.rfind('@').map_or("", |at| &rest[..at]);
            whole.extend(user_info.split_once(':').map(|(_, password)| password));
        }
        for (at, key) in self.0.match_indices("password") {
            let value = self.0[at + key.len()..].trim_start();
            whole.extend(value.strip_prefix('=').map(parameter_value));
        }
        let mut secrets: Vec<String> = whole
            .iter()
            .flat_map(|secret| secret.split(['@', '/', ':', '?', '&', ' ']).chain([*secret]))
            .flat_map(|part| {
                let decoded = percent_decode_str(part).decode_utf8_lossy().into_owned();
                [part.to_owned(), decoded]
            })
            .filter(|part| !part.is_empty())
            .collect();
        secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        secrets
    }
}

/// Returns the value at the start of `text`: quoted, or up to the next separator.
fn parameter_value(text: &str) -> &str {
    let text = text.trim_start();
    match text.strip_prefix('\'') {
        Some(quoted) => quoted.split('\'').next().unwrap_or_default(),
        None => text.split(['&', ' ']).next().unwrap_or_default(),
    }
}

impl fmt::Debug for Conninfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Conninfo(not shown)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conninfo(text: &str) -> Conninfo {
        Conninfo::given(text).expect("a usable string")
    }

    #[test]
    fn with_database_replaces_the_database() {
        for (given, wanted) in [
            ("postgres://u:p@h:1/old", "postgres://u:p@h:1/new%20x"),
            ("postgres://u@h", "postgres://u@h/new%20x"),
            ("postgresql:///old?host=/run", "postgresql:///new%20x?host=/run"),
            ("postgres://h?dbname=old&a=b", "postgres://h/new%20x?a=b"),
            ("postgres://h:1,i:2/old", "postgres://h:1,i:2/new%20x"),
            ("host=h dbname=old", "host=h dbname=old dbname='new x'"),
        ] {
            assert_eq!(conninfo(given).with_database("new x").as_str(), wanted);
        }
        let odd = conninfo("host=h").with_database(r"it's \");
        assert_eq!(odd.as_str(), r"host=h dbname='it\'s \\'");
    }

    #[test]
    fn passwords_are_removed_from_texts() {
        for (given, text) in [
            ("postgres://u:hush@h/d", "no user hush"),
            ("postgres://u:hush@er@h/d", r#"translate host name "er@h""#),
            ("postgres://u:%68ush@h/d", "no user hush"),
            ("postgres://h/d?user=u&password=hush&x=y", "hush"),
            ("host=h password = 'hush er' user=u", "hush er"),
            ("host=h password=hush", "hush"),
        ] {
            let shown = conninfo(given).redact(text);
            assert!(!shown.contains("hush") && !shown.contains("er@h"), "{shown}");
            assert!(shown.contains("***"), "{shown}");
        }
    }

    #[test]
    fn libpqs_error_for_a_malformed_string_is_not_shown() {
        for given in ["host=h password=a hush", "postgres://u:hush@h:port/d"] {
            let Err(error) = conninfo(given).connect("it") else {
                panic!("{given} was accepted");
            };
            assert!(!error.to_string().contains("hush"), "{error}");
            assert!(!format!("{error:?}").contains("hush"), "{error:?}");
        }
    }

    #[test]
    fn a_wrong_scheme_is_named() {
        assert!(Conninfo::given("mysql://h/d").is_err());
        assert!(Conninfo::given("postgres://h/\0").is_err());
    }
}
