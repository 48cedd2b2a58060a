//! How fast the queue is, beside the baseline SQL on the same server and in the same run.
//!
//! `cargo bench -p pq-bench` follows puts, gets, pairs, drains and payloads by criterion. The command `pq-bench`
//! measures those and much else beside the baseline SQL, in interleaved pairs, and prints the medians as ratios:
//! absolute figures say more of the machine than of the queue.
//!
//! [`Bench`] is a server to measure on and a queue there, [`scenarios`] are what is measured, each giving [`Figure`]s with
//! what they cost by [`Meter`], and [`Results`] are what a run leaves, for the page, for [`compare`] and to look at.
//! [`gate`] is CI's: counts against thresholds.

mod baseline;
mod bench;
mod compare;
pub mod gate;
mod listening;
mod meter;
pub mod pool;
mod results;
pub mod scenarios;
mod stats;

pub use baseline::{PgbenchReport, Script, copy_rate, pgbench, psql_copy};
pub use bench::{Bench, PAYLOAD, payload_of};
pub use compare::{Change, FigureChange, compare};
pub use listening::Listening;
pub use meter::{Cost, Meter, count_statements, memory_now, peak_memory, pgbench_drain, statements_sent};
pub use results::{Figure, Results, Target, Track};
pub use stats::{median, percentile};
