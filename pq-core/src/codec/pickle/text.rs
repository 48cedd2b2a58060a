//! Strings: conversion between pickles and JSON.
//!
//! Python's strings can contain lone surrogates, and Rust's cannot. Therefore characters are code points here.

use super::{CodecError, invalid, unsupported};

/// Writes a JSON string.
pub(super) struct Quoted(String);

impl Quoted {
    pub(super) fn new() -> Self {
        Self(String::from('"'))
    }

    fn push(&mut self, code: u32) {
        match char::from_u32(code) {
            Some('"') => self.0.push_str("\\\""),
            Some('\\') => self.0.push_str("\\\\"),
            Some('\n') => self.0.push_str("\\n"),
            Some('\r') => self.0.push_str("\\r"),
            Some('\t') => self.0.push_str("\\t"),
            Some('\u{8}') => self.0.push_str("\\b"),
            Some('\u{c}') => self.0.push_str("\\f"),
            Some(plain) if plain >= ' ' => self.0.push(plain),
            _ => self.0.push_str(&format!("\\u{code:04x}")),
        }
    }

    fn push_str(&mut self, text: &str) {
        text.chars().for_each(|char| self.push(u32::from(char)));
    }

    fn end(mut self) -> String {
        self.0.push('"');
        self.0
    }
}

/// Converts UTF-8 with encoded surrogates (`surrogatepass`) to JSON.
pub(super) fn utf8(mut bytes: &[u8]) -> Result<String, CodecError> {
    let mut quoted = Quoted::new();
    loop {
        let (good, bad) = match std::str::from_utf8(bytes) {
            Ok(all) => (all, &[][..]),
            Err(found) => {
                let (good, bad) = bytes.split_at(found.valid_up_to());
                (std::str::from_utf8(good).unwrap_or_default(), bad)
            }
        };
        quoted.push_str(good);
        match bad {
            [] => return Ok(quoted.end()),
            [0xed, second @ 0xa0..=0xbf, third @ 0x80..=0xbf, rest @ ..] => {
                quoted.push(0xd000 | u32::from(second & 0x3f) << 6 | u32::from(third & 0x3f));
                bytes = rest;
            }
            _ => return Err(invalid("a string must be UTF-8")),
        }
    }
}

/// Converts Python's `raw-unicode-escape` to JSON.
///
/// Bytes are characters, except for `\uXXXX` and `\UXXXXXXXX`. Any other byte after a backslash is kept with it.
pub(super) fn raw_unicode(line: &[u8]) -> Result<String, CodecError> {
    let mut quoted = Quoted::new();
    let mut rest = line;
    while let [first, after @ ..] = rest {
        rest = after;
        let digits = match (first, after) {
            (b'\\', [b'u', ..]) => 4,
            (b'\\', [b'U', ..]) => 8,
            (b'\\', [next, after @ ..]) => {
                quoted.push(u32::from(b'\\'));
                quoted.push(u32::from(*next));
                rest = after;
                continue;
            }
            _ => {
                quoted.push(u32::from(*first));
                continue;
            }
        };
        let code = after.get(1..=digits).and_then(hex).filter(|code| *code <= u32::from(char::MAX));
        quoted.push(code.ok_or_else(|| invalid("a string has an invalid escape"))?);
        rest = &after[1 + digits..];
    }
    Ok(quoted.end())
}

/// Converts a string of Python 2 to JSON. Python 3 reads it if it is ASCII.
pub(super) fn ascii(bytes: &[u8]) -> Result<String, CodecError> {
    match std::str::from_utf8(bytes) {
        Ok(text) if text.is_ascii() => {
            let mut quoted = Quoted::new();
            quoted.push_str(text);
            Ok(quoted.end())
        }
        _ => Err(unsupported("a Python 2 string of bytes")),
    }
}

/// Converts a quoted string of Python 2's `repr` to JSON, as [`ascii`] does.
pub(super) fn repr(line: &[u8]) -> Result<String, CodecError> {
    let broken = || invalid("a string has an invalid escape");
    let mut rest = match line {
        [b'\'', inner @ .., b'\''] | [b'"', inner @ .., b'"'] => inner,
        _ => return Err(invalid("a string has no quotes")),
    };
    let mut bytes = Vec::with_capacity(rest.len());
    while let [first, after @ ..] = rest {
        let (byte, after) = match (first, after) {
            (b'\\', [same @ (b'\\' | b'\'' | b'"'), after @ ..]) => (*same, after),
            (b'\\', [b'n', after @ ..]) => (b'\n', after),
            (b'\\', [b'r', after @ ..]) => (b'\r', after),
            (b'\\', [b't', after @ ..]) => (b'\t', after),
            (b'\\', [b'x', high, low, after @ ..]) => {
                let byte = hex(&[*high, *low]).and_then(|code| u8::try_from(code).ok());
                (byte.ok_or_else(broken)?, after)
            }
            (b'\\', _) => return Err(broken()),
            _ => (*first, after),
        };
        bytes.push(byte);
        rest = after;
    }
    ascii(&bytes)
}

/// Appends a code point as Python's protocol 0 does, without line breaks and NUL.
///
/// The text represents bytes: all of its characters are below 256.
pub(super) fn push_raw_unicode(pickle: &mut String, code: u32) {
    match char::from_u32(code) {
        Some('\\' | '\0' | '\n' | '\r' | '\x1a') => pickle.push_str(&format!("\\u{code:04x}")),
        Some(byte @ '\0'..='\u{ff}') => pickle.push(byte),
        _ if code > 0xffff => pickle.push_str(&format!("\\U{code:08x}")),
        _ => pickle.push_str(&format!("\\u{code:04x}")),
    }
}

/// Parses hexadecimal digits.
pub(super) fn hex(digits: &[u8]) -> Option<u32> {
    digits.iter().try_fold(0_u32, |sum, digit| {
        let digit = char::from(*digit).to_digit(16)?;
        sum.checked_mul(16)?.checked_add(digit)
    })
}
