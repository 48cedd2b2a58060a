//! SQL with placeholders for names and counts.

use super::names::Names;
use crate::prepared::Statement;

/// A statement's text in which names have been substituted, and counts have not.
///
/// The text is parsed once, and substituted names are not parsed again, so a table may be called `$3` or `{count}`.
/// Placeholders are not recognised within quotes.
#[derive(Debug)]
pub(super) struct Template {
    segments: Vec<Segment>,
    /// The number of parameters `$1`, `$2` and so on.
    params: usize,
}

#[derive(Debug, PartialEq)]
enum Segment {
    Text(String),
    /// `$1` and so on.
    Param(usize),
    /// `{count}`: the maximum number of jobs of a take.
    Count,
    /// `{size}`: the size class of that number.
    Size,
}

/// The replacement of `{count}` and `{size}` in a text.
#[derive(Clone, Copy, Debug)]
pub(super) enum Limit {
    /// The number, for both.
    Exact(usize),
    /// A parameter after all others for the count, and the number for the size class.
    AtMost(usize),
    /// A parameter after all others, for both.
    Any,
}

impl Template {
    /// Reads a text. Leaves out comments and runs of blanks, because diesel looks prepared statements up by their text.
    pub(super) fn parse(sql: &str, names: &Names) -> Self {
        let mut template = Self { segments: Vec::new(), params: 0 };
        let mut rest = sql.trim();
        while let Some(first) = rest.chars().next() {
            let token = token(rest);
            rest = &rest[token.len()..];
            match first {
                '-' if token.starts_with("--") => {}
                '$' if token.len() > 1 => {
                    let number = token[1..].parse().unwrap_or_default();
                    template.params = template.params.max(number);
                    template.segments.push(Segment::Param(number));
                }
                '{' if token == "{count}" => template.segments.push(Segment::Count),
                '{' if token == "{size}" => template.segments.push(Segment::Size),
                '{' => template.push(names.get(token.trim_matches(['{', '}'])).unwrap_or(token)),
                _ if first.is_whitespace() => {
                    if !template.ends_with_blank() && !rest.is_empty() {
                        template.push(" ");
                    }
                }
                _ => template.push(token),
            }
        }
        template
    }

    fn push(&mut self, text: &str) {
        match self.segments.last_mut() {
            Some(Segment::Text(last)) => last.push_str(text),
            _ => self.segments.push(Segment::Text(text.to_owned())),
        }
    }

    fn ends_with_blank(&self) -> bool {
        match self.segments.last() {
            None => true,
            Some(Segment::Text(last)) => last.ends_with(' '),
            Some(_) => false,
        }
    }

    /// Returns the statement with these limits.
    pub(super) fn statement(&self, limit: Limit) -> Statement {
        let mut statement = Statement::default();
        for segment in &self.segments {
            match (segment, limit) {
                (Segment::Text(text), _) => statement.push_text(text),
                (Segment::Param(number), _) => statement.push_param(*number),
                (Segment::Count | Segment::Size, Limit::Exact(number))
                | (Segment::Size, Limit::AtMost(number)) => statement.push_text(&number.to_string()),
                (Segment::Count, Limit::AtMost(_)) | (Segment::Count | Segment::Size, Limit::Any) => {
                    statement.push_param(self.params + 1);
                }
            }
        }
        statement
    }
}

/// Returns the token at the start of a text: a run of blanks, a comment, something quoted, a parameter, a placeholder,
/// or the characters up to the next of those.
fn token(text: &str) -> &str {
    let run = |matches: fn(char) -> bool| text.find(|c| !matches(c)).unwrap_or(text.len());
    let end = match text.chars().next() {
        Some(first) if first.is_whitespace() => run(char::is_whitespace),
        Some('-') if text.starts_with("--") => text.find('\n').unwrap_or(text.len()),
        Some(quote @ ('\'' | '"')) => text[1..].find(quote).map_or(text.len(), |end| end + 2),
        Some('$') => 1 + text[1..].find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len() - 1),
        Some('{') => text[1..]
            .find(|c: char| !c.is_ascii_lowercase() && c != '_')
            .filter(|end| *end > 0 && text[1 + end..].starts_with('}'))
            .map_or(1, |end| end + 2),
        Some('-') => 1,
        _ => text.find(|c: char| c.is_whitespace() || "-'\"${".contains(c)).unwrap_or(text.len()),
    };
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;
    use crate::table::Table;

    fn text(sql: &str, limit: Limit) -> Result<String, Error> {
        let names = Names::new(&Table::new("a $3 {count}", "it's {size} -- $1")?);
        Ok(Template::parse(sql, &names).statement(limit).text())
    }

    #[test]
    fn substituted_names_are_not_read_again() -> Result<(), Error> {
        let sql = "SELECT $1 FROM {jobs} WHERE oid = {jobs_name}::regclass LIMIT {count}";
        let wanted = |count| {
            format!(
                "SELECT $1 FROM \"a $3 {{count}}\".\"it's {{size}} -- $1\" \
                 WHERE oid = E'\"a $3 {{count}}\".\"it''s {{size}} -- $1\"'::regclass LIMIT {count}"
            )
        };
        assert_eq!(text(sql, Limit::Exact(7))?, wanted("7"));
        assert_eq!(text(sql, Limit::Any)?, wanted("$2"));
        Ok(())
    }

    #[test]
    fn quotes_are_kept_and_comments_and_blanks_are_not() -> Result<(), Error> {
        let sql = "
            -- A comment with $9 and {jobs}.
            SELECT '{}'::jsonb ->> '$1 --  {jobs}', -$1::integer - 1 -- more
                \"C  D\" {unknown}
            LIMIT {size} OFFSET {count}
        ";
        let wanted =
            "SELECT '{}'::jsonb ->> '$1 --  {jobs}', -$1::integer - 1 \"C  D\" {unknown} LIMIT 8 OFFSET $2";
        assert_eq!(text(sql, Limit::AtMost(8))?, wanted);
        Ok(())
    }
}
