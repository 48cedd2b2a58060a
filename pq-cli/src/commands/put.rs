//! `pq put`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::ValueEnum;
use diesel::PgConnection;
use pq_diesel::{Backoff, CallOptions, Error, JobId, OnConflict, Pq, PutOptions, PutOutcome};
use serde_json::value::RawValue;

use super::examples;
use crate::encoding::Encoding;
use crate::failure::Failure;
use crate::global::Global;
use crate::values::{self, Members};
use crate::{input, job_output, output};

/// Put jobs with JSON payloads, or call a task, and print the ids, one per line.
#[derive(Debug, clap::Args)]
#[command(after_help = examples(
    "echo '{\"order\": 42}' | pq put orders --schedule-at 5m\n\
     pq put orders --file orders.jsonl --lines --priority 3\n\
     pq put mail --task send --kwargs '{\"to\": \"ada@example.com\"}' --max-retries 5 --backoff 'exponential 1s 1h'\n\
     pq put --workflow order.json\n\
     pq put reports --task rebuild --args '[]' --unique rebuild --on-conflict keep-waiting"
))]
pub(crate) struct Put {
    /// Queue name: any text of 1 to 1024 bytes. `NAME/pickle` is the queue NAME with pickled payloads, as in Python.
    #[arg(required_unless_present = "workflow")]
    pub(crate) queue: Option<String>,
    /// Put a graph of named jobs, all or none, and print its id. FILE holds one JSON object, as docs/sql.md
    /// describes; `-` is standard input.
    #[arg(long, value_name = "FILE", conflicts_with_all = [
        "queue", "file", "lines", "schedule_at", "expected_at", "priority", "serialization_key", "unique", "after",
        "after_any_outcome", "tags", "metadata", "group", "cost", "task", "codec",
    ])]
    workflow: Option<PathBuf>,
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
    /// Serialization key: of the queue's jobs with this key, one at a time runs.
    #[arg(long, value_name = "KEY")]
    serialization_key: Option<String>,
    /// Let the job keep its serialization key while it waits for a retry, so that later jobs of the key do not
    /// overtake it.
    #[arg(long, requires = "serialization_key")]
    strict_order: bool,
    /// Unique key: of the queue's jobs with this key, at most one waits or runs. If there is one, it is kept, its id is
    /// printed, and a message on standard error says so.
    #[arg(long, value_name = "KEY", conflicts_with = "lines")]
    unique: Option<String>,
    /// What to do with a job that has the unique key.
    #[arg(long, value_name = "MODE", default_value = "keep", requires = "unique")]
    on_conflict: ConflictMode,
    /// Job that must be done before this one runs; can be repeated. If it is dead or cancelled, this one is
    /// cancelled. An id that no job has counts as done, since jobs that are done need not be kept.
    #[arg(long, value_name = "ID", value_delimiter = ',', value_parser = job_output::parse_id)]
    after: Vec<i64>,
    /// Job that must have ended before this one runs, whatever its outcome; can be repeated.
    #[arg(long, value_name = "ID", value_delimiter = ',', value_parser = job_output::parse_id)]
    after_any_outcome: Vec<i64>,
    /// Tag of the job, to find it by; can be repeated. At most 16, of 1 to 128 bytes.
    #[arg(long = "tag", value_name = "TAG")]
    tags: Vec<String>,
    /// Metadata of the job: a JSON object of at most 4 KiB.
    #[arg(long, value_name = "JSON", value_parser = values::json_object)]
    metadata: Option<Members>,
    /// Group by which limits of the queue count the job (see `pq limit`).
    #[arg(long, value_name = "GROUP")]
    group: Option<String>,
    /// Number of tokens that the job takes of a rate of the queue. Default: 1.
    #[arg(long, value_name = "TOKENS", value_parser = values::whole)]
    cost: Option<u32>,
    /// Task to call. Each JSON document of the input is the arguments of a call: an object is keyword arguments, an
    /// array is positional ones, null is none, and any other value is a single argument.
    #[arg(long, value_name = "NAME")]
    task: Option<String>,
    /// Positional arguments of the call: a JSON array. The input is not read.
    #[arg(long, value_name = "JSON", requires = "task", conflicts_with_all = ["file", "lines"])]
    args: Option<String>,
    /// Keyword arguments of the call: a JSON object. The input is not read.
    #[arg(long, value_name = "JSON", requires = "task", conflicts_with_all = ["file", "lines"])]
    kwargs: Option<String>,
    /// Maximum number of retries of the call. Default: that of the task of the worker that runs it.
    #[arg(long, value_name = "N", requires = "task")]
    max_retries: Option<u32>,
    /// Delay before a retry of the call: a duration, `linear STEP MAX` or `exponential FIRST MAX`. Default: that of the
    /// task of the worker that runs it.
    #[arg(long, requires = "task")]
    backoff: Option<Backoff>,
    /// Create or migrate the tables first.
    #[arg(long)]
    pub(crate) create: bool,
    #[command(flatten)]
    encoding: Encoding,
}

