//! The future of one handler on the executor.

use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use crate::Failure;
use crate::handler::HandlerResult;
use crate::worker::catch_panic::panic_text;
use crate::worker::run_handler::log_end;

/// A handler's timeout, and the future that ends then.
pub(super) type Timeout = (Duration, Pin<Box<dyn Future<Output = ()> + Send>>);

/// Runs the future of a handler. A panic is a failure, and so is a timeout, at which the future is dropped.
pub(super) async fn run_guarded(
    mut handler: Pin<Box<dyn Future<Output = HandlerResult> + Send + '_>>,
    mut timeout: Option<Timeout>,
) -> HandlerResult {
    tracing::debug!("job started");
    let began = Instant::now();
    let result = poll_fn(move |context| {
        match catch_unwind(AssertUnwindSafe(|| handler.as_mut().poll(context))) {
            Ok(Poll::Ready(result)) => return Poll::Ready(result),
            Ok(Poll::Pending) => {}
            Err(panic) => return Poll::Ready(Err(Failure::Panic(panic_text(panic)))),
        }
        if let Some((limit, sleep)) = &mut timeout
            && sleep.as_mut().poll(context).is_ready()
        {
            return Poll::Ready(Err(Failure::Timeout { limit: *limit, error: None }));
        }
        Poll::Pending
    })
    .await;
    log_end(began, &result);
    result
}
