//! What is noted with a job when it is put, and does not change how it runs.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize, Serializer};

/// The trace context that is stored with a job, by header name: `traceparent`, `tracestate` and so on.
pub type Trace = BTreeMap<String, String>;

/// What was noted with a job when it was put, and does not change how it runs: the trace context of the put.
///
/// It is the JSON text that a store keeps, which is read on demand. Most jobs have none.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Annotations(Option<Box<str>>);

/// The JSON object. Members that are absent are empty.
#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct Stored {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    trace: Trace,
}

impl Annotations {
    /// Returns the annotations of a job that is put in a trace context.
    ///
    /// Leaves out a header with a NUL, which stores cannot keep.
    pub(crate) fn new(mut trace: Trace) -> Self {
        trace.retain(|name, value| !name.contains('\0') && !value.contains('\0'));
        if trace.is_empty() {
            return Self::default();
        }
        // Strings can always be written.
        Self(serde_json::to_string(&Stored { trace }).ok().map(Into::into))
    }

    /// Wraps JSON that was read from a store, without checks.
    #[must_use]
    pub fn from_stored(json: Option<String>) -> Self {
        Self(json.map(Into::into))
    }

    /// Returns the JSON to store, or `None` if nothing is noted.
    #[must_use]
    pub fn as_json(&self) -> Option<&str> {
        self.0.as_deref()
    }

    /// Returns whether nothing is noted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Returns the trace context in which the job was put. It is empty if there was none.
    #[must_use]
    pub fn trace(&self) -> Trace {
        self.read().trace
    }

    fn read(&self) -> Stored {
        self.as_json().and_then(|json| serde_json::from_str(json).ok()).unwrap_or_default()
    }
}

/// Shows only the size, as for a payload.
impl fmt::Debug for Annotations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Annotations({} bytes)", self.as_json().map_or(0, str::len))
    }
}

/// Writes the JSON object without its empty members.
impl Serialize for Annotations {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.read().serialize(serializer)
    }
}
