//! The steps of jobs, as they are kept.

use std::fmt;

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::{Error, Payload};

/// A kept step of a job. See [`crate::Context::step`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StepRecord {
    /// The position among the steps of the job, from 0.
    pub position: u32,
    /// What it is, and how it ended.
    pub kind: StepKind,
    /// The name: of a wait that of its signal, and `sleep` of a sleep.
    pub name: String,
    /// The number of the step among those with this name, from 1.
    pub index: u32,
    /// When it was kept, on the store's clock.
    pub at: DateTime<Utc>,
    /// When a sleep ends, or a wait for a signal at the latest.
    pub until: Option<DateTime<Utc>>,
    /// The result, or the value of a signal.
    pub result: Option<Payload>,
}

impl StepRecord {
    /// The maximum length of a name, in bytes. The minimum is 1.
    pub const MAX_NAME_BYTES: usize = 128;

    /// The name of a sleep.
    pub const SLEEP: &str = "sleep";

    /// Returns the name and the index, such as `charge` and `charge#2`. It is unique among the steps of a job.
    #[must_use]
    pub fn label(&self) -> String {
        match self.index {
            1 => self.name.clone(),
            index => format!("{}#{index}", self.name),
        }
    }

    /// Checks the name of a step or a signal.
    pub(crate) fn check_name(name: &str) -> Result<(), Error> {
        let is_valid = (1..=Self::MAX_NAME_BYTES).contains(&name.len()) && !name.contains(['#', '\0']);
        if is_valid {
            return Ok(());
        }
        let start: String = name.chars().take(40).collect();
        Err(Error::InvalidSetting(format!(
            "invalid name {start:?} of a step or a signal: it must have 1 to {} bytes, without `#` and NUL",
            Self::MAX_NAME_BYTES
        )))
    }
}

/// A signal that was sent to a job and is not delivered. See [`crate::Pq::signals`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SentSignal {
    /// The name.
    pub name: String,
    /// The value.
    pub value: Payload,
}

/// What a kept step is, and how it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum StepKind {
    /// A step with a result.
    Step,
    /// A sleep.
    Sleep,
    /// A wait for a signal that has not come yet.
    Waiting,
    /// A wait for a signal that came.
    Signal,
    /// A wait for a signal that did not come in time.
    Timeout,
}

impl StepKind {
    const ALL: [Self; 5] = [Self::Step, Self::Sleep, Self::Waiting, Self::Signal, Self::Timeout];

    /// Returns the word that a store keeps.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Step => "step",
            Self::Sleep => "sleep",
            Self::Waiting => "waiting",
            Self::Signal => "signal",
            Self::Timeout => "timeout",
        }
    }

    /// Returns the kind with this word, for stores.
    #[must_use]
    pub fn from_stored(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == word)
    }

    /// Returns what a handler asks for that has such a step.
    pub(crate) fn asked(self) -> &'static str {
        match self {
            Self::Step => "step",
            Self::Sleep => "sleep",
            Self::Waiting | Self::Signal | Self::Timeout => "signal",
        }
    }
}

impl fmt::Display for StepKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