/// What happens to a job that has the unique key.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum ConflictMode {
    /// It is kept unchanged.
    Keep,
    /// If it waits, it gets the new payload and options.
    Replace,
    /// If it waits, it gets the new time.
    Reschedule,
    /// It is kept if it waits. If it runs, one more job is put, so that the event that this put announces is seen.
    KeepWaiting,
}

impl From<ConflictMode> for OnConflict {
    fn from(mode: ConflictMode) -> Self {
        match mode {
            ConflictMode::Keep => Self::Keep,
            ConflictMode::Replace => Self::Replace,
            ConflictMode::Reschedule => Self::Reschedule,
            ConflictMode::KeepWaiting => Self::KeepWaiting,
        }
    }
}

impl Put {
    pub(crate) fn run(&self, global: &Global) -> Result<ExitCode, Failure> {
        let Some(queue) = &self.queue else { return self.put_workflow(global) };
        let (queue, codec) = self.encoding.of(queue)?;
        let options = self.options();
        // Everything is checked before input is read and before a connection is made.
        options.check()?;
        global.detached()?.queue::<()>(queue)?;
        let arguments = self.arguments()?;
        let documents = match &arguments {
            Some(_) => Vec::new(),
            None => input::documents(&input::read(&self.file)?, self.lines)?,
        };

        let pq = global.connect()?;
        if self.create {
            pq.migrate()?;
        }
        let puts = match &self.task {
            None => {
                let queue = pq.queue::<Box<RawValue>>(queue)?.with_codec(codec);
                put_all(
                    &pq,
                    &documents,
                    |some| queue.put_many_with(some.iter().map(|document| (document, &options))),
                    |conn, some| {
                        queue.on(conn).put_many_with(some.iter().map(|document| (document, &options)))
                    },
                )?
            }
            Some(name) => {
                let task = pq.queue(queue)?.with_codec(codec).task::<Box<RawValue>>(name);
                let task = task.with_defaults(self.call_options(options));
                match &arguments {
                    Some([args, kwargs]) => vec![task.call_json(args, kwargs, &CallOptions::new())?],
                    None => put_all(
                        &pq,
                        &documents,
                        |some| task.call_many(some),
                        |conn, some| task.on(conn).call_many(some),
                    )?,
                }
            }
        };

        let lines: Vec<String> = puts.iter().map(|put| put.id.to_string()).collect();
        output::print_lines(lines.iter().map(String::as_str))
            .map_err(|error| Failure::Io(format!("cannot write the job ids: {error}; the jobs were put")))?;
        for put in &puts {
            let what = match put.outcome {
                PutOutcome::Added => continue,
                PutOutcome::Kept => "kept",
                PutOutcome::Replaced => "replaced",
                PutOutcome::Rescheduled => "rescheduled",
            };
            output::print_status(&format!("{what} job {}, which has this unique key", put.id));
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Puts the workflow of the file, and prints its id.
    fn put_workflow(&self, global: &Global) -> Result<ExitCode, Failure> {
        let Some(file) = &self.workflow else { return Err(Failure::Usage("a queue is missing".to_owned())) };
        // It is JSON, at least. The server checks the rest.
        let documents = input::documents(&input::read(file)?, false)?;
        let pq = global.connect()?;
        if self.create {
            pq.migrate()?;
        }
        for document in documents {
            let id = pq.put_workflow_json(document.get())?.to_string();
            output::print_lines([&*id]).map_err(|error| {
                Failure::Io(format!("cannot write the id: {error}; the workflow was put"))
            })?;
        }
        Ok(ExitCode::SUCCESS)
    }

    fn options(&self) -> PutOptions {
        let mut options = PutOptions::new().priority(self.priority);
        if let Some(when) = &self.schedule_at {
            options = options.schedule_at(when);
        }
        if let Some(when) = &self.expected_at {
            options = options.expected_at(when);
        }
        if let Some(key) = &self.serialization_key {
            options = options.serialization_key(key);
        }
        if let Some(key) = &self.unique {
            options = options.unique_or(key, self.on_conflict.into());
        }
        let ids = |ids: &[i64]| ids.iter().copied().map(JobId).collect::<Vec<_>>();
        options = options.after(ids(&self.after)).after_any_outcome(ids(&self.after_any_outcome));
        if !self.tags.is_empty() {
            options = options.tags(&self.tags);
        }
        if let Some(metadata) = &self.metadata {
            options = options.metadata(metadata);
        }
        if let Some(group) = &self.group {
            options = options.group(group);
        }
        if let Some(cost) = self.cost {
            options = options.cost(cost);
        }
        if self.strict_order {
            options = options.strict_order();
        }
        options
    }

    fn call_options(&self, options: PutOptions) -> CallOptions {
        let mut options = CallOptions::from(options);
        if let Some(retries) = self.max_retries {
            options = options.max_retries(retries);
        }
        if let Some(backoff) = &self.backoff {
            options = options.backoff(backoff.clone());
        }
        options
    }

    /// Returns the positional and the keyword arguments if one of them is given as an option.
    fn arguments(&self) -> Result<Option<[Box<RawValue>; 2]>, Failure> {
        if self.args.is_none() && self.kwargs.is_none() {
            return Ok(None);
        }
        let read = |option: &str, given: &Option<String>, default: &str, first: char, kind: &str| {
            let text = given.as_deref().unwrap_or(default);
            match serde_json::from_str::<Box<RawValue>>(text) {
                Ok(json) if json.get().starts_with(first) => Ok(json),
                _ => Err(Failure::Usage(format!("invalid {option}: it must be a JSON {kind}"))),
            }
        };
        let args = read("--args", &self.args, "[]", '[', "array")?;
        let kwargs = read("--kwargs", &self.kwargs, "{}", '{', "object")?;
        Ok(Some([args, kwargs]))
    }
}

/// Number of jobs per call. More jobs take several calls in one transaction, so that the progress bar can move.
const AT_ONCE: usize = 20_000;

/// Puts all jobs or none, by one call of `put`, or by several of `put_on` in a transaction.
fn put_all(
    pq: &Pq,
    documents: &[Box<RawValue>],
    put: impl Fn(&[Box<RawValue>]) -> Result<Vec<pq_diesel::Put>, Error>,
    put_on: impl Fn(&mut PgConnection, &[Box<RawValue>]) -> Result<Vec<pq_diesel::Put>, Error>,
) -> Result<Vec<pq_diesel::Put>, Error> {
    if documents.len() <= AT_ONCE {
        return put(documents);
    }
    let bar =
        output::progress_bar(documents.len() as u64, "{wide_bar} {pos}/{len} jobs, {per_sec}, {eta} left");
    let puts = pq.transaction(|conn| {
        let mut puts = Vec::with_capacity(documents.len());
        for some in documents.chunks(AT_ONCE) {
            puts.extend(put_on(conn, some)?);
            bar.inc(some.len() as u64);
        }
        Ok(puts)
    });
    bar.finish_and_clear();
    puts
}
