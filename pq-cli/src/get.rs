//! `pq get`.

use std::process::ExitCode;
use std::time::Duration;

use pq_diesel::{Stop, Wait, codec_by_name};
use serde_json::value::RawValue;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::args::{Get, Global};
use crate::failure::Failure;
use crate::output;

pub(crate) fn get(global: &Global, args: &Get) -> Result<ExitCode, Failure> {
    let codec = codec_by_name(&args.codec)?;
    let stop = stop_on_signals()?;
    let pq = global.connect()?;
    let queue = pq.queue::<Box<RawValue>>(&args.queue)?.with_codec(codec).with_stop(&stop);
    // As in tpq: 0 waits for ever, and a negative number not at all.
    let wait = match args.wait {
        seconds if seconds < 0.0 => Wait::No,
        0.0 => Wait::Forever,
        seconds => Wait::For(Duration::from_secs_f64(seconds)),
    };
    // The jobs are gone when the transaction commits, which is after their lines have been written.
    let written = queue.get_many_with(args.count.get(), wait, |_, jobs| {
        let lines: Vec<String> = jobs.iter().map(|job| output::one_line(job.data.get())).collect();
        output::print_lines(lines.iter().map(String::as_str)).map_err(|error| Failure::writing(&error))
    })?;
    Ok(if written.is_some() { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

/// Ends a wait on the signals that would end the process, so that nothing is left half done.
pub(crate) fn stop_on_signals() -> Result<Stop, Failure> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])
        .map_err(|error| Failure::Io(format!("signals cannot be handled: {error}")))?;
    let stop = Stop::new();
    let stopped = stop.clone();
    std::thread::spawn(move || {
        if signals.forever().next().is_some() {
            stopped.stop();
        }
    });
    Ok(stop)
}
