//! How a value's JSON becomes the JSON that is stored, and back.

#[cfg(feature = "pickle")]
mod pickle;

use std::borrow::Cow;
use std::sync::Arc;

#[cfg(feature = "pickle")]
pub use pickle::Pickle;

use crate::Error;

/// Turns the JSON of a value into the JSON that is stored, and back: Python `pq`'s `encode` and
/// `decode`. Replace it, for instance, to compress, to encrypt, or to share a queue with a program
/// that writes another form.
pub trait Codec: Send + Sync + 'static {
    /// What is stored for this JSON. It must itself be one JSON document.
    ///
    /// # Errors
    ///
    /// Any [`CodecError`]: the put is refused with [`Error::Encode`].
    fn encode(&self, json: String) -> Result<String, CodecError>;

    /// The JSON that was stored in this form.
    ///
    /// # Errors
    ///
    /// Any [`CodecError`]: the job goes dead with its text as the reason. The text is stored, so it
    /// should not repeat what the payload holds.
    fn decode<'a>(&self, stored: &'a str) -> Result<Cow<'a, str>, CodecError>;

    /// Whether [`Codec::encode`] gives back what it was given, so that nothing need be checked anew.
    fn is_identity(&self) -> bool {
        false
    }
}

/// Why a codec could not do its work, without what it worked on.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct CodecError(String);

impl CodecError {
    /// An error with this text.
    #[must_use]
    pub fn new(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }
}

/// The default: a value's JSON is stored as it is.
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

/// The codec of this name: `json`, or `pickle` where that feature is on.
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
            let known = if cfg!(feature = "pickle") { "json and pickle" } else { "json" };
            Err(Error::UnknownCodec { name: name.to_owned(), known: known.to_owned() })
        }
    }
}
