//! The payload of the jobs.

use std::fmt;

use anyhow::Result;
use chrono::Utc;
use serde::{Deserialize, Serialize};

/// A job's payload.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Work {
    pub(super) seq: u64,
    /// Time of the put in microseconds of the wall clock, which all processes of a run share.
    pub(super) put_at_us: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) fail: Option<Fail>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) fail_attempts: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) run_at_ms: Option<i64>,
    /// Handlers do not read it.
    #[serde(skip_deserializing)]
    pub(super) padding: String,
}

/// How a job fails on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Fail {
    /// In each attempt.
    Poison,
    /// In its first attempts.
    Transient,
}

/// The error of a job that fails on purpose.
#[derive(Debug)]
pub(super) struct Injected;

impl fmt::Display for Injected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("attempt fails as planned by the harness")
    }
}

impl Work {
    /// Creates the template of all jobs of a run, whose JSON is about `bytes` long.
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

    /// Returns whether the job belongs to a scenario of the harness, and is excluded from the common latencies.
    pub(super) fn is_special(&self) -> bool {
        self.fail.is_some() || self.run_at_ms.is_some()
    }

    /// Returns whether this attempt fails on purpose.
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
    fn payloads_have_the_requested_length_and_kind() -> Result<()> {
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
    fn marked_jobs_fail_the_planned_attempts() -> Result<()> {
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
