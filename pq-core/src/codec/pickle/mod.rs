//! The codec of Python's `name/pickle` queues: reads and writes pickles of plain data, and executes nothing.
//!
//! The meaning of the opcodes is taken from CPython's `Lib/pickletools.py` and `Modules/_pickle.c`.

// The crate serde-pickle is unsuitable. It sorts dicts by key, refuses lone surrogates, does not name the class that it
// refuses, and reads some objects as plain data. It copies values at DUP and at memo references, so a pickle of a few
// dozen bytes can use memory without bound, and dropping nested values can overflow the stack. A check beforehand would
// have to execute the same opcodes. In this reader values are indices into an arena, which avoids both.

#[cfg(test)]
mod fixtures;
mod number;
mod op;
mod read;
#[cfg(test)]
mod tests;
mod text;
mod tree;
mod write;

use std::borrow::Cow;

use super::{Codec, CodecError};

/// Maximum nesting of lists, tuples and dicts: the most that serde_json reads.
const MAX_DEPTH: usize = 127;

/// Maximum size of the JSON that a pickle decodes to: 64 times the default limit of a payload.
///
/// Because of references, a pickle of a hundred bytes can decode to any size. Legitimate pickles repeat long texts too,
/// so the limit cannot depend on the size of the pickle.
const MAX_JSON_BYTES: usize = 64 << 20;

/// Maximum number of values in a pickle, and of entries in its memo.
///
/// Each costs one byte in the pickle and about fifty bytes of memory.
const MAX_VALUES: usize = 4 << 20;

/// Maximum number of digits of an integer: Python's own limit (`sys.int_info.default_max_str_digits`).
///
/// The time to convert digits grows with the square of their number.
const MAX_INT_DIGITS: usize = 4300;

/// The codec of Python's `name/pickle` queues: a JSON string with one character for each byte of a pickle.
///
/// Supports plain data: `None`, `bool`, `int`, `float`, `str`, `list`, `tuple` (as an array) and `dict` in its order.
/// The keys of a `dict` are converted as by Python's `json.dumps`. If two keys are then equal, such as `1` and `"1"`,
/// the last value is kept. Everything else is refused with its kind. Nothing is imported or executed.
///
/// Reads protocols 0 to 5 and writes protocol 0, as Python's `pq` does. Refuses more than 127 levels of nesting,
/// integers of more than 4300 digits, floats that JSON cannot represent, more than 4 Mi values, and more than 64 MiB of
/// JSON.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pickle;

impl Codec for Pickle {
    fn encode(&self, json: String) -> Result<String, CodecError> {
        let pickle = write::pickle(&json)?;
        serde_json::to_string(&pickle).map_err(|_| CodecError::new("cannot write the pickle as JSON"))
    }

    fn decode<'a>(&self, stored: &'a str) -> Result<Cow<'a, str>, CodecError> {
        // The message of serde_json could contain parts of the payload, so it is dropped.
        let chars: String = serde_json::from_str(stored)
            .map_err(|_| CodecError::new("invalid pickle: the payload must be a JSON string"))?;
        let bytes: Result<Vec<u8>, _> = chars.chars().map(u8::try_from).collect();
        let bytes = bytes.map_err(|_| CodecError::new("invalid pickle: each character must be a byte"))?;
        read::json(&bytes).map(Cow::Owned)
    }
}

/// Returns the error for a value that is not plain data.
fn unsupported(what: impl AsRef<str>) -> CodecError {
    CodecError::new(format!("unsupported pickle: it contains {}, which is not plain data", what.as_ref()))
}

/// Returns the error for bytes that Python does not read either.
fn invalid(reason: &str) -> CodecError {
    CodecError::new(format!("invalid pickle: {reason}"))
}

fn too_deep() -> CodecError {
    CodecError::new(format!("unsupported pickle: it must nest at most {MAX_DEPTH} levels"))
}

fn too_large() -> CodecError {
    CodecError::new(format!(
        "unsupported pickle: it must decode to at most {} MiB of JSON",
        MAX_JSON_BYTES >> 20
    ))
}

fn too_many() -> CodecError {
    CodecError::new(format!("unsupported pickle: it must have at most {MAX_VALUES} values"))
}

fn too_many_digits() -> CodecError {
    CodecError::new(format!("unsupported pickle: an integer must have at most {MAX_INT_DIGITS} digits"))
}
