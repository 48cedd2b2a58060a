//! The table of queues.

use maud::{Markup, html};
use pq_diesel::JobState;
use pq_diesel::metrics::QueueGauges;

use crate::html::{beginning, duration, number, with_query};
use crate::page::Visit;
use crate::sampler::{MAX_QUEUES, Sample};

/// Counts beyond this are estimates.
const EXACT: u64 = 10_000;

/// Draws the queues with their numbers, each with a link to its jobs.
pub(super) fn queue_table(visit: &Visit, sample: &Sample) -> Markup {
    let queues = &sample.queues;
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
            tbody { @for queue in queues { (row(visit, sample, queue)) } }
        } }
        @if queues.iter().any(|queue| queue.is_estimated) { p class="quiet" { "≈ marks an estimate of the database's planner." } }
        @if queues.len() == MAX_QUEUES { p { "These are the first " (MAX_QUEUES) " queues by name." } }
    }
}

/// Draws a count of a queue, marked if it is an estimate.
pub(super) fn count(queue: &QueueGauges, count: u64) -> Markup {
    html! { @if queue.is_estimated && count > EXACT { "≈ " } (number(count)) }
}

fn row(visit: &Visit, sample: &Sample, queue: &QueueGauges) -> Markup {
    let name = queue.queue.as_str();
    let jobs = |state: JobState| with_query("/jobs", &[("queue", name), ("state", state.as_str())]);
    html! { tr {
        th scope="row" { a href=(visit.url(&with_query("/queue", &[("name", name)]))) { (beginning(name, 80)) } }
        @for (state, jobs_in) in [
            (JobState::Ready, queue.ready),
            (JobState::Running, queue.running),
            (JobState::Scheduled, queue.scheduled),
            (JobState::Blocked, queue.blocked),
            (JobState::Dead, queue.dead),
        ] {
            td class="number" {
                @if jobs_in > 0 { a href=(visit.url(&jobs(state))) { (count(queue, jobs_in)) } } @else { "0" }
            }
        }
        td class="number" { @if let Some(age) = queue.oldest { (duration(age)) } }
        td class="number" { (format!("{:.1}", sample.per_second(name))) }
        td { @if queue.is_paused { span class="tag paused" { "paused" } } }
    } }
}
