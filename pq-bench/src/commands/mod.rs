//! The subcommands, one module each.

mod adapter;
mod compare;
mod gate;
mod memory_child;
mod report;
mod run;

use anyhow::Result;
use clap::Subcommand;

/// A subcommand.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Run as a system of a public harness that compares queues; see docs/harness.md
    Adapter(adapter::Arguments),
    /// Measure scenarios and write the figures to a file
    Run(run::Arguments),
    /// Write the benchmark pages and plots from the files of runs
    Report(report::Arguments),
    /// The process whose memory the scenario `memory` measures
    #[command(hide = true)]
    MemoryChild(memory_child::Arguments),
    /// Compare the runs of two revisions
    Compare(compare::Arguments),
    /// Check the cost of puts and takes against the committed thresholds
    Gate(gate::Arguments),
    /// The process whose instructions the gate counts
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
