//! The future of one handler on the executor, and the result that it sends back.

use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use crate::handler::{HandlerFuture, HandlerResult};
use crate::lock::lock;
use crate::worker::catch_panic::panic_text;
use crate::{Failure, Outcome, WakeSignal};

/// The results of handlers that have ended, and the signal that wakes the thread.
pub(super) struct Ended {
    results: Mutex<Vec<(usize, HandlerResult)>>,
    signal: Arc<WakeSignal>,
}

impl Ended {
    pub(super) fn new(signal: &Arc<WakeSignal>) -> Arc<Self> {
        Arc::new(Self { results: Mutex::default(), signal: Arc::clone(signal) })
    }

    /// Returns the results since the last call, each with the number of its handler.
    pub(super) fn take(&self) -> Vec<(usize, HandlerResult)> {
        std::mem::take(&mut lock(&self.results))
    }

    fn push(&self, number: usize, result: HandlerResult) {
        let is_first = {
            let mut results = lock(&self.results);
            results.push((number, result));
            results.len() == 1
        };
        // The thread takes all results when it wakes.
        if is_first {
            self.signal.notify();
        }
    }
}

/// Sends the result of one handler. If the handler is dropped before it ends, its job is given back.
pub(super) struct ResultSender {
    ended: Arc<Ended>,
    number: usize,
    is_sent: bool,
}

impl ResultSender {
    pub(super) fn new(ended: &Arc<Ended>, number: usize) -> Self {
        Self { ended: Arc::clone(ended), number, is_sent: false }
    }

    pub(super) fn send(mut self, result: HandlerResult) {
        self.is_sent = true;
        self.ended.push(self.number, result);
    }
}

impl Drop for ResultSender {
    fn drop(&mut self) {
        if !self.is_sent {
            self.ended.push(self.number, Ok(Outcome::GiveBack));
        }
    }
}

/// A handler's timeout, and the future that ends then.
pub(super) type Timeout = (Duration, Pin<Box<dyn Future<Output = ()> + Send>>);

/// Runs the future of a handler. A panic is a failure, and so is a timeout, at which the future is dropped.
pub(super) async fn run_guarded(mut handler: HandlerFuture, mut timeout: Option<Timeout>) -> HandlerResult {
    poll_fn(move |context| {
        match catch_unwind(AssertUnwindSafe(|| handler.as_mut().poll(context))) {
            Ok(Poll::Ready(result)) => return Poll::Ready(result),
            Ok(Poll::Pending) => {}
            Err(panic) => return Poll::Ready(Err(Failure::Panic(panic_text(panic)))),
        }
        if let Some((limit, sleep)) = &mut timeout
            && sleep.as_mut().poll(context).is_ready()
        {
            return Poll::Ready(Err(Failure::Timeout(*limit)));
        }
        Poll::Pending
    })
    .await
}
