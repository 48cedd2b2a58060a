//! Measures the queue beside baseline SQL on the same server.
//!
//! `cargo bench -p pq-bench` measures puts, gets, pairs, drains and payloads with criterion. The command
//! `pq-bench` measures these and more beside baseline SQL, in interleaved pairs. It prints medians as ratios,
//! because absolute rates depend on the machine more than on the queue.
//!
//! [`Bench`] is a server and a queue to measure. Each of the [`scenarios`] returns [`Figure`]s, with costs
//! counted by [`Meter`]. [`Results`] are the figures of a run; `pq-bench report` and [`compare`] read them.
//! [`gate`] checks counts against thresholds in CI.

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
