//! The form that puts a job.

use std::sync::Arc;

use axum::Extension;
use axum::http::StatusCode;
use maud::html;

use crate::form::field;
use crate::guard::Fields;
use crate::html::text;
use crate::page::{Page, Section, Visit};

pub(crate) async fn page(
    Extension(visit): Extension<Visit>,
    Extension(fields): Extension<Arc<Fields>>,
) -> Page {
    form(&visit, &fields, None)
}

/// Draws the form with the values of these fields, and above it what is wrong with them.
pub(crate) fn form(visit: &Visit, fields: &Fields, wrong: Option<&str>) -> Page {
    if !visit.can_act {
        return Page::error(
            StatusCode::FORBIDDEN,
            "Refused",
            "Only operators can put jobs, and only if actions are allowed.",
        );
    }
    let content = html! {
        @if let Some(wrong) = wrong { p role="alert" class="failure" { (text(wrong)) } }
        form method="post" action=(visit.url("/put")) class="stacked" {
            (visit.token_field())
            (field("queue", "Queue", "text", fields.get("queue")))
            (field("task", "Task; without one the payload is the whole job", "text", fields.get("task")))
            label for="payload" { "Payload as JSON, or the arguments of the task" }
            textarea id="payload" name="payload" spellcheck="false" { (fields.get("payload")) }
            (field("priority", "Priority", "number", fields.get("priority")))
            (field("schedule", "Due at a time, or after a duration such as 5m", "text", fields.get("schedule")))
            (field("key", "Serialization key", "text", fields.get("key")))
            (field("unique", "Unique key", "text", fields.get("unique")))
            (field("tags", "Tags, separated by commas", "text", fields.get("tags")))
            (field("metadata", "Metadata, a JSON object", "text", fields.get("metadata")))
            div { button { "Put the job" } }
        }
    };
    let page = Page::new(Section::Jobs, "Put a job", content);
    Page { status: if wrong.is_some() { StatusCode::UNPROCESSABLE_ENTITY } else { StatusCode::OK }, ..page }
}
