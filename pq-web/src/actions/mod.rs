//! The actions: what operators change, by the operations of the library.
//!
//! The guard has checked the form and the role before an action runs.

pub(crate) mod bulk;
pub(crate) mod job;
pub(crate) mod limits;
mod operation;
pub(crate) mod periodic;
pub(crate) mod put;
pub(crate) mod queue;
pub(crate) mod worker;
mod workflow;

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use pq_diesel::{Error, Pq};

use crate::dashboard::{ACTION_TIMEOUT, App};
use crate::database::Unread;
use crate::guard::{Done, Fields};
use crate::page::{Page, Visit};

/// The response of an action: it was done, or a page that asks or says why not.
pub(crate) enum Reply {
    Done(Done),
    Page(Page),
}

impl IntoResponse for Reply {
    fn into_response(self) -> Response {
        match self {
            Self::Done(done) => done.into_response(),
            Self::Page(page) => page.into_response(),
        }
    }
}

impl From<Page> for Reply {
    fn from(page: Page) -> Self {
        Self::Page(page)
    }
}

/// Returns the reply to an action, with the page to continue with.
fn reply(path: impl Into<String>, done: Result<String, Unread>) -> Reply {
    match done {
        Ok(notice) => Reply::Done(Done { path: path.into(), notice }),
        Err(Unread(reason)) => Page::error(StatusCode::CONFLICT, "Not done", &reason).into(),
    }
}

/// Runs an action on the handle of the operators, which records it in the audit log with the name of the user.
async fn run<T: Send + 'static>(
    app: &App,
    visit: &Visit,
    work: impl FnOnce(&Pq) -> Result<T, Error> + Send + 'static,
) -> Result<T, Unread> {
    let Some(operator) = &app.operator else { return Err(Unread("actions are not allowed".to_owned())) };
    let actor = visit.user.name.clone();
    operator.run(ACTION_TIMEOUT, move |pq| work(&pq.acting_as(&actor)?)).await
}

/// The page of an action that does not exist.
fn unknown() -> Reply {
    Page::error(StatusCode::NOT_FOUND, "Not found", "There is no such action.").into()
}

/// Returns whether the operator has answered the question whether to do it.
fn is_confirmed(fields: &Fields) -> bool {
    fields.get("confirmed") == "yes"
}

/// Returns a number with its noun.
fn count(number: u64, noun: &str) -> String {
    format!("{} {noun}{}", crate::html::number(number), if number == 1 { "" } else { "s" })
}
