//! The payload of the bench's jobs.

use serde::{Deserialize, Serialize};

/// Minimum size of a payload in bytes, for every process id.
pub(super) const MIN_BYTES: i64 = 16;

/// A payload: the process id as a mark, and filler text.
///
/// Jobs that others put into the queue do not decode to this type. They become dead, and can be requeued.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Payload(ProcessMark, String);

impl Payload {
    /// Returns a payload whose JSON has this size.
    pub(super) fn of(bytes: u32) -> Self {
        let frame = format!("[{},\"\"]", std::process::id()).len();
        Self(ProcessMark, "x".repeat((bytes as usize).saturating_sub(frame)))
    }
}

/// The id of this process. No other id decodes to it.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
struct ProcessMark;

impl From<ProcessMark> for u32 {
    fn from(ProcessMark: ProcessMark) -> Self {
        std::process::id()
    }
}

impl TryFrom<u32> for ProcessMark {
    type Error = &'static str;

    fn try_from(id: u32) -> Result<Self, Self::Error> {
        if id == std::process::id() { Ok(Self) } else { Err("the job belongs to another process") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_has_the_requested_size_and_only_ours_decodes() -> Result<(), serde_json::Error> {
        for bytes in [16, 100, 1 << 20] {
            let json = serde_json::to_string(&Payload::of(bytes))?;
            assert_eq!(json.len(), bytes as usize);
            serde_json::from_str::<Payload>(&json)?;
        }
        for other in ["1", "[1,\"x\"]", "{}", "[null,\"\"]"] {
            assert!(serde_json::from_str::<Payload>(other).is_err(), "{other}");
        }
        Ok(())
    }
}
