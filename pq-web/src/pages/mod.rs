//! The pages, and the larger parts of them, one file each.

pub(crate) mod audit;
pub(crate) mod dead;
pub(crate) mod health;
pub(crate) mod job;
mod job_links;
mod job_table;
pub(crate) mod jobs;
mod limits;
pub(crate) mod login;
pub(crate) mod overview;
pub(crate) mod pauses;
pub(crate) mod periodic;
pub(crate) mod put;
pub(crate) mod queue;
mod queue_table;
pub(crate) mod queues;
pub(crate) mod workers;
pub(crate) mod workflow;

use axum::http::StatusCode;

use crate::page::Page;

/// The page of an action that was requested by a link.
pub(crate) async fn method_not_allowed() -> Page {
    let reason = "This is the path of an action, which only a form of this dashboard starts.";
    Page::error(StatusCode::METHOD_NOT_ALLOWED, "No page", reason)
}

/// The page of a path that does not exist.
pub(crate) async fn not_found() -> Page {
    Page::error(StatusCode::NOT_FOUND, "Not found", "This page does not exist.")
}
