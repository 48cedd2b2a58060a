//! The only place that writes to the terminal.

#![allow(clippy::print_stderr, reason = "this is what writes to standard error")]

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use anstream::{AutoStream, ColorChoice};
use anstyle::AnsiColor;
use chrono::{DateTime, SecondsFormat, Utc};
use comfy_table::{Cell, Table, presets};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::failure::Failure;

/// One line on standard error, whatever stands in it.
pub(crate) fn complain(message: &str) {
    eprintln!("pq: {}", visible(message));
}

/// A line on standard error about what is going on.
pub(crate) fn tell(message: &str) {
    eprintln!("{}", visible(message));
}

/// Writes lines to standard output and sees that they have gone out.
pub(crate) fn print_lines<'a>(lines: impl IntoIterator<Item = &'a str>) -> io::Result<()> {
    let mut out = io::stdout().lock();
    for line in lines {
        out.write_all(line.as_bytes())?;
        out.write_all(b"\n")?;
    }
    out.flush()
}

/// A payload as one line of JSON. Line breaks can stand only between its words, where they mean
/// nothing. For a terminal the control characters that JSON allows in strings are escaped as well.
pub(crate) fn one_line(json: &str) -> String {
    let terminal = io::stdout().is_terminal();
    let mut line = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            '\n' | '\r' => line.push(' '),
            c if terminal && c.is_control() && c != '\t' => {
                line.push_str(&format!("\\u{:04x}", u32::from(c)))
            }
            c => line.push(c),
        }
    }
    line
}

/// Prints a JSON document, one that a pipe that was closed does not mind.
pub(crate) fn print_json(document: &serde_json::Value) -> Result<(), Failure> {
    print(&document.to_string())
}

/// Prints text to standard output. Nothing is lost where it cannot be written.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    print_lines([text]).map_err(|error| Failure::Io(format!("the output cannot be written: {error}")))
}

/// Text in a colour, where standard output wants one.
pub(crate) fn painted(text: &str, colour: AnsiColor) -> String {
    let style = colour.on_default();
    if colours() { format!("{style}{text}{style:#}") } else { text.to_owned() }
}

/// Whether standard output is a terminal that wants colours.
pub(crate) fn colours() -> bool {
    AutoStream::choice(&io::stdout()) != ColorChoice::Never
}

/// A table with these heads. Cells are text as it comes; their control characters are made visible.
pub(crate) fn grid(heads: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(heads.iter().map(Cell::new));
    for row in rows {
        table.add_row(row.iter().map(|cell| Cell::new(visible(cell))));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

/// A span as people read it: two units at most.
pub(crate) fn span(span: Duration) -> String {
    let seconds = span.as_secs();
    let coarse = match seconds {
        0 => return format!("{}ms", span.as_millis()),
        1..3_600 => seconds,
        3_600..86_400 => seconds - seconds % 60,
        _ => seconds - seconds % 3_600,
    };
    humantime::format_duration(Duration::from_secs(coarse)).to_string()
}

/// An instant as RFC 3339, to the second.
pub(crate) fn instant(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Secs, true)
}

/// An instant as RFC 3339, to the microsecond.
pub(crate) fn precise(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Micros, true)
}

/// A bar for so many jobs on standard error, of this template. Nothing is drawn where that is no terminal.
pub(crate) fn progress(jobs: u64, template: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(jobs), ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}

/// Text with its control characters made visible, on one line. Those that turn the direction of writing are among
/// them, for they let a name look like another.
pub(crate) fn visible(text: &str) -> String {
    let turns = |c: char| matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let shown = |c: char| match c.is_control() || turns(c) {
        true => c.escape_default().to_string(),
        false => c.to_string(),
    };
    text.lines().map(str::trim).collect::<Vec<_>>().join(" ").chars().map(shown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_made_visible() {
        assert_eq!(visible("a\u{1b}[2Jb\nc\u{7}"), "a\\u{1b}[2Jb c\\u{7}");
        assert_eq!(visible("\u{202e}gnp.exe\tא"), "\\u{202e}gnp.exe\\tא");
    }

    #[test]
    fn a_payload_is_one_line() {
        assert_eq!(one_line("{\n \"a\": \"b c\"\r\n}"), "{  \"a\": \"b c\"  }");
    }
}
