//! The health of the database: the checks of the doctor, on demand.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::Extension;
use maud::{Markup, html};
use pq_diesel::doctor::{Examination, Finding, Level};

use crate::dashboard::App;
use crate::guard::Fields;
use crate::html::text;
use crate::page::{Page, Section, Visit, panel};

/// How long a check may take. The checks limit each of their statements to this time.
const CHECK_TIMEOUT: Duration = Duration::from_secs(30);

pub(crate) async fn page(
    Extension(app): Extension<App>,
    Extension(visit): Extension<Visit>,
    Extension(fields): Extension<Arc<Fields>>,
) -> Page {
    let wanted = fields.get("run") == "yes";
    let content = html! {
        p { "The checks read the catalogs and the statistics of the server, and the plans of the statements that take jobs. They take some seconds and change nothing." }
        form method="get" action=(visit.url("/health")) class="buttons" {
            input type="hidden" name="run" value="yes";
            button { @if wanted { "Check again" } @else { "Check the database" } }
        }
        @if wanted { (panel("findings", "Findings", examine(&app).await)) }
    };
    Page::new(Section::Health, "Database health", content)
}

async fn examine(app: &App) -> Result<Markup, crate::database::Unread> {
    let how = Examination::new().clock(SystemTime::now);
    let mut findings = app.reads.run(CHECK_TIMEOUT, move |pq| pq.examine(&how)).await?;
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.level));
    Ok(html! {
        div class="wide" tabindex="0" role="region" aria-label="Findings" { table {
            thead { tr { th scope="col" { "Result" } th scope="col" { "Check" } th scope="col" { "Finding" } } }
            tbody { @for finding in &findings { (row(finding)) } }
        } }
    })
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
