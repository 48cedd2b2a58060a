//! The payloads of Python's `name/pickle` queues: pickles of plain data, read and written without
//! running or importing anything.
//!
//! What the opcodes mean is from CPython's `Lib/pickletools.py` and `Modules/_pickle.c`.

// The serde-pickle crate does not serve. It keeps dicts in key order, refuses lone surrogates, does
// not say which class it refuses, reads some objects as if they were plain data, and copies whole
// values at DUP and at memo references, so that a few dozen bytes grow without bound in its parser,
// and its nested values overflow the stack when they are dropped. A guard in front would have to run
// the same machine to foresee that; hence this reader, in which values are indices into an arena.

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

/// How many lists, tuples and dicts may be in one another: as many as serde_json then reads.
const MAX_DEPTH: usize = 127;

/// The most bytes of JSON that a pickle may stand for. References let a pickle of a hundred bytes
/// stand for any amount, and let honest ones repeat a long text many times, so that no multiple of
/// the pickle's size would do. This is 64 times the largest payload that is put by default.
const MAX_JSON_BYTES: usize = 64 << 20;

/// The most values in one pickle, each counted once however often it is referred to, and the most
/// that it may keep to refer to. Either costs a pickle one byte, and takes some fifty of memory here.
const MAX_VALUES: usize = 4 << 20;

/// Python reads no more digits than this, in a pickle's text as in JSON, and converting them takes
/// a time that grows with their square (`sys.int_info.default_max_str_digits`).
const MAX_INT_DIGITS: usize = 4300;

/// How Python's `pq` stores the payloads of queues called `name/pickle`: the JSON string of a
/// pickle's bytes as the characters of the same numbers.
///
/// Plain data alone is carried: `None`, `bool`, `int`, `float`, `str`, `list`, `tuple` (as an array)
/// and `dict`, in its order, whose keys become what Python's `json.dumps` makes of them (of keys that
/// then look alike, such as `1` and `"1"`, the last one's value is kept). Protocols 0 to 5 are read,
/// by the opcodes that `pickletools` in CPython's library describes; protocol 0 is written, as by
/// Python's `pq`. Anything else that a pickle can hold is refused by its kind. Nothing is imported
/// or run.
///
/// Refused too, read or written: more than 127 levels of nesting, integers of more than 4300 digits
/// (Python's own limit), floats that JSON lacks, more than 4 Mi values, and more than 64 MiB of JSON.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pickle;

impl Codec for Pickle {
    fn encode(&self, json: String) -> Result<String, CodecError> {
        let pickle = write::pickle(&json)?;
        serde_json::to_string(&pickle).map_err(|_| CodecError::new("the pickle could not be written as JSON"))
    }

    fn decode<'a>(&self, stored: &'a str) -> Result<Cow<'a, str>, CodecError> {
        // The reason that serde_json gives could repeat the payload.
        let chars: String = serde_json::from_str(stored)
            .map_err(|_| CodecError::new("what is stored is not a pickle: it is not a JSON string"))?;
        let bytes: Result<Vec<u8>, _> = chars.chars().map(u8::try_from).collect();
        let bytes = bytes.map_err(|_| {
            CodecError::new("what is stored is not a pickle: it has characters that are not bytes")
        })?;
        read::json(&bytes).map(Cow::Owned)
    }
}

/// The error for something that Python can pickle and this codec does not carry.
fn refused(what: impl AsRef<str>) -> CodecError {
    CodecError::new(format!("the pickle holds {}, which is not plain data", what.as_ref()))
}

/// The error for bytes that Python would not read either.
fn damaged(why: &str) -> CodecError {
    CodecError::new(format!("the pickle is damaged: {why}"))
}

fn too_deep() -> CodecError {
    CodecError::new(format!("the value nests 128 levels or more; at most {MAX_DEPTH} are carried"))
}

fn too_large() -> CodecError {
    CodecError::new(format!("the value takes more than {} MiB of JSON", MAX_JSON_BYTES >> 20))
}

fn too_many() -> CodecError {
    CodecError::new(format!("the pickle has more than {MAX_VALUES} values"))
}

fn too_many_digits() -> CodecError {
    CodecError::new(format!("an integer has more than {MAX_INT_DIGITS} digits, which Python does not read"))
}
