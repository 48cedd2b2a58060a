//! A transactional job queue on PostgreSQL, for applications built on diesel.
//!
//! A put commits with the application's own writes, and a handler's writes commit with its job: on the application's
//! `&mut PgConnection`, in its own transaction.
//!
//! | for | start with |
//! |---|---|
//! | a handle to the queues of a table | [`Pq`], [`Builder`] |
//! | enqueueing and taking jobs | [`Queue`], [`BoundQueue`], [`PutOptions`], [`Wait`] |
//! | named work with typed arguments | [`Task`], [`BoundTask`], [`CallOptions`], [`Backoff`] |
//! | running handlers in threads | [`Worker`], [`Handler`], [`Context`], [`Outcome`] |
//! | operating queues: listing, cron, migrations, grants | [`admin`], [`doctor`] |
//! | measuring queues, the database and the handle | [`metrics`] |
//! | queries with diesel's DSL | [`schema`] |
//! | single calls without a handle | [`direct`] |
//! | the traits of a store | [`store`] |
//!
//! ```no_run
//! use pq_diesel::{Pq, Wait};
//!
//! # fn main() -> Result<(), pq_diesel::Error> {
//! let pq = Pq::connect("postgres://localhost/shop")?;
//! pq.migrate()?;
//! let orders = pq.queue::<u64>("orders")?;
//! orders.put(&42)?;
//! orders.get_with(Wait::default(), |_conn, job| {
//!     // What is written on the connection here commits with the job.
//!     assert_eq!(job.data, 42);
//!     Ok::<_, pq_diesel::Error>(())
//! })?;
//! # Ok(())
//! # }
//! ```
//!
//! # Which types are `#[non_exhaustive]`
//!
//! The rule of [`pq_core`] applies: types that only this crate creates and that may grow are non-exhaustive, such as
//! [`Error`]. Types that an application creates, or must match completely, are exhaustive. [`Notify`] is an exception,
//! since an application never matches it.

#![warn(missing_debug_implementations)]

pub mod admin;
mod builder;
mod call_timer;
mod connection;
mod conninfo;
mod copy;
pub mod direct;
pub mod doctor;
mod error;
mod follow_ups;
mod grants;
mod group_commit;
mod isolation;
mod job_results;
mod libpq;
mod listener;
pub mod metrics;
mod migrate;
mod pool;
mod pq;
mod prepared;
mod privileges;
mod rows;
pub mod schema;
mod settings;
mod shutdown_guard;
mod statements;
mod steps;
pub mod store;
mod table;
mod workflow;

#[cfg(feature = "log-layer")]
pub use pq_core::JobLogLayer;
pub use pq_core::{
    Accepted, Annotations, Answer, AttemptEnd, AttemptEntry, Backoff, Batch, CallOptions, CancelOutcome,
    CancellationToken, ChangeOutcome, Claim, Codec, CodecError, Cron, Edge, EndedCounts, Extended, FailedJob,
    Failure, Filter, GroupLimits, GroupUse, IntoWhen, Isolation, Job, JobId, JobInfo, JobProgress, JobRecord,
    JobResult, JobState, Key, LimitedQueue, Limits, LogLevel, LogLine, Next, OnConflict, OnFailure,
    Operation, OperationReport, Outcome, Payload, PayloadLimits, Predecessor, Progress, Put, PutOptions,
    PutOutcome, QueueName, Rate, Reason, Report, Retention, Running, SentSignal, Settlement, Status,
    StepKind, StepRecord, StopMode, StoredLine, TimeError, Trace, Tracer, WORKFLOWS, Wait, When, Workflow,
    WorkflowGraph, WorkflowJob, WorkflowNode, codec_by_name,
};

pub use builder::{Builder, Notify};
pub use error::Error;
pub use pq::{BoundQueue, BoundTask, Context, Control, Handler, Pq, Queue, Task, Worker};
pub use pq_core;
pub use settings::Settings;

/// The examples of the README and of the pages are compiled with the documentation's.
#[cfg(doctest)]
mod pages {
    #[doc = include_str!("../../README.md")]
    struct Readme;
    #[doc = include_str!("../../docs/tour.md")]
    struct Tour;
    #[doc = include_str!("../../docs/operations.md")]
    struct Operations;
    #[doc = include_str!("../../docs/guarantees.md")]
    struct Guarantees;
    #[doc = include_str!("../../docs/workflows.md")]
    struct Workflows;
}
