//! Dead jobs: of all queues by number, and of one queue, the latest first.

use std::sync::Arc;

use axum::Extension;
use chrono::DateTime;
use maud::{Markup, html};
use pq_diesel::store::Archive;
use pq_diesel::{JobId, JobRecord, JobState};

use super::job_table::job_table;
use super::queue_table::count;
use crate::dashboard::App;
use crate::database::Unread;
use crate::form::button;
use crate::guard::Fields;
use crate::html::{text, with_query};
use crate::page::{Page, Section, Visit, panel};
use crate::sampler::Samples;

/// The number of jobs on a page.
const PAGE: usize = 50;

pub(crate) async fn page(
    Extension(app): Extension<App>,
    Extension(visit): Extension<Visit>,
    Extension(fields): Extension<Arc<Fields>>,
) -> Page {
    let samples = app.sampler.samples().await;
    let first = samples.newest().ok().and_then(|sample| {
        let queue = sample.queues.iter().find(|queue| queue.dead > 0)?;
        Some(queue.queue.as_str().to_owned())
    });
    let given = fields.get("queue");
    let queue = if given.is_empty() { first } else { Some(given.to_owned()) };
    let content = html! {
        (panel("queues", "Queues with dead jobs", queues(&visit, &samples)))
        @if let Some(queue) = &queue {
            @let jobs = latest(&app, queue, fields.get("before")).await;
            section aria-labelledby="latest" {
                h2 id="latest" { "Latest dead jobs of " (text(queue)) }
                @match jobs {
                    Ok(jobs) => (list(&app, &visit, queue, &jobs)),
                    Err(unread) => (crate::page::failure(&unread)),
                }
            }
        }
    };
    Page::new(Section::Dead, "Dead jobs", content)
}

fn queues(visit: &Visit, samples: &Samples) -> Result<Markup, Unread> {
    let sample = samples.newest()?;
    let dead: Vec<_> = sample.queues.iter().filter(|queue| queue.dead > 0).collect();
    if dead.is_empty() {
        return Ok(html! { p { "There are no dead jobs." } });
    }
    Ok(html! { ul { @for queue in dead {
        @let name = queue.queue.as_str();
        li { a href=(visit.url(&with_query("/dead", &[("queue", name)]))) { (text(name)) } ": " (count(queue, queue.dead)) }
    } } })
}

/// Reads the jobs that follow `before`, a position of the form `MICROSECONDS.ID`.
async fn latest(app: &App, queue: &str, before: &str) -> Result<Vec<JobRecord>, Unread> {
    let queue = app.reads.pq().queue::<()>(queue).map_err(|error| Unread(error.to_string()))?;
    let position = before.split_once('.').and_then(|(at, id)| {
        let at = DateTime::from_timestamp_micros(at.parse().ok()?)?;
        Some((at, JobId(id.parse().ok()?)))
    });
    let before = position.map(|(at, id)| JobRecord {
        id,
        queue: queue.name().clone(),
        state: JobState::Dead,
        payload: pq_diesel::Payload::from_stored(String::new()),
        enqueued_at: at,
        schedule_at: None,
        expected_at: None,
        priority: 0,
        attempt: 0,
        crashes: 0,
        serialization_key: None,
        unique_key: None,
        error: None,
        result: None,
        lease_until: None,
        ended_at: Some(at),
        annotations: pq_diesel::Annotations::default(),
        attempt_log: Vec::new(),
    });
    app.reads
        .read(move |pq, conn| {
            pq.store().archived(conn, queue.name(), JobState::Dead, before.as_ref(), PAGE + 1)
        })
        .await
}

fn list(app: &App, visit: &Visit, queue: &str, jobs: &[JobRecord]) -> Markup {
    let shown = &jobs[..jobs.len().min(PAGE)];
    let next = shown.last().filter(|_| jobs.len() > PAGE).and_then(|last| {
        let before = format!("{}.{}", last.ended_at?.timestamp_micros(), last.id);
        Some(with_query("/dead", &[("queue", queue), ("before", &before)]))
    });
    html! {
        (job_table(visit, &app.mask, shown, false))
        div class="buttons" {
            @if let Some(next) = next { a href=(visit.url(&next)) rel="next" { "Next page" } }
            @if visit.can_act && !shown.is_empty() {
                (button(visit, &with_query("/queue/retry-dead", &[("name", queue)]), &[], "Retry all dead jobs", ""))
            }
        }
    }
}
