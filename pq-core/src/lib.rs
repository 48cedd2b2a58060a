//! What a transactional job queue is, apart from any database.
//!
//! The user's side is [`Pq`], which names queues, and [`Queue`], which puts and gets jobs, waits for
//! them and runs transactions around them; [`Task`], which gives work a name and typed arguments; and
//! [`Worker`], which works it in threads. The implementor's side is [`Store`]: few methods, each on
//! a connection that is passed in, so that the caller's transaction is simply the connection the
//! caller passes. [`memory`] is the readable reference store; the crate `pq-conformance` is the suite
//! that every store passes, whole.
//!
//! This crate knows no database driver, no SQL and no async runtime. For PostgreSQL see `pq-diesel`.
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

mod backoff;
mod cancellation;
mod codec;
mod cron;
mod envelope;
mod error;
mod handler;
mod job;
mod key;
mod lease_table;
mod lock;
pub mod memory;
mod name;
mod options;
mod outcome;
mod overview;
mod payload;
mod queue;
mod registry;
mod stop;
pub mod store;
mod task;
mod wait;
mod wake_signal;
mod when;
mod worker;

pub use backoff::Backoff;
pub use cancellation::CancellationToken;
#[cfg(feature = "pickle")]
pub use codec::Pickle;
pub use codec::{Codec, CodecError, Json, codec_by_name};
pub use cron::{Cron, CronEntry, fire_due_crons};
pub use envelope::Trace;
pub use error::Error;
pub use handler::{Context, Failure, Handler, JobInfo, Next};
pub use job::{Claim, Held, Job, JobId, NewJob, RawJob};
pub use key::{Key, OnConflict, Put, PutOutcome};
pub use name::QueueName;
pub use options::PutOptions;
pub use outcome::{
    Cancelled, Ended, EndedAs, Extended, JobStatus, MaintenanceReport, Outcome, Retention, Settlement,
};
pub use overview::{Filter, JobState, Listed, Overview};
pub use payload::{Payload, PayloadLimits};
pub use queue::{BoundQueue, Iter, Pq, Queue};
pub use registry::{Heartbeat, HeartbeatReply, WorkerId, WorkerInfo};
pub use stop::StopMode;
pub use store::{Counts, Scan, Store, StoreError, Taken, Undecodable};
pub use task::{BoundTask, CallOptions, Task};
pub use wait::Wait;
pub use wake_signal::WakeSignal;
pub use when::{IntoWhen, TimeError, When};
pub use worker::{Control, Report, Running, Status, Worker};
