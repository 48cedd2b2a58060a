//! Draws texts, times and numbers. Texts come from jobs, so they can contain anything.

mod payload;

use std::time::Duration;

use chrono::{DateTime, SecondsFormat, Utc};
use maud::{Markup, html};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

pub(crate) use self::payload::{Layout, Mask};

/// Draws a text. Characters that are invisible or change the direction of text are shown by their codes. A text that is
/// written from right to left does not reorder what stands beside it.
pub(crate) fn text(text: &str) -> Markup {
    html! { bdi {
        @for (part, invisible) in parts(text) {
            (part)
            @if let Some(c) = invisible { span class="code" { (escape(c)) } }
        }
    } }
}

/// Returns a text as [`text`] draws it, without markup.
pub(crate) fn visible(text: &str) -> String {
    parts(text).fold(String::with_capacity(text.len()), |shown, (part, invisible)| {
        shown + part + &invisible.map(escape).unwrap_or_default()
    })
}

/// Draws at most this many characters of a text.
pub(crate) fn beginning(whole: &str, chars: usize) -> Markup {
    match whole.char_indices().nth(chars) {
        Some((end, _)) => html! { (text(&whole[..end])) "…" },
        None => text(whole),
    }
}

/// Splits a text into visible parts, each with the invisible character behind it.
fn parts(text: &str) -> impl Iterator<Item = (&str, Option<char>)> {
    text.split_inclusive(is_invisible).map(|part| {
        match part.chars().next_back().filter(|c| is_invisible(*c)) {
            Some(c) => (&part[..part.len() - c.len_utf8()], Some(c)),
            None => (part, None),
        }
    })
}

/// Returns whether a character is a control character, or one that is not seen but changes what is: the direction of
/// text, joiners, fillers, tags, variation selectors.
pub(crate) fn is_invisible(c: char) -> bool {
    (c.is_control() && c != '\n')
        || matches!(c,
            '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}'
            | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{2800}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}'
            | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
}

/// Returns the code of a character, as Rust writes it.
fn escape(c: char) -> String {
    c.escape_default().to_string()
}

/// Draws a time in UTC: readable, and exact for scripts.
pub(crate) fn time(at: DateTime<Utc>) -> Markup {
    html! { time datetime=(exact(at)) { (at.format("%Y-%m-%d %H:%M:%S")) " UTC" } }
}

/// Returns a time as RFC 3339, in microseconds.
pub(crate) fn exact(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Micros, true)
}

/// Returns a duration in at most two units.
pub(crate) fn duration(span: Duration) -> String {
    let seconds = span.as_secs();
    match seconds {
        0 => format!("{} ms", span.as_millis()),
        1..60 => format!("{seconds} s"),
        60..3_600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{} h {} min", seconds / 3_600, seconds / 60 % 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds / 3_600 % 24),
    }
}

/// Returns a number with its thousands apart.
pub(crate) fn number(count: u64) -> String {
    let digits = count.to_string();
    let mut grouped = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push('\u{202f}');
        }
        grouped.push(digit);
    }
    grouped
}

/// All characters but those that need no encoding in a query.
const QUERY: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Encodes a value of a query.
pub(crate) fn encode(value: &str) -> String {
    utf8_percent_encode(value, QUERY).to_string()
}

/// Returns a path with a query of these fields. Fields without a value are left out.
pub(crate) fn with_query(path: &str, fields: &[(&str, &str)]) -> String {
    let query: Vec<String> = fields
        .iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| format!("{name}={}", encode(value)))
        .collect();
    if query.is_empty() { path.to_owned() } else { format!("{path}?{}", query.join("&")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markup_and_invisible_characters_of_a_text_are_shown() {
        let drawn = text("<b>&\u{202e}x\u{1b}[31m\0é\n").into_string();
        let code = |code: &str| format!("<span class=\"code\">{code}</span>");
        let expected = format!(
            "<bdi>&lt;b&gt;&amp;{}x{}[31m{}é\n</bdi>",
            code(r"\u{202e}"),
            code(r"\u{1b}"),
            code(r"\u{0}")
        );
        assert_eq!(drawn, expected);
        for c in [
            '\u{200b}',
            '\u{2066}',
            '\u{feff}',
            '\u{7f}',
            '\u{85}',
            '\u{e0041}',
            '\u{fe0f}',
            '\u{2800}',
            '\u{1d175}',
            '\u{1bca2}',
        ] {
            assert!(text(&c.to_string()).into_string().contains("code"), "{c:?}");
        }
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        assert_eq!(beginning("äöü", 2).into_string(), "<bdi>äö</bdi>…");
        assert_eq!(beginning("äöü", 3).into_string(), "<bdi>äöü</bdi>");
    }

    #[test]
    fn numbers_and_durations_are_readable() {
        assert_eq!(number(999), "999");
        assert_eq!(number(1_234_567), "1\u{202f}234\u{202f}567");
        let spans = [5, 1_500, 65_000, 3_665_000, 90_000_000].map(|ms| duration(Duration::from_millis(ms)));
        assert_eq!(spans, ["5 ms", "1 s", "1 min 5 s", "1 h 1 min", "1 d 1 h"]);
    }

    #[test]
    fn values_of_a_query_are_encoded() {
        assert_eq!(
            with_query("/queue", &[("name", "a/b & ?\n"), ("x", "")]),
            "/queue?name=a%2Fb%20%26%20%3F%0A"
        );
        assert_eq!(with_query("/queue", &[]), "/queue");
    }
}
