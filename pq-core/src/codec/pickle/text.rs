//! Strings: from what pickles hold to JSON, and from code points to what pickles hold.
//!
//! Python's strings may hold lone surrogates, which Rust's may not, so that the characters are code
//! points here.

use super::{CodecError, damaged, refused};

/// A JSON string that is being written.
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

/// The JSON of UTF-8 in which surrogates are encoded as if they were characters (`surrogatepass`).
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
            _ => return Err(damaged("a string is not UTF-8")),
        }
    }
}

/// The JSON of Python's `raw-unicode-escape`: bytes are characters, but for `\uXXXX` and
/// `\UXXXXXXXX`; a backslash takes the byte after it along, whatever that is.
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
        quoted.push(code.ok_or_else(|| damaged("a string has a broken escape"))?);
        rest = &after[1 + digits..];
    }
    Ok(quoted.end())
}

/// The JSON of what Python 2 called a string, which Python 3 reads if it is ASCII.
pub(super) fn ascii(bytes: &[u8]) -> Result<String, CodecError> {
    match std::str::from_utf8(bytes) {
        Ok(text) if text.is_ascii() => {
            let mut quoted = Quoted::new();
            quoted.push_str(text);
            Ok(quoted.end())
        }
        _ => Err(refused("a Python 2 string of bytes")),
    }
}

/// As [`ascii`], of the quotes and escapes that Python 2's `repr` writes.
pub(super) fn repr(line: &[u8]) -> Result<String, CodecError> {
    let broken = || damaged("a string has a broken escape");
    let mut rest = match line {
        [b'\'', inner @ .., b'\''] | [b'"', inner @ .., b'"'] => inner,
        _ => return Err(damaged("a string has no quotes")),
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

/// Adds a code point as Python's protocol 0 does, which keeps the line one line and free of NUL.
///
/// The text stands for bytes: its characters are all below 256.
pub(super) fn push_raw_unicode(pickle: &mut String, code: u32) {
    match char::from_u32(code) {
        Some('\\' | '\0' | '\n' | '\r' | '\x1a') => pickle.push_str(&format!("\\u{code:04x}")),
        Some(byte @ '\0'..='\u{ff}') => pickle.push(byte),
        _ if code > 0xffff => pickle.push_str(&format!("\\U{code:08x}")),
        _ => pickle.push_str(&format!("\\u{code:04x}")),
    }
}

/// The number of these hexadecimal digits, all of which must be digits.
pub(super) fn hex(digits: &[u8]) -> Option<u32> {
    digits.iter().try_fold(0_u32, |sum, digit| {
        let digit = char::from(*digit).to_digit(16)?;
        sum.checked_mul(16)?.checked_add(digit)
    })
}
