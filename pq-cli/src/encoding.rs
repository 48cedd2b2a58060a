//! The encoding of payloads, and the queue names by which the Python `pq` selects it.

use std::sync::Arc;

use pq_diesel::{Codec, codec_by_name};

use crate::failure::Failure;

/// The suffix of a queue with pickled payloads in Python's `pq`. The stored name of the queue does not have it.
const PICKLE_SUFFIX: &str = "/pickle";

/// The `--codec` option.
#[derive(Debug, clap::Args)]
pub(crate) struct Encoding {
    /// Encoding of stored payloads: json or pickle. Default: pickle for a queue `NAME/pickle`, or json.
    #[arg(long, value_name = "CODEC")]
    codec: Option<String>,
}

impl Encoding {
    /// Returns the stored name of a queue and the codec of its payloads.
    ///
    /// With an explicit codec the name is taken as it is.
    pub(crate) fn of<'q>(&self, queue: &'q str) -> Result<(&'q str, Arc<dyn Codec>), Failure> {
        let (name, codec) = match (&self.codec, queue.strip_suffix(PICKLE_SUFFIX)) {
            (Some(codec), _) => (queue, codec.as_str()),
            (None, Some(name)) => (name, "pickle"),
            (None, None) => (queue, "json"),
        };
        Ok((name, codec_by_name(codec)?))
    }
}
