//! The table of jobs.

use diesel::pg::PgConnection;
use maud::{Markup, html};
use pq_diesel::store::Notes;
use pq_diesel::{Error, JobId, JobProgress, JobRecord, Pq, Progress};
use serde::Deserialize;

use super::workflow::is_workflow;
use crate::html::{Layout, Mask, beginning, text, time, with_query};
use crate::page::Visit;

/// The longest preview of a payload, in characters.
const PREVIEW: usize = 120;

/// Jobs, and the progress of those that have any.
pub(crate) struct Listed {
    pub(crate) jobs: Vec<JobRecord>,
    pub(crate) progress: Vec<JobProgress>,
}

impl Listed {
    /// Reads the progress of jobs.
    pub(crate) fn read(pq: &Pq, conn: &mut PgConnection, jobs: Vec<JobRecord>) -> Result<Self, Error> {
        let ids: Vec<JobId> = jobs.iter().map(|job| job.id).collect();
        Ok(Self { progress: pq.store().progress(conn, &ids)?, jobs })
    }

    fn progress_of(&self, id: JobId) -> Option<&Progress> {
        self.progress.iter().find(|noted| noted.id == id).map(|noted| &noted.progress)
    }
}

/// Draws a progress as a bar and as text.
pub(crate) fn progress_bar(progress: &Progress) -> Markup {
    let shown = progress.to_string();
    html! {
        @if progress.total > 0 {
            progress max=(progress.total) value=(progress.done.min(progress.total)) aria-hidden="true" {}
            " "
        }
        (beginning(&shown, PREVIEW))
    }
}

/// Draws jobs, each with a checkbox if they can be selected in the form around the table. Few have a progress, which
/// has a column only then.
pub(crate) fn job_table(visit: &Visit, mask: &Mask, listed: &Listed, select: bool) -> Markup {
    let jobs = &listed.jobs;
    if jobs.is_empty() {
        return html! { p { "There are no jobs." } };
    }
    html! {
        div class="wide" tabindex="0" role="region" aria-label="Jobs" { table {
            thead { tr {
                @if select { th scope="col" { input type="checkbox" data-select-all hidden aria-label="Select all jobs of this page"; } }
                @for name in ["Id", "Queue", "State", "Task", "Attempt", "Put", "Due", "Payload", "Error"] {
                    th scope="col" { (name) }
                }
                @if !listed.progress.is_empty() { th scope="col" { "Progress" } }
            } }
            tbody { @for job in jobs { (row(visit, mask, job, listed, select)) } }
        } }
    }
}

fn row(visit: &Visit, mask: &Mask, job: &JobRecord, listed: &Listed, select: bool) -> Markup {
    let queue = job.queue.as_str();
    let payload = match is_workflow(queue) {
        true => String::new(),
        false => mask.format(job.payload.as_str(), Layout::Line, PREVIEW * 4).0,
    };
    html! { tr {
        @if select {
            td class="select" { input type="checkbox" name="id" value=(job.id) aria-label={ "Select job " (job.id) }; }
        }
        th scope="row" { a href=(visit.url(&format!("/job/{}", job.id))) { (job.id) } }
        td { a href=(visit.url(&with_query("/queue", &[("name", queue)]))) { (beginning(queue, 60)) } }
        td { span class={ "tag " (job.state.as_str()) } { (job.state.as_str()) } }
        td { @if let Some(task) = task(job) { (beginning(&task, 60)) } }
        td class="number" { (job.attempt) }
        td { (time(job.enqueued_at)) }
        td { (due(job)) }
        td class="long" { (beginning(&payload, PREVIEW)) }
        td class=[job.error.is_some().then_some("long")] { @if let Some(error) = &job.error { (beginning(error, PREVIEW)) } }
        @if !listed.progress.is_empty() {
            td { @if let Some(progress) = listed.progress_of(job.id) { (progress_bar(progress)) } }
        }
    } }
}

/// Draws when a job is due, if it has a time. That of a job that waits for others is of no use.
pub(crate) fn due(job: &JobRecord) -> Markup {
    html! { @if job.is_held() { "after other jobs" } @else if let Some(at) = job.schedule_at { (time(at)) } }
}

/// Returns the task of a job, if its payload is a call, or the name of a workflow.
pub(crate) fn task(job: &JobRecord) -> Option<String> {
    #[derive(Deserialize)]
    struct Call {
        function: Option<String>,
    }
    #[derive(Deserialize)]
    struct Plan {
        workflow: Option<String>,
    }
    let payload = job.payload.as_str();
    if is_workflow(job.queue.as_str()) {
        return serde_json::from_str::<Plan>(payload).ok()?.workflow;
    }
    serde_json::from_str::<Call>(payload).ok()?.function
}

/// Draws the name of a task.
pub(crate) fn task_name(job: &JobRecord) -> Option<Markup> {
    task(job).map(|task| text(&task))
}
