//! The log on standard error.

use std::io;

use clap::ValueEnum;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, fmt};

use crate::failure::Failure;
use crate::output;

/// The options of the log.
#[derive(Debug, clap::Args)]
pub(crate) struct LogOptions {
    /// Format of the log on standard error: text, or one JSON object per line.
    #[arg(long, global = true, value_name = "FORMAT", default_value = "text", env = "PQ_LOG_FORMAT")]
    log_format: LogFormat,
    /// Level of the log: off, error, warn, info, debug or trace. Default: RUST_LOG, or info for `pq work`, off for the
    /// commands that draw or measure, and warn for the others. RUST_LOG can also name targets, such as
    /// `info,pq_diesel=debug`.
    #[arg(long, global = true, value_name = "LEVEL")]
    log_level: Option<LevelFilter>,
    /// The same as `--log-level debug`.
    #[arg(long, global = true, conflicts_with = "log_level")]
    debug: bool,
}

/// Writes events as lines of text. A line break within an event, such as one in the error of a command, is written as
/// `\n`.
struct OneLine<W>(W);

impl<W: io::Write> io::Write for OneLine<W> {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        self.write_all(event).map(|()| event.len())
    }

    /// Writes an event, which the caller passes as a whole.
    fn write_all(&mut self, event: &[u8]) -> io::Result<()> {
        let text = String::from_utf8_lossy(event);
        let line = output::escape_with_breaks(text.trim_end_matches('\n'));
        self.0.write_all(format!("{line}\n").as_bytes())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

impl LogOptions {
    /// Starts to log. `default` is the level if neither an option nor RUST_LOG sets one. `spans` also gets the spans
    /// of the library.
    pub(crate) fn init(
        &self,
        default: LevelFilter,
        spans: Option<Box<dyn Layer<Registry> + Send + Sync>>,
    ) -> Result<(), Failure> {
        let layer = fmt::layer();
        let layer = match self.log_format {
            LogFormat::Text => {
                layer.with_ansi(false).with_target(false).with_writer(|| OneLine(io::stderr())).boxed()
            }
            LogFormat::Json => {
                output::use_json_lines();
                layer.json().flatten_event(true).with_span_list(false).with_writer(io::stderr).boxed()
            }
        };
        tracing_subscriber::registry().with(spans).with(layer.with_filter(self.filter(default)?)).init();
        Ok(())
    }

    fn filter(&self, default: LevelFilter) -> Result<Targets, Failure> {
        let level = if self.debug { Some(LevelFilter::DEBUG) } else { self.log_level };
        match (level, std::env::var("RUST_LOG").ok().filter(|text| !text.trim().is_empty())) {
            (Some(level), _) => Ok(Targets::new().with_default(level)),
            (None, None) => Ok(Targets::new().with_default(default)),
            (None, Some(text)) => text.parse().map_err(|error| {
                Failure::Usage(format!(
                    "invalid RUST_LOG {text:?}: {error}; expected a level such as `info`, or targets such as \
                     `info,pq_diesel=debug`"
                ))
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use io::Write;

    use super::*;

    #[test]
    fn an_event_is_one_line_of_text() -> io::Result<()> {
        let mut log = OneLine(Vec::new());
        log.write_all("WARN job failed error=exit status 1: one\ntwo\r\u{1b}[31m\n".as_bytes())?;
        log.write_all(b"INFO worker ended\n")?;
        let expected = "WARN job failed error=exit status 1: one\\ntwo\\r\\u{1b}[31m\nINFO worker ended\n";
        assert_eq!(String::from_utf8_lossy(&log.0), expected);
        Ok(())
    }
}
