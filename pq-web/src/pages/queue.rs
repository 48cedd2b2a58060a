//! One queue: its numbers, its actions and its first jobs.

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use maud::{Markup, html};
use pq_diesel::admin::{Histogram, PausedQueue, TaskCounters};
use pq_diesel::metrics::QueueGauges;
use pq_diesel::store::Admin;
use pq_diesel::{Filter, JobState, QueueName};

use super::job_table::{Listed, job_table};
use super::limits;
use super::pauses::since;
use super::queue_table::count;
use crate::dashboard::App;
use crate::form::{button, field};
use crate::guard::Fields;
use crate::html::{beginning, duration, number, with_query};
use crate::page::{Page, Section, Visit, panel, sampled};
use crate::sampler::Activity;

/// The number of jobs on the page.
const JOBS: usize = 10;

pub(crate) async fn page(
    Extension(app): Extension<App>,
    Extension(visit): Extension<Visit>,
    Extension(fields): Extension<Arc<Fields>>,
) -> Page {
    let name = fields.get("name").to_owned();
    let filter = Filter::queue(&name);
    let paused = app.reads.read(|pq, conn| pq.store().paused(conn));
    let first = app.reads.read(move |pq, conn| {
        let jobs = pq.store().list(conn, &filter, JOBS)?;
        Listed::read(pq, conn, jobs)
    });
    let queue = QueueName::new(&name).ok();
    let limited = limits::Read::of(&app, queue);
    let (samples, paused, first, limited) = tokio::join!(app.sampler.samples(), paused, first, limited);
    let limits = limited.map(|limited| limits::draw(&visit, &name, &limited));
    let pause = paused.map(|paused| pause(paused.iter().find(|pause| pause.queue.as_str() == name)));
    let all = with_query("/jobs", &[("queue", &name)]);
    let first = first.map(|listed| {
        html! {
            (job_table(&visit, &app.mask, &listed, false))
            p { a href=(visit.url(&all)) { "All jobs of this queue" } }
        }
    });
    let content = html! {
        (panel("pause", "Pause", pause))
        (sampled("numbers", "Jobs by state", &samples.counts, |counts| match counts.queue(&name) {
            Some(queue) => numbers(&visit, queue),
            None => html! { p { "This queue has no jobs, or is not among the first by name." } },
        }))
        (sampled("outcomes", "What became of jobs, by task", &samples.activity, |activity| outcomes(activity, &name)))
        (panel("limits", "Limits", limits))
        @if visit.can_act { (actions(&visit, &name)) }
        (panel("jobs", "First jobs", first))
    };
    Page::new(Section::Queues, format!("Queue {name}"), content)
}

fn pause(pause: Option<&PausedQueue>) -> Markup {
    html! { p {
        @match pause {
            Some(pause) => {
                span class="tag paused" { "paused" } " "
                (since(Some(pause.paused_at), pause.paused_by.as_deref()))
            },
            None => "The queue is not paused.",
        }
    } }
}

fn numbers(visit: &Visit, queue: &QueueGauges) -> Markup {
    let name = queue.queue.as_str();
    let states = [
        (JobState::Ready, queue.ready),
        (JobState::Blocked, queue.blocked),
        (JobState::Scheduled, queue.scheduled),
        (JobState::Running, queue.running),
        (JobState::Dead, queue.dead),
        (JobState::Cancelled, queue.cancelled),
        (JobState::Done, queue.done),
    ];
    html! {
        dl {
            @for (state, jobs) in states {
                dt { (state.as_str()) }
                dd { a href=(visit.url(&with_query("/jobs", &[("queue", name), ("state", state.as_str())]))) { (count(queue.is_estimated, jobs)) } }
            }
            @if let Some(age) = queue.oldest { dt { "oldest due job" } dd { (duration(age)) } }
        }
        @if queue.is_estimated { p class="quiet" { "≈ marks an estimate of the database's planner." } }
    }
}

/// Draws the counters of a queue since its table was created.
fn outcomes(activity: &Activity, name: &str) -> Markup {
    let rates = activity.rates(name);
    let tasks: Vec<_> = activity.counters.iter().filter(|one| one.queue.as_str() == name).collect();
    html! {
        p { (format!("{:.1}", rates.done)) " done and " (format!("{:.1}", rates.failed)) " failed attempts per second." }
        @if !tasks.is_empty() {
            div class="wide" tabindex="0" role="region" aria-label="Tasks" { table {
                thead { tr {
                    th scope="col" { "Task" }
                    @for name in ["Done", "Failed", "Retried", "Dead", "Cancelled", "Lost", "Mean wait", "Mean run"] {
                        th scope="col" class="number" { (name) }
                    }
                } }
                tbody { @for task in tasks { (task_row(task)) } }
            } }
            p class="quiet" { "Counted since the tables were created. Failed counts attempts." }
        }
    }
}

fn task_row(task: &TaskCounters) -> Markup {
    let counters = &task.counters;
    html! { tr {
        th scope="row" { @if task.task.is_empty() { "no task" } @else { (beginning(&task.task, 60)) } }
        @for number_of in [
            counters.done, counters.failed, counters.retried, counters.dead, counters.cancelled, counters.lost,
        ] { td class="number" { (number(number_of)) } }
        @for times in [&counters.wait, &counters.run] {
            td class="number" { @if let Some(mean) = mean(times) { (duration(mean)) } }
        }
    } }
}

fn mean(times: &Histogram) -> Option<Duration> {
    let nanos = times.sum().as_nanos().checked_div(u128::from(times.count()))?;
    u64::try_from(nanos).ok().map(Duration::from_nanos)
}

fn actions(visit: &Visit, name: &str) -> Markup {
    let to = |action: &str| with_query(action, &[("name", name)]);
    html! {
        section aria-labelledby="actions" {
            h2 id="actions" { "Actions" }
            div class="buttons" {
                (button(visit, &to("/queue/pause"), &[], "Pause", ""))
                (button(visit, &to("/queue/resume"), &[], "Resume", ""))
                (button(visit, &to("/queue/retry-dead"), &[], "Retry all dead jobs", ""))
                (button(visit, &to("/queue/clear"), &[], "Delete all waiting jobs…", "danger"))
                a class="button" href=(visit.url(&with_query("/put", &[("queue", name)]))) { "Put a job" }
            }
            form method="post" action=(visit.url(&to("/queue/move"))) class="filters" {
                (visit.token_field())
                (field("to", "Move all waiting jobs to the queue", "text", ""))
                button class="danger" { "Move…" }
            }
        }
    }
}
