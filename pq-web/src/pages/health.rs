//! The health of the database: the checks of the doctor, on demand.

use axum::Extension;
use maud::{Markup, html};
use pq_diesel::doctor::{Finding, Level};

use crate::dashboard::App;
use crate::examiner::Examined;
use crate::form::button;
use crate::guard::Done;
use crate::html::{text, time};
use crate::page::{Page, Section, Visit, failure};

pub(crate) async fn page(Extension(app): Extension<App>, Extension(visit): Extension<Visit>) -> Page {
    let content = html! {
        p { "The checks read the catalogs and the statistics of the server, and the plans of the statements that take jobs. They take some seconds and change nothing. A result is kept for a minute." }
        div class="buttons" { (button(&visit, "/health", &[], "Check the database", "")) }
        @match app.examiner.newest() {
            Ok(None) => {}
            Ok(Some(examined)) => (result(&examined)),
            Err(unread) => (failure(&unread)),
        }
    };
    Page::new(Section::Health, "Database health", content)
}

/// Examines the database. Viewers may do this, too.
pub(crate) async fn examine(Extension(app): Extension<App>) -> Done {
    app.examiner.examine().await;
    Done { path: "/health".to_owned(), notice: String::new() }
}

fn result(examined: &Examined) -> Markup {
    html! { section aria-labelledby="findings-title" {
        h2 id="findings-title" { "Findings" }
        p class="quiet" { "As of " (time(examined.at)) "." }
        @match &examined.findings {
            Ok(findings) => (table(findings)),
            Err(unread) => (failure(unread)),
        }
    } }
}

fn table(findings: &[Finding]) -> Markup {
    let mut findings: Vec<&Finding> = findings.iter().collect();
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.level));
    html! {
        div class="wide" tabindex="0" role="region" aria-label="Findings" { table {
            thead { tr { th scope="col" { "Result" } th scope="col" { "Check" } th scope="col" { "Finding" } } }
            tbody { @for finding in findings { (row(finding)) } }
        } }
    }
}

fn row(finding: &Finding) -> Markup {
    let (class, word) = match finding.level {
        Level::Ok => ("ok", "ok"),
        Level::Warning => ("warn", "warning"),
        Level::Failure => ("fail", "failure"),
        _ => ("quiet", "skipped"),
    };
    html! { tr {
        td { span class={ "tag " (class) } { (word) } }
        th scope="row" { (finding.check) }
        td class="long" { (text(&finding.message)) @if let Some(advice) = &finding.advice { p { "Advice: " (text(advice)) } } }
    } }
}
