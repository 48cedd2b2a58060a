//! A taken job as it is passed to a handler's closure, and what the closure returns.

use std::sync::Arc;

use crate::envelope::Envelope;
use crate::{Claim, Failure, Outcome};

/// A taken job, and its call if it is a task's.
pub(crate) struct Incoming {
    pub(crate) claim: Arc<Claim>,
    pub(crate) envelope: Option<Envelope>,
}

pub(crate) type HandlerResult = Result<Outcome, Failure>;
