//! Asserting that tasks were called, and with what.

use std::fmt;
use std::ops::Deref;

use pq_core::{BoundTask, Filter, JobRecord, Store, Task};
use serde::de::DeserializeOwned;

use crate::expected::Expected;

/// The maximum number of jobs that a failed assertion shows.
const SHOWN: usize = 20;

/// A call of a task: the job with its arguments decoded.
#[derive(Clone, Debug)]
pub struct Call<A> {
    /// The arguments.
    pub arguments: A,
    /// The job, with its times, keys, state and attempts.
    pub job: JobRecord,
}

/// The calls of a task that its queue has, ordered by the ids of their jobs.
///
/// [`calls_of`] lists them. [`Calls::read`] makes them of jobs that were listed in another way, for example by an async
/// client.
///
/// It dereferences to a slice of [`Call`].
#[derive(Clone, Debug)]
pub struct Calls<A> {
    task: String,
    queue: String,
    calls: Vec<Call<A>>,
    /// A line for each job of the queue, and whether it calls the task.
    lines: Vec<(bool, String)>,
}

impl<A: DeserializeOwned> Calls<A> {
    /// Reads the calls of the task among jobs of its queue.
    ///
    /// A call of the task whose arguments are not an `A` is not among them. A failed assertion shows it.
    #[must_use]
    pub fn read<S: Store>(task: &Task<S, A>, jobs: Vec<JobRecord>) -> Self {
        let queue = task.queue();
        let mut read = Self {
            task: task.name().to_owned(),
            queue: queue.name().to_string(),
            calls: Vec::new(),
            lines: Vec::new(),
        };
        for job in jobs {
            let call = queue.stored_call(&job);
            let is_ours = call.as_ref().is_ok_and(|call| call.task() == task.name());
            let arguments = call.and_then(|call| {
                let text = call.arguments_json()?;
                let called = if is_ours { text } else { format!("{} {text}", call.task()) };
                Ok((called, is_ours.then(|| call.arguments::<A>()).transpose()))
            });
            let called = match &arguments {
                Ok((called, Ok(_))) => called.clone(),
                Ok((called, Err(failure))) => format!("{called} ({failure})"),
                Err(failure) => format!("{} ({failure})", job.payload.as_str()),
            };
            read.lines.push((is_ours, describe(&job, &called)));
            if let Ok((_, Ok(Some(arguments)))) = arguments {
                read.calls.push(Call { arguments, job });
            }
        }
        read
    }
}

impl<A> Calls<A> {
    /// Asserts that at least one call is as expected, and returns the first.
    ///
    /// # Panics
    ///
    /// Panics if none is. The message lists what was called instead.
    #[track_caller]
    pub fn assert_called<'e>(&self, expected: impl Into<Expected<'e, A>>) -> &Call<A>
    where
        A: 'e,
    {
        &self.calls[self.position(&expected.into())]
    }

    #[track_caller]
    fn position(&self, expected: &Expected<'_, A>) -> usize {
        match self.calls.iter().position(|call| expected.matches(call)) {
            Some(position) => position,
            None => panic!("task {:?} was not called with {expected}\n{self}", self.task),
        }
    }

    /// Asserts that no call is as described.
    ///
    /// # Panics
    ///
    /// Panics if one is. The message lists all calls.
    #[track_caller]
    pub fn assert_not_called<'e>(&self, unexpected: impl Into<Expected<'e, A>>)
    where
        A: 'e,
    {
        let unexpected = unexpected.into();
        if let Some(call) = self.calls.iter().find(|call| unexpected.matches(call)) {
            panic!("task {:?} was called with {unexpected}, by job {}\n{self}", self.task, call.job.id);
        }
    }
}

impl<A> Deref for Calls<A> {
    type Target = [Call<A>];

    fn deref(&self) -> &[Call<A>] {
        &self.calls
    }
}

impl<A> IntoIterator for Calls<A> {
    type Item = Call<A>;
    type IntoIter = std::vec::IntoIter<Call<A>>;

    fn into_iter(self) -> Self::IntoIter {
        self.calls.into_iter()
    }
}

/// Lists the calls of the task, then the other jobs of its queue.
impl<A> fmt::Display for Calls<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (ours, others): (Vec<_>, Vec<_>) = self.lines.iter().partition(|(is_ours, _)| *is_ours);
        let mut list = |title: String, lines: Vec<&(bool, String)>| {
            writeln!(f, "{title}")?;
            for (_, line) in lines.iter().take(SHOWN) {
                writeln!(f, "  {line}")?;
            }
            match lines.len().saturating_sub(SHOWN) {
                0 => Ok(()),
                more => writeln!(f, "  and {more} more"),
            }
        };
        match ours.is_empty() {
            true => list("it was not called, or its jobs are done and were not kept".to_owned(), ours)?,
            false => list("it was called with".to_owned(), ours)?,
        }
        match others.is_empty() {
            true => Ok(()),
            false => list(format!("other jobs of queue {:?}", self.queue), others),
        }
    }
}

