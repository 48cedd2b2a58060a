//! What `cargo bench` follows: puts, takes and drains, by criterion, a module a group.
//!
//! After each group a line says what its jobs cost besides time.

#![allow(clippy::print_stderr, reason = "whoever runs it should know where it ran, and what it cost")]
#![allow(clippy::unwrap_used, reason = "a bench that cannot go on has nothing else to say")]

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
    // Before the first connection, for each takes its counter when it is made.
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
