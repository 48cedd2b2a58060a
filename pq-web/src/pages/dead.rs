//! Dead jobs: of all queues by number, and of one queue, the latest first.

use std::sync::Arc;

use axum::Extension;
use chrono::DateTime;
use maud::{Markup, html};
use pq_diesel::store::Archive;
use pq_diesel::{JobId, JobRecord, JobState};

use super::job_table::{Listed, job_table};
use super::queue_table::count;
use crate::dashboard::App;
use crate::database::Unread;
use crate::form::button;
use crate::guard::Fields;
use crate::html::{text, with_query};
use crate::page::{Page, Section, Visit, sampled};
use crate::sampler::Counts;

/// The number of jobs on a page.
const PAGE: usize = 50;

pub(crate) async fn page(
    Extension(app): Extension<App>,
    Extension(visit): Extension<Visit>,
    Extension(fields): Extension<Arc<Fields>>,
) -> Page {
    let given = Some(fields.get("queue")).filter(|queue| !queue.is_empty());
    let before = fields.get("before");
    let asked = async { Some((given?, latest(&app, given?, before).await)) };
    let (samples, asked) = tokio::join!(app.sampler.samples(), asked);
    let first = samples.counts.sample().ok().and_then(|counts| {
        let queue = counts.queues.iter().find(|queue| queue.dead > 0)?;
        Some(queue.queue.as_str())
    });
    let shown = match (asked, first) {
        (None, Some(first)) => Some((first, latest(&app, first, before).await)),
        (asked, _) => asked,
    };
    let content = html! {
        (sampled("queues", "Queues with dead jobs", &samples.counts, |counts| queues(&visit, counts)))
        @if let Some((queue, listed)) = &shown {
            section aria-labelledby="latest" {
                h2 id="latest" { "Latest dead jobs of " (text(queue)) }
                @match listed {
                    Ok(listed) => (list(&app, &visit, queue, listed)),
                    Err(unread) => (crate::page::failure(unread)),
                }
            }
        }
    };
    Page::new(Section::Dead, "Dead jobs", content)
}

fn queues(visit: &Visit, counts: &Counts) -> Markup {
    let dead: Vec<_> = counts.queues.iter().filter(|queue| queue.dead > 0).collect();
    if dead.is_empty() {
        return html! { p { "There are no dead jobs." } };
    }
    html! { ul { @for queue in dead {
        @let name = queue.queue.as_str();
        li { a href=(visit.url(&with_query("/dead", &[("queue", name)]))) { (text(name)) } ": " (count(queue.is_estimated, queue.dead)) }
    } } }
}

/// Reads the jobs that follow `before`, a position of the form `MICROSECONDS.ID`.
async fn latest(app: &App, queue: &str, before: &str) -> Result<Listed, Unread> {
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
            let jobs = pq.store().archived(conn, queue.name(), JobState::Dead, before.as_ref(), PAGE + 1)?;
            Listed::read(pq, conn, jobs)
        })
        .await
}

fn list(app: &App, visit: &Visit, queue: &str, listed: &Listed) -> Markup {
    let Listed { jobs, progress } = listed;
    let shown = &jobs[..jobs.len().min(PAGE)];
    let next = shown.last().filter(|_| jobs.len() > PAGE).and_then(|last| {
        let before = format!("{}.{}", last.ended_at?.timestamp_micros(), last.id);
        Some(with_query("/dead", &[("queue", queue), ("before", &before)]))
    });
    html! {
        (job_table(visit, &app.mask, &Listed { jobs: shown.to_vec(), progress: progress.clone() }, false))
        div class="buttons" {
            @if let Some(next) = next { a href=(visit.url(&next)) rel="next" { "Next page" } }
            @if visit.can_act && !shown.is_empty() {
                (button(visit, &with_query("/queue/retry-dead", &[("name", queue)]), &[], "Retry all dead jobs", ""))
            }
        }
    }
}