fn describe(job: &JobRecord, called: &str) -> String {
    let mut line = format!("job {}, {}: {called}", job.id, job.state);
    if job.priority != 0 {
        line += &format!(", priority {}", job.priority);
    }
    let times = [("scheduled for", job.schedule_at), ("expected at", job.expected_at)];
    for (what, at) in times {
        if let Some(at) = at {
            line += &format!(", {what} {at} ({} s after its put)", (at - job.enqueued_at).as_seconds_f64());
        }
    }
    for (what, key) in [("serialization key", &job.serialization_key), ("unique key", &job.unique_key)] {
        if let Some(key) = key {
            line += &format!(", {what} {:?}", key.as_str());
        }
    }
    line
}

/// A task whose calls can be listed: on connections of its handle (`&task`), or on the caller's connection and in its
/// transaction (`task.on(conn)`).
pub trait ListCalls {
    /// The arguments of the task.
    type Arguments;
    /// The store's error.
    type Error: fmt::Display;

    /// Lists the calls.
    ///
    /// # Errors
    ///
    /// The store's errors.
    fn list_calls(self) -> Result<Calls<Self::Arguments>, Self::Error>;
}

impl<S: Store, A: DeserializeOwned> ListCalls for &Task<S, A> {
    type Arguments = A;
    type Error = S::Error;

    fn list_calls(self) -> Result<Calls<A>, S::Error> {
        Ok(Calls::read(self, self.queue().list(&Filter::default(), usize::MAX)?))
    }
}

impl<S: Store, A: DeserializeOwned> ListCalls for BoundTask<'_, S, A> {
    type Arguments = A;
    type Error = S::Error;

    fn list_calls(mut self) -> Result<Calls<A>, S::Error> {
        let jobs = self.list(&Filter::default(), usize::MAX)?;
        Ok(Calls::read(self.task(), jobs))
    }
}

/// Lists the calls of a task: those that wait, run, or are in the archive.
///
/// Pass `&task`, or `task.on(conn)` for the calls that the transaction of `conn` sees. A completed job is deleted, and
/// so is not listed, unless its task keeps history or its handler returned a result.
///
/// ```
/// use pq_core::{Pq, memory::MemoryStore};
/// use pq_testing::calls_of;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let pq = Pq::new(MemoryStore::new());
/// let greet = pq.queue("greetings")?.task::<String>("greet");
/// greet.call(&"world".to_owned())?;
///
/// let calls = calls_of(&greet)?;
/// assert_eq!(calls.len(), 1);
/// assert_eq!(calls[0].arguments, "world");
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// The store's errors.
pub fn calls_of<T: ListCalls>(task: T) -> Result<Calls<T::Arguments>, T::Error> {
    task.list_calls()
}

/// Asserts that a task was called, and returns the first call that is as expected.
///
/// Pass `&task`, or `task.on(conn)` for the calls that the transaction of `conn` sees, as for [`calls_of`]. The
/// expectation is a reference to the arguments, or an [`Expected`].
///
/// ```
/// use pq_core::{CallOptions, Pq, memory::MemoryStore};
/// use pq_testing::{Expected, assert_called};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let pq = Pq::new(MemoryStore::new());
/// let greet = pq.queue("greetings")?.task::<String>("greet");
/// let world = "world".to_owned();
/// greet.call_with(&world, &CallOptions::new().schedule_at("1h").priority(3))?;
///
/// assert_called(&greet, &world);
/// assert_called(&greet, Expected::arguments(&world).schedule_at("1h").priority(3));
/// # Ok(())
/// # }
/// ```
///
/// # Panics
///
/// Panics if no call is as expected, with a message that lists what was called instead, and if the store fails.
#[track_caller]
pub fn assert_called<'e, T: ListCalls>(
    task: T,
    expected: impl Into<Expected<'e, T::Arguments>>,
) -> Call<T::Arguments>
where
    T::Arguments: 'e,
{
    let mut calls = listed(task);
    let position = calls.position(&expected.into());
    calls.calls.swap_remove(position)
}

/// Asserts that no call of a task is as described. [`Expected::any`] describes all calls.
///
/// ```
/// # use pq_core::{Pq, memory::MemoryStore};
/// use pq_testing::{Expected, assert_not_called};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let pq = Pq::new(MemoryStore::new());
/// let greet = pq.queue("greetings")?.task::<String>("greet");
/// assert_not_called(&greet, &"world".to_owned());
/// assert_not_called(&greet, Expected::any());
/// # Ok(())
/// # }
/// ```
///
/// # Panics
///
/// Panics if a call is as described, with a message that lists all calls, and if the store fails.
#[track_caller]
pub fn assert_not_called<'e, T: ListCalls>(task: T, unexpected: impl Into<Expected<'e, T::Arguments>>)
where
    T::Arguments: 'e,
{
    listed(task).assert_not_called(unexpected);
}

#[track_caller]
fn listed<T: ListCalls>(task: T) -> Calls<T::Arguments> {
    match task.list_calls() {
        Ok(calls) => calls,
        Err(error) => panic!("cannot list the calls: {error}"),
    }
}
