//! The placeholders in statements for the names of one table and its derived objects.

use pq_core::{AttemptEntry, WORKFLOWS};

use crate::table::Table;

/// A SQL expression for the name of the task of the job in `data`, or an empty text.
///
/// The operators of JSON fail for a payload with an escaped NUL. The library and Python write the name first.
const TASK: &str = concat!(
    "coalesce(substring(left(data::text, 300) FROM ",
    r#"E'^\\s*\\u007B\\s*"function"\\s*:\\s*"([^"\\\\]*)"'), '')"#
);

/// Returns a SQL expression for the log of a job's attempts, in `attempt_log`, with the attempt `attempt`. It ended as
/// `ended_as` with `error`, or in a way that is not logged if `ended_as` is null.
fn attempt_log() -> String {
    let (before, chars) = (AttemptEntry::MAX_KEPT - 2, AttemptEntry::MAX_ERROR_CHARS);
    format!(
        "CASE WHEN ended_as IS NULL THEN attempt_log \
            ELSE coalesce(jsonb_path_query_array(attempt_log, '$[last - {before} to last]'), '[]') \
                || jsonb_build_object('attempt', attempt, 'at', statement_timestamp(), 'end', ended_as, \
                    'error', left(error, {chars})) END"
    )
}

/// The values of placeholders.
#[derive(Clone, Debug)]
pub(super) struct Names(Vec<(&'static str, String)>);

impl Names {
    /// Returns the names of a table.
    pub(super) fn new(table: &Table) -> Self {
        Self(vec![
            ("jobs", table.jobs()),
            ("archive", table.archive()),
            ("leases", table.derived("leases")),
            ("settled", table.derived("settled")),
            ("steps", table.derived("steps")),
            ("signals", table.derived("signals")),
            ("keys", table.derived("keys")),
            ("unique", table.derived("unique")),
            ("controls", table.derived("controls")),
            ("workers", table.derived("workers")),
            ("counters", table.derived("counters")),
            ("notes", table.derived("notes")),
            ("waits", table.derived("waits")),
            ("cron", table.derived("cron")),
            ("workflows", format!("'{WORKFLOWS}'")),
            ("task", TASK.to_owned()),
            ("attempt_log", attempt_log()),
            ("audit", table.derived("audit")),
            ("lock_keyed_job", table.derived("lock_keyed_job")),
            ("is_partly_settled", table.derived("is_partly_settled")),
            ("cancel_leased", table.derived("cancel_leased")),
            ("return", table.derived("return")),
            ("hold_lease", table.derived("hold_lease")),
            ("send_signal", table.derived("send_signal")),
            ("put_unique", table.derived("put_unique")),
            ("put_workflow", table.derived("put_workflow")),
            ("try_claim_unique", table.derived("try_claim_unique")),
            ("refuse_hidden_controls", table.derived("refuse_hidden_controls")),
            ("take_limited", table.derived("take_limited")),
            ("set_limits", table.derived("set_limits")),
            ("correct_cost", table.derived("correct_cost")),
            ("places", table.derived("places")),
            ("buckets", table.derived("buckets")),
            ("jobs_name", table.jobs_literal()),
            ("leases_name", table.literal("leases")),
            ("steps_name", table.literal("steps")),
            ("controls_name", table.literal("controls")),
            ("tokens_name", table.literal("lease_tokens")),
            ("notifier_lock", table.notifier_lock("channel")),
        ])
    }

    /// Adds values.
    pub(super) fn with(&self, values: impl IntoIterator<Item = (&'static str, impl ToString)>) -> Self {
        let values = values.into_iter().map(|(name, value)| (name, value.to_string()));
        Self(self.0.iter().cloned().chain(values).collect())
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_str())
    }
}
