//! One job: its attributes, payload, result and history.

use std::sync::Arc;

use axum::Extension;
use axum::extract::Path;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use maud::{Markup, html};
use pq_diesel::store::{Admin, Notes, Steps};
use pq_diesel::{
    AttemptEntry, Filter, JobId, JobProgress, JobRecord, JobState, Operation, Payload, SentSignal,
    StepRecord, StoredLine,
};
use serde_json::Value;

use super::job_links::{self, Links};
use super::job_table::{due, progress_bar, task_name};
use super::workflow::{self, is_workflow};
use crate::dashboard::App;
use crate::database::Unread;
use crate::form::{button, button_on, field, fingerprint};
use crate::guard::Fields;
use crate::html::{Layout, Mask, number, text, time, with_query};
use crate::page::{Page, Section, Visit, panel};

/// The largest part of a payload on the page, in bytes.
const SHOWN_BYTES: usize = 16 << 10;

/// The largest payload that is indented on a page of its own, and the largest part of one that is shown there, in
/// bytes.
const INDENTED_BYTES: usize = 256 << 10;
const WHOLE_BYTES: usize = 8 << 20;

/// The largest number of signals on the page.
const MAX_SIGNALS: usize = 100;

/// The largest part of the result of a step, or of the value of a signal, on the page, in bytes.
const STEP_BYTES: usize = 200;

pub(crate) async fn page(
    Extension(app): Extension<App>,
    Extension(visit): Extension<Visit>,
    Extension(fields): Extension<Arc<Fields>>,
    Path(id): Path<String>,
) -> Page {
    let same_id = match find(&app, &id).await {
        Ok(jobs) => jobs,
        Err(unread) => return Page::new(Section::Jobs, format!("Job {id}"), crate::page::failure(&unread)),
    };
    let Some(job) = same_id.first() else { return missing(&id) };
    let number = job.id;
    let reasons = app.reads.read(move |pq, conn| pq.explain_on(conn, number)).await;
    let reasons = reasons
        .map(|reasons| html! { ul { @for reason in &reasons { li { (text(&reason.to_string())) } } } });
    let noted = app.reads.read(move |pq, conn| {
        let progress = pq.store().progress(conn, &[number])?.pop();
        Ok((progress, pq.store().log(conn, number, None)?))
    });
    let (progress, log) = match noted.await {
        Ok((progress, lines)) => (progress, Ok(StoredLine::keep_newest(lines))),
        Err(unread) => (None, Err(unread)),
    };
    let links = app.reads.read(move |pq, conn| Links::read(pq, conn, number)).await;
    let is_workflow = is_workflow(job.queue.as_str());
    let graph = match is_workflow {
        true => app.reads.read(move |pq, conn| pq.as_ref().workflow_on(conn, number)).await,
        false => Ok(None),
    };
    let from = fields.get("from").parse().unwrap_or(0);
    let name = graph.as_ref().ok().and_then(Option::as_ref).map(|graph| format!(": {}", graph.name));
    // The tree shows the jobs that a workflow waits for.
    let links = links.map(|links| if let Ok(Some(graph)) = &graph { links.without(graph) } else { links });
    let of = job.clone();
    let steps = app.reads.read(move |pq, conn| pq.store().steps(conn, &of)).await;
    let steps = match steps {
        Ok(steps) if steps.is_empty() => None,
        steps => Some(steps.map(|steps| draw_steps(&visit, &app.mask, job, &steps))),
    };
    let of = job.clone();
    let signals = app.reads.read(move |pq, conn| pq.store().signals(conn, &of, MAX_SIGNALS + 1)).await;
    let signals = match signals {
        Ok(signals) if signals.is_empty() => None,
        signals => Some(signals.map(|signals| draw_signals(&app.mask, &signals))),
    };
    let content = html! {
        @if same_id.len() > 1 {
            p class="failure" { "An older job had this id, because the sequence of ids was restarted." }
        }
        @if visit.can_act && is_workflow { (workflow::actions(&visit, job.id, job.state)) }
        @else if visit.can_act { (actions(&visit, job)) }
        (workflow::draw(&visit, graph, from))
        (panel("reasons", "Why it is not running, or what runs it", reasons))
        (panel("job", "Attributes", Ok(attributes(&visit, &app.mask, job, progress.as_ref()))))
        (job_links::draw(&visit, links))
        @if let Some(error) = &job.error { (panel("error", "Error", Ok(html! { pre { (text(error)) } }))) }
        @if !job.attempt_log.is_empty() { (panel("attempts", "Attempts", Ok(attempts(job)))) }
        @if let Some(steps) = steps { (panel("steps", "Durable steps", steps)) }
        @if let Some(signals) = signals { (panel("signals", "Signals that are not delivered", signals)) }
        @match log {
            Ok(lines) if lines.is_empty() => {}
            Ok(lines) => (panel("log", "Log", Ok(log_table(&lines)))),
            Err(unread) => (panel("log", "Log", Err(unread))),
        }
        @if !is_workflow {
            (panel("payload", "Payload", Ok(payload(&visit, &app.mask, job.id, "payload", &job.payload))))
        }
        @if let Some(result) = &job.result {
            (panel("result", "Result", Ok(payload(&visit, &app.mask, job.id, "result", result))))
        }
        (panel("timeline", "Timeline", Ok(timeline(job))))
    };
    match is_workflow {
        true => Page::new(Section::Workflows, format!("Workflow {id}{}", name.unwrap_or_default()), content),
        false => Page::new(Section::Jobs, format!("Job {id}"), content),
    }
}

