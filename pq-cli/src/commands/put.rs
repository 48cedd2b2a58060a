//! `pq put`.

use std::path::PathBuf;
use std::process::ExitCode;

use pq_diesel::{PutOptions, Queue, codec_by_name};
use serde_json::value::RawValue;

use super::examples;
use crate::failure::Failure;
use crate::global::Global;
use crate::{input, output};

/// Put jobs with JSON payloads, and print their ids, one per line.
#[derive(Debug, clap::Args)]
#[command(after_help = examples(
    "echo '{\"order\": 42}' | pq put orders --schedule-at 5m\n\
     pq put orders --file orders.jsonl --lines --priority 3"
))]
pub(crate) struct Put {
    /// Queue name: any text of 1 to 1024 bytes.
    pub(crate) queue: String,
    /// File that holds the JSON; `-` is standard input.
    #[arg(long, value_name = "PATH", default_value = "-")]
    pub(crate) file: PathBuf,
    /// Put each non-empty line as a job of its own, all of them or none.
    #[arg(long)]
    pub(crate) lines: bool,
    /// Time before which the job does not run: a duration from now such as 5m, 1h30m or 2d, or an RFC 3339 time.
    #[arg(long, value_name = "TIME")]
    pub(crate) schedule_at: Option<String>,
    /// Time by which the job is expected to run. Among jobs of equal priority, earlier ones run first.
    #[arg(long, value_name = "TIME")]
    pub(crate) expected_at: Option<String>,
    /// Priority. Jobs with a higher priority run first.
    #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
    pub(crate) priority: i32,
    /// Create or migrate the tables first.
    #[arg(long)]
    pub(crate) create: bool,
    /// Encoding of stored payloads: json, or pickle for the `name/pickle` queues of the Python pq.
    #[arg(long, default_value = "json")]
    pub(crate) codec: String,
}

impl Put {
    pub(crate) fn run(&self, global: &Global) -> Result<ExitCode, Failure> {
        let codec = codec_by_name(&self.codec)?;
        let mut options = PutOptions::new().priority(self.priority);
        if let Some(when) = &self.schedule_at {
            options = options.schedule_at(when);
        }
        if let Some(when) = &self.expected_at {
            options = options.expected_at(when);
        }
        // Options are checked before input is read and before a connection is made.
        options.check()?;
        global.detached()?.queue::<()>(&self.queue)?;

        let documents = input::documents(&input::read(&self.file)?, self.lines)?;
        let pq = global.connect()?;
        if self.create {
            pq.migrate()?;
        }
        let queue = pq.queue::<Box<RawValue>>(&self.queue)?.with_codec(codec);
        let ids = put_all(&queue, &documents, &options)?;

        let lines: Vec<String> = ids.iter().map(|put| put.id.to_string()).collect();
        output::print_lines(lines.iter().map(String::as_str))
            .map_err(|error| Failure::Io(format!("cannot write the job ids: {error}; the jobs were put")))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Number of jobs per call. More jobs take several calls in one transaction, so that the progress bar can move.
const AT_ONCE: usize = 20_000;

/// Puts all jobs or none.
fn put_all(
    queue: &Queue<Box<RawValue>>,
    documents: &[Box<RawValue>],
    options: &PutOptions,
) -> Result<Vec<pq_diesel::Put>, pq_diesel::Error> {
    if documents.len() <= AT_ONCE {
        return queue.put_many_with(documents.iter().map(|document| (document, options)));
    }
    let bar =
        output::progress_bar(documents.len() as u64, "{wide_bar} {pos}/{len} jobs, {per_sec}, {eta} left");
    let put = queue.transaction(|conn| {
        let mut put = Vec::with_capacity(documents.len());
        for some in documents.chunks(AT_ONCE) {
            put.extend(queue.on(conn).put_many_with(some.iter().map(|document| (document, options)))?);
            bar.inc(some.len() as u64);
        }
        Ok(put)
    });
    bar.finish_and_clear();
    put
}
