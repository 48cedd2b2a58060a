//! How fast the queue is, beside the bare SQL on the same server and in the same run.
//!
//! `cargo bench -p pq-bench` follows put and get by criterion. `cargo run --release -p pq-bench --bin
//! figures` measures them beside `pgbench`, in interleaved pairs, and prints the medians as ratios:
//! absolute figures say more of the machine than of the queue. `--bin work` does the same for workers.

mod bare;
mod bench;
mod cost;
mod load;
mod stats;

pub use bare::{copy_rate, pgbench};
pub use bench::{Bench, PAYLOAD};
pub use cost::{Cost, Meter, peak_memory, pgbench_drain};
pub use load::{pickup_latencies, rate, wake_latencies};
pub use stats::{median, percentile};
