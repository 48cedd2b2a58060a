//! What follows if a worker cannot run a job that another one may: it has no handler for its task, or one that asks
//! for other steps than the program that began the job.

use std::time::Duration;

use super::incoming::Incoming;
use crate::envelope::Envelope;
use crate::{Failure, Outcome, Queue, Store};

/// The longest delay before a worker looks at the job again. The first is a second, and each is twice the one before.
const MAX_DELAY: Duration = Duration::from_secs(60);

/// Returns whether workers have left the job to others for at least `bound`.
///
/// The count of these returns is stored with the job, and not the time of the first, so clocks do not matter.
pub(crate) fn is_left_for(incoming: &Incoming, bound: Duration) -> bool {
    let waited = match times_unknown(incoming) {
        times @ 0..6 => (1_u64 << times) - 1,
        times => 63 + MAX_DELAY.as_secs() * u64::from(times - 6),
    };
    Duration::from_secs(waited) >= bound
}

/// Returns the outcome of a job that the worker leaves to others. It must be a call of a task.
///
/// The job goes back uncounted. It is dead if that has lasted for `bound`.
pub(crate) fn leave_to_others<S: Store>(
    queue: &Queue<S, ()>,
    incoming: &Incoming,
    failure: &Failure,
    bound: Duration,
) -> Outcome {
    let error = failure.to_string();
    if is_left_for(incoming, bound) {
        return Outcome::Dead { error };
    }
    let times = times_unknown(incoming);
    let count = |mut envelope: Envelope| {
        envelope.put("unknown", &times.saturating_add(1)).ok()?;
        queue.encode_json(envelope.to_json().ok()?).ok()
    };
    Outcome::Snooze {
        after: Duration::from_secs(1 << times.min(6)).min(MAX_DELAY),
        reason: Some(error),
        payload: incoming.envelope.clone().and_then(count),
    }
}

fn times_unknown(incoming: &Incoming) -> u32 {
    incoming.envelope.as_ref().map_or(0, Envelope::times_unknown)
}
