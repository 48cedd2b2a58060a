//! Payloads as they are stored: JSON text, kept byte for byte.

use std::fmt;

use memchr::memchr2;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::Error;

/// One JSON document as text, kept byte for byte as it was written.
///
/// `Debug` shows only the size, so that payloads stay out of logs.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Payload(String);

impl Payload {
    /// Wraps text that was read from a store, without checks.
    ///
    /// Other writers may have stored payloads that exceed the limits of this handle.
    #[must_use]
    pub fn from_stored(text: String) -> Self {
        Self(text)
    }

    /// Checks that the text is one JSON document within the limits.
    ///
    /// # Errors
    ///
    /// [`Error::PayloadTooLarge`], [`Error::PayloadTooDeep`] or [`Error::NotJson`].
    pub fn new(text: String, limits: PayloadLimits) -> Result<Self, Error> {
        let payload = Self::written(text, limits)?;
        serde_json::from_str::<&RawValue>(&payload.0)
            .map_err(|found| Error::NotJson { reason: found.to_string() })?;
        Ok(payload)
    }

    /// Checks the limits only, for text that serde_json has written.
    pub(crate) fn written(text: String, limits: PayloadLimits) -> Result<Self, Error> {
        if text.len() > limits.max_bytes {
            return Err(Error::PayloadTooLarge { bytes: text.len(), limit: limits.max_bytes });
        }
        if nesting(&text) > limits.max_depth {
            return Err(Error::PayloadTooDeep { limit: limits.max_depth });
        }
        Ok(Self(text))
    }

    /// Returns the JSON text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the name of the task that the payload calls, if it is a call in JSON.
    #[must_use]
    pub fn task(&self) -> Option<String> {
        #[derive(Deserialize)]
        struct Call {
            function: String,
        }
        serde_json::from_str::<Call>(&self.0).ok().map(|call| call.function)
    }
}

/// The JSON document itself, or its text as a string if it is not valid JSON.
impl Serialize for Payload {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match serde_json::from_str::<&RawValue>(&self.0) {
            Ok(document) => document.serialize(serializer),
            Err(_) => serializer.serialize_str(&self.0),
        }
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Payload({} bytes)", self.0.len())
    }
}

/// The limits of payloads that a handle puts. They are checked before anything is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PayloadLimits {
    /// Maximum size of the encoded payload, in bytes. Default: 1 MiB.
    pub max_bytes: usize,
    /// Maximum nesting of arrays and objects. Default: 127, the most that serde_json reads.
    pub max_depth: usize,
}

impl Default for PayloadLimits {
    fn default() -> Self {
        Self { max_bytes: 1 << 20, max_depth: 127 }
    }
}

/// Returns how deeply the JSON text nests arrays and objects.
fn nesting(json: &str) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0);
    let mut rest = json.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        rest = tail;
        match first {
            b'"' => rest = after_string(tail),
            b'[' | b'{' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

/// Returns the text after the end of a string whose opening quote precedes `json`.
///
/// Most of a large payload is in strings, so they are searched with memchr.
fn after_string(mut json: &[u8]) -> &[u8] {
    while let Some(at) = memchr2(b'"', b'\\', json) {
        let is_end = json[at] == b'"';
        // The escaped character may be a quote.
        json = json.get(at + if is_end { 1 } else { 2 }..).unwrap_or_default();
        if is_end {
            return json;
        }
    }
    &[]
}

/// Says that a JSON text is no `T`, and what it is, without its values.
pub(crate) fn mismatch<T>(json: &str) -> String {
    let found = match serde_json::from_str::<Value>(json) {
        Ok(Value::Null) => "null".to_owned(),
        Ok(Value::Bool(_)) => "a boolean".to_owned(),
        Ok(Value::Number(_)) => "a number".to_owned(),
        Ok(Value::String(_)) => "a string".to_owned(),
        Ok(Value::Array(items)) => format!("an array of length {}", items.len()),
        Ok(Value::Object(members)) if members.is_empty() => "an empty object".to_owned(),
        Ok(Value::Object(members)) => {
            let names: Vec<String> = members
                .keys()
                .take(8)
                .map(|name| format!("{:?}", name.chars().take(40).collect::<String>()))
                .collect();
            format!("an object with the members {}", names.join(", "))
        }
        Err(_) => "no JSON that can be read".to_owned(),
    };
    format!("expected {}, and it is {found}", std::any::type_name::<T>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new(text: &str) -> Result<Payload, Error> {
        Payload::new(text.to_owned(), PayloadLimits::default())
    }

    #[test]
    fn text_is_kept_byte_for_byte() {
        for text in ["{\"b\": 1,\n \"a\":2, \"a\":3}", "\"\\u0000\\ud800\"", "1e999", "\"ж\"", "null"] {
            assert_eq!(new(text).ok().as_ref().map(Payload::as_str), Some(text));
        }
    }

    #[test]
    fn text_that_is_not_one_document_is_refused() {
        for text in ["", "{", "1 2", "{'a': 1}", "NaN", "[1,]"] {
            assert!(matches!(new(text), Err(Error::NotJson { .. })), "{text:?} was accepted");
        }
    }

    #[test]
    fn limits_are_exact() {
        let limits = PayloadLimits { max_bytes: 6, max_depth: 2 };
        assert!(Payload::new("[[12]]".to_owned(), limits).is_ok());
        assert!(matches!(
            Payload::new("[[123]]".to_owned(), limits),
            Err(Error::PayloadTooLarge { bytes: 7, limit: 6 })
        ));
        assert!(matches!(Payload::new("[[[]]]".to_owned(), limits), Err(Error::PayloadTooDeep { limit: 2 })));
    }

    #[test]
    fn brackets_in_strings_do_not_nest() {
        for (text, deep) in [
            (r#"{"[[[": "\"[[["}"#, 1),
            (r#"["\\", [[]], "\\\"[[[["]"#, 3),
            (r#""[[""#, 0),
            // Invalid JSON is refused later, and must not panic here.
            (r#"["[["#, 1),
            (r#"["[[\"#, 1),
            ("", 0),
        ] {
            assert_eq!(nesting(text), deep, "{text}");
        }
    }

    #[test]
    fn the_deepest_allowed_payload_can_be_read_by_serde_json() {
        let depth = PayloadLimits::default().max_depth;
        let text = format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(new(&text).is_ok());
        assert!(serde_json::from_str::<serde_json::Value>(&text).is_ok());
        assert!(new(&format!("[{text}]")).is_err());
    }

    #[test]
    fn debug_shows_no_payload() {
        assert_eq!(format!("{:?}", Payload::from_stored("\"secret\"".to_owned())), "Payload(8 bytes)");
    }
}
