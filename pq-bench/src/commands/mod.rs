//! The subcommands, a file or folder each.

mod adapter;
mod compare;
mod gate;
mod memory_child;
mod report;
mod run;

use anyhow::Result;
use clap::Subcommand;

/// What `pq-bench` does.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Is one of the queues that a public harness compares: see docs/harness.md
    Adapter(adapter::Arguments),
    /// Measures, and keeps what it found in a file
    Run(run::Arguments),
    /// Writes the page of benchmarks and its plots from what runs have found
    Report(report::Arguments),
    /// Is the process whose memory the scenario `memory` measures
    #[command(hide = true)]
    MemoryChild(memory_child::Arguments),
    /// Tells what changed from the runs of one revision to those of another
    Compare(compare::Arguments),
    /// Holds what a put and a take cost against the committed thresholds
    Gate(gate::Arguments),
    /// What the gate counts the instructions of
    #[command(hide = true)]
    GateChild(gate::ChildArguments),
}

impl Command {
    pub(crate) fn run(self) -> Result<()> {
        match self {
            Self::Adapter(arguments) => adapter::run(&arguments),
            Self::Run(arguments) => run::run(&arguments),
            Self::Report(arguments) => report::run(&arguments),
            Self::MemoryChild(arguments) => memory_child::run(&arguments),
            Self::Compare(arguments) => compare::run(&arguments),
            Self::Gate(arguments) => gate::run(&arguments),
            Self::GateChild(arguments) => gate::run_child(&arguments),
        }
    }
}
