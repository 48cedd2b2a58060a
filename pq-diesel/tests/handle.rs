//! Handles: what their builder sets, and what they report about their pools.

mod common;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use common::{Outcome, database};
use diesel::PgConnection;
use diesel::r2d2::ConnectionManager;
use pq_diesel::{
    CancellationToken, Error, Outcome as JobOutcome, PayloadLimits, Pq, Trace, Wait, Worker, codec_by_name,
};
use pq_testing::Database;
use serde_json::{Value, json};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

/// The time that a call waits for a connection. It is long enough to open two on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(2);

#[test]
fn a_builder_sets_codec_limits_trace_and_cancellation_token() -> Outcome {
    let database = database()?;
    let token = CancellationToken::new();
    let context = Trace::from([("traceparent".to_owned(), "00-1-2-01".to_owned())]);
    let given = context.clone();
    let pq = Pq::builder()
        .url(database.url())
        .codec(codec_by_name("json")?)
        .limits(PayloadLimits { max_bytes: 200, ..PayloadLimits::default() })
        .cancellation_token(&token)
        .trace(move || given.clone())
        .build()?;
    let queue = pq.queue::<Value>("apples")?;
    let refused = queue.put(&json!("x".repeat(200))).err().ok_or("it was put")?;
    assert!(matches!(refused, Error::Refused(pq_core::Error::PayloadTooLarge { .. })), "{refused}");

    let pears = pq.queue::<Value>("pears")?;
    pears.put(&json!(1))?;
    let seen = Arc::new(Mutex::new(None));
    let note = Arc::clone(&seen);
    let handler = pears.leased(move |context, _| {
        *note.lock().unwrap_or_else(PoisonError::into_inner) = Some(context.trace().clone());
        Ok::<_, Error>(JobOutcome::Complete)
    });
    Worker::new(&pq).serve(handler).run_until_empty()?;
    assert_eq!(seen.lock().unwrap_or_else(PoisonError::into_inner).take(), Some(context));

    token.cancel();
    assert!(queue.get(Wait::Forever).is_err_and(|error| error.is_stopped()));
    Ok(())
}

fn pool(database: &Database) -> r2d2::Pool<ConnectionManager<PgConnection>> {
    let manager = ConnectionManager::new(database.url());
    r2d2::Pool::builder().max_size(2).connection_timeout(TIMEOUT).build_unchecked(manager)
}

#[test]
fn an_exhausted_pool_is_reported_with_its_size() -> Outcome {
    let database = database()?;
    let own = Pq::builder().url(database.url()).pool_size(2).connect_timeout(TIMEOUT).build()?;
    let given = Pq::builder().pool(pool(&database)).listen(false).build()?;
    for pq in [own, given] {
        let third = pq.transaction(|_| pq.transaction(|_| pq.transaction(|_| Ok::<_, Error>(()))));
        let error = third.err().ok_or("three connections of two")?;
        assert!(
            matches!(error, Error::PoolExhausted { size: 2, waited, .. } if waited == TIMEOUT),
            "{error}"
        );
        assert!(error.is_unavailable());
        assert!(error.to_string().contains("all 2 connections of the pool are in use"), "{error}");
        // The connections are back.
        pq.transaction(|_| Ok::<_, Error>(()))?;
    }
    Ok(())
}

#[test]
fn an_unreachable_server_is_not_reported_as_an_exhausted_pool() -> Outcome {
    let url = "host=127.0.0.1 port=1 dbname='größe' password=s3cret";
    let pq = Pq::builder().url(url).connect_timeout(TIMEOUT).build()?;
    let error = pq.now().err().ok_or("there is a server")?;
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");
    assert!(error.to_string().starts_with("cannot connect to 127.0.0.1:1/größe: "), "{error}");
    Ok(())
}

#[test]
fn a_pool_without_a_url_logs_a_warning() -> Outcome {
    let database = database()?;
    let warnings = Warnings::default();
    let with =
        |builder: fn(pq_diesel::Builder) -> pq_diesel::Builder| -> Result<usize, Box<dyn std::error::Error>> {
            let builder = builder(Pq::builder().pool(pool(&database)));
            tracing::subscriber::with_default(warnings.clone(), || builder.build())?;
            Ok(std::mem::take(&mut *warnings.0.lock().unwrap_or_else(PoisonError::into_inner)).len())
        };
    assert_eq!(with(|builder| builder)?, 1);
    assert_eq!(with(|builder| builder.listen(false))?, 0);
    assert_eq!(with(|builder| builder.url("host=127.0.0.1 port=1"))?, 0);
    Ok(())
}

/// Records warnings about listening.
#[derive(Clone, Default)]
struct Warnings(Arc<Mutex<Vec<String>>>);

impl Subscriber for Warnings {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() == Level::WARN
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        event.record(&mut Listening(self));
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

struct Listening<'a>(&'a Warnings);

impl Visit for Listening<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let text = format!("{value:?}");
        if field.name() == "message" && text.starts_with("listening disabled") {
            self.0.0.lock().unwrap_or_else(PoisonError::into_inner).push(text);
        }
    }
}
