//! Jobs by filters, page by page.

use std::sync::Arc;

use axum::Extension;
use maud::{Markup, html};
use pq_diesel::store::Admin;
use pq_diesel::{Filter, JobId, JobState};

use super::job_table::job_table;
use crate::dashboard::App;
use crate::form::field;
use crate::guard::Fields;
use crate::html::with_query;
use crate::page::{Page, Section, Visit, panel};

/// The number of jobs on a page.
const PAGE: usize = 50;

/// The fields of the filter, in the order of the URL.
struct Conditions<'f> {
    queue: &'f str,
    states: Vec<&'f str>,
    key: &'f str,
    id: &'f str,
    after: &'f str,
}

impl<'f> Conditions<'f> {
    fn read(fields: &'f Fields) -> Self {
        let states = fields.all("state").filter(|state| !state.is_empty()).collect();
        Self {
            queue: fields.get("queue"),
            states,
            key: fields.get("key"),
            id: fields.get("id").trim(),
            after: fields.get("after"),
        }
    }

    /// Returns the filter, or what is wrong with a condition.
    fn filter(&self) -> Result<Filter, String> {
        let number = |text: &str, what: &str| match text {
            "" => Ok(None),
            text => text
                .parse()
                .map(|id| Some(JobId(id)))
                .map_err(|_| format!("invalid {what} {text:?}: it must be a number")),
        };
        let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Ok(Filter {
            states: self
                .states
                .iter()
                .map(|state| state.parse())
                .collect::<Result<_, _>>()
                .map_err(|error: pq_diesel::pq_core::Error| error.to_string())?,
            serialization_key: given(self.key),
            id: number(self.id, "job id")?,
            queue: given(self.queue),
            after: number(self.after, "page")?,
            ..Filter::default()
        })
    }

    /// Returns the path of the page after this job, or of the first.
    fn path(&self, after: Option<JobId>) -> String {
        let after = after.map(|id| id.to_string()).unwrap_or_default();
        let mut fields = vec![("queue", self.queue), ("key", self.key), ("id", self.id), ("after", &after)];
        fields.extend(self.states.iter().map(|state| ("state", *state)));
        with_query("/jobs", &fields)
    }
}

pub(crate) async fn page(
    Extension(app): Extension<App>,
    Extension(visit): Extension<Visit>,
    Extension(fields): Extension<Arc<Fields>>,
) -> Page {
    let conditions = Conditions::read(&fields);
    let list = match conditions.filter() {
        Ok(filter) => {
            let found = app.reads.read(move |pq, conn| pq.store().list(conn, &filter, PAGE + 1)).await;
            found.map(|mut jobs| {
                let more = jobs.len() > PAGE;
                jobs.truncate(PAGE);
                let next = jobs.last().filter(|_| more).map(|job| conditions.path(Some(job.id)));
                html! {
                    (selection(&visit, &conditions.path(None), job_table(&visit, &app.mask, &jobs, visit.can_act)))
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
    Page::new(Section::Jobs, "Jobs", content)
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
            (field("key", "Serialization key", "text", conditions.key))
            (field("id", "Id", "text", conditions.id))
            button { "Show" }
            a href=(visit.url("/jobs")) { "Show all" }
        }
    }
}

/// Draws the form around a table of jobs, with the actions on those that are selected.
fn selection(visit: &Visit, back: &str, table: Markup) -> Markup {
    if !visit.can_act {
        return table;
    }
    html! {
        form method="post" action=(visit.url("/jobs/bulk")) {
            (visit.token_field())
            input type="hidden" name="back" value=(back);
            (table)
            div class="buttons" {
                span { "Selected jobs:" }
                button name="action" value="retry" { "Retry" }
                button name="action" value="cancel" class="danger" { "Cancel…" }
                label { "To the queue " input name="to" type="text"; }
                button name="action" value="move" class="danger" { "Move…" }
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
