//! The traits that a store of jobs implements.
//!
//! This module is for implementors. It is not covered by semantic versioning: a minor release may add methods or
//! change signatures. Applications use [`crate::Pq`] and [`crate::Queue`].
//!
//! [`Store`] has no methods of its own. It unites one trait for each concern:
//!
//! | trait | concern |
//! |---|---|
//! | [`Connect`] | connections, transactions, savepoints, the store's clock |
//! | [`Jobs`] | adding, taking and settling jobs |
//! | [`Archive`] | jobs that have ended, and maintenance |
//! | [`Results`] | waiting for the end of a job |
//! | [`Notes`] | the progress and the logs of jobs |
//! | [`Admin`] | counting, listing, cancelling, pausing and moving jobs |
//! | [`Limiting`] | limits of queues |
//! | [`Explain`] | why a job waits |
//! | [`FollowUps`] | jobs that wait for other jobs |
//! | [`Operations`] | changing the jobs that a filter selects |
//! | [`Audit`] | the audit log of operators |
//! | [`Steps`] | durable steps of jobs, and signals |
//! | [`Workers`] | registered workers |
//! | [`Counting`] | counters of what became of jobs |
//! | [`Schedules`] | periodic jobs |
//! | [`TimeTravel`] | letting time pass, for tests |
//!
//! [`Rows`] is not part of it: only stores with statements of the application implement it.
//!
//! # Which types are `#[non_exhaustive]`
//!
//! A type that applications only receive or build by methods is `#[non_exhaustive]`, so that fields can be added:
//! [`crate::QueueCounts`], [`crate::Retention`], [`crate::Status`]. A type that a store constructs field by field is
//! not, so that a new field makes an implementor's code fail to compile instead of being left out:
//! [`crate::JobRecord`], [`crate::Claim`], [`crate::WorkerInfo`], [`Taken`]. [`crate::NewJob`] is the exception that
//! applications build by [`crate::NewJob::new`].

mod admin;
mod archive;
mod audit;
mod connect;
mod counting;
mod explain;
mod follow_ups;
mod jobs;
mod limiting;
mod notes;
mod operations;
mod results;
mod rows;
mod schedules;
mod steps;
mod time_travel;
mod workers;

pub use admin::Admin;
pub use archive::Archive;
pub use audit::Audit;
pub use connect::{Connect, StoreError};
pub use counting::{Counting, MAX_COUNTED_QUEUES, MAX_COUNTED_TASKS};
pub use explain::{Circumstances, Explain, KeyHolder};
pub use follow_ups::{FollowUps, Wake};
pub use jobs::{Accepted, Extension, Jobs, MAX_KEYED_TAKE, MAX_TAKE_BYTES, Scan, Taken, Undecodable};
pub use limiting::Limiting;
pub use notes::Notes;
pub use operations::{Batch, Operations, Source};
pub use results::{Results, next_look};
pub use rows::Rows;
pub use schedules::Schedules;
pub use steps::{Keeping, NewStep, Steps};
pub use time_travel::TimeTravel;
pub use workers::Workers;

/// Stores jobs.
///
/// A type that implements [`Jobs`], [`Archive`], [`Results`], [`Notes`], [`Admin`], [`Limiting`], [`Explain`],
/// [`FollowUps`], [`Operations`], [`Audit`], [`Workers`], [`Counting`], [`Schedules`], [`Steps`] and [`TimeTravel`]
/// is a store. Each method that reads or writes jobs takes the connection to use. To work in the caller's transaction
/// is therefore to pass the caller's connection. A store never commits a transaction that a caller began.
///
/// # Contract
///
/// The conformance suite checks all of the following.
///
/// - **Atomicity.** In a transaction, a method takes effect if and only if that transaction commits. In a nested
///   transaction, it takes effect if and only if every enclosing transaction commits. Outside of a transaction, each
///   call is a transaction of its own.
/// - **Put.** Jobs get ascending ids in the order given. The transaction itself sees them at once. Others see them
///   when it commits. The commit, not the put, notifies every [`crate::WakeSignal`] that is subscribed to the queue.
///   A job that another program adds by the store's own means, such as plain SQL, counts as put.
/// - **Take.** A take returns the first ready jobs in this order: higher priority, then earlier `expected_at` with
///   absent ones last, then lower id. A job is ready if it is due and not held. It is due if `schedule_at` is
///   absent or has passed on the store's clock at the moment of the call, not at the start of the transaction. A take
///   skips jobs that others hold and never waits for them. No job is returned to two holders, and none is held that
///   was not returned. A taken job is deleted when the transaction commits. A rollback, a lost connection or a dead
///   process returns it to its place at once.
/// - **Claims.** The [`crate::Claim`] of a taken job proves that the transaction holds it. [`Jobs::update`] and
///   [`Jobs::give_back`] refuse a claim whose transaction has ended, or whose job was given back, with
///   [`crate::Error::NotYours`]. They change nothing in that case.
/// - **Leases.** A job that [`Jobs::lease`] took stays held after the commit, until it is settled or until
///   [`Archive::maintain`] finds that its lease has expired. Until then an outcome is accepted, and only once. After
///   that the job is ready again, and nothing from the old claim is accepted.
/// - **Serialization keys.** Of a queue's jobs that share a key, at most one is held at any time, by an open
///   transaction or by a lease. Nothing waits for it. When it ends, the key's next job becomes ready, and signals are
///   notified as for a put.
/// - **Limits.** No more jobs of a limited queue, or of a group of it, are taken than its limits allow. Nothing waits
///   for a place or a token.
/// - **Unique keys.** Of a queue's jobs that share a key, at most one waits or is held by a lease. Concurrent puts, and
///   the jobs of one batch, are decided one after the other.
/// - **Clocks.** Only the store's clock decides what is due.
/// - **Foreign rows.** No row that another program stored may make a take fail.
///
/// No method needs a transaction to stay open while a caller sleeps: a wait consists of takes and of
/// [`Jobs::subscribe`].
pub trait Store:
    Jobs
    + Archive
    + Results
    + Notes
    + Admin
    + Limiting
    + Explain
    + FollowUps
    + Operations
    + Audit
    + Workers
    + Counting
    + Schedules
    + Steps
    + TimeTravel
{
}

impl<
    S: Jobs
        + Archive
        + Results
        + Notes
        + Admin
        + Limiting
        + Explain
        + FollowUps
        + Operations
        + Audit
        + Workers
        + Counting
        + Schedules
        + Steps
        + TimeTravel,
> Store for S
{
}
