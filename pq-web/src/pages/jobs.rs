//! Jobs by filters, page by page.

use std::sync::Arc;

use axum::Extension;
use maud::{Markup, html};
use pq_diesel::JobState;
use pq_diesel::store::{Admin, Connect};

use super::job_table::{Listed, job_table};
use super::workflow;
use crate::conditions::Conditions;
use crate::dashboard::App;
use crate::form::field;
use crate::guard::Fields;
use crate::page::{Page, Section, Visit, panel};

/// The number of jobs on a page.
const PAGE: usize = 50;

pub(crate) async fn page(
    Extension(app): Extension<App>,
    Extension(visit): Extension<Visit>,
    Extension(fields): Extension<Arc<Fields>>,
) -> Page {
    let conditions = Conditions::read(&fields);
    let list = match conditions.filter() {
        Ok(filter) => {
            let found = app
                .reads
                .read(move |pq, conn| {
                    let filter = filter.read(|| pq.store().now(conn))?;
                    let jobs = pq.store().list(conn, &filter, PAGE + 1)?;
                    Listed::read(pq, conn, jobs)
                })
                .await;
            found.map(|mut listed| {
                let more = listed.jobs.len() > PAGE;
                listed.jobs.truncate(PAGE);
                let next = listed.jobs.last().filter(|_| more).map(|job| conditions.path(Some(job.id)));
                html! {
                    (selection(&visit, &conditions, job_table(&visit, &app.mask, &listed, visit.can_act)))
                    (pages(&visit, &conditions, next.as_deref()))
                }
            })
        }
        Err(wrong) => Ok(html! { p role="alert" class="failure" { (crate::html::text(&wrong)) } }),
    };
    let content = html! {
        (filters(&visit, &conditions))
        (panel("jobs", "Jobs", list))
        @if visit.can_act { p { a class="button" href=(visit.url("/put")) { "Put a job" } } }
    };
    let (section, title) = match workflow::is_workflow(conditions.queue) {
        true => (Section::Workflows, "Workflows"),
        false => (Section::Jobs, "Jobs"),
    };
    Page::new(section, title, content)
}

fn filters(visit: &Visit, conditions: &Conditions<'_>) -> Markup {
    html! {
        form method="get" action=(visit.url("/jobs")) class="filters" role="search" {
            (field("queue", "Queue", "text", conditions.queue))
            label { "State"
                select name="state" {
                    option value="" { "any" }
                    @for state in JobState::ALL {
                        option value=(state.as_str()) selected[conditions.states.contains(&state.as_str())] { (state.as_str()) }
                    }
                }
            }
            (field("task", "Task", "text", conditions.task))
            (field("error", "Text in the error", "text", conditions.error))
            (field("older", "Older than, such as 1h", "text", conditions.older))
            (field("key", "Serialization key", "text", conditions.key))
            (field("group", "Group", "text", conditions.group))
            (field("tag", "Tag", "text", conditions.tags.first().copied().unwrap_or_default()))
            (field("job", "Id", "text", conditions.job))
            (field("workflow", "Workflow", "text", conditions.workflow))
            button { "Show" }
            a href=(visit.url("/jobs")) { "Show all" }
        }
    }
}

/// Draws the form around a table of jobs, with the actions on those that are selected, or on all of the filter.
fn selection(visit: &Visit, conditions: &Conditions<'_>, table: Markup) -> Markup {
    if !visit.can_act {
        return table;
    }
    html! {
        form method="post" action=(visit.url(&conditions.action_path())) {
            (visit.token_field())
            // The Enter key in a field presses the first button of a form.
            button name="action" value="none" hidden { "Choose a button" }
            (table)
            fieldset class="buttons" {
                legend { "Change" }
                label { input type="radio" name="scope" value="selected" checked; " the selected jobs" }
                label { input type="radio" name="scope" value="filter"; " all jobs of this filter, on every page" }
                div class="buttons" {
                    button name="action" value="retry" { "Retry" }
                    button name="action" value="run-now" { "Run now" }
                    button name="action" value="cancel" class="danger" { "Cancel…" }
                    button name="action" value="delete" class="danger" { "Delete…" }
                }
                div class="buttons" {
                    label { "To the queue " input name="to" type="text"; }
                    button name="action" value="move" { "Move" }
                    label { "Priority " input name="priority" type="number"; }
                    button name="action" value="set-priority" { "Set priority" }
                    label { "Due at or after " input name="schedule" type="text"; }
                    button name="action" value="reschedule" { "Reschedule" }
                }
            }
        }
    }
}

fn pages(visit: &Visit, conditions: &Conditions<'_>, next: Option<&str>) -> Markup {
    html! {
        nav aria-label="Pages of the list" class="buttons" {
            @if !conditions.after.is_empty() { a href=(visit.url(&conditions.path(None))) rel="first" { "First page" } }
            @if let Some(next) = next { a href=(visit.url(next)) rel="next" { "Next page" } }
        }
    }
}
