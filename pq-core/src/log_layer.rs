//! A layer for `tracing` that keeps the events of a handler in the log of its job.

use std::fmt::{self, Write};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer};

use crate::LogLevel;
use crate::handler::{ask_for_current, current};

/// Keeps the events of leased handlers in the logs of their jobs. See [`crate::Context::log`].
///
/// An event belongs to the attempt that its thread runs, or whose future it polls. Those of threads and tasks that a
/// handler starts itself are not kept, and neither are the events of this library. A line has the event's message and
/// fields. The library's limits apply: 8 KiB for each line, and 64 KiB for each job.
///
/// ```
/// use pq_core::{JobLogLayer, Pq, Worker, memory::MemoryStore};
/// use tracing_subscriber::layer::SubscriberExt;
/// use tracing_subscriber::util::SubscriberInitExt;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// tracing_subscriber::registry().with(JobLogLayer::new()).init();
/// let pq = Pq::new(MemoryStore::new());
/// let task = pq.queue::<()>("orders")?.task::<u32>("ship").keep_history(true);
/// let id = task.call(&7)?.id;
/// let handler = task.leased(|_, job| {
///     tracing::info!(parcels = job.data, "packed");
///     Ok::<_, String>(())
/// });
/// Worker::new(&pq).serve(handler).run_until_empty()?;
/// assert_eq!(pq.log(id)?[0].line.text, "packed parcels=7");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
pub struct JobLogLayer {
    most: Level,
}

impl JobLogLayer {
    /// Creates a layer that keeps events of the levels error, warn and info.
    ///
    /// From now on the workers of this process record which attempt a thread runs.
    #[must_use]
    pub fn new() -> Self {
        ask_for_current();
        Self { most: Level::INFO }
    }

    /// Sets the most verbose level that is kept. Default: [`Level::INFO`].
    #[must_use]
    pub fn most_verbose(mut self, level: Level) -> Self {
        self.most = level;
        self
    }
}

impl Default for JobLogLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl<S: Subscriber> Layer<S> for JobLogLayer {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        let is_own = metadata.target().split("::").next().is_some_and(|root| OWN.contains(&root));
        if *metadata.level() > self.most || is_own {
            return;
        }
        if let Some(notes) = current() {
            let mut line = Line::default();
            event.record(&mut line);
            notes.log(level_of(metadata.level()), &line.text());
        }
    }
}

/// The crates whose events are not those of a handler.
const OWN: [&str; 3] = ["pq_core", "pq_diesel", "pq_diesel_async"];

fn level_of(level: &Level) -> LogLevel {
    match *level {
        Level::ERROR => LogLevel::Error,
        Level::WARN => LogLevel::Warn,
        Level::INFO => LogLevel::Info,
        Level::DEBUG => LogLevel::Debug,
        Level::TRACE => LogLevel::Trace,
    }
}

/// The text of an event: its message, then its fields.
#[derive(Default)]
struct Line {
    message: String,
    fields: String,
}

impl Line {
    fn text(self) -> String {
        let Self { message, fields } = self;
        if message.is_empty() { fields.trim_start().to_owned() } else { message + &fields }
    }
}

impl Visit for Line {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.message.push_str(value);
        } else {
            self.record_debug(field, &value);
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a string cannot fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}
