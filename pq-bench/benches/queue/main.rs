//! The groups of `cargo bench`: puts, takes and drains with criterion, one module per group.
//!
//! The costs per job are printed after each group.

#![allow(clippy::print_stderr, reason = "a benchmark prints its environment and costs")]
#![allow(clippy::unwrap_used, reason = "a benchmark cannot continue after an error")]

mod drain;
mod get;
mod measure;
mod pairs;
mod payload;
mod put;
mod put_many;

use criterion::Criterion;
use pq_bench::{Bench, count_statements};

fn main() {
    // Before the first connection, because a connection gets its counter when it is opened.
    count_statements().unwrap();
    let bench = Bench::start().expect("a server to measure on");
    eprintln!("measured on: {}", bench.origin());
    for (name, value) in bench.settings().unwrap() {
        eprintln!("  {name} = {value}");
    }
    let mut criterion = Criterion::default().configure_from_args();
    for group in [put::group, put_many::group, get::group, pairs::group, drain::group, payload::group] {
        group(&mut criterion, &bench);
    }
    criterion.final_summary();
}
