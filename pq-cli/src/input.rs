//! Reading payloads.

use std::fs;
use std::io::{self, Read};
use std::path::Path;

use serde_json::value::RawValue;

use crate::failure::Failure;

/// The whole of a file, or of standard input where it is called `-`.
pub(crate) fn read(path: &Path) -> Result<String, Failure> {
    let (name, bytes) = if path == Path::new("-") {
        let mut bytes = Vec::new();
        ("standard input".to_owned(), io::stdin().lock().read_to_end(&mut bytes).map(|_| bytes))
    } else {
        (path.display().to_string(), fs::read(path))
    };
    let bytes = bytes.map_err(|error| Failure::Io(format!("{name} cannot be read: {error}")))?;
    String::from_utf8(bytes).map_err(|error| {
        Failure::Usage(format!(
            "{name} is not UTF-8, as JSON is, at byte {}",
            error.utf8_error().valid_up_to()
        ))
    })
}

/// The JSON documents of a text, byte for byte: the whole of it is one, or each line that is not empty.
pub(crate) fn documents(text: &str, lines: bool) -> Result<Vec<Box<RawValue>>, Failure> {
    if !lines {
        let document = serde_json::from_str(text).map_err(|found| {
            let hint = if text.trim().is_empty() { "; it is empty" } else { "" };
            Failure::Usage(format!("the input is not one JSON document: {found}{hint}"))
        })?;
        return Ok(vec![document]);
    }
    text.lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty())
        .map(|(number, line)| {
            serde_json::from_str(line).map_err(|found| {
                Failure::Usage(format!(
                    "line {} is not JSON, at column {}; nothing was put",
                    number + 1,
                    found.column()
                ))
            })
        })
        .collect()
}
