//! How fast the queue is, beside the bare SQL on the same server and in the same run.
//!
//! `cargo bench -p pq-bench` follows put and get by criterion. `cargo run --release -p pq-bench --bin
//! figures` measures them beside `pgbench`, in interleaved pairs, and prints the medians as ratios:
//! absolute figures say more of the machine than of the queue.

mod bare;
mod bench;
mod load;
mod stats;

pub use bare::{copy_rate, pgbench};
pub use bench::{Bench, PAYLOAD};
pub use load::{rate, wake_latencies};
pub use stats::{median, percentile};
