//! The connection string from environment variables.

use std::fmt;

use crate::Error;
use crate::conninfo::{ConnInfo, quote};

/// The connection string that the environment defines.
///
/// The first of these that is set and not empty: `PQ_URL`; `TPQ_URL`; `TPQ_HOST`, `TPQ_PORT`, `TPQ_DB`, `TPQ_USER` and
/// `TPQ_PASS` together; `DATABASE_URL`. If none is set the connection string is empty, and libpq uses its own variables
/// `PGHOST`, `PGDATABASE` and so on.
#[derive(Clone)]
pub struct Settings {
    conninfo: ConnInfo,
    /// The variable or option that holds the connection string.
    source: &'static str,
}

impl Settings {
    /// Takes a connection string that was not read from a variable. `source` names its origin in errors.
    #[must_use]
    pub fn new(source: &'static str, conninfo: &str) -> Self {
        Self { conninfo: ConnInfo::new(conninfo), source }
    }

    /// Reads the environment variables of the process.
    #[must_use]
    pub fn from_env() -> Self {
        Self::from_lookup(|name| std::env::var(name).ok())
    }

    /// Reads variables by a function. An empty variable counts as not set.
    #[must_use]
    pub fn from_lookup(lookup: impl Fn(&str) -> Option<String>) -> Self {
        let set = |name: &str| lookup(name).filter(|value| !value.is_empty());
        let words: Vec<String> = [
            ("host", "TPQ_HOST"),
            ("port", "TPQ_PORT"),
            ("dbname", "TPQ_DB"),
            ("user", "TPQ_USER"),
            ("password", "TPQ_PASS"),
        ]
        .into_iter()
        .filter_map(|(key, name)| set(name).map(|value| format!("{key}={}", quote(&value))))
        .collect();
        let named = |name| set(name).map(|value| (name, value));
        let (source, conninfo) = named("PQ_URL")
            .or_else(|| named("TPQ_URL"))
            .or_else(|| (!words.is_empty()).then(|| ("TPQ_HOST", words.join(" "))))
            .or_else(|| named("DATABASE_URL"))
            .unwrap_or_default();
        Self::new(source, &conninfo)
    }

    /// Returns the connection string **with its password**: for libpq, not for logs.
    #[must_use]
    pub fn conninfo(&self) -> &str {
        self.conninfo.as_str()
    }

    /// Checks that libpq can parse the connection string. Connects to nothing.
    ///
    /// # Errors
    ///
    /// [`pq_core::Error::InvalidSetting`] names the variable and the reason, and nothing of the string.
    pub fn check(&self) -> Result<(), Error> {
        let Some(reason) = self.conninfo.invalid() else { return Ok(()) };
        Err(pq_core::Error::InvalidSetting(format!("invalid {}: {reason}", self.source)).into())
    }
}

/// Shows the server and the database, without user and password.
impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Settings({})", self.conninfo.server())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(set: &[(&str, &str)]) -> String {
        let lookup =
            |name: &str| set.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        Settings::from_lookup(lookup).conninfo().to_owned()
    }

    #[test]
    fn the_first_variable_that_is_set_is_used() {
        let all = [("DATABASE_URL", "d"), ("TPQ_HOST", "h"), ("TPQ_URL", "t"), ("PQ_URL", "p")];
        assert_eq!(settings(&all), "p");
        assert_eq!(settings(&all[..3]), "t");
        assert_eq!(settings(&all[..2]), "host='h'");
        assert_eq!(settings(&all[..1]), "d");
        assert_eq!(settings(&[("PQ_URL", ""), ("DATABASE_URL", "d")]), "d");
        assert_eq!(settings(&[]), "");
    }

    #[test]
    fn a_malformed_string_is_named_by_its_variable_and_not_shown() {
        let check = |name: &str, value: &str| {
            let lookup = |wanted: &str| (wanted == name).then(|| value.to_owned());
            Settings::from_lookup(lookup).check().err().map(|error| error.to_string()).unwrap_or_default()
        };
        assert_eq!(check("PQ_URL", "postgres://bob:x@db/shop"), "");
        assert_eq!(check("PQ_URL", ""), "");
        let error = check("DATABASE_URL", "postgers://bob:s3cret@db/shop");
        assert!(error.starts_with("invalid DATABASE_URL: ") && !error.contains("s3cret"), "{error}");
    }

    #[test]
    fn the_port_is_not_dropped_and_values_are_quoted() {
        let set = [("TPQ_HOST", "h"), ("TPQ_PORT", "5433"), ("TPQ_PASS", "it's \\ x")];
        assert_eq!(settings(&set), "host='h' port='5433' password='it\\'s \\\\ x'");
    }
}
