//! A taken job as it is passed to a handler's closure, and what the closure returns.

use std::sync::Arc;

use crate::envelope::{Envelope, Trace};
use crate::{Claim, Failure, Outcome};

/// A taken job, and its call if it is a task's.
pub(crate) struct Incoming {
    pub(crate) claim: Arc<Claim>,
    pub(crate) envelope: Option<Envelope>,
}

impl Incoming {
    /// Returns the trace context in which the task was called.
    pub(crate) fn trace(&self) -> Trace {
        self.envelope.as_ref().map(Envelope::trace).unwrap_or_default()
    }
}

pub(crate) type HandlerResult = Result<Outcome, Failure>;
