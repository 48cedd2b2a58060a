//! Texts of outcomes that the encoding of the database cannot represent.
//!
//! The client sends UTF-8. In a database with another encoding the server refuses a statement with a character that the
//! encoding lacks, and an outcome would be lost because of its error's text. Such a character is replaced by a question
//! mark in an error, and by its escape in JSON, which has the same meaning.

use std::borrow::Cow;
use std::fmt::Write;

use diesel::sql_types::Text;

use super::{PgStore, SqlConnection, storable};
use crate::Error;

/// The characters that a database can store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    /// All.
    Utf8,
    /// The first 256.
    Latin1,
    /// ASCII, and others that are not known here.
    Other,
}

impl Encoding {
    fn of(name: &str) -> Self {
        match name {
            "UTF8" => Self::Utf8,
            "LATIN1" => Self::Latin1,
            _ => Self::Other,
        }
    }

    fn has(self, c: char) -> bool {
        match self {
            Self::Utf8 => true,
            Self::Latin1 => c <= '\u{ff}',
            Self::Other => c.is_ascii(),
        }
    }

    /// Replaces the characters of a text that the database cannot store.
    pub(super) fn reduce(self, text: String) -> String {
        if text.chars().all(|c| self.has(c)) {
            return text;
        }
        text.chars().map(|c| if self.has(c) { c } else { '?' }).collect()
    }

    /// Escapes the characters of a JSON document that the database cannot store. They occur in its strings only.
    pub(super) fn escape_json(self, json: &str) -> Cow<'_, str> {
        if json.chars().all(|c| self.has(c)) {
            return Cow::Borrowed(json);
        }
        let mut escaped = String::with_capacity(json.len() * 2);
        for c in json.chars() {
            if self.has(c) {
                escaped.push(c);
                continue;
            }
            for unit in c.encode_utf16(&mut [0; 2]) {
                // Writing to a String cannot fail.
                let _ = write!(escaped, "\\u{unit:04x}");
            }
        }
        Cow::Owned(escaped)
    }
}

impl PgStore {
    /// Returns the encoding of the connection's database. It is not asked for if the texts to store are ASCII.
    ///
    /// It is read each time and not remembered, because one handle can be used on connections to several databases.
    pub(super) async fn encoding_for(
        &self,
        conn: &mut impl SqlConnection,
        is_ascii: bool,
    ) -> Result<Encoding, Error> {
        if is_ascii {
            return Ok(Encoding::Utf8);
        }
        let name: String = self.only::<Text, _>(conn, &self.statements.encoding, &[]).await?;
        Ok(Encoding::of(&name))
    }

    /// Returns an error's text as the connection's database can store it.
    pub(super) async fn storable_on(
        &self,
        conn: &mut impl SqlConnection,
        error: &str,
    ) -> Result<String, Error> {
        let error = storable(error);
        Ok(self.encoding_for(conn, error.is_ascii()).await?.reduce(error))
    }

    /// Does the same for a text that may be absent.
    pub(super) async fn optional_storable_on(
        &self,
        conn: &mut impl SqlConnection,
        text: Option<&str>,
    ) -> Result<Option<String>, Error> {
        match text {
            Some(text) => self.storable_on(conn, text).await.map(Some),
            None => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_that_an_encoding_lacks_are_replaced() {
        let text = "Zähler → 😀".to_owned();
        assert_eq!(Encoding::of("UTF8").reduce(text.clone()), text);
        assert_eq!(Encoding::of("LATIN1").reduce(text.clone()), "Zähler ? ?");
        assert_eq!(Encoding::of("EUC_JP").reduce(text), "Z?hler ? ?");
    }

    #[test]
    fn escaped_json_has_the_same_meaning() -> Result<(), serde_json::Error> {
        let json = r#"{"ä\n": "→ 😀"}"#;
        for (name, escaped) in [
            ("UTF8", json),
            ("LATIN1", r#"{"ä\n": "\u2192 \ud83d\ude00"}"#),
            ("WIN1252", r#"{"\u00e4\n": "\u2192 \ud83d\ude00"}"#),
        ] {
            let found = Encoding::of(name).escape_json(json);
            assert_eq!(found, escaped);
            let [found, original] = [&found, json].map(serde_json::from_str::<serde_json::Value>);
            assert_eq!(found?, original?);
        }
        Ok(())
    }
}