/// Sends a whole payload or result as text, without the values of masked fields, or the form that edits the payload. A
/// large payload is not indented, because deep nesting would make it many times as large.
pub(crate) async fn part(
    Extension(app): Extension<App>,
    Extension(visit): Extension<Visit>,
    Path((id, part)): Path<(String, String)>,
) -> Response {
    let found = match find(&app, &id).await {
        Ok(jobs) => jobs.into_iter().next(),
        Err(Unread(reason)) => {
            return Page::error(StatusCode::SERVICE_UNAVAILABLE, "Not available", &reason).into_response();
        }
    };
    if found.as_ref().is_some_and(|job| is_workflow(job.queue.as_str())) {
        let reason = "The payload of a workflow is its graph, which its page shows.";
        return Page::error(StatusCode::NOT_FOUND, "No page", reason).into_response();
    }
    if let Some(job) = found.as_ref().filter(|_| part == "edit") {
        return edit(&app, &visit, job).into_response();
    }
    let payload = found.and_then(|job| match part.as_str() {
        "payload" => Some(job.payload),
        "result" => job.result,
        _ => None,
    });
    let Some(payload) = payload else { return missing(&id).into_response() };
    let formatted = tokio::task::spawn_blocking(move || {
        let stored = payload.as_str();
        let layout = if stored.len() > INDENTED_BYTES { Layout::Line } else { Layout::Indented };
        let (mut text, complete) = app.mask.format(stored, layout, WHOLE_BYTES);
        if !complete {
            text.push('…');
        }
        text
    });
    let Ok(text) = formatted.await else { return StatusCode::INTERNAL_SERVER_ERROR.into_response() };
    ([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], text).into_response()
}

async fn find(app: &App, id: &str) -> Result<Vec<JobRecord>, Unread> {
    let Ok(id) = id.parse() else { return Ok(Vec::new()) };
    app.reads.read(move |pq, conn| pq.store().list(conn, &Filter::id(JobId(id)), 2)).await
}

fn missing(id: &str) -> Page {
    let reason = format!("There is no job {id}. It may have completed without history, or was deleted.");
    Page::error(StatusCode::NOT_FOUND, "No such job", &reason)
}

