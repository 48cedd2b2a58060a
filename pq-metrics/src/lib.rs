//! Metrics of `pq` for Prometheus.
//!
//! [`Collector`] measures a table at each scrape, for a registry of the application:
//!
//! ```no_run
//! use pq_metrics::Collector;
//! use prometheus_client::registry::Registry;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let pq = pq_diesel::Pq::connect("postgres://localhost/shop")?;
//! let mut registry = Registry::default();
//! registry.register_collector(Box::new(Collector::new(&pq)));
//! println!("{}", pq_metrics::text(&registry));
//! # Ok(())
//! # }
//! ```
//!
//! With the feature `http`, `router` returns the routes `/metrics`, `/healthz` and `/readyz` for axum.

#![warn(missing_debug_implementations)]

mod collector;
mod encoding;
#[cfg(feature = "http")]
mod http;

pub use collector::Collector;
#[cfg(feature = "http")]
pub use http::{health_router, metrics_router, router, serve};
pub use prometheus_client;

/// The media type of [`text`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Returns the metrics of a registry as OpenMetrics text.
///
/// A [`Collector`] in the registry asks the database, so this blocks.
#[must_use]
pub fn text(registry: &prometheus_client::registry::Registry) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail, and the collector encodes what it has.
    if prometheus_client::encoding::text::encode(&mut text, registry).is_err() {
        tracing::error!("metrics could not be encoded");
    }
    text
}
