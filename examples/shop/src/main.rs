//! A web shop whose orders are worked in the same process: axum, diesel-async, and a worker of pq.
//!
//! `POST /orders` writes an order and calls the task `pack` in one transaction. The worker writes a parcel for each
//! order and completes the job in one transaction. `GET /health` answers 200 while the database can be reached and
//! the worker runs, and 503 otherwise. SIGTERM ends the process with status 0: requests and running handlers are
//! finished, waiting jobs stay in the database.
//!
//! ```sh
//! export DATABASE_URL=postgres://localhost/shop
//! createdb shop
//! cargo run -p shop # in another terminal, until it logs "shop opened"
//! curl --json '{"item": "apple", "quantity": 3}' http://127.0.0.1:8080/orders
//! curl http://127.0.0.1:8080/health
//! ```
//!
//! | variable | value |
//! |---|---|
//! | `DATABASE_URL` | a database that exists; its tables are created if they are missing |
//! | `SHOP_ADDRESS` | the address to listen on; default: `127.0.0.1:8080` |
//! | `SHOP_STOP_SECONDS` | the longest time that a stop takes; default: 20 |

mod shop;
mod web;

use std::future::IntoFuture;
use std::time::Duration;

use anyhow::{Context, bail};
use pq_diesel_async::{CancellationToken, StopMode};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;

use crate::shop::Shop;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    // What pq logs goes where the application's events go.
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let url = std::env::var("DATABASE_URL").context("DATABASE_URL names the database")?;
    let address = variable("SHOP_ADDRESS", "127.0.0.1:8080");
    let stop_within = Duration::from_secs(variable("SHOP_STOP_SECONDS", "20").parse()?);
    // Before anything else, so that a signal that comes early is not lost.
    let stop = stop_on_sigterm()?;

    let shop = Shop::open(&url).await?;
    let worker = shop.worker()?.stop_within(stop_within);
    let control = worker.control();
    let mut working = tokio::spawn(worker.run());

    let listener =
        TcpListener::bind(&address).await.with_context(|| format!("cannot listen on {address}"))?;
    tracing::info!(address = %listener.local_addr()?, "shop opened");
    let app = web::router(shop, working.abort_handle());
    let stopping = stop.clone();
    let server = axum::serve(listener, app).with_graceful_shutdown(async move { stopping.cancelled().await });
    let mut serving = tokio::spawn(server.into_future());

    let worked = tokio::select! {
        // After a stop the server may end before this is polled.
        biased;
        () = stop.cancelled() => None,
        served = &mut serving => bail!("the server ended: {served:?}"),
        // `pq stop` asked it to end, which stops the shop as a signal does, or something is wrong.
        worked = &mut working => Some(worked),
    };
    stop.cancel();
    // Both stop at the same time: no connection is accepted, and no job is begun.
    control.stop(StopMode::Finish);
    if timeout(stop_within, serving).await.is_err() {
        tracing::warn!("a request did not end in time");
    }
    // The worker keeps its limit itself.
    let worked = match worked {
        Some(worked) => worked,
        None => working.await,
    };
    let report = worked?.context("the worker ended")?;
    tracing::info!(done = report.done, failed = report.failed, given_back = report.given_back, "shop closed");
    Ok(())
}

/// Returns a token that SIGTERM and Ctrl-C cancel.
fn stop_on_sigterm() -> anyhow::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let stop = CancellationToken::new();
    let token = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        token.cancel();
    });
    Ok(stop)
}

fn variable(name: &str, default: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| default.to_owned())
}
