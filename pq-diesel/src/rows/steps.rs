//! Rows of the steps of jobs.

use std::time::Duration;

use diesel::pg::data_types::PgTimestamp;
use diesel::sql_types::{BigInt, Integer, Nullable, Text, Timestamptz};
use pq_core::store::Keeping;
use pq_core::{Payload, SentSignal, StepKind, StepRecord};

use super::{nearest, span};

row! {
    /// A kept step.
    StepRow, StepSql {
        position: i32 => Integer,
        kind: String => Text,
        name: String => Text,
        index: i64 => BigInt,
        at: PgTimestamp => Timestamptz,
        until: Option<PgTimestamp> => Nullable<Timestamptz>,
        result: Option<String> => Nullable<Text>,
    }
}

impl StepRow {
    pub(crate) fn into_record(self) -> Option<StepRecord> {
        Some(StepRecord {
            position: u32::try_from(self.position).ok()?,
            kind: StepKind::from_stored(&self.kind)?,
            name: self.name,
            index: u32::try_from(self.index).ok()?,
            at: nearest(self.at),
            until: self.until.map(nearest),
            result: self.result.map(Payload::from_stored),
        })
    }
}

row! {
    /// A signal that is not delivered.
    SentRow, SentSql {
        name: String => Text,
        value: String => Text,
    }
}

impl SentRow {
    pub(crate) fn into_signal(self) -> SentSignal {
        SentSignal { name: self.name, value: Payload::from_stored(self.value) }
    }
}

/// How long a job sleeps that may have overlooked a signal.
pub(crate) const LOOK_AGAIN: Duration = Duration::from_secs(1);

row! {
    /// A wait for a signal.
    SignalRow, SignalSql {
        kind: String => Text,
        value: Option<String> => Nullable<Text>,
        remaining: i64 => BigInt,
    }
}

impl SignalRow {
    /// Returns what became of the wait. If a signal may have been sent that is not visible yet, the job looks for it
    /// again soon.
    pub(crate) fn into_keeping(self, may_have_come: bool) -> Keeping {
        if self.kind != StepKind::Waiting.as_str() {
            return Keeping::Kept(self.value.map(Payload::from_stored));
        }
        let remaining = span(self.remaining);
        Keeping::Waits(if may_have_come { remaining.min(LOOK_AGAIN) } else { remaining })
    }
}
