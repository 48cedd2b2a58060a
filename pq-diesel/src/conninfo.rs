//! Connection strings, and how they are shown.

use percent_encoding::percent_decode_str;

/// A libpq connection string: a URL or `key=value` words. Its text is given to libpq alone; `Debug`
/// and the errors made from it show no password.
#[derive(Clone)]
pub(crate) struct ConnInfo(String);

impl ConnInfo {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// The server and the database, without user names and passwords.
    pub(crate) fn server(&self) -> String {
        if let Some((_, rest)) = self.0.split_once("://") {
            let rest = rest.split(['?', '#']).next().unwrap_or_default();
            let at = rest.rsplit_once('@').map_or(rest, |(_, server)| server);
            return if at.is_empty() { "the default server".to_owned() } else { at.to_owned() };
        }
        let shown: Vec<&str> = self
            .0
            .split_whitespace()
            .filter(|word| ["host=", "hostaddr=", "port=", "dbname="].iter().any(|key| word.starts_with(key)))
            .collect();
        if shown.is_empty() { "the default server".to_owned() } else { shown.join(" ") }
    }

    /// A message of libpq's without what is secret. libpq repeats the whole string where it cannot
    /// read it.
    pub(crate) fn redact(&self, message: &str) -> String {
        let mut message = message.trim().to_owned();
        // The empty string is everywhere.
        if !self.0.is_empty() {
            message = message.replace(&self.0, "the connection string");
        }
        for secret in self.secrets() {
            message = message.replace(&secret, "***");
        }
        message
    }

    fn secrets(&self) -> Vec<String> {
        let mut secrets = Vec::new();
        if let Some((_, rest)) = self.0.split_once("://") {
            if let Some((user, _)) = rest.rsplit_once('@')
                && let Some((_, password)) = user.split_once(':')
            {
                secrets.push(password.to_owned());
            }
            let query = rest.split_once('?').map_or("", |(_, query)| query);
            secrets.extend(
                query.split('&').filter_map(|word| word.strip_prefix("password=")).map(str::to_owned),
            );
        } else if let Some((_, tail)) = self.0.split_once("password") {
            let value = tail.trim_start().trim_start_matches('=').trim_start();
            let quoted = value.strip_prefix('\'').and_then(|rest| rest.split('\'').next());
            secrets.extend(quoted.or_else(|| value.split_whitespace().next()).map(str::to_owned));
        }
        let decoded: Vec<String> =
            secrets.iter().map(|s| percent_decode_str(s).decode_utf8_lossy().into_owned()).collect();
        secrets.extend(decoded);
        secrets.retain(|secret| !secret.is_empty());
        secrets
    }
}

impl std::fmt::Debug for ConnInfo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ConnInfo({})", self.server())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_string_hides_nothing() {
        assert_eq!(ConnInfo::new("").redact("no server there\n"), "no server there");
    }

    #[test]
    fn passwords_are_shown_nowhere() {
        let strings = [
            "postgres://bob:s3cr%21t@db.example:5432/shop?sslmode=require",
            "postgres://bob@db.example/shop?password=s3cr!t",
            "host=db.example dbname=shop user=bob password=s3cr!t",
            "host=db.example dbname=shop password = 's3cr!t' user=bob",
        ];
        for string in strings {
            let info = ConnInfo::new(string);
            assert!(info.server().contains("db.example"), "{}", info.server());
            let said = info.redact(&format!("bad {string}: s3cr!t"));
            for shown in [said, info.server(), format!("{info:?}")] {
                assert!(!shown.contains("s3cr"), "{shown}");
            }
        }
    }
}
