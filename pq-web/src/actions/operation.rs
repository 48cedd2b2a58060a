//! The operations on jobs, as forms name them.

use pq_diesel::{Operation, QueueName, When};

use crate::guard::Fields;

/// Returns the operation of a form. `None` if there is no such operation.
pub(super) fn read(name: &str, fields: &Fields) -> Option<Result<Operation, String>> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    Some(match name {
        "retry" => Ok(Operation::Retry),
        "cancel" => Ok(Operation::Cancel),
        "delete" => Ok(Operation::Delete),
        "run-now" => Ok(Operation::RunNow),
        "move" => {
            QueueName::new(fields.get("to")).map(|to| Operation::Move { to }).map_err(|error| text(&error))
        }
        "reschedule" => When::parse(fields.get("schedule").trim())
            .map(|to| Operation::Reschedule { to })
            .map_err(|error| text(&error)),
        "set-priority" => {
            let priority = fields.get("priority").trim();
            let number = priority.parse().map(|to| Operation::SetPriority { to });
            number.map_err(|_| format!("invalid priority {priority:?}: it must be a number"))
        }
        _ => return None,
    })
}

/// The fields that an operation reads, to repeat them in a confirmation.
pub(super) const FIELDS: [&str; 3] = ["to", "schedule", "priority"];

/// Returns whether an operation asks first, because it cannot be undone.
pub(super) fn asks_first(operation: &Operation) -> bool {
    matches!(operation, Operation::Cancel | Operation::Delete)
}
