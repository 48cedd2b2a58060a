//! Workers, with the processes and hosts that they run on.

use axum::Extension;
use maud::{Markup, html};
use pq_diesel::admin::WorkerInfo;

use crate::dashboard::App;
use crate::form::button_on;
use crate::html::{beginning, duration, number, text, time};
use crate::page::{self, Page, Section, Visit, sampled};
use crate::sampler::{SILENT_AFTER, Samples};

/// The number of workers that are listed.
const WORKERS: usize = 200;

/// The number of running jobs that are listed for a worker.
const JOBS: usize = 20;

pub(crate) async fn page(Extension(app): Extension<App>, Extension(visit): Extension<Visit>) -> Page {
    let content = live(&visit, &app.sampler.samples().await);
    Page::new(Section::Workers, "Workers", page::live(&visit, "/live/workers", &content))
}

/// Draws what changes with each sample.
pub(crate) fn live(visit: &Visit, samples: &Samples) -> Markup {
    sampled("workers", "Workers of all hosts", &samples.activity, |activity| {
        match activity.workers.as_slice() {
            [] => {
                html! { p { "No worker is registered. A worker that was lost is listed for up to a minute." } }
            }
            workers => html! {
                @for worker in workers.iter().take(WORKERS) { (one(visit, worker)) }
                @if workers.len() > WORKERS { p { "and " (workers.len() - WORKERS) " more workers" } }
            },
        }
    })
}

fn one(visit: &Visit, worker: &WorkerInfo) -> Markup {
    let report = &worker.status.report;
    let title = format!("worker-{}", worker.id);
    html! {
        article class="card" aria-labelledby=(title) {
            h3 id=(title) { "Worker " (worker.id) " on " (text(&worker.host)) ", process " (worker.pid) }
            dl {
                dt { "state" }
                dd {
                    @if worker.heartbeat_age >= SILENT_AFTER { span class="tag fail" { "silent" } }
                    @else if let Some(mode) = worker.stop.or(worker.status.stopping) { span class="tag warn" { "stopping: " (mode.as_str()) } }
                    @else if worker.status.refused.is_some() { span class="tag fail" { "polls refused" } }
                    @else { span class="tag ok" { "live" } }
                    " last heartbeat " (duration(worker.heartbeat_age)) " ago"
                }
                @if let Some(error) = &worker.status.refused { dt { "last error of its polls" } dd { (text(error)) } }
                dt { "started" } dd { (time(worker.started_at)) }
                @if worker.supervisor != worker.pid { dt { "supervisor" } dd { "process " (worker.supervisor) } }
                dt { "queues" } dd { @for (index, queue) in worker.queues.iter().enumerate() { @if index > 0 { ", " } (beginning(queue, 60)) } }
                dt { "threads" } dd { (worker.threads) }
                dt { "taken and not begun" } dd { (number(worker.status.buffered)) }
                dt { "outcomes" }
                dd {
                    (number(report.done)) " done, " (number(report.failed)) " failed, " (number(report.dead)) " dead, "
                    (number(report.cancelled)) " cancelled, " (number(report.lost)) " lost; "
                    (format!("{:.1}", worker.status.per_second)) " per second"
                }
                dt { "running" }
                dd { (running(visit, worker)) }
            }
            @if visit.can_act {
                @let (path, name) = (format!("/worker/{}/stop", worker.id), format!("worker {}", worker.id));
                div class="buttons" {
                    (button_on(visit, &path, &[("mode", "drain")], "Stop when its queues are empty", "", &name))
                    (button_on(visit, &path, &[("mode", "finish")], "Stop after the running jobs", "", &name))
                    (button_on(visit, &path, &[("mode", "abort")], "Abort…", "danger", &name))
                }
            }
        }
    }
}

fn running(visit: &Visit, worker: &WorkerInfo) -> Markup {
    let running = &worker.status.running;
    html! {
        @if running.is_empty() { "no job" }
        @else { ul {
            @for job in running.iter().take(JOBS) { li {
                a href=(visit.url(&format!("/job/{}", job.id))) { "job " (job.id) }
                " of " (beginning(&job.queue, 60))
                @if let Some(task) = &job.task { ", task " (beginning(task, 60)) }
                ", attempt " (job.attempt) ", for " (duration(job.age))
            } }
            @if running.len() > JOBS { li { "and " (running.len() - JOBS) " more" } }
        } }
    }
}
