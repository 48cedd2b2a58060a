//! The tracing spans of a job, from its put to its settlement.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use pq_core::memory::MemoryStore;
use pq_core::{Pq, Worker};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

static NAMES: Mutex<Vec<&'static str>> = Mutex::new(Vec::new());

/// Records the names of spans in the order in which they are created.
struct Names(AtomicU64);

impl Subscriber for Names {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_span()
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        NAMES.lock().unwrap_or_else(PoisonError::into_inner).push(span.metadata().name());
        Id::from_u64(self.0.fetch_add(1, Ordering::Relaxed))
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, _: &Event<'_>) {}

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

#[test]
fn each_step_of_a_job_has_a_span() -> Result<(), Box<dyn std::error::Error>> {
    tracing::subscriber::set_global_default(Names(AtomicU64::new(1)))?;
    let pq = Pq::new(MemoryStore::new());
    let task = pq.queue("apples")?.task::<()>("eat");
    for transactional in [true, false] {
        NAMES.lock().unwrap_or_else(PoisonError::into_inner).clear();
        task.call(&())?;
        let handler = match transactional {
            // The commit settles the job, without a statement.
            true => task.transactional(|_, _| Ok::<_, std::convert::Infallible>(())),
            false => task.leased(|_, _| Ok::<_, std::convert::Infallible>(())),
        };
        Worker::new(&pq).serve(handler).run_until_empty()?;
        let names = NAMES.lock().unwrap_or_else(PoisonError::into_inner).clone();
        // The last take finds nothing.
        // Before it ends, the run looks for expired leases and polls once more.
        assert_eq!(names, ["pq.put", "pq.take", "pq.run", "pq.settle", "pq.take", "pq.take"]);
    }
    Ok(())
}
