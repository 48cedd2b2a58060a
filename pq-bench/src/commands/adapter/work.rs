//! What the jobs carry.

use std::fmt;

use anyhow::Result;
use chrono::Utc;
use serde::{Deserialize, Serialize};

/// A job's payload. What has no mark carries nothing but its number, its time and the padding.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Work {
    pub(super) seq: u64,
    /// When it was put, in microseconds of the clock on the wall, which all processes of a run share.
    pub(super) put_at_us: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) fail: Option<Fail>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) fail_attempts: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) run_at_ms: Option<i64>,
    /// Whoever works the job has no use for it.
    #[serde(skip_deserializing)]
    pub(super) padding: String,
}

/// How a job is to fail, so that it is seen what the queue does then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Fail {
    /// Always.
    Poison,
    /// In its first attempts.
    Transient,
}

/// The failure of a job that is to fail.
#[derive(Debug)]
pub(super) struct Injected;

impl fmt::Display for Injected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the harness wants this attempt to fail")
    }
}

impl Work {
    /// What all jobs of a run are made from: their JSON is about so long.
    pub(super) fn of(bytes: usize, random: bool) -> Result<Self> {
        let mut work = Self {
            seq: 0,
            put_at_us: now_us(),
            fail: None,
            fail_attempts: None,
            run_at_ms: None,
            padding: String::new(),
        };
        let padding = bytes.saturating_sub(serde_json::to_string(&work)?.len());
        work.padding = match random {
            true => std::iter::repeat_with(fastrand::alphanumeric).take(padding).collect(),
            false => "x".repeat(padding),
        };
        Ok(work)
    }

    /// Whether the job is one of a scenario of the harness, and no measure of those that are not.
    pub(super) fn is_special(&self) -> bool {
        self.fail.is_some() || self.run_at_ms.is_some()
    }

    /// Whether this attempt is to fail.
    pub(super) fn fails(&self, attempt: u32) -> bool {
        match self.fail {
            Some(Fail::Poison) => true,
            Some(Fail::Transient) => attempt <= self.fail_attempts.unwrap_or(1),
            None => false,
        }
    }
}

pub(super) fn now_us() -> i64 {
    Utc::now().timestamp_micros()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_are_as_long_as_was_asked_for_and_of_no_one_letter_where_they_are_random() -> Result<()> {
        for random in [false, true] {
            let json = serde_json::to_string(&Work::of(256, random)?)?;
            assert_eq!((json.len(), json.contains("xxxxxxxx")), (256, !random));
            let read: Work = serde_json::from_str(&json)?;
            assert!(read.padding.is_empty() && !read.is_special() && !json.contains("fail"));
        }
        assert_eq!(Work::of(0, false)?.padding, "");
        Ok(())
    }

    #[test]
    fn attempts_fail_as_long_as_they_are_to() -> Result<()> {
        let marked =
            |fail| -> Result<Work> { Ok(Work { fail, fail_attempts: Some(2), ..Work::of(0, false)? }) };
        assert_eq!(
            [1, 2, 3].map(|n| marked(Some(Fail::Transient)).is_ok_and(|w| w.fails(n))),
            [true, true, false]
        );
        assert!(marked(Some(Fail::Poison))?.fails(9) && !marked(None)?.fails(1));
        Ok(())
    }
}
