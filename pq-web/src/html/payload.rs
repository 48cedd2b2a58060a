//! Formats payloads: on one line or indented, without the values of masked fields, and never more than asked for.
//!
//! The text is not parsed into values, because that would change numbers, the order of fields and repeated fields.

use std::borrow::Cow;

use pq_diesel::Codec;
use pq_diesel::pq_core::Pickle;

use super::is_invisible;

/// The depth from which lines are not indented further.
const MAX_INDENT: usize = 40;

/// The text in place of a masked value.
const MASKED: &str = "\"[masked]\"";

/// How a payload is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    Line,
    Indented,
}

/// The text in place of a payload that cannot be read, and so not be masked.
const HIDDEN: &str = "[hidden: a pickle of more than plain data]";

/// The fields whose values are not shown.
#[derive(Debug)]
pub(crate) struct Mask(Vec<String>);

impl Mask {
    pub(crate) fn new(names: &[String]) -> Self {
        Self(names.iter().map(|name| words(name).0).filter(|name| !name.is_empty()).collect())
    }

    /// Returns whether the value of a field is not shown: the end of a word of its name is also the end of a masked
    /// one.
    fn covers(&self, name: &str) -> bool {
        let (name, ends) = words(name);
        let is_end =
            |at: usize| ends.contains(&at) || name[at..].starts_with('s') && ends.contains(&(at + 1));
        self.0.iter().any(|masked| name.match_indices(masked).any(|(at, _)| is_end(at + masked.len())))
    }

    /// Returns whether a payload has a masked field, or is hidden as a whole.
    pub(crate) fn hides_part_of(&self, stored: &str) -> bool {
        readable(stored)
            .is_none_or(|json| self.format_json(&json, Layout::Line, usize::MAX).0.contains(MASKED))
    }

    /// Formats a payload in at most about `max` bytes. Returns the text, and whether it is complete.
    pub(crate) fn format(&self, stored: &str, layout: Layout, max: usize) -> (String, bool) {
        match readable(stored) {
            Some(json) => self.format_json(&json, layout, max),
            None => (HIDDEN.to_owned(), true),
        }
    }

    fn format_json(&self, json: &str, layout: Layout, max: usize) -> (String, bool) {
        let mut formatter = Formatter { rest: json, text: String::new(), layout, depth: 0 };
        let mut objects = Vec::new();
        // Whether the next string is the name of a field, and whether the next value is masked.
        let (mut is_name, mut is_masked) = (false, false);
        while let Some(c) = formatter.next_token() {
            if formatter.text.len() >= max {
                return (formatter.text, false);
            }
            if is_masked && c != ':' {
                formatter.skip_value();
                formatter.text.push_str(MASKED);
                is_masked = false;
                continue;
            }
            match c {
                '{' | '[' => {
                    objects.push(c == '{');
                    is_name = c == '{';
                    formatter.open(c);
                }
                '}' | ']' => {
                    objects.pop();
                    is_name = false;
                    formatter.close(c);
                }
                ',' => {
                    is_name = objects.last().copied().unwrap_or_default();
                    formatter.separate();
                }
                ':' => formatter.take(1, ": "),
                '"' => {
                    let token = formatter.string();
                    if is_name {
                        // A name that cannot be read may be any.
                        is_masked =
                            serde_json::from_str::<String>(token).map_or(true, |name| self.covers(&name));
                    }
                    is_name = false;
                    formatter.visible(token, max);
                }
                _ => {
                    let end = formatter.rest.find([',', '}', ']', ':', ' ', '\t', '\r', '\n', '"', '{', '[']);
                    let (token, rest) = formatter.rest.split_at(end.unwrap_or(formatter.rest.len()));
                    formatter.rest = rest;
                    formatter.visible(token, max);
                }
            }
        }
        let complete = formatter.text.len() < max.saturating_mul(2);
        (formatter.text, complete)
    }
}

/// Returns the JSON of a stored payload, which can be a pickle of Python's `pq`. Returns `None` if it looks like a
/// pickle that cannot be decoded.
fn readable(stored: &str) -> Option<Cow<'_, str>> {
    if !stored.trim_ascii_start().starts_with('"') {
        return Some(Cow::Borrowed(stored));
    }
    if let Ok(json) = Pickle.decode(stored) {
        return Some(json);
    }
    let text: String = serde_json::from_str(stored).unwrap_or_default();
    let looks_like_pickle = text.starts_with(['\u{80}', '(', ']', '}', 'c']) && text.ends_with('.');
    (!looks_like_pickle).then_some(Cow::Borrowed(stored))
}

