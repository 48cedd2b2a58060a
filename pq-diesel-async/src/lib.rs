//! A transactional job queue on PostgreSQL, for asynchronous applications built on diesel-async and tokio.
//!
//! A put commits with the application's own writes, on the application's `&mut AsyncPgConnection`, in its own
//! transaction. Thousands of asynchronous handlers run in one worker, in the application's runtime. Tables,
//! statements and semantics are those of [`pq_diesel`], so blocking and asynchronous programs share queues.
//!
//! | for | start with |
//! |---|---|
//! | a handle to the queues of a table | [`Pq`], [`Builder`] |
//! | enqueueing and taking jobs | [`Queue`], [`BoundQueue`], [`JobStream`] |
//! | named work with typed arguments | [`Task`], [`BoundTask`] |
//! | running handlers | [`Worker`], [`Context`] |
//! | everything else, from threads | [`Pq::blocking`] |
//!
//! ```no_run
//! use pq_diesel_async::{Pq, Wait};
//!
//! # async fn orders() -> Result<(), pq_diesel_async::Error> {
//! let pq = Pq::connect("postgres://localhost/shop").await?;
//! pq.migrate().await?;
//! let orders = pq.queue::<u64>("orders")?;
//! orders.put(&42).await?;
//! orders
//!     .get_with(Wait::default(), async |_conn, job| {
//!         // What is written on the connection here commits with the job.
//!         assert_eq!(job.data, 42);
//!         Ok::<_, pq_diesel_async::Error>(())
//!     })
//!     .await?;
//! # Ok(())
//! # }
//! ```
//!
//! # Dropping futures
//!
//! A future of this crate can be dropped at any await, for example by a timeout or a `select!`. No job is lost: a job
//! that was being taken is back in its queue, a job that was being put is added or not, and a lease ends at its time.
//! A connection of the handle whose call was not finished is closed, never returned to its pool, and its statement is
//! cancelled. A future that runs on **your** connection leaves it in an unknown state: drop the connection, too.

#![warn(missing_debug_implementations)]

mod batch;
mod bound;
mod builder;
mod calls;
mod connection;
mod context;
mod group_put;
mod handlers;
mod limits;
mod operate;
mod pool;
mod pq;
mod queue;
mod result;
mod shared;
mod sqlstate;
mod steps;
mod stream;
mod take;
mod task;
mod transaction;
mod transactional;
mod wait;
mod worker;
mod workflow;

/// The parts that this crate's own conformance tests call.
#[doc(hidden)]
pub mod testing {
    pub use crate::connection::OnAsync;
    pub use crate::pool::Lent;
    pub use crate::shared::Shared;
}

pub use bound::{BoundQueue, BoundTask};
pub use builder::Builder;
pub use context::Context;
pub use pq::Pq;
pub use pq_diesel;
#[cfg(feature = "log-layer")]
pub use pq_diesel::JobLogLayer;
pub use pq_diesel::{
    Accepted, Answer, Backoff, Batch, CallOptions, CancelOutcome, CancellationToken, Claim, Control,
    EndedCounts, Error, Extended, FailedJob, Failure, Filter, Handler, IntoWhen, Job, JobId, JobProgress,
    JobRecord, JobResult, JobState, LogLevel, LogLine, Notify, OnConflict, OnFailure, Outcome, PayloadLimits,
    Predecessor, Progress, Put, PutOptions, PutOutcome, QueueName, Report, Retention, StopMode, StoredLine,
    Trace, Tracer, WORKFLOWS, Wait, When, Workflow, WorkflowGraph, WorkflowJob,
};
pub use queue::Queue;
pub use stream::JobStream;
pub use task::Task;
pub use transaction::AsyncFunc;
pub use worker::Worker;

/// The examples of the pages are compiled with the documentation's.
#[cfg(doctest)]
mod pages {
    #[doc = include_str!("../../docs/async.md")]
    struct Async;
    #[doc = include_str!("../../docs/coming-from.md")]
    struct ComingFrom;
    #[doc = include_str!("../../docs/embedding.md")]
    struct Embedding;
    #[doc = include_str!("../../docs/steps.md")]
    struct Steps;
    #[doc = include_str!("../../docs/testing.md")]
    struct Testing;
}
