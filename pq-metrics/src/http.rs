//! The routes `/metrics`, `/healthz` and `/readyz`.

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use pq_diesel::Pq;
use prometheus_client::registry::Registry;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::{Collector, text};

/// The time within which the database must answer to be ready.
const READY_WITHIN: Duration = Duration::from_millis(800);

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
    check: OneAtATime,
}

/// Returns the routes `/healthz` and `/readyz`, for a router of the application.
///
/// `/healthz` answers 200, or 503 with the reason that `is_healthy` returns. It does not ask the database: a process must not
/// be restarted because the database is down. `/readyz` answers 200 if the database is reachable, the tables exist, and the
/// listener is connected if it was started, and otherwise 503 with the reason, within a second.
pub fn health_router<S: Clone + Send + Sync + 'static>(
    pq: &Pq,
    is_healthy: impl Fn() -> Result<(), String> + Send + Sync + 'static,
) -> Router<S> {
    let check = OneAtATime::new(Semaphore::new(1));
    let health = Health { pq: pq.clone(), is_healthy: Box::new(is_healthy), check };
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
    let Ok(permit) = Arc::clone(&health.check).try_acquire_owned() else {
        return unavailable("the database has not answered an earlier check");
    };
    let check = spawn_blocking(move || {
        let _permit = permit;
        health.pq.workers().map(drop).map_err(|error| error.to_string())
    });
    answer(match timeout(READY_WITHIN, check).await {
        Err(_) => Err(format!("the database has not answered within {READY_WITHIN:?}")),
        Ok(Err(_)) => Err("the check panicked".to_owned()),
        Ok(Ok(Ok(()))) if is_disconnected => Err("the listener is not connected".to_owned()),
        Ok(Ok(checked)) => checked,
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