fn attributes(visit: &Visit, mask: &Mask, job: &JobRecord, progress: Option<&JobProgress>) -> Markup {
    let queue = job.queue.as_str();
    let (tags, metadata) = (job.annotations.tags(), job.annotations.metadata());
    html! { dl {
        dt { "state" } dd { span class={ "tag " (job.state.as_str()) } { (job.state.as_str()) } }
        dt { "queue" } dd { a href=(visit.url(&with_query("/queue", &[("name", queue)]))) { (text(queue)) } }
        @if let Some(task) = task_name(job).filter(|_| !is_workflow(queue)) { dt { "task" } dd { (task) } }
        dt { "attempt" } dd { (job.attempt) @if job.crashes > 0 { " (" (job.crashes) " crashed)" } }
        @if let Some(noted) = progress {
            dt { "progress" } dd { (progress_bar(&noted.progress)) ", at " (time(noted.at)) }
        }
        dt { "priority" } dd { (job.priority) }
        @if let Some(at) = job.expected_at { dt { "expected" } dd { (time(at)) } }
        @if let Some(key) = &job.serialization_key {
            dt { "serialization key" }
            dd { a href=(visit.url(&with_query("/jobs", &[("queue", queue), ("key", key.as_str())]))) { (text(key.as_str())) } }
        }
        @if job.annotations.is_strict() { dt { "strict order" } dd { "it keeps its serialization key until it ends" } }
        @if let Some(key) = &job.unique_key { dt { "unique key" } dd { (text(key.as_str())) } }
        @if let Some(group) = job.annotations.group() { dt { "group" } dd { (text(&group)) } }
        @if let Some(cost) = job.annotations.cost() { dt { "cost" } dd { (cost) } }
        @if let Some(place) = job.annotations.workflow() {
            dt { "workflow" } dd { (workflow::link(visit, &place)) }
        }
        @if let Some(follow_up) = job.annotations.batch() {
            dt { "batch of" } dd { a href=(visit.url(&format!("/job/{follow_up}"))) { "job " (follow_up) } }
        }
        @if !tags.is_empty() {
            dt { "tags" }
            dd { ul { @for tag in &tags { li { a href=(visit.url(&with_query("/jobs", &[("tag", tag.as_str())]))) { (text(tag)) } } } } }
        }
        @if !metadata.is_empty() {
            dt { "metadata" }
            dd { code { (text(&mask.format(&Value::Object(metadata).to_string(), Layout::Line, SHOWN_BYTES).0)) } }
        }
    } }
}

fn payload(visit: &Visit, mask: &Mask, id: JobId, part: &str, payload: &Payload) -> Markup {
    let (shown, complete) = mask.format(payload.as_str(), Layout::Indented, SHOWN_BYTES);
    html! {
        pre tabindex="0" { (text(&shown)) @if !complete { "…" } }
        @if !complete {
            p { a href=(visit.url(&format!("/job/{id}/{part}"))) { "Show all " (number(payload.as_str().len() as u64)) " bytes" } }
        }
    }
}

/// Draws the attempts that failed or were lost, the newest first.
fn attempts(job: &JobRecord) -> Markup {
    html! {
        div class="wide" tabindex="0" role="region" aria-label="Attempts that failed or were lost" { table {
            thead { tr { @for name in ["Attempt", "Ended", "As", "Error"] { th scope="col" { (name) } } } }
            tbody {
                @for AttemptEntry { attempt, at, end, error } in job.attempt_log.iter().rev() {
                    tr { td { (attempt) } td { (time(*at)) } td { (end) } td { (text(error)) } }
                }
            }
        } }
    }
}

/// Draws the lines that handlers wrote, the oldest first.
fn log_table(lines: &[StoredLine]) -> Markup {
    html! {
        div class="wide" tabindex="0" role="region" aria-label="Log of the job" { table {
            thead { tr { @for name in ["Time", "Level", "Attempt", "Text"] { th scope="col" { (name) } } } }
            tbody {
                @for StoredLine { attempt, line, .. } in lines {
                    tr { td { (time(line.at)) } td { (line.level) } td class="number" { (attempt) } td { (text(&line.text)) } }
                }
            }
        } }
    }
}

/// Draws the durable steps, in their order. Those of a job that can be retried have a button to go on from there.
fn draw_steps(visit: &Visit, mask: &Mask, job: &JobRecord, steps: &[StepRecord]) -> Markup {
    let can_retry =
        visit.can_act && !matches!(job.state, JobState::Running | JobState::Dequeued | JobState::Done);
    let from = |step: &str| with_query(&format!("/job/{}/retry-from", job.id), &[("step", step)]);
    html! {
        div class="wide" tabindex="0" role="region" aria-label="Durable steps" { table {
            thead { tr { @for name in ["Step", "Kept", "As", "Until", "Result"] { th scope="col" { (name) } }
                @if can_retry { th scope="col" { "Retry" } }
            } }
            tbody {
                @for step in steps {
                    tr {
                        td { (text(&step.label())) }
                        td { (time(step.at)) }
                        td { (step.kind) }
                        td { @if let Some(until) = step.until { (time(until)) } }
                        td { @if let Some(result) = &step.result {
                            code { (text(&mask.format(result.as_str(), Layout::Line, STEP_BYTES).0)) }
                        } }
                        @if can_retry {
                            @let label = step.label();
                            td { (button_on(visit, &from(&label), &[], "Retry from here…", "danger", &label)) }
                        }
                    }
                }
            }
        } }
    }
}

