//! What runs the futures of asynchronous handlers.

use std::fmt;
use std::pin::Pin;
use std::time::Duration;

/// Runs the futures of asynchronous handlers, for example on tokio.
///
/// A worker with such handlers needs one, see [`crate::Worker::executor`]. The crate `pq-diesel-async` has it.
pub trait Executor: Send + Sync + 'static {
    /// Runs a future to its end, in the background.
    ///
    /// The executor may drop it before, when it shuts down. The job is then given back.
    fn spawn(&self, future: Pin<Box<dyn Future<Output = ()> + Send>>);

    /// Returns a future that is ready after this time.
    fn sleep(&self, time: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>>;
}

impl fmt::Debug for dyn Executor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Executor")
    }
}
