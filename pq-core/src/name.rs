//! Names of queues.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::Error;

/// The name of a queue: any text of 1 to [`QueueName::MAX_BYTES`] bytes without NUL.
///
/// Quotes, spaces, upper case and letters of any alphabet are allowed. Names are compared byte by byte. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct QueueName(Arc<str>);

impl QueueName {
    /// The maximum length of a name, in bytes of UTF-8.
    ///
    /// A name is part of an index entry, and PostgreSQL refuses entries of more than about 2,700 bytes.
    pub const MAX_BYTES: usize = 1024;

    /// Checks a name.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidQueueName`] if the name is empty, longer than [`Self::MAX_BYTES`], or contains NUL.
    pub fn new(name: impl AsRef<str>) -> Result<Self, Error> {
        let name = name.as_ref();
        let reason = if name.is_empty() {
            "it must not be empty".to_owned()
        } else if name.len() > Self::MAX_BYTES {
            format!("it must have at most {} bytes, and has {}", Self::MAX_BYTES, name.len())
        } else if name.contains('\0') {
            "it must not contain NUL".to_owned()
        } else {
            return Ok(Self(name.into()));
        };
        let shown = name.chars().take(40).collect();
        Err(Error::InvalidQueueName { name: shown, reason })
    }

    /// Returns the name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Serialize for QueueName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for QueueName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

impl fmt::Display for QueueName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for QueueName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

impl AsRef<str> for QueueName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl FromStr for QueueName {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        Self::new(name)
    }
}

impl TryFrom<&str> for QueueName {
    type Error = Error;

    fn try_from(name: &str) -> Result<Self, Error> {
        Self::new(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_any_alphabet_are_accepted() {
        for name in ["a", "Größe", "a \"quoted\" 'name'", "яблоки/яблоки", "𝄞", "%s;--$$"] {
            assert_eq!(QueueName::new(name).map(|n| n.to_string()).ok().as_deref(), Some(name));
        }
        assert!(QueueName::new("x".repeat(QueueName::MAX_BYTES)).is_ok());
    }

    #[test]
    fn the_error_names_the_rule() {
        let message = |name: &str| QueueName::new(name).map_err(|e| e.to_string());
        assert!(message("").is_err_and(|m| m.contains("empty")));
        assert!(message("a\0b").is_err_and(|m| m.contains("NUL")));
        let long = "ж".repeat(QueueName::MAX_BYTES / 2 + 1);
        assert!(message(&long).is_err_and(|m| m.contains("at most 1024 bytes, and has 1026")));
    }
}
