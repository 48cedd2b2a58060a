//! Reading the call of a task from its job.

use std::fmt;

use serde::de::DeserializeOwned;

use crate::envelope::Envelope;
use crate::{Failure, JobRecord, Queue, Store};

/// A call of a task, as its job stores it.
///
/// A worker reads calls by itself. This is for programs that look at jobs, such as tests and user interfaces.
///
/// ```
/// # use pq_core::{Filter, Pq, memory::MemoryStore};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let pq = Pq::new(MemoryStore::new());
/// let greet = pq.queue("greetings")?.task::<String>("greet");
/// greet.call(&"world".to_owned())?;
/// for job in greet.queue().list(&Filter::default(), 10)? {
///     let call = greet.queue().stored_call(&job)?;
///     assert_eq!(call.task(), "greet");
///     assert_eq!(call.arguments::<String>()?, "world");
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct StoredCall {
    task: String,
    envelope: Envelope,
}

/// Shows the task, but not the arguments.
impl fmt::Debug for StoredCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoredCall").field("task", &self.task).finish_non_exhaustive()
    }
}

impl StoredCall {
    /// Returns the name of the task that is called.
    #[must_use]
    pub fn task(&self) -> &str {
        &self.task
    }

    /// Decodes the arguments, as the task's handler does.
    ///
    /// # Errors
    ///
    /// [`Failure::Undecodable`] if they are not an `A`. The text does not repeat them.
    pub fn arguments<A: DeserializeOwned>(&self) -> Result<A, Failure> {
        self.envelope.arguments().map_err(Failure::Undecodable)
    }

    /// Returns the arguments as JSON: an object of the named ones, an array of several, or the only one.
    ///
    /// # Errors
    ///
    /// [`Failure::Undecodable`] if they are not JSON.
    pub fn arguments_json(&self) -> Result<String, Failure> {
        let forms = self.envelope.argument_forms().map_err(Failure::Undecodable)?;
        Ok(forms.into_iter().next().unwrap_or_default())
    }
}

impl<S: Store, T> Queue<S, T> {
    /// Reads the call of a task from a job of this queue.
    ///
    /// # Errors
    ///
    /// [`Failure::Undecodable`] if the payload is not a task's call. The text does not repeat it.
    pub fn stored_call(&self, job: &JobRecord) -> Result<StoredCall, Failure> {
        let read = self.json_of(job).and_then(|json| Envelope::read(&json));
        let envelope = read.map_err(Failure::Undecodable)?;
        Ok(StoredCall { task: envelope.function().unwrap_or_default(), envelope })
    }
}
