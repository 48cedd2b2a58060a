//! A page: its visitor, its frame, and its panels.

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use maud::{DOCTYPE, Markup, html};

use crate::access::User;
use crate::assets;
use crate::database::Unread;
use crate::html::{text, time, visible};
use crate::pages::workflow;
use crate::sampler::{Latest, Sample};
use crate::session::SessionId;

/// Who requests a page, and where from.
#[derive(Clone, Debug)]
pub(crate) struct Visit {
    /// The path under which the router is mounted, without a slash at its end.
    pub(crate) base: String,
    /// The path of the page below `base`, with its query.
    pub(crate) path: String,
    pub(crate) user: User,
    /// Whether the user may act here.
    pub(crate) can_act: bool,
    /// The session, which ends with a logout.
    pub(crate) session: SessionId,
    /// The token that forms carry.
    pub(crate) form_token: String,
    /// Whether the user has logged in with a form, and so can log out.
    pub(crate) logged_in: bool,
    /// The result of the action before.
    pub(crate) notice: Option<String>,
}

impl Visit {
    /// Returns the URL of a path of the dashboard. The first page of a mounted dashboard has no slash at its end.
    pub(crate) fn url(&self, path: &str) -> String {
        let is_first = path == "/" || path.starts_with("/?");
        let path = if is_first && !self.base.is_empty() { &path[1..] } else { path };
        format!("{}{path}", self.base)
    }

    /// Returns the hidden field that each form must have.
    pub(crate) fn token_field(&self) -> Markup {
        html! { input type="hidden" name="form_token" value=(self.form_token); }
    }
}

/// The entries of the navigation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Section {
    Overview,
    Queues,
    Jobs,
    Workflows,
    Dead,
    Workers,
    Periodic,
    Pauses,
    Health,
    Audit,
    /// A page that is not in the navigation.
    None,
}

/// Each entry with its path and its words.
const SECTIONS: [(Section, &str, &str); 10] = [
    (Section::Overview, "/", "Overview"),
    (Section::Queues, "/queues", "Queues"),
    (Section::Jobs, "/jobs", "Jobs"),
    (Section::Workflows, workflow::LIST, "Workflows"),
    (Section::Dead, "/dead", "Dead jobs"),
    (Section::Workers, "/workers", "Workers"),
    (Section::Periodic, "/periodic", "Periodic jobs"),
    (Section::Pauses, "/pauses", "Pauses"),
    (Section::Health, "/health", "Health"),
    (Section::Audit, "/audit", "Audit log"),
];

/// The content of a page. The guard puts the frame around it, so that every response has the same frame.
#[derive(Clone, Debug)]
pub(crate) struct Page {
    pub(crate) status: StatusCode,
    pub(crate) section: Section,
    pub(crate) title: String,
    pub(crate) content: Markup,
}

impl Page {
    pub(crate) fn new(section: Section, title: impl Into<String>, content: Markup) -> Self {
        Self { status: StatusCode::OK, section, title: title.into(), content }
    }

    /// Creates a page that says what is wrong.
    pub(crate) fn error(status: StatusCode, title: &str, reason: &str) -> Self {
        let content = html! { p role="alert" class="failure" { (text(reason)) } };
        Self { status, section: Section::None, title: title.to_owned(), content }
    }

    /// Adds content at the end.
    pub(crate) fn with(mut self, more: &Markup) -> Self {
        self.content = html! { (self.content) (more) };
        self
    }

    /// Returns the whole document.
    pub(crate) fn document(&self, visit: &Visit) -> Markup {
        let asset = |name: &str| format!("{}/assets/{name}?v={}", visit.base, assets::version());
        html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    meta name="color-scheme" content="light dark";
                    meta name="htmx-config" content=(HTMX_CONFIG);
                    title { (visible(&self.title)) " – pq" }
                    link rel="stylesheet" href=(asset("style.css"));
                    link rel="icon" href=(asset("icon.svg")) type="image/svg+xml";
                    script src=(asset("htmx.js")) defer {}
                    script src=(asset("sse.js")) defer {}
                    script src=(asset("dashboard.js")) defer {}
                }
                body {
                    a class="skip" href="#content" { "Skip to the content" }
                    header {
                        a class="name" href=(visit.url("/")) { "pq" }
                        nav aria-label="Pages" { ul {
                            @for (section, path, words) in SECTIONS {
                                li { a href=(visit.url(path)) aria-current=[(section == self.section).then_some("page")] { (words) } }
                            }
                        } }
                        (visitor(visit))
                    }
                    main id="content" tabindex="-1" {
                        h1 { (text(&self.title)) }
                        @if let Some(notice) = &visit.notice { p role="status" class="notice" { (text(notice)) } }
                        (self.content)
                    }
                    footer {
                        a href=(visit.url(&visit.path)) { "Refresh" }
                        " · pq " (env!("CARGO_PKG_VERSION"))
                        " · " a href=(asset("LICENSE")) { "licence of htmx" }
                    }
                }
            }
        }
    }
}

/// Settings of htmx that the content security policy needs.
const HTMX_CONFIG: &str = r#"{"includeIndicatorStyles":false,"allowEval":false,"allowScriptTags":false,"selfRequestsOnly":true,"historyCacheSize":0}"#;

fn visitor(visit: &Visit) -> Markup {
    html! {
        div class="visitor" {
            (text(&visit.user.name))
            @if !visit.can_act { span class="tag" { "read-only" } }
            @if visit.logged_in {
                form method="post" action=(visit.url("/logout")) {
                    (visit.token_field())
                    button class="quiet" { "Log out" }
                }
            }
        }
    }
}

/// The response carries the page, and the guard draws it.
impl IntoResponse for Page {
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

/// Draws a part of a page, or in its place the reason why it is missing.
pub(crate) fn panel(id: &str, title: &str, content: Result<Markup, Unread>) -> Markup {
    html! {
        section id=(id) aria-labelledby={ (id) "-title" } {
            h2 id={ (id) "-title" } { (title) }
            (content.unwrap_or_else(|unread| failure(&unread)))
        }
    }
}

/// Draws a part of a page from the newest sample, with its time. If there is a newer one that failed, says why.
pub(crate) fn sampled<T: Sample>(
    id: &str,
    title: &str,
    latest: &Latest<T>,
    content: impl FnOnce(&T) -> Markup,
) -> Markup {
    let content = latest.sample().map(|sample| {
        html! {
            @if let Some(Unread(reason)) = &latest.failure {
                p class="failure" { "There are no newer numbers: " (text(reason)) }
            }
            p class="quiet" { "As of " (time(sample.at())) " by the clock of the database." }
            (content(sample))
        }
    });
    panel(id, title, content)
}

/// Draws the reason why a part of a page is missing.
///
/// It is not an alert, because a live part would repeat it with each update. The script announces it when it changes.
pub(crate) fn failure(Unread(reason): &Unread) -> Markup {
    html! { p class="failure" { "This cannot be shown: " (text(reason)) } }
}

/// Draws the part of a page that is replaced by each live update, and what announces its failures to screen readers.
pub(crate) fn live(visit: &Visit, path: &str, content: &Markup) -> Markup {
    html! {
        p class="announced" role="status" {}
        div class="live" hx-ext="sse" sse-connect=(visit.url(path)) sse-swap="update" { (content) }
    }
}
