//! `pq put`.

use std::process::ExitCode;

use pq_diesel::{PutOptions, codec_by_name};
use serde_json::value::RawValue;

use crate::args::{Global, Put};
use crate::failure::Failure;
use crate::{input, output};

pub(crate) fn put(global: &Global, args: &Put) -> Result<ExitCode, Failure> {
    let codec = codec_by_name(&args.codec)?;
    let mut options = PutOptions::new().priority(args.priority);
    if let Some(when) = &args.schedule_at {
        options = options.schedule_at(when);
    }
    if let Some(when) = &args.expected_at {
        options = options.expected_at(when);
    }
    // What can be known to be wrong is said before anything is read or sent.
    options.check()?;
    global.detached()?.queue::<()>(&args.queue)?;

    let documents = input::documents(&input::read(&args.file)?, args.lines)?;
    let pq = global.connect()?;
    if args.create {
        pq.migrate()?;
    }
    let queue = pq.queue::<Box<RawValue>>(&args.queue)?.with_codec(codec);
    let ids = queue.put_many_with(documents.iter().map(|document| (document, &options)))?;

    let lines: Vec<String> = ids.iter().map(|put| put.id.to_string()).collect();
    output::print_lines(lines.iter().map(String::as_str)).map_err(|error| {
        Failure::Io(format!("the jobs were put, but their ids cannot be written: {error}"))
    })?;
    Ok(ExitCode::SUCCESS)
}
