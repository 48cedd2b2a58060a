//! Writes to standard output and standard error, and formats text for people.
//!
//! Names, payloads and errors come from the database and may hold control characters. Every function here that prints
//! them escapes them first.

use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anstream::{AutoStream, ColorChoice};
use anstyle::AnsiColor;
use chrono::{DateTime, SecondsFormat, Utc};
use comfy_table::{Cell, Table, presets};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use crate::failure::Failure;

/// Whether each line on standard error is a JSON object, as the lines of the log are.
static JSON_LINES: AtomicBool = AtomicBool::new(false);

/// Makes each line on standard error a JSON object from now on.
pub(crate) fn use_json_lines() {
    JSON_LINES.store(true, Ordering::Relaxed);
}

/// Prints an error as one line on standard error.
pub(crate) fn print_error(message: &str) {
    print_line("ERROR", message, || format!("pq: {}", escape(message)));
}

/// Prints a status message as one line on standard error.
pub(crate) fn print_status(message: &str) {
    print_line("INFO", message, || escape(message));
}

/// Prints several lines on standard error, or one JSON object. They must be escaped already.
pub(crate) fn print_status_lines(lines: &str) {
    print_line("INFO", lines, || lines.to_owned());
}

fn print_line(level: &str, message: &str, text: impl FnOnce() -> String) {
    /// The fields of a line of the log.
    #[derive(Serialize)]
    struct Line<'a> {
        timestamp: String,
        level: &'a str,
        message: &'a str,
    }
    let line = if JSON_LINES.load(Ordering::Relaxed) {
        let line = Line { timestamp: format_time_micros(Utc::now()), level, message };
        serde_json::to_string(&line).unwrap_or_default()
    } else {
        text()
    };
    // Standard error has no buffer, and other processes write to it. A line that was written in parts could be torn.
    // A failed write is ignored: there is no other place to report it.
    let _ = io::stderr().write_all(format!("{line}\n").as_bytes());
}

/// Forwards the standard error of a user's command.
pub(crate) fn forward_stderr(bytes: &[u8]) {
    // A failed write is ignored: there is no other place to report it.
    let _ = io::stderr().lock().write_all(bytes);
}

/// Prints lines to standard output and flushes it.
pub(crate) fn print_lines<'a>(lines: impl IntoIterator<Item = &'a str>) -> io::Result<()> {
    let mut out = io::stdout().lock();
    for line in lines {
        out.write_all(line.as_bytes())?;
        out.write_all(b"\n")?;
    }
    out.flush()
}

/// Formats JSON on one line.
///
/// A line break in valid JSON is white space between tokens, so it can become a space. If standard output is a
/// terminal, invisible characters inside strings are escaped too.
pub(crate) fn one_line(json: &str) -> String {
    let terminal = io::stdout().is_terminal();
    let mut line = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            '\n' | '\r' => line.push(' '),
            c if terminal && is_invisible(c) && c != '\t' => {
                let units = c
                    .encode_utf16(&mut [0; 2])
                    .iter()
                    .map(|unit| format!("\\u{unit:04x}"))
                    .collect::<String>();
                line.push_str(&units);
            }
            c => line.push(c),
        }
    }
    line
}

/// Prints a JSON document on one line to standard output.
pub(crate) fn print_json(document: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string(document).map_err(|error| Failure::Io(error.to_string()))?;
    print(&one_line(&text))
}

/// Prints text to standard output. For commands that lose nothing if the output cannot be written.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    print_lines([text]).map_err(|error| Failure::output("the output", &error))
}

/// Colours text if standard output is a terminal that supports colours.
pub(crate) fn paint(text: &str, colour: AnsiColor) -> String {
    let style = colour.on_default();
    if wants_colour() { format!("{style}{text}{style:#}") } else { text.to_owned() }
}

/// Returns `true` if standard output is a terminal that supports colours.
pub(crate) fn wants_colour() -> bool {
    AutoStream::choice(&io::stdout()) != ColorChoice::Never
}

/// Formats a table with a header row. Cells are escaped.
pub(crate) fn format_table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(header.iter().map(Cell::new));
    for row in rows {
        table.add_row(row.iter().map(|cell| Cell::new(escape_with_breaks(cell))));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

/// Formats a duration with at most two units.
pub(crate) fn format_duration(span: Duration) -> String {
    let seconds = span.as_secs();
    let coarse = match seconds {
        0 => return format!("{}ms", span.as_millis()),
        1..3_600 => seconds,
        3_600..86_400 => seconds - seconds % 60,
        _ => seconds - seconds % 3_600,
    };
    humantime::format_duration(Duration::from_secs(coarse)).to_string()
}

/// Formats a time as RFC 3339, in seconds.
pub(crate) fn format_time(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Secs, true)
}

/// Formats a time as RFC 3339, in microseconds.
pub(crate) fn format_time_micros(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Micros, true)
}

/// Shows a progress bar on standard error, if that is a terminal.
pub(crate) fn progress_bar(jobs: u64, template: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(jobs), ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}

/// Runs `work` and shows a spinner on standard error meanwhile, if that is a terminal.
pub(crate) fn with_spinner<R>(what: &'static str, work: impl FnOnce() -> R) -> R {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr()).with_message(what);
    bar.enable_steady_tick(Duration::from_millis(100));
    let done = work();
    bar.finish_and_clear();
    done
}

/// Escapes invisible characters and joins the lines of a text.
pub(crate) fn escape(text: &str) -> String {
    escape_with_breaks(&text.lines().map(str::trim).collect::<Vec<_>>().join(" "))
}

/// Escapes invisible characters, line breaks included.
pub(crate) fn escape_with_breaks(text: &str) -> String {
    let shown = |c: char| if is_invisible(c) { c.escape_default().to_string() } else { c.to_string() };
    text.chars().map(shown).collect()
}

/// Returns `true` for characters that are invisible and can disguise other text.
///
/// These are control characters, and Unicode characters that break lines, change the writing direction or have no
/// width. Joiners are not among them, because some scripts need them.
fn is_invisible(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{61c}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}')
        || matches!(c, '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// Formats a number with its noun: `1 job`, `2 jobs`.
pub(crate) fn plural(number: u64, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_escaped() {
        assert_eq!(escape("a\u{1b}[2Jb\nc\u{7}"), "a\\u{1b}[2Jb c\\u{7}");
        assert_eq!(escape_with_breaks("a\nb\u{202e}c\u{2028}"), "a\\nb\\u{202e}c\\u{2028}");
        assert_eq!(escape_with_breaks("\"é\" 'ü' नमस्ते 👩\u{200d}🔬"), "\"é\" 'ü' नमस्ते 👩\u{200d}🔬");
        assert_eq!(escape("\u{202e}gnp.exe\tא"), "\\u{202e}gnp.exe\\tא");
    }

    #[test]
    fn a_payload_is_one_line() {
        assert_eq!(one_line("{\n \"a\": \"b c\"\r\n}"), "{  \"a\": \"b c\"  }");
    }
}
