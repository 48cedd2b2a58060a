//! The only place that writes to the terminal.

#![allow(clippy::print_stderr, reason = "this is what writes to standard error")]

use std::io::{self, IsTerminal, Write};

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

/// What a word on a terminal is painted in.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Colour {
    Green,
    Yellow,
    Red,
    Grey,
}

/// A word for standard output, in colour where that is a terminal and nobody has said NO_COLOR.
pub(crate) fn painted(word: &str, colour: Colour) -> String {
    let wanted = std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty());
    if !wanted || !io::stdout().is_terminal() {
        return word.to_owned();
    }
    let code = match colour {
        Colour::Green => 32,
        Colour::Yellow => 33,
        Colour::Red => 31,
        Colour::Grey => 90,
    };
    format!("\u{1b}[{code}m{word}\u{1b}[0m")
}

/// Text with its control characters made visible, on one line.
pub(crate) fn visible(text: &str) -> String {
    let shown = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    text.lines().map(str::trim).collect::<Vec<_>>().join(" ").chars().map(shown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_made_visible() {
        assert_eq!(visible("a\u{1b}[2Jb\nc\u{7}"), "a\\u{1b}[2Jb c\\u{7}");
    }

    #[test]
    fn a_payload_is_one_line() {
        assert_eq!(one_line("{\n \"a\": \"b c\"\r\n}"), "{  \"a\": \"b c\"  }");
    }
}
