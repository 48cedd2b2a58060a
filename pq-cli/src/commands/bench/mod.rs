//! `pq bench`: a quick load on the user's own server.

mod cleanup;
mod payload;
mod phases;
mod report;

use std::process::ExitCode;

use diesel::prelude::*;
use diesel::sql_types::Text;
use pq_diesel::{Counts, Pq};

use self::cleanup::Leases;
use self::payload::Payload;
use self::phases::Runner;
use self::report::Report;
use super::examples;
use crate::failure::Failure;
use crate::global::Global;
use crate::output;
use crate::signals::stop_on_signals;

/// Measure the queue on your server: rates, latencies and WAL, in a queue of the bench's own.
///
/// It puts, gets and works its own jobs in a queue that nobody else uses, and removes them again, also
/// when it is interrupted. The load is real: do not run it where others would feel it.
#[derive(Debug, clap::Args)]
#[command(after_help = examples("pq bench\npq bench --jobs 50000 --threads 8 --payload 1000 --json"))]
pub(crate) struct Bench {
    /// The queue to work in, which must be empty; unless given one named pq-bench- and the process id.
    pub(crate) queue: Option<String>,
    /// How many jobs each phase has.
    #[arg(long, value_name = "N", default_value_t = 10_000,
          value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    pub(crate) jobs: u64,
    /// How many threads put, get and work; each has a connection.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub(crate) threads: u32,
    /// How long the JSON of each job is.
    #[arg(long, value_name = "BYTES", default_value_t = 100,
          value_parser = clap::value_parser!(u32).range(payload::MIN_BYTES..=1 << 20))]
    pub(crate) payload: u32,
    /// Print one JSON object in place of the table.
    #[arg(long)]
    pub(crate) json: bool,
}

impl Bench {
    pub(crate) fn run(&self, global: &Global) -> Result<ExitCode, Failure> {
        let stop = stop_on_signals()?;
        let name = self.queue.clone().unwrap_or_else(|| format!("pq-bench-{}", std::process::id()));
        // What can be known to be wrong is said before anything is sent.
        global.detached()?.queue::<()>(&name)?;
        // Workers have one connection more than threads.
        let pq = global.connect_with(self.threads + 2)?;
        let queue = pq.queue::<Payload>(&name)?.with_cancellation_token(&stop);
        let found = queue.counts()?;
        if found != Counts::default() {
            return Err(Failure::Usage(format!(
                "the queue {name:?} has jobs ({}); a bench needs an empty one, and without a name it takes one \
                 of its own",
                describe_counts(&found)
            )));
        }
        let server = pq.transaction(|conn| {
            let version = diesel::dsl::sql::<Text>("SELECT current_setting('server_version')");
            version.get_result::<String>(conn).map_err(Failure::from)
        })?;
        output::print_status(&format!("working in the queue {name:?}"));

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
                (Err(failure), Err(why)) => {
                    output::print_error(&why.to_string());
                    return Err(failure);
                }
            },
        };
        let text = if self.json { report.json() } else { report.table() };
        output::print_lines([text.as_str()])
            .map_err(|error| Failure::Io(format!("the figures cannot be written: {error}")))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Removes what the bench has put, and nothing else.
fn clear(pq: &Pq, name: &str, leases: &Leases) -> Result<(), Failure> {
    // Without the stop: what is interrupted is cleared all the same.
    let queue = pq.queue::<Payload>(name)?;
    let cleared = cleanup::clear(pq, &queue, leases);
    let others = cleared.map_err(|failure| {
        Failure::Bench(format!("jobs of this bench may be left in the queue {name:?}: {failure}"))
    })?;
    if others > 0 {
        output::print_error(&format!(
            "somebody else has put jobs into the queue {name:?} meanwhile: {others} of them were set aside, and \
             are back in it"
        ));
    }
    Ok(())
}

fn describe_counts(counts: &Counts) -> String {
    let all = [
        (counts.ready, "ready"),
        (counts.scheduled, "scheduled"),
        (counts.leased, "leased"),
        (counts.dequeued, "taken by a Python pq"),
        (counts.dead, "dead"),
        (counts.cancelled, "cancelled"),
        (counts.done, "kept as done"),
    ];
    let some: Vec<String> =
        all.iter().filter(|(count, _)| *count > 0).map(|(count, state)| format!("{count} {state}")).collect();
    some.join(", ")
}
