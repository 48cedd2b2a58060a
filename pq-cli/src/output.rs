//! The only place that writes to the terminal.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use anstream::{AutoStream, ColorChoice};
use anstyle::AnsiColor;
use chrono::{DateTime, SecondsFormat, Utc};
use comfy_table::{Cell, Table, presets};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use crate::failure::Failure;

/// One line on standard error, whatever stands in it.
pub(crate) fn print_error(message: &str) {
    print_status(&format!("pq: {message}"));
}

/// A line on standard error about what is going on.
pub(crate) fn print_status(message: &str) {
    // Where nobody can read it there is nobody to tell that either.
    let _ = writeln!(io::stderr(), "{}", escape(message));
}

/// Several lines on standard error, which are made visible already.
pub(crate) fn print_status_lines(lines: &str) {
    let _ = writeln!(io::stderr(), "{lines}");
}

/// What a command of the operator's writes to standard error.
pub(crate) fn forward_stderr(bytes: &[u8]) {
    // Nobody can be told where this fails.
    let _ = io::stderr().lock().write_all(bytes);
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

/// Prints a JSON document on one line.
pub(crate) fn print_json(document: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string(document).map_err(|error| Failure::Io(error.to_string()))?;
    print(&one_line(&text))
}

/// Prints text to standard output. Nothing is lost where it cannot be written.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    print_lines([text]).map_err(|error| Failure::Io(format!("the output cannot be written: {error}")))
}

/// Text in a colour, where standard output wants one.
pub(crate) fn paint(text: &str, colour: AnsiColor) -> String {
    let style = colour.on_default();
    if wants_colour() { format!("{style}{text}{style:#}") } else { text.to_owned() }
}

/// Whether standard output is a terminal that wants colours.
pub(crate) fn wants_colour() -> bool {
    AutoStream::choice(&io::stdout()) != ColorChoice::Never
}

/// A table with these heads. Cells are text as it comes; their control characters are made visible.
pub(crate) fn format_table(heads: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(heads.iter().map(Cell::new));
    for row in rows {
        table.add_row(row.iter().map(|cell| Cell::new(escape_with_breaks(cell))));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

/// A span as people read it: two units at most.
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

/// An instant as RFC 3339, to the second.
pub(crate) fn format_time(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Secs, true)
}

/// An instant as RFC 3339, to the microsecond.
pub(crate) fn format_time_micros(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Micros, true)
}

/// A bar for so many jobs on standard error, of this template. Nothing is drawn where that is no terminal.
pub(crate) fn progress_bar(jobs: u64, template: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(jobs), ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}

/// Does what may take a while and cannot say how far it is, behind something that moves where standard error is a
/// terminal.
pub(crate) fn with_spinner<R>(what: &'static str, work: impl FnOnce() -> R) -> R {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr()).with_message(what);
    bar.enable_steady_tick(Duration::from_millis(100));
    let done = work();
    bar.finish_and_clear();
    done
}

/// Text with its control characters made visible, its lines joined to one.
pub(crate) fn escape(text: &str) -> String {
    escape_with_breaks(&text.lines().map(str::trim).collect::<Vec<_>>().join(" "))
}

/// Text with its control characters made visible, line breaks among them.
pub(crate) fn escape_with_breaks(text: &str) -> String {
    let shown = |c: char| if is_invisible(c) { c.escape_default().to_string() } else { c.to_string() };
    text.chars().map(shown).collect()
}

/// Whether a character cannot be seen, and can make others be seen as what they are not: the control characters,
/// and those of Unicode that break lines, change the direction of writing or have no width. The joiners are left
/// alone, for some scripts cannot be written without them.
fn is_invisible(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{61c}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}')
        || matches!(c, '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// So many of something: `1 job`, `2 jobs`.
pub(crate) fn plural(number: u64, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_made_visible() {
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
