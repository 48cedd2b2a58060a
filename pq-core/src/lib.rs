//! A transactional job queue, independent of any database.
//!
//! Applications on PostgreSQL use the crate `pq-diesel`, which re-exports what they need of this one.
//!
//! | for | types |
//! |---|---|
//! | enqueueing and taking jobs | [`Pq`], [`Queue`], [`BoundQueue`], [`Job`], [`PutOptions`], [`Wait`] |
//! | named work with typed arguments | [`Task`], [`BoundTask`], [`CallOptions`], [`Backoff`] |
//! | running handlers in threads | [`Worker`], [`Handler`], [`Context`], [`Outcome`], [`Control`] |
//! | operating queues | [`Filter`], [`Retention`], [`Cron`] and the methods of [`Pq`] |
//! | implementing a store | [`store`] with the trait [`Store`]; [`memory`] is the readable reference |
//!
//! Each method of a store takes a connection. To work in a caller's transaction is therefore to pass the caller's
//! connection. The crate `pq-conformance` is the suite that every store passes. This crate depends on no database
//! driver and no async runtime, and contains no SQL.
//!
//! # Which types are `#[non_exhaustive]`
//!
//! Types that only this crate creates and that may grow: errors, failures and reports. Types that an application
//! creates, or must match completely, are exhaustive: options as enums ([`Wait`], [`OnConflict`], [`StopMode`]),
//! [`Outcome`], and structs of settings with public fields ([`PayloadLimits`]).
//!
//! ```
//! use pq_core::{Wait, memory::MemoryStore};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let pq = pq_core::Pq::new(MemoryStore::new());
//! let apples = pq.queue::<String>("apples")?;
//! apples.put("Granny Smith")?;
//! let job = apples.get(Wait::No)?.expect("one job was put");
//! assert_eq!(job.data, "Granny Smith");
//! # Ok(())
//! # }
//! ```

#![warn(missing_debug_implementations)]

mod annotations;
mod attempt_log;
mod audit;
mod backoff;
mod cancellation;
mod claim;
mod codec;
mod counters;
mod counts;
mod cron;
mod envelope;
mod error;
mod explanation;
mod filter;
mod follow_up;
mod handler;
mod incidents;
mod job;
mod job_result;
mod key;
mod lease_table;
mod limited_queue;
mod limits;
mod lock;
#[cfg(feature = "log-layer")]
mod log_layer;
pub mod memory;
mod name;
mod notes;
mod operation;
mod options;
mod outcome;
mod payload;
mod put_counts;
mod queue;
mod record;
mod retention;
mod step;
mod stop;
pub mod store;
mod task;
mod tracer;
mod wait;
mod wake_signal;
mod when;
mod worker;
mod worker_info;
mod workflow;

pub use annotations::{Annotations, Trace};
pub use attempt_log::{AttemptEnd, AttemptEntry};
pub use audit::{Action, AuditEntry, AuditRecord};
pub use backoff::Backoff;
pub use cancellation::{CancellationToken, Registration};
pub use claim::{Claim, Extended, Held};
#[cfg(feature = "pickle")]
pub use codec::Pickle;
pub use codec::{Codec, CodecError, Json, codec_by_name};
pub use counters::{Counters, Histogram, TaskCounters};
pub use counts::{PausedQueue, QueueCounts};
#[cfg(feature = "cron")]
pub use cron::fire_due_crons;
pub use cron::{Cron, CronEntry};
pub use error::Error;
pub use explanation::{Reason, RunningWorker, Session};
pub use filter::Filter;
pub use follow_up::{After, Batch, EndedCounts, Links, Predecessor};
pub use handler::{Checkpoint, Context, Executor, Failure, Handler, Isolation, JobInfo, Next, StepRun};
pub use job::{Job, JobId, NewJob};
pub use job_result::{Answer, FailedJob, JobResult};
pub use key::{Key, OnConflict, Put, PutOutcome};
pub use limited_queue::{GroupUse, LimitedQueue};
pub use limits::{GroupLimits, LimitUse, Limits, Rate};
#[cfg(feature = "log-layer")]
pub use log_layer::JobLogLayer;
pub use name::QueueName;
pub use notes::{JobProgress, LogLevel, LogLine, NewNotes, Progress, StoredLine};
pub use operation::{ChangeOutcome, Operation, OperationReport};
pub use options::PutOptions;
pub use outcome::{CancelOutcome, Outcome, Settlement};
pub use payload::{Payload, PayloadLimits};
#[doc(hidden)]
pub use put_counts::{NotStored, PUT_COUNTS_INTERVAL, may_have_counted};
pub use queue::{BoundQueue, Decoded, Iter, Pq, Queue};
pub use record::{JobRecord, JobState};
pub use retention::{MaintenanceReport, Retention};
pub use step::{SentSignal, StepKind, StepRecord};
pub use stop::StopMode;
pub use store::{Accepted, Scan, Store, StoreError, Taken, Undecodable};
pub use task::{BoundTask, CallOptions, StoredCall, Task};
pub use tracer::{JobSpan, SpanInfo, Tracer};
pub use wait::Wait;
pub use wake_signal::{Passed, WakeSignal};
pub use when::{IntoWhen, TimeError, When};
pub use worker::{Attempt, AttemptFuture, Control, Report, Running, Status, Worker};
pub use worker_info::{Heartbeat, HeartbeatReply, WorkerId, WorkerInfo};
pub use workflow::{
    Edge, OnFailure, WORKFLOWS, Workflow, WorkflowGraph, WorkflowJob, WorkflowNode, WorkflowPut, WorkflowTask,
};
