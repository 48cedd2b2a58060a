//! The table of queues.

use maud::{Markup, html};
use pq_diesel::JobState;
use pq_diesel::admin::QueueCounts;

use crate::html::{beginning, duration, number, time, with_query};
use crate::page::Visit;

/// Draws the queues with their numbers, each with a link to its jobs.
pub(super) fn queue_table(visit: &Visit, queues: &[QueueCounts]) -> Markup {
    if queues.is_empty() {
        return html! { p { "There are no queues. A queue exists as soon as a job is put." } };
    }
    html! {
        div class="wide" tabindex="0" role="region" aria-label="Queues" { table {
            thead { tr {
                th scope="col" { "Queue" }
                @for name in ["Ready", "Running", "Scheduled", "Blocked", "Dead", "Oldest", "Per second"] {
                    th scope="col" class="number" { (name) }
                }
                th scope="col" { "State" }
            } }
            tbody { @for queue in queues { (row(visit, queue)) } }
        } }
    }
}

fn row(visit: &Visit, queue: &QueueCounts) -> Markup {
    let name = queue.queue.as_str();
    let jobs = |state: JobState| with_query("/jobs", &[("queue", name), ("state", state.as_str())]);
    html! { tr {
        th scope="row" { a href=(visit.url(&with_query("/queue", &[("name", name)]))) { (beginning(name, 80)) } }
        @for (state, count) in [
            (JobState::Ready, queue.ready),
            (JobState::Running, queue.running),
            (JobState::Scheduled, queue.scheduled),
            (JobState::Blocked, queue.blocked),
            (JobState::Dead, queue.dead),
        ] {
            td class="number" {
                @if count > 0 { a href=(visit.url(&jobs(state))) { (number(count)) } } @else { "0" }
            }
        }
        td class="number" { @if let Some(age) = queue.oldest { (duration(age)) } }
        td class="number" { (format!("{:.1}", queue.per_second)) }
        td class=[queue.error.is_some().then_some("long")] {
            @if let Some(at) = queue.paused_at { span class="tag paused" { "paused" } " since " (time(at)) }
            @else if let Some(error) = &queue.error { (beginning(error, 80)) }
        }
    } }
}
