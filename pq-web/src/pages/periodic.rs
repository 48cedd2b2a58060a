//! Periodic jobs, with their next ticks.

use axum::Extension;
use chrono::{DateTime, Utc};
use maud::{Markup, html};
use pq_diesel::admin::CronEntry;
use pq_diesel::store::{Connect, Schedules};

use super::pauses::since;
use crate::dashboard::App;
use crate::form::button_on;
use crate::html::{Layout, text, time, with_query};
use crate::page::{Page, Section, Visit, panel};

/// The number of ticks that are shown.
const TICKS: usize = 10;

/// The largest part of a payload on the page, in bytes.
const SHOWN_BYTES: usize = 400;

pub(crate) async fn page(Extension(app): Extension<App>, Extension(visit): Extension<Visit>) -> Page {
    let found = app.reads.read(|pq, conn| Ok((pq.store().now(conn)?, pq.store().crons(conn)?))).await;
    let list = found.map(|(now, entries)| match entries.as_slice() {
        [] => html! { p { "There are no periodic jobs." } },
        entries => html! { @for (index, entry) in entries.iter().enumerate() { (one(&app, &visit, index, entry, now)) } },
    });
    Page::new(Section::Periodic, "Periodic jobs", panel("periodic", "By name", list))
}

fn one(app: &App, visit: &Visit, index: usize, entry: &CronEntry, now: DateTime<Utc>) -> Markup {
    let cron = &entry.cron;
    let title = format!("entry-{index}");
    let to = |action: &str| with_query(action, &[("name", &cron.name)]);
    let (payload, complete) = app.mask.format(cron.payload.as_str(), Layout::Line, SHOWN_BYTES);
    html! {
        article class="card" aria-labelledby=(title) {
            h3 id=(title) { (text(&cron.name)) }
            dl {
                dt { "ticks" } dd { code { (text(&cron.expression)) } " in " (text(&cron.time_zone)) ": " (text(&cron.describe())) }
                dt { "queue" }
                dd { a href=(visit.url(&with_query("/queue", &[("name", cron.queue.as_str())]))) { (text(cron.queue.as_str())) } }
                dt { "payload" } dd { (text(&payload)) @if !complete { "…" } }
                dt { "priority" } dd { (cron.priority) }
                dt { "missed ticks" } dd { @if cron.catch_up { "put one job" } @else { "are skipped" } }
                @if let Some(at) = entry.last_at { dt { "last tick" } dd { (time(at)) } }
                @if entry.failures > 0 {
                    dt { "failed" } dd class="fail" { (entry.failures) " times in succession: " (text(entry.error.as_deref().unwrap_or_default())) }
                }
                dt { "next ticks" }
                dd { @if entry.paused {
                    span class="tag paused" { "paused" } " " (since(entry.paused_at, entry.paused_by.as_deref()))
                } @else { (ticks(entry, now)) } }
            }
            @if visit.can_act { div class="buttons" {
                @if entry.paused { (button_on(visit, &to("/periodic/resume"), &[], "Resume", "", &cron.name)) }
                @else { (button_on(visit, &to("/periodic/pause"), &[], "Pause", "", &cron.name)) }
                (button_on(visit, &to("/periodic/run"), &[], "Put a job now", "", &cron.name))
                (button_on(visit, &to("/periodic/remove"), &[], "Remove…", "danger", &cron.name))
            } }
        }
    }
}

fn ticks(entry: &CronEntry, now: DateTime<Utc>) -> Markup {
    let next = |at: DateTime<Utc>| entry.cron.next_after(at).ok().flatten();
    let first = entry.next_at.or_else(|| next(now));
    html! { ol { @for at in std::iter::successors(first, |at| next(*at)).take(TICKS) { li { (time(at)) } } } }
}
