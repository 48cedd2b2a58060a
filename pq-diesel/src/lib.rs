//! A transactional job queue on PostgreSQL, for applications built on diesel.
//!
//! A put commits with your business data, and a handler's writes commit with its job: on your own
//! `&mut PgConnection`, inside your own transaction, without two-phase anything. See [`Pq`] for the
//! handle, [`pq_core::Queue`] for what a queue does, [`schema`] to query the table with diesel's DSL.
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

mod builder;
mod conninfo;
mod copy;
pub mod direct;
pub mod doctor;
mod error;
mod grants;
mod group_commit;
mod libpq;
mod listener;
mod migrate;
mod pool;
mod pq;
mod prepared;
mod rows;
pub mod schema;
mod settings;
mod shutdown_guard;
mod statements;
mod store;
mod table;

pub use pq_core::{
    Accepted, Backoff, CallOptions, CancellationToken, Cancelled, Claim, Codec, CodecError, Cron, CronEntry,
    Extended, Failure, Filter, IntoWhen, Job, JobId, JobInfo, JobRecord, JobState, Key, Next, OnConflict,
    Outcome, Payload, PayloadLimits, Put, PutOptions, PutOutcome, QueueCounts, QueueName, Report, Retention,
    Running, Settlement, Status, StopMode, TimeError, Trace, Wait, When, WorkerId, WorkerInfo, codec_by_name,
};

pub use builder::{Builder, Notify};
pub use error::Error;
pub use grants::Role;
pub use listener::Subscription;
pub use migrate::{MIGRATIONS, Pending};
pub use pq::{BoundQueue, BoundTask, Context, Control, Handler, Pq, Queue, Task, Worker};
pub use pq_core;
pub use settings::Settings;
pub use store::PgStore;
pub use table::Table;

/// The examples of the README and of the pages are compiled with the documentation's.
#[cfg(doctest)]
mod pages {
    #[doc = include_str!("../../README.md")]
    struct Readme;
    #[doc = include_str!("../../docs/tour.md")]
    struct Tour;
    #[doc = include_str!("../../docs/coming-from.md")]
    struct ComingFrom;
    #[doc = include_str!("../../docs/operations.md")]
    struct Operations;
    #[doc = include_str!("../../docs/guarantees.md")]
    struct Guarantees;
}