/// Draws the signals for which the job has not waited yet, in the order in which they were sent.
fn draw_signals(mask: &Mask, signals: &[SentSignal]) -> Markup {
    html! {
        div class="wide" tabindex="0" role="region" aria-label="Signals that are not delivered" { table {
            thead { tr { @for name in ["Signal", "Value"] { th scope="col" { (name) } } } }
            tbody { @for SentSignal { name, value } in signals.iter().take(MAX_SIGNALS) { tr {
                td { (text(name)) }
                td { code { (text(&mask.format(value.as_str(), Layout::Line, STEP_BYTES).0)) } }
            } } }
        } }
        @if signals.len() > MAX_SIGNALS { p { "These are the first " (MAX_SIGNALS) "." } }
    }
}

fn timeline(job: &JobRecord) -> Markup {
    html! { ol {
        li { "put at " (time(job.enqueued_at)) }
        @if job.schedule_at.is_some() { li { "due " (due(job)) } }
        @if job.attempt > 0 {
            li {
                (job.attempt) @if job.attempt == 1 { " attempt" } @else { " attempts" } " begun"
                @if job.crashes > 0 { ", in " (job.crashes) " of them the worker died or lost its lease" }
            }
        }
        @if let Some(at) = job.lease_until { li { "runs under a lease until " (time(at)) ", which its worker extends" } }
        @if let Some(at) = job.ended_at { li { (job.state.as_str()) " at " (time(at)) } }
    } }
}

fn actions(visit: &Visit, job: &JobRecord) -> Markup {
    let to = |action: &str| format!("/job/{}/{action}", job.id);
    let allows = |operation: &Operation| operation.states().contains(&job.state);
    let is_waiting = matches!(job.state, JobState::Ready | JobState::Blocked | JobState::Scheduled);
    html! {
        section aria-label="Actions" {
            div class="buttons" {
                @if allows(&Operation::Retry) { (button(visit, &to("retry"), &[], "Retry", "")) }
                @if allows(&Operation::RunNow) { (button(visit, &to("run-now"), &[], "Run now", "")) }
                @if is_waiting { a class="button" href=(visit.url(&to("edit"))) { "Edit the payload" } }
                @if allows(&Operation::Cancel) { (button(visit, &to("cancel"), &[], "Cancel…", "danger")) }
                @if allows(&Operation::Delete) { (button(visit, &to("delete"), &[], "Delete…", "danger")) }
            }
            @if is_waiting {
                (setting(visit, &to("move"), field("to", "Move to the queue", "text", ""), "Move"))
                (setting(visit, &to("set-priority"), field("priority", "Priority", "number", &job.priority.to_string()), "Set priority"))
                (setting(visit, &to("reschedule"), field("schedule", "Due at a time, or after a duration such as 5m", "text", ""), "Reschedule"))
            }
            @if is_waiting || job.state == JobState::Running {
                @let signal = html! {
                    (field("signal", "Send a signal of the name", "text", ""))
                    (field("value", "Its value as JSON; null without one", "text", ""))
                };
                (setting(visit, &to("signal"), signal, "Send"))
            }
        }
    }
}

/// Draws a form with one button.
fn setting(visit: &Visit, path: &str, input: Markup, words: &str) -> Markup {
    html! {
        form method="post" action=(visit.url(path)) class="filters" {
            (visit.token_field())
            (input)
            button { (words) }
        }
    }
}

/// Draws the form that edits a payload. A payload with masked fields is not shown, so it cannot be edited here.
fn edit(app: &App, visit: &Visit, job: &JobRecord) -> Page {
    if !visit.can_act {
        return Page::error(
            StatusCode::FORBIDDEN,
            "Refused",
            "Only operators can edit payloads, and only if actions are allowed.",
        );
    }
    if app.mask.hides_part_of(job.payload.as_str()) {
        let reason = "This payload has fields that the dashboard does not show, so it cannot be edited here.";
        return Page::error(StatusCode::CONFLICT, "Not possible", reason);
    }
    let content = html! {
        form method="post" action=(visit.url(&format!("/job/{}/edit", job.id))) class="stacked" {
            (visit.token_field())
            input type="hidden" name="shown" value=(fingerprint(job.payload.as_str()));
            label for="payload" { "Payload as JSON" }
            textarea id="payload" name="payload" spellcheck="false" { "\n" (job.payload.as_str()) }
            div class="buttons" {
                button { "Save" }
                a class="button" href=(visit.url(&format!("/job/{}", job.id))) { "Back" }
            }
        }
    };
    Page::new(Section::Jobs, format!("Edit job {}", job.id), content)
}
