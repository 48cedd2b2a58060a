//! The HTTP interface.

use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Serialize;
use tokio::task::AbortHandle;

use crate::shop::{NewOrder, Shop};

/// How long the database may take to answer a health check.
const HEALTHY_WITHIN: Duration = Duration::from_secs(2);

#[derive(Clone)]
struct App {
    shop: Shop,
    /// The task that the worker runs in.
    working: AbortHandle,
}

#[derive(Serialize)]
struct Ordered {
    id: i64,
}

#[derive(Serialize)]
struct Health {
    database: bool,
    worker: bool,
}

/// Returns the routes. `working` is the task of the worker.
pub fn router(shop: Shop, working: AbortHandle) -> Router {
    Router::new()
        .route("/orders", post(order))
        .route("/health", get(health))
        .with_state(App { shop, working })
}

async fn order(
    State(app): State<App>,
    Json(order): Json<NewOrder>,
) -> Result<(StatusCode, Json<Ordered>), StatusCode> {
    match app.shop.order(order).await {
        Ok(id) => Ok((StatusCode::CREATED, Json(Ordered { id }))),
        // The commit may have succeeded even so: a customer who sends the order again may have two.
        Err(error) => {
            tracing::error!(%error, "order not confirmed");
            Err(StatusCode::SERVICE_UNAVAILABLE)
        }
    }
}

async fn health(State(app): State<App>) -> (StatusCode, Json<Health>) {
    let ping = tokio::time::timeout(HEALTHY_WITHIN, app.shop.ping()).await;
    let health = Health { database: matches!(ping, Ok(Ok(()))), worker: !app.working.is_finished() };
    let status =
        if health.database && health.worker { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(health))
}
