//! Reads payloads from files and standard input.

use std::fs;
use std::io::{self, Read};
use std::path::Path;

use serde_json::value::RawValue;

use crate::failure::Failure;

/// Reads a whole file, or standard input if the path is `-`.
pub(crate) fn read(path: &Path) -> Result<String, Failure> {
    let (name, bytes) = if path == Path::new("-") {
        let mut bytes = Vec::new();
        ("standard input".to_owned(), io::stdin().lock().read_to_end(&mut bytes).map(|_| bytes))
    } else {
        (path.display().to_string(), fs::read(path))
    };
    let bytes = bytes.map_err(|error| Failure::Io(format!("cannot read {name}: {error}")))?;
    // Some editors write a byte order mark. It is not part of the text.
    let text = bytes.strip_prefix(b"\xef\xbb\xbf").map(<[u8]>::to_vec).unwrap_or(bytes);
    String::from_utf8(text).map_err(|error| {
        Failure::Usage(format!(
            "invalid input in {name}: JSON must be UTF-8, and byte {} is not",
            error.utf8_error().valid_up_to()
        ))
    })
}

/// Splits a text into JSON documents without changing a byte: one document, or one per non-empty line.
pub(crate) fn documents(text: &str, lines: bool) -> Result<Vec<Box<RawValue>>, Failure> {
    if !lines {
        let document = serde_json::from_str(text).map_err(|found| {
            let reason = if text.trim().is_empty() { "it is empty".to_owned() } else { found.to_string() };
            Failure::Usage(format!("invalid input: it must be one JSON document: {reason}"))
        })?;
        return Ok(vec![document]);
    }
    text.lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty())
        .map(|(number, line)| {
            serde_json::from_str(line).map_err(|found| {
                Failure::Usage(format!(
                    "invalid input in line {}: it is not JSON at column {}; no job was put",
                    number + 1,
                    found.column()
                ))
            })
        })
        .collect()
}
