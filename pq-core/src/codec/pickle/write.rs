//! Writes JSON as a pickle of protocol 0, as Python's `pq` does.
//!
//! Protocol 0 has no NUL bytes. Others would need `\u0000`, which PostgreSQL's JSON functions refuse.

use std::str::Chars;

use serde_json::value::RawValue;

use super::{CodecError, MAX_DEPTH, MAX_JSON_BYTES, MAX_VALUES, number, text, too_deep, too_large, too_many};

/// Encodes a JSON text as a pickle, with one character for each byte.
///
/// The text is not parsed into values, since these do not keep large integers and lone surrogates. Keys that an object
/// has twice are written twice: Python keeps the last one.
pub(super) fn pickle(json: &str) -> Result<String, CodecError> {
    if json.len() > MAX_JSON_BYTES {
        return Err(too_large());
    }
    serde_json::from_str::<&RawValue>(json).map_err(|_| not_json())?;
    let mut writer = Writer { rest: json.chars(), open: Vec::new(), pickle: String::new(), values: 0 };
    writer.run()?;
    writer.pickle.push('.');
    Ok(writer.pickle)
}

struct Writer<'a> {
    rest: Chars<'a>,
    /// The opcode that adds a value to each open array or object: APPEND or SETITEM.
    open: Vec<char>,
    pickle: String,
    values: usize,
}

impl<'a> Writer<'a> {
    fn run(&mut self) -> Result<(), CodecError> {
        let mut before = self.rest.clone();
        while let Some(char) = self.rest.next() {
            match char {
                ' ' | '\t' | '\n' | '\r' | ',' | ':' => {}
                '[' => self.begin("(l", 'a')?,
                '{' => self.begin("(d", 's')?,
                ']' | '}' => {
                    self.open.pop();
                    self.end();
                }
                '"' => self.string()?,
                'n' => self.word("N", "ull")?,
                't' => self.word("I01\n", "rue")?,
                'f' => self.word("I00\n", "alse")?,
                _ => self.number(before.as_str())?,
            }
            before = self.rest.clone();
        }
        Ok(())
    }

    fn begin(&mut self, empty: &str, put: char) -> Result<(), CodecError> {
        if self.open.len() >= MAX_DEPTH {
            return Err(too_deep());
        }
        self.count()?;
        self.open.push(put);
        self.pickle.push_str(empty);
        Ok(())
    }

    fn count(&mut self) -> Result<(), CodecError> {
        self.values += 1;
        if self.values > MAX_VALUES { Err(too_many()) } else { Ok(()) }
    }

    /// Adds a complete value to the array or object around it.
    fn end(&mut self) {
        self.pickle.extend(self.open.last());
    }

    fn word(&mut self, value: &str, rest: &str) -> Result<(), CodecError> {
        self.rest = self.rest.as_str().strip_prefix(rest).ok_or_else(not_json)?.chars();
        self.count()?;
        self.pickle.push_str(value);
        self.end();
        Ok(())
    }

    fn number(&mut self, from: &'a str) -> Result<(), CodecError> {
        let length = from.find([' ', '\t', '\n', '\r', ',', ']', '}']).unwrap_or(from.len());
        let (text, rest) = from.split_at(length);
        self.rest = rest.chars();
        self.count()?;
        if text.contains(['.', 'e', 'E']) {
            let number = number::parse_float(text.as_bytes())?;
            if number.is_infinite() {
                return Err(CodecError::new("unsupported JSON: a number exceeds the range of a float"));
            }
            self.pickle.push_str(&format!("F{}\n", number::float(number)?));
        } else {
            let integer = number::integer(text.as_bytes())?;
            let (opcode, end) = if integer.parse::<i32>().is_ok() { ('I', "") } else { ('L', "L") };
            self.pickle.push_str(&format!("{opcode}{integer}{end}\n"));
        }
        self.end();
        Ok(())
    }

    fn string(&mut self) -> Result<(), CodecError> {
        self.count()?;
        self.pickle.push('V');
        loop {
            let code = match self.rest.next().ok_or_else(not_json)? {
                '"' => break,
                '\\' => self.escape()?,
                char => u32::from(char),
            };
            text::push_raw_unicode(&mut self.pickle, code);
        }
        self.pickle.push('\n');
        if !self.rest.as_str().trim_ascii_start().starts_with(':') {
            self.end();
        }
        Ok(())
    }

    fn escape(&mut self) -> Result<u32, CodecError> {
        Ok(u32::from(match self.rest.next().ok_or_else(not_json)? {
            'b' => '\u{8}',
            'f' => '\u{c}',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'u' => return self.unicode(),
            same => same,
        }))
    }

    /// Reads the code point of `\uXXXX`, or of two of them that are a surrogate pair.
    fn unicode(&mut self) -> Result<u32, CodecError> {
        let (first, rest) = unit(self.rest.as_str()).ok_or_else(not_json)?;
        let second = rest.strip_prefix("\\u").and_then(unit);
        let (code, rest) = match (first, second) {
            (0xd800..=0xdbff, Some((low @ 0xdc00..=0xdfff, rest))) => {
                (0x1_0000 + ((first - 0xd800) << 10) + (low - 0xdc00), rest)
            }
            _ => (first, rest),
        };
        self.rest = rest.chars();
        Ok(code)
    }
}

/// Splits off four hexadecimal digits.
fn unit(text: &str) -> Option<(u32, &str)> {
    let (digits, rest) = text.split_at_checked(4)?;
    Some((text::hex(digits.as_bytes())?, rest))
}

fn not_json() -> CodecError {
    CodecError::new("invalid JSON: it cannot be parsed")
}
