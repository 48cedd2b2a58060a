//! A dashboard for `pq`: pages and actions as an axum [`Router`].
//!
//! ```no_run
//! use pq_diesel::Pq;
//!
//! # async fn start() -> Result<(), Box<dyn std::error::Error>> {
//! let pq = Pq::connect("postgres://localhost/shop")?;
//! let app = axum::Router::new().nest("/jobs", pq_web::router(&pq));
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:8080").await?;
//! axum::serve(listener, app.into_make_service_with_connect_info::<std::net::SocketAddr>()).await?;
//! # Ok(())
//! # }
//! ```
//!
//! Pages are rendered on the server, and each works without JavaScript. A page consists of panels. Each panel reads the
//! database by itself, in a read-only transaction with a statement timeout. A panel that fails shows its error in its
//! place, and the rest of the page stays.
//!
//! # Who may see it
//!
//! Payloads are business data, so the dashboard is closed by default: it answers only requests of the local machine,
//! and offers no actions. To recognise those it needs the address of the client, see [`Access::Loopback`].
//! [`Dashboard`] opens it: [`Access`] says who may see it, and [`Dashboard::allow_actions`] lets operators change
//! jobs and queues.

#![warn(missing_debug_implementations)]

mod access;
mod actions;
mod assets;
mod chart;
mod conditions;
mod dashboard;
mod database;
mod examiner;
mod form;
mod guard;
mod html;
mod live;
mod page;
mod pages;
mod sampler;
mod serve;
mod session;

pub use access::{Access, Credentials, Role, StartRefused, User};
pub use dashboard::Dashboard;

use axum::Router;
use pq_diesel::Pq;

/// Returns a read-only dashboard without a login, for requests to the local machine. See [`Dashboard`] for other
/// settings.
pub fn router(pq: &Pq) -> Router {
    Dashboard::new(pq).router()
}
