//! What the bench's jobs carry.

use serde::{Deserialize, Serialize};

/// The fewest bytes that the JSON of a [`Payload`] can have, whatever the process id.
pub(super) const MIN_BYTES: i64 = 16;

/// The payload: a mark, and as much text as was asked for. Whatever others put into the queue meanwhile is
/// not of this type, so it is set aside as what cannot be decoded, and can be put back.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Payload(ProcessMark, String);

impl Payload {
    /// A payload whose JSON is so long.
    pub(super) fn of(bytes: u32) -> Self {
        let frame = format!("[{},\"\"]", std::process::id()).len();
        Self(ProcessMark, "x".repeat((bytes as usize).saturating_sub(frame)))
    }
}

/// The mark of this process: its id.
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
        if id == std::process::id() { Ok(Self) } else { Err("it is of another process") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_is_as_long_as_was_asked_for_and_known_as_our_own() -> Result<(), serde_json::Error> {
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
