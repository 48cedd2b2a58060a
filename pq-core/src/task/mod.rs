//! Tasks: names for work, with typed arguments.

mod call;
mod call_options;
mod handlers;

use std::sync::Arc;
use std::time::Duration;

pub use self::call::BoundTask;
pub use self::call_options::CallOptions;
use crate::handler::Policy;
use crate::{Backoff, Queue, Store};

/// A task: a name, a type for its arguments, and the options of its calls. Calling it puts a job; a
/// [`crate::Worker`] that serves the task's [`Handler`] works it.
///
/// On the wire a call is the object of Python's `pq.tasks`, so either language can call what the other works:
/// the name is a dotted one there, a struct's fields are keyword arguments, and a tuple's are positional.
///
/// ```
/// use pq_core::{Pq, Worker, memory::MemoryStore};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let pq = Pq::new(MemoryStore::new());
/// let greet = pq.queue("greetings")?.task::<String>("greet").max_retries(3);
/// greet.call(&"world".to_owned())?;
/// let handler = greet.leased(|_context, job| {
///     assert_eq!(job.data, "world");
///     Ok::<_, std::io::Error>(())
/// });
/// let report = Worker::new(&pq).serve(handler).run_until_empty()?;
/// assert_eq!(report.done, 1);
/// # Ok(())
/// # }
/// ```
pub struct Task<S: Store, A> {
    queue: Queue<S, ()>,
    name: Arc<str>,
    defaults: CallOptions,
    policy: Policy,
    key: Option<KeyOf<A>>,
}

/// Makes a serialization key of a call's arguments.
type KeyOf<A> = Arc<dyn Fn(&A) -> String + Send + Sync>;

impl<S: Store, A> Clone for Task<S, A> {
    fn clone(&self) -> Self {
        Self {
            queue: self.queue.clone(),
            name: Arc::clone(&self.name),
            defaults: self.defaults.clone(),
            policy: self.policy.clone(),
            key: self.key.clone(),
        }
    }
}

impl<S: Store> Queue<S, ()> {
    /// The task of this name, whose jobs stand in this queue.
    #[must_use]
    pub fn task<A>(&self, name: &str) -> Task<S, A> {
        Task {
            queue: self.clone(),
            name: Arc::from(name),
            defaults: CallOptions::new(),
            policy: Policy::default(),
            key: None,
        }
    }
}

impl<S: Store, A> Task<S, A> {
    /// The task's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What holds for every call that does not say otherwise.
    #[must_use]
    pub fn with_defaults(mut self, defaults: CallOptions) -> Self {
        self.defaults = defaults;
        self
    }

    /// How often a failed job is tried again; 0 unless said, as in Python's `pq`. The last failure is its death.
    #[must_use]
    pub fn max_retries(mut self, retries: u32) -> Self {
        self.policy.max_retries = retries;
        self
    }

    /// How long a failed job waits; thirty seconds unless said, as in Python's `pq`.
    #[must_use]
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.policy.backoff = backoff;
        self
    }

    /// How long a handler may run; for ever unless said. What runs longer has failed: a leased handler is
    /// told through its context, and a transactional one has its statements cancelled where the store can.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.policy.timeout = Some(timeout);
        self
    }

    /// Whether jobs that are done are kept in the archive; they are not unless said, or unless the handler
    /// returns a result.
    #[must_use]
    pub fn keep_history(mut self, keep: bool) -> Self {
        self.policy.keep_history = keep;
        self
    }

    /// Of the calls with the same key, one runs at a time.
    #[must_use]
    pub fn serialize_by(mut self, key: impl Fn(&A) -> String + Send + Sync + 'static) -> Self {
        self.key = Some(Arc::new(key));
        self
    }
}
