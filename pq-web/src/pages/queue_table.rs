//! The table of queues.

use maud::{Markup, html};
use pq_diesel::metrics::QueueGauges;
use pq_diesel::{JobState, LimitedQueue};

use super::limits;
use crate::html::{beginning, duration, number, with_query};
use crate::page::Visit;
use crate::sampler::{Counts, MAX_QUEUES, Rates, Samples};

/// Counts beyond this are estimates.
const EXACT: u64 = 10_000;

/// Draws the queues with their numbers, each with a link to its jobs.
pub(super) fn queue_table(visit: &Visit, counts: &Counts, samples: &Samples) -> Markup {
    let queues = &counts.queues;
    let activity = samples.activity.sample().ok();
    let rates = |queue: &QueueGauges| activity.map(|activity| activity.rates(&queue.queue));
    if queues.is_empty() {
        return html! { p { "There are no queues. A queue exists as soon as a job is put." } };
    }
    html! {
        div class="wide" tabindex="0" role="region" aria-label="Queues" { table {
            thead { tr {
                th scope="col" { "Queue" }
                @for name in ["Ready", "Running", "Scheduled", "Blocked", "Dead", "Oldest", "Done/s", "Failed/s"] {
                    th scope="col" class="number" { (name) }
                }
                th scope="col" { "State" }
            } }
            tbody { @for queue in queues { (row(visit, queue, counts.limited(&queue.queue), rates(queue))) } }
        } }
        @if queues.iter().any(|queue| queue.is_estimated) { p class="quiet" { "≈ marks an estimate of the database's planner." } }
        @if queues.len() == MAX_QUEUES { p { "These are the first " (MAX_QUEUES) " queues by name." } }
    }
}

/// Returns a count as a text, marked if it is an estimate.
pub(super) fn count(is_estimated: bool, count: u64) -> String {
    let mark = if is_estimated && count > EXACT { "≈ " } else { "" };
    format!("{mark}{}", number(count))
}

fn row(visit: &Visit, queue: &QueueGauges, limited: Option<&LimitedQueue>, rates: Option<Rates>) -> Markup {
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
                @if jobs_in > 0 { a href=(visit.url(&jobs(state))) { (count(queue.is_estimated, jobs_in)) } } @else { "0" }
            }
        }
        td class="number" { @if let Some(age) = queue.oldest { (duration(age)) } }
        td class="number" { @if let Some(rates) = rates { (format!("{:.1}", rates.done)) } }
        td class="number" { @if let Some(rates) = rates { (format!("{:.1}", rates.failed)) } }
        td { @if queue.is_paused { span class="tag paused" { "paused" } } (limits::tag(limited)) }
    } }
}
