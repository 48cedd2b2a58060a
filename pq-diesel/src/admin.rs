//! Types for operators: listing, workers, periodic jobs, migrations and grants.
//!
//! The operations themselves are methods of [`crate::Pq`] and [`crate::Queue`]. Checks of the database are in
//! [`crate::doctor`].

pub use pq_core::{
    AuditEntry, AuditRecord, Counters, CronEntry, Histogram, MaintenanceReport, PausedQueue, QueueCounts,
    TaskCounters, WorkerId, WorkerInfo,
};

pub use crate::grants::Role;
pub use crate::migrate::{MIGRATIONS, Pending};
