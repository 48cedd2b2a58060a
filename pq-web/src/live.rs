//! Live updates: parts of pages as server-sent events.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::Path;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::response::Response;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::stream;
use maud::Markup;
use tokio::time::{Instant, sleep_until};

use crate::dashboard::App;
use crate::page::Visit;
use crate::pages;
use crate::sampler::Samples;

/// How long a response lasts. The browser then connects again.
///
/// An application that stops waits for its responses, and it cannot end these.
const MAX_DURATION: Duration = Duration::from_secs(60);

/// The most responses at a time. A browser that gets none tries again later.
pub(crate) const MAX_STREAMS: usize = 100;

/// The least time between two updates.
const INTERVAL: Duration = Duration::from_millis(1_500);

/// Sends the live part of a page.
pub(crate) async fn updates(
    Extension(app): Extension<App>,
    Extension(visit): Extension<Visit>,
    Path(page): Path<String>,
) -> Response {
    match page.as_str() {
        "overview" => stream_of(&app, visit, pages::overview::live),
        "queues" => stream_of(&app, visit, pages::queues::live),
        "workers" => stream_of(&app, visit, pages::workers::live),
        _ => pages::not_found().await.into_response(),
    }
}

/// Sends what `draw` makes of new samples, as events `update`, until the user logs out.
fn stream_of(app: &App, visit: Visit, draw: fn(&Visit, &Samples) -> Markup) -> Response {
    let Ok(place) = Arc::clone(&app.streams).try_acquire_owned() else {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    };
    let mut watching = app.sampler.watch();
    // A page whose stream was interrupted shows the newest sample at once.
    watching.mark_changed();
    let closing = app.closing.subscribe();
    let (begun, sessions) = (Instant::now(), Arc::clone(&app.sessions));
    let events = stream::unfold(
        (watching, closing, visit, place, begun, sessions),
        move |(mut watching, mut closing, visit, place, next, sessions)| async move {
            // Samples of two kinds come at different times, and are drawn together.
            let changed = async {
                sleep_until(next).await;
                watching.changed().await
            };
            tokio::select! {
                changed = changed => changed.ok()?,
                Ok(_) = closing.wait_for(|closing| *closing) => return None,
                () = sleep_until(begun + MAX_DURATION) => return None,
            }
            if visit.logged_in && sessions.user(&visit.session).is_none() {
                return None;
            }
            let samples = watching.borrow_and_update().clone();
            let event = Event::default().event("update").data(draw(&visit, &samples).into_string());
            let next = Instant::now() + INTERVAL;
            Some((Ok::<_, Infallible>(event), (watching, closing, visit, place, next, sessions)))
        },
    );
    Sse::new(events).keep_alive(KeepAlive::default()).into_response()
}
