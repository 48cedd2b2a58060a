//! The routes `/metrics`, `/healthz` and `/readyz`.

use std::net::TcpListener;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use pq_diesel::store::{Connect, Workers};
use pq_diesel::{Error, Pq};
use prometheus_client::registry::Registry;
use tokio::sync::{Semaphore, watch};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::{Collector, text};

/// The time within which the database must answer to be ready.
const READY_WITHIN: Duration = Duration::from_millis(800);

/// The time after which the server ends a check that nobody waits for any more.
const ASK_WITHIN: Duration = Duration::from_secs(5);

/// Keeps calls that hang from occupying more than one thread and one connection.
type OneAtATime = Arc<Semaphore>;

/// Returns the route `/metrics`, for a router of the application.
///
/// It answers 503 while another scrape is in progress.
pub fn metrics_router<S: Clone + Send + Sync + 'static>(collector: Collector) -> Router<S> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(collector));
    let state = (Arc::new(registry), OneAtATime::new(Semaphore::new(1)));
    Router::new().route("/metrics", get(metrics)).with_state(state)
}

struct Health {
    pq: Pq,
    is_healthy: Box<dyn Fn() -> Result<(), String> + Send + Sync>,
    /// The latest check of the database, which all probes that come while it runs wait for.
    check: Mutex<Option<Check>>,
}

/// Holds the result of a check when it has ended.
type Check = watch::Receiver<Option<Result<(), String>>>;

/// Returns the routes `/healthz` and `/readyz`, for a router of the application.
///
/// `/healthz` answers 200, or 503 with the reason that `is_healthy` returns. It does not ask the database: a process
/// must not be restarted because the database is down. `/readyz` answers 200 if the database is reachable, the tables
/// exist, and the listener is connected if it was started, and otherwise 503 with the reason, within a second. Probes
/// at the same time share one check of the database.
pub fn health_router<S: Clone + Send + Sync + 'static>(
    pq: &Pq,
    is_healthy: impl Fn() -> Result<(), String> + Send + Sync + 'static,
) -> Router<S> {
    let health = Health { pq: pq.clone(), is_healthy: Box::new(is_healthy), check: Mutex::default() };
    Router::new().route("/healthz", get(healthz)).route("/readyz", get(readyz)).with_state(Arc::new(health))
}

/// Returns the routes of [`metrics_router`] and of [`health_router`].
pub fn router<S: Clone + Send + Sync + 'static>(
    pq: &Pq,
    collector: Collector,
    is_healthy: impl Fn() -> Result<(), String> + Send + Sync + 'static,
) -> Router<S> {
    metrics_router(collector).merge(health_router(pq, is_healthy))
}

/// Serves a router on this listener, in a thread with a runtime of its own, until the process ends.
///
/// # Errors
///
/// If the listener, the runtime or the thread cannot be set up.
pub fn serve(listener: TcpListener, router: Router) -> std::io::Result<()> {
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let serve = move || {
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            axum::serve(listener, router).await
        })
    };
    let run = move || {
        if let Err(error) = serve() {
            tracing::error!(%error, "metrics and health are not served any more");
        }
    };
    std::thread::Builder::new().name("pq-listen".to_owned()).spawn(run).map(drop)
}

async fn metrics(State((registry, scrape)): State<(Arc<Registry>, OneAtATime)>) -> Response {
    let Ok(permit) = scrape.try_acquire_owned() else {
        return unavailable("another scrape is in progress");
    };
    let encoded = spawn_blocking(move || {
        let _permit = permit;
        text(&registry)
    });
    match encoded.await {
        Ok(text) => ([(CONTENT_TYPE, crate::CONTENT_TYPE)], text).into_response(),
        Err(_) => unavailable("the scrape panicked"),
    }
}

async fn healthz(State(health): State<Arc<Health>>) -> Response {
    answer((health.is_healthy)())
}

async fn readyz(State(health): State<Arc<Health>>) -> Response {
    let is_disconnected =
        health.pq.listener_gauges().is_some_and(|listener| listener.is_started && !listener.is_connected);
    let mut check = health.check();
    let checked = timeout(READY_WITHIN, check.wait_for(Option::is_some)).await;
    answer(match checked.map(|checked| checked.map(|result| result.clone())) {
        Err(_) => Err(format!("the database has not answered within {READY_WITHIN:?}")),
        Ok(Err(_)) => Err("the check panicked".to_owned()),
        Ok(Ok(Some(Ok(())))) if is_disconnected => Err("the listener is not connected".to_owned()),
        Ok(Ok(checked)) => checked.unwrap_or(Ok(())),
    })
}

impl Health {
    /// Returns the check that runs, or begins one.
    fn check(&self) -> Check {
        let mut latest = self.check.lock().unwrap_or_else(PoisonError::into_inner);
        // A check that has ended or panicked has no sender any more.
        if let Some(running) = latest.as_ref().filter(|check| check.has_changed().is_ok()) {
            return running.clone();
        }
        let (ended, check) = watch::channel(None);
        *latest = Some(check.clone());
        let pq = self.pq.clone();
        spawn_blocking(move || ended.send_replace(Some(ask(&pq).map_err(|error| error.to_string()))));
        check
    }
}

/// Asks the database for a row, for a limited time.
fn ask(pq: &Pq) -> Result<(), Error> {
    let store = pq.store();
    store.with_connection(|conn| {
        store.transaction(conn, |conn| {
            store.set_statement_timeout(conn, Some(ASK_WITHIN))?;
            store.workers(conn).map(drop)
        })
    })
}

fn answer(checked: Result<(), String>) -> Response {
    match checked {
        Ok(()) => "ok\n".into_response(),
        Err(reason) => unavailable(&reason),
    }
}

fn unavailable(reason: &str) -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response()
}