/// Returns the letters and digits of a name, in lower case, and where its words end. Names are compared however their
/// words are joined.
fn words(name: &str) -> (String, Vec<usize>) {
    let (mut joined, mut ends) = (String::with_capacity(name.len()), Vec::new());
    let mut chars = name.chars().peekable();
    while let Some(c) = chars.next() {
        if !c.is_alphanumeric() {
            continue;
        }
        joined.extend(c.to_lowercase());
        let is_end = chars.peek().is_none_or(|next| {
            !next.is_alphanumeric()
                || next.is_uppercase() && !c.is_uppercase()
                || next.is_numeric() != c.is_numeric()
        });
        if is_end {
            ends.push(joined.len());
        }
    }
    (joined, ends)
}

struct Formatter<'j> {
    rest: &'j str,
    text: String,
    layout: Layout,
    depth: usize,
}

impl<'j> Formatter<'j> {
    /// Skips white space and returns the first character of the next token.
    fn next_token(&mut self) -> Option<char> {
        self.rest = self.rest.trim_ascii_start();
        self.rest.chars().next()
    }

    /// Writes `text` for the next bytes, which are ASCII.
    fn take(&mut self, bytes: usize, text: &str) {
        self.rest = &self.rest[bytes..];
        self.text.push_str(text);
    }

    fn open(&mut self, bracket: char) {
        self.rest = &self.rest[1..];
        self.text.push(bracket);
        self.depth += 1;
        if !matches!(self.next_token(), Some('}' | ']')) {
            self.break_line("");
        }
    }

    fn close(&mut self, bracket: char) {
        self.rest = &self.rest[1..];
        self.depth = self.depth.saturating_sub(1);
        if !self.text.ends_with(['{', '[']) {
            self.break_line("");
        }
        self.text.push(bracket);
    }

    fn separate(&mut self) {
        self.take(1, ",");
        self.break_line(" ");
    }

    fn break_line(&mut self, on_one_line: &str) {
        match self.layout {
            Layout::Line => self.text.push_str(on_one_line),
            Layout::Indented => {
                self.text.push('\n');
                self.text.push_str(&"  ".repeat(self.depth.min(MAX_INDENT)));
            }
        }
    }

