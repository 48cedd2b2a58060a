//! The login form, in place of the page that was requested.

use axum::http::StatusCode;
use maud::html;

use crate::html::text;
use crate::page::{Page, Section, Visit};

/// Draws the form, and above it what is wrong.
pub(crate) fn page(visit: &Visit, wrong: Option<&str>) -> Page {
    let content = html! {
        @if let Some(wrong) = wrong { p role="alert" class="failure" { (text(wrong)) } }
        form method="post" action=(visit.url("/login")) class="stacked" {
            (visit.token_field())
            input type="hidden" name="next" value=(visit.path);
            label for="secret" { "Token" }
            input id="secret" name="secret" type="password" autocomplete="current-password" required autofocus;
            button { "Log in" }
        }
    };
    let page = Page::new(Section::None, "Log in", content);
    Page { status: StatusCode::UNAUTHORIZED, ..page }
}
