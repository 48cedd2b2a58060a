//! What a worker logs of a handler that fails after its lease was lost.

use std::fmt::{Debug, Write as _};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use pq_core::memory::MemoryStore;
use pq_core::store::{Archive, Connect, Jobs};
use pq_core::{Pq, Retention, Worker};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

static EVENTS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Records events with their fields.
struct Events;

struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let _ = write!(self.0, " {field}={value:?}");
    }
}

impl Subscriber for Events {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event()
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut text = Text(String::new());
        event.record(&mut text);
        EVENTS.lock().unwrap_or_else(PoisonError::into_inner).push(text.0);
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

#[test]
fn a_refused_outcome_is_not_logged_as_a_death() -> Result<(), Box<dyn std::error::Error>> {
    tracing::subscriber::set_global_default(Events)?;
    let pq = Pq::new(MemoryStore::new());
    let queue = pq.queue::<u32>("apples")?;
    queue.put(&1)?;
    let store = pq.clone();
    let handler = queue.leased(move |context, job| {
        if job.crashes > 0 {
            return Ok(());
        }
        let store = store.store();
        store.with_connection(|conn| {
            store.extend(conn, &[context.job().lease().unwrap_or_default()], Duration::ZERO)?;
            store.maintain(conn, &Retention::default())
        })?;
        context.extend_lease()
    });
    let report = Worker::new(&pq).serve(handler).run_until_empty()?;
    assert_eq!((report.done, report.dead, report.lost), (1, 0, 1));
    let events = EVENTS.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let failed: Vec<&String> = events.iter().filter(|event| event.contains("message=job failed")).collect();
    assert!(failed.len() == 1 && !failed[0].contains("dead=true"), "{events:#?}");
    Ok(())
}