    /// Takes a string, with its quotes.
    fn string(&mut self) -> &'j str {
        let mut escaped = false;
        let end = self.rest.char_indices().skip(1).find(|(_, c)| {
            let ends = *c == '"' && !escaped;
            escaped = *c == '\\' && !escaped;
            ends
        });
        let (token, rest) = self.rest.split_at(end.map_or(self.rest.len(), |(at, _)| at + 1));
        self.rest = rest;
        token
    }

    /// Takes a value of any kind.
    fn skip_value(&mut self) {
        let mut depth = 0_usize;
        while let Some(c) = self.next_token() {
            match c {
                '"' => {
                    self.string();
                }
                '{' | '[' => {
                    self.rest = &self.rest[1..];
                    depth += 1;
                    continue;
                }
                '}' | ']' => {
                    self.rest = &self.rest[1..];
                    depth = depth.saturating_sub(1);
                }
                ',' | ':' => {
                    self.rest = &self.rest[1..];
                    continue;
                }
                _ => {
                    let end = self.rest.find([',', '}', ']', ':', ' ', '\t', '\r', '\n', '"']);
                    self.rest = &self.rest[end.unwrap_or(self.rest.len())..];
                }
            }
            if depth == 0 {
                return;
            }
        }
    }

    /// Writes a token with its invisible characters as JSON escapes, and of a very long one the beginning.
    fn visible(&mut self, token: &str, max: usize) {
        let end = token.char_indices().map(|(at, _)| at).find(|at| *at >= max.saturating_mul(2));
        for c in token[..end.unwrap_or(token.len())].chars() {
            if is_invisible(c) {
                let units = c
                    .encode_utf16(&mut [0; 2])
                    .iter()
                    .map(|unit| format!("\\u{unit:04x}"))
                    .collect::<String>();
                self.text.push_str(&units);
            } else {
                self.text.push(c);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mask() -> Mask {
        Mask::new(&["password", "token", "api_key"].map(str::to_owned))
    }

    fn line(json: &str) -> String {
        mask().format(json, Layout::Line, usize::MAX).0
    }

    #[test]
    fn numbers_order_and_repeated_fields_are_kept() {
        let json = r#"{"b": 12345678901234567890123, "a": [1e400, -0, true, null, {}], "b": []}"#;
        assert_eq!(line(json), json);
        let indented = mask().format(json, Layout::Indented, usize::MAX).0;
        assert!(
            indented.starts_with("{\n  \"b\": 12345678901234567890123,\n  \"a\": [\n    1e400,"),
            "{indented}"
        );
    }

    #[test]
    fn fields_are_masked_at_any_depth_however_they_are_written() {
        for (json, shown) in [
            (r#"{"password": "x"}"#, r#"{"password": "[masked]"}"#),
            (r#"{"PassWord" : {"x": [1, "}"]}, "a": 1}"#, r#"{"PassWord": "[masked]", "a": 1}"#),
            (r#"[{"a": {"api-key": -1.5e3}}]"#, r#"[{"a": {"api-key": "[masked]"}}]"#),
            (r#"{"p\u0061ssword": true, "b": 2}"#, r#"{"p\u0061ssword": "[masked]", "b": 2}"#),
            (r#"{"accessToken": null}"#, r#"{"accessToken": "[masked]"}"#),
            (
                r#"{"db_password": "a\"b", "x": "password"}"#,
                r#"{"db_password": "[masked]", "x": "password"}"#,
            ),
            (
                r#"{"AUTHTOKEN": 1, "dbpassword": 2}"#,
                r#"{"AUTHTOKEN": "[masked]", "dbpassword": "[masked]"}"#,
            ),
            (r#"{"X-Api-Key": []}"#, r#"{"X-Api-Key": "[masked]"}"#),
            (r#"{"tokens": 1, "tokenizer": 2}"#, r#"{"tokens": "[masked]", "tokenizer": 2}"#),
            (
                r#"{"password1": 1, "passwordHash": 2}"#,
                r#"{"password1": "[masked]", "passwordHash": "[masked]"}"#,
            ),
            (
                r#"{"API_KEY_ID": 1, "old_passwords_x": 2}"#,
                r#"{"API_KEY_ID": "[masked]", "old_passwords_x": "[masked]"}"#,
            ),
            (r#"{"APIKeyOld": 1, "passwordless": 2}"#, r#"{"APIKeyOld": "[masked]", "passwordless": 2}"#),
            (r#"{"\ud800": 1, "a": 2}"#, r#"{"\ud800": "[masked]", "a": 2}"#),
            (r#"["password", "x"]"#, r#"["password", "x"]"#),
        ] {
            assert_eq!(line(json), shown);
        }
    }

    #[test]
    fn a_pickle_is_decoded_or_hidden() {
        let stored = |pickle: &str| serde_json::to_string(pickle).expect("a string");
        let plain = stored("(dp0\nVpassword\np1\nVhidden\np2\nsVto\np3\nVann\np4\ns.");
        assert_eq!(line(&plain), r#"{"password": "[masked]", "to": "ann"}"#);
        for pickle in
            ["cdecimal\nDecimal\n(Vhidden\ntR.", "(dp0\nVpassword\nVhidden\ns.", "\u{80}\u{4}hidden."]
        {
            assert!(!line(&stored(pickle)).contains("hidden\\n"), "{pickle:?}: {}", line(&stored(pickle)));
        }
        assert_eq!(line(&stored("cdecimal\nDecimal\n(Vhidden\ntR.")), HIDDEN);
        assert_eq!(line(r#""a text.""#), r#""a text.""#);
    }

    #[test]
    fn invisible_characters_are_shown_as_escapes() {
        assert_eq!(line("\"a\u{202e}b\u{7f}c\u{e0041}\""), r#""a\u202eb\u007fc\udb40\udc41""#);
    }

    #[test]
    fn a_large_payload_is_cut() {
        let json = format!("[{}]", vec!["\"0123456789\""; 1_000].join(","));
        let (text, complete) = mask().format(&json, Layout::Line, 100);
        assert!(!complete && text.len() < 150, "{}", text.len());
        let (text, complete) = mask().format(&format!("\"{}\"", "x".repeat(1 << 20)), Layout::Line, 100);
        assert!(!complete && text.len() <= 300, "{}", text.len());
        let deep = format!("{}{}", "[".repeat(20_000), "]".repeat(20_000));
        let (text, complete) = mask().format(&deep, Layout::Indented, usize::MAX);
        assert!(complete && text.len() < 5_000_000);
    }

    #[test]
    fn what_is_not_json_is_shown_without_a_panic() {
        for text in
            ["", "{", "\"", "\"\\", "}]", "{\"password\"", "{\"password\":", "{\"password\":[", "é{é", ":,"]
        {
            mask().format(text, Layout::Indented, usize::MAX);
        }
    }
}
