//! The audit log: who did what.

use std::sync::Arc;

use axum::Extension;
use maud::{Markup, html};
use pq_diesel::admin::AuditEntry;
use pq_diesel::store::Audit;

use crate::dashboard::App;
use crate::guard::Fields;
use crate::html::{beginning, number, text, time, with_query};
use crate::page::{Page, Section, Visit, panel};

/// The number of entries on a page.
const PAGE: usize = 50;

pub(crate) async fn page(
    Extension(app): Extension<App>,
    Extension(visit): Extension<Visit>,
    Extension(fields): Extension<Arc<Fields>>,
) -> Page {
    let before = fields.get("before").parse().ok();
    let found = app.reads.read(move |pq, conn| pq.store().audit(conn, before, PAGE + 1)).await;
    Page::new(
        Section::Audit,
        "Audit log",
        panel("entries", "Latest first", found.map(|found| list(&visit, &found))),
    )
}

fn list(visit: &Visit, entries: &[AuditEntry]) -> Markup {
    let shown = &entries[..entries.len().min(PAGE)];
    let next = shown.last().filter(|_| entries.len() > PAGE).map(|last| last.id.to_string());
    if shown.is_empty() {
        return html! { p { "Nobody has done anything yet." } };
    }
    html! {
        div class="wide" tabindex="0" role="region" aria-label="Entries" { table {
            thead { tr { @for name in ["At", "Who", "What", "Queue", "Job", "Count", "Details"] { th scope="col" { (name) } } } }
            tbody { @for entry in shown { (row(visit, entry)) } }
        } }
        @if let Some(next) = next {
            div class="buttons" { a href=(visit.url(&with_query("/audit", &[("before", &next)]))) rel="next" { "Next page" } }
        }
    }
}

fn row(visit: &Visit, entry: &AuditEntry) -> Markup {
    let record = &entry.record;
    html! { tr {
        td { (time(entry.at)) }
        th scope="row" { (text(&record.actor)) }
        td { (text(&record.action)) }
        td { @if let Some(queue) = &record.queue {
            a href=(visit.url(&with_query("/queue", &[("name", queue)]))) { (beginning(queue, 60)) }
        } }
        td { @if let Some(job) = record.job { a href=(visit.url(&format!("/job/{job}"))) { (job) } } }
        td class="number" { (number(record.count)) }
        td class="long" { @if let Some(details) = &record.details { (text(details)) } }
    } }
}
