//! Codecs: convert a value's JSON into the JSON that is stored, and back.

#[cfg(feature = "pickle")]
mod pickle;

use std::borrow::Cow;
use std::sync::Arc;

#[cfg(feature = "pickle")]
pub use pickle::Pickle;

use crate::Error;

/// Converts the JSON of a value into the JSON that is stored, and back.
///
/// Implement it to compress or to encrypt payloads, or to share a queue with a program that stores another form. It
/// corresponds to `encode` and `decode` of Python's `pq`.
pub trait Codec: Send + Sync + 'static {
    /// Encodes JSON into the JSON document that is stored.
    ///
    /// # Errors
    ///
    /// A [`CodecError`]. The put is then refused with [`Error::Encode`].
    fn encode(&self, json: String) -> Result<String, CodecError>;

    /// Decodes a stored document into the JSON of a value.
    ///
    /// # Errors
    ///
    /// A [`CodecError`]. The job is then archived as dead with its text, which must not contain parts of the payload.
    fn decode<'a>(&self, stored: &'a str) -> Result<Cow<'a, str>, CodecError>;

    /// Returns `true` if [`Codec::encode`] returns its input unchanged, so that the result needs no check.
    fn is_identity(&self) -> bool {
        false
    }
}

/// The reason why a codec failed, without any part of the payload.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct CodecError(String);

impl CodecError {
    /// Creates an error with this text.
    #[must_use]
    pub fn new(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }
}

/// The default codec, which stores a value's JSON unchanged.
#[derive(Clone, Copy, Debug, Default)]
pub struct Json;

impl Codec for Json {
    fn encode(&self, json: String) -> Result<String, CodecError> {
        Ok(json)
    }

    fn decode<'a>(&self, stored: &'a str) -> Result<Cow<'a, str>, CodecError> {
        Ok(Cow::Borrowed(stored))
    }

    fn is_identity(&self) -> bool {
        true
    }
}

/// Returns the codec of this name: `json`, or `pickle` if that feature is enabled.
///
/// # Errors
///
/// [`Error::UnknownCodec`] for any other name.
pub fn codec_by_name(name: &str) -> Result<Arc<dyn Codec>, Error> {
    match name {
        "json" => Ok(Arc::new(Json)),
        #[cfg(feature = "pickle")]
        "pickle" => Ok(Arc::new(Pickle)),
        _ => {
            let known = if cfg!(feature = "pickle") { "`json` or `pickle`" } else { "`json`" };
            Err(Error::UnknownCodec { name: name.to_owned(), known: known.to_owned() })
        }
    }
}
