//! Tasks: names for work, with typed arguments.

mod batch;
mod call;
mod call_options;
mod handlers;
mod stored_call;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

pub use self::call::BoundTask;
pub use self::call_options::CallOptions;
pub use self::stored_call::StoredCall;
use crate::handler::{Isolation, Policy};
use crate::{Backoff, Queue, Store};

/// A task: a name, the type of its arguments, and the defaults of its calls.
///
/// Retries, backoff and timeout are those of the task of the worker that runs a job, wherever the job was put from. A
/// call can state its own, see [`CallOptions`].
///
/// [`Task::call`] enqueues a job. A [`crate::Worker`] that serves a handler of the task runs it, see [`Task::leased`]
/// and [`Task::transactional`].
///
/// A call is stored as the JSON object of Python's `pq.tasks`, so each language can call tasks whose handlers are
/// written in the other. There the name is the dotted path of a function; the fields of a struct are its keyword
/// arguments, and the items of a tuple its positional arguments.
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
    group: Option<KeyOf<A>>,
}

/// Computes a serialization key from a call's arguments.
type KeyOf<A> = Arc<dyn Fn(&A) -> String + Send + Sync>;

impl<S: Store, A> Clone for Task<S, A> {
    fn clone(&self) -> Self {
        Self {
            queue: self.queue.clone(),
            name: Arc::clone(&self.name),
            defaults: self.defaults.clone(),
            policy: self.policy.clone(),
            key: self.key.clone(),
            group: self.group.clone(),
        }
    }
}

impl<S: Store, A> fmt::Debug for Task<S, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Task")
            .field("queue", self.queue.name())
            .field("name", &self.name)
            .field("defaults", &self.defaults)
            .field("policy", &self.policy)
            .finish_non_exhaustive()
    }
}

impl<S: Store> Queue<S, ()> {
    /// Returns the task of this name, whose jobs are in this queue.
    #[must_use]
    pub fn task<A>(&self, name: &str) -> Task<S, A> {
        Task {
            queue: self.clone(),
            name: Arc::from(name),
            defaults: CallOptions::new(),
            policy: Policy::default(),
            key: None,
            group: None,
        }
    }
}

impl<S: Store, A> Task<S, A> {
    /// Returns the task's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Sets options for every call. The options of a call take precedence.
    ///
    /// They are stored with each call, as if the call had them.
    #[must_use]
    pub fn with_defaults(mut self, defaults: CallOptions) -> Self {
        self.defaults = defaults;
        self
    }

    /// Sets the maximum number of retries. Default: 0, as in Python's `pq`.
    ///
    /// A job that fails its last attempt is archived as dead.
    #[must_use]
    pub fn max_retries(mut self, retries: u32) -> Self {
        self.policy.max_retries = retries;
        self
    }

    /// Sets in how many attempts the worker may die, before the job is archived as dead. Default: 3. Minimum: 1.
    ///
    /// A lost lease is not a failure of the handler, so it uses up no retry. It counts only for a job that was alone in
    /// its lease. After the loss of a lease of several jobs they are taken in smaller leases, at last alone.
    #[must_use]
    pub fn max_crashes(mut self, crashes: u32) -> Self {
        self.policy.max_crashes = crashes;
        self
    }

    /// Sets the delay before a retry. Default: 30 s, as in Python's `pq`.
    #[must_use]
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.policy.backoff = backoff;
        self
    }

    /// Sets how long a handler may run. Default: without limit.
    ///
    /// An attempt that takes longer has failed, whatever the handler returns. A leased handler learns of it by
    /// [`crate::Context::is_timed_out`]. A statement of a transactional handler is cancelled, if the store can do that.
    /// A leased handler that does not return keeps its thread, and its lease is no longer extended.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.policy.timeout = Some(timeout);
        self
    }

    /// Sets whether completed jobs are kept in the archive. Default: `false`.
    ///
    /// A job with a result ([`crate::Outcome::result`]) is kept in any case.
    #[must_use]
    pub fn keep_history(mut self, keep: bool) -> Self {
        self.policy.keep_history = keep;
        self
    }

    /// Lets up to `max` transactional handlers that send statements share a transaction. Default: 1.
    ///
    /// A shared transaction saves the round trips and the commit of each job. Handlers that share one also share
    ///
    /// - its locks: a row that one handler has changed stays locked until the last of them has ended, and two shared
    ///   transactions that change the same rows in a different order deadlock;
    /// - its settings, such as those of `SET LOCAL` and `set_config(…, true)`, its temporary tables and its advisory
    ///   locks;
    /// - its deferred constraints, which are checked at the commit of all;
    /// - its time: `now()` is the start of the first.
    ///
    /// A failure still undoes the writes of one handler only. A deadlock, a serialization failure or a failed commit is
    /// nobody's failure: the jobs run again, one by one, and the worker shares fewer for a while.
    #[must_use]
    pub fn share_transaction(mut self, max: usize) -> Self {
        self.policy.max_sharing = max;
        self
    }

    /// Sets the isolation level of a transactional handler's transaction. Default: [`Isolation::ReadCommitted`].
    ///
    /// Such a handler has a transaction of its own. If it conflicts with another one it is run again at once, three
    /// times at most, before the conflict counts as a failure. All handlers of the queue must be transactional.
    #[must_use]
    pub fn isolation(mut self, isolation: Isolation) -> Self {
        self.policy.isolation = isolation;
        self
    }

    /// Computes a serialization key from the arguments of each call. Jobs with the same key run one at a time.
    ///
    /// A key in the options of a call takes precedence.
    #[must_use]
    pub fn serialize_by(mut self, key: impl Fn(&A) -> String + Send + Sync + 'static) -> Self {
        self.key = Some(Arc::new(key));
        self
    }

    /// Computes a group from the arguments of each call, by which the limits of the queue count its jobs.
    ///
    /// A group in the options of a call takes precedence. See [`crate::PutOptions::group`].
    #[must_use]
    pub fn group_by(mut self, group: impl Fn(&A) -> String + Send + Sync + 'static) -> Self {
        self.group = Some(Arc::new(group));
        self
    }
}
