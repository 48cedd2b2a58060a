//! `pq bench`: a short benchmark on the user's server.

mod cleanup;
mod payload;
mod phases;
mod report;

use std::process::ExitCode;

use diesel::prelude::*;
use diesel::sql_types::Text;
use pq_diesel::Pq;
use pq_diesel::admin::QueueCounts;

use self::cleanup::Leases;
use self::payload::Payload;
use self::phases::Runner;
use self::report::Report;
use super::examples;
use crate::failure::Failure;
use crate::global::Global;
use crate::output;
use crate::signals::stop_on_signals;

/// Measure rates, latencies and WAL on your server.
///
/// Puts, gets and works jobs in a queue that must not be used by others, and removes them at the end, also when it is
/// interrupted. The load slows down other users of the server.
#[derive(Debug, clap::Args)]
#[command(after_help = examples("pq bench\npq bench --jobs 50000 --threads 8 --payload 1000 --json"))]
pub(crate) struct Bench {
    /// Empty queue to use. Default: a queue named pq-bench- and the process id.
    pub(crate) queue: Option<String>,
    /// Number of jobs per phase.
    #[arg(long, value_name = "N", default_value_t = 10_000,
          value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    pub(crate) jobs: u64,
    /// Number of threads that put, get and work jobs. Each has a connection.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub(crate) threads: u32,
    /// Size of each payload.
    #[arg(long, value_name = "BYTES", default_value_t = 100,
          value_parser = clap::value_parser!(u32).range(payload::MIN_BYTES..=1 << 20))]
    pub(crate) payload: u32,
    /// Print JSON: an object.
    #[arg(long)]
    pub(crate) json: bool,
}

impl Bench {
    pub(crate) fn run(&self, global: &Global) -> Result<ExitCode, Failure> {
        let stop = stop_on_signals()?;
        let name = self.queue.clone().unwrap_or_else(|| format!("pq-bench-{}", std::process::id()));
        // The name is checked before a connection is made.
        global.detached()?.queue::<()>(&name)?;
        // A worker needs one connection more than it has threads.
        let pq = global.connect_to_measure(self.threads + 2)?;
        let queue = pq.queue::<Payload>(&name)?.with_cancellation_token(&stop);
        let found = queue.counts()?;
        if found.total() > 0 {
            return Err(Failure::Usage(format!(
                "cannot use the queue {name:?}: it is not empty ({}); omit the name to use a queue of the bench's own",
                describe_counts(&found)
            )));
        }
        let server = pq.transaction(|conn| {
            let version = diesel::dsl::sql::<Text>("SELECT current_setting('server_version')");
            version.get_result::<String>(conn).map_err(Failure::from)
        })?;
        output::print_status(&format!("using the queue {name:?}"));

        let leases = Leases::default();
        let runner = Runner {
            pq: &pq,
            queue: &queue,
            payload: Payload::of(self.payload),
            jobs: self.jobs,
            threads: self.threads,
            stop: &stop,
            leases: &leases,
        };
        let measured = runner.all();
        let cleared = clear(&pq, &name, &leases);
        let report = Report {
            server,
            queue: name,
            jobs: self.jobs,
            threads: self.threads,
            payload: self.payload,
            phases: match (measured, cleared) {
                (Ok(phases), cleared) => cleared.map(|()| phases)?,
                (Err(failure), Ok(())) => return Err(failure),
                (Err(failure), Err(reason)) => {
                    output::print_error(&reason.to_string());
                    return Err(failure);
                }
            },
        };
        let text = if self.json { report.json() } else { report.table() };
        output::print_lines([text.as_str()])
            .map_err(|error| Failure::Io(format!("cannot write the figures: {error}")))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Removes the jobs of the bench, and nothing else.
fn clear(pq: &Pq, name: &str, leases: &Leases) -> Result<(), Failure> {
    // A new handle without the cancellation token, because an interrupted bench is cleaned up too.
    let queue = pq.queue::<Payload>(name)?;
    let cleared = cleanup::clear(pq, &queue, leases);
    let others = cleared.map_err(|failure| {
        Failure::Bench(format!(
            "cannot clean up: {failure}; jobs of the bench may be left in the queue {name:?}"
        ))
    })?;
    if others > 0 {
        output::print_error(&format!(
            "other sessions put jobs into the queue {name:?} during the bench; {} requeued",
            output::plural(others, "job")
        ));
    }
    Ok(())
}

fn describe_counts(counts: &QueueCounts) -> String {
    let all = [
        (counts.ready, "ready"),
        (counts.blocked, "blocked"),
        (counts.scheduled, "scheduled"),
        (counts.running, "running"),
        (counts.dequeued, "dequeued by the Python pq"),
        (counts.dead, "dead"),
        (counts.cancelled, "cancelled"),
        (counts.done, "done"),
    ];
    let some: Vec<String> =
        all.iter().filter(|(count, _)| *count > 0).map(|(count, state)| format!("{count} {state}")).collect();
    some.join(", ")
}
