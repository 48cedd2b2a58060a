//! Sets the limits of a queue.

use std::time::Duration;

use axum::http::StatusCode;
use maud::html;
use pq_diesel::{Limits, Rate, When};

use super::{Reply, is_confirmed, reply, run};
use crate::dashboard::App;
use crate::database::Unread;
use crate::form::{confirmation, fingerprint};
use crate::guard::Fields;
use crate::html::with_query;
use crate::page::{Page, Visit};

/// Sets limits of a queue, or those of one of its groups. A field without a value removes its limit.
pub(super) async fn set(app: &App, visit: &Visit, fields: &Fields, queue: String, of_group: bool) -> Reply {
    match if of_group { group(fields) } else { whole(fields) } {
        Ok(change) => change_shown(app, visit, fields, queue, change).await,
        Err(wrong) => reply(with_query("/queue", &[("name", &queue)]), Err(Unread(wrong))),
    }
}

/// Removes the limits of a queue.
pub(super) async fn remove(app: &App, visit: &Visit, fields: &Fields, queue: String) -> Reply {
    if !is_confirmed(fields) {
        let page = with_query("/queue", &[("name", &queue)]);
        let question = format!("Remove all limits of the queue {queue}?");
        let details =
            "All jobs that wait for a limit can be taken at once. The limits of groups are removed, too.";
        let path = with_query("/queue/unlimit", &[("name", &queue)]);
        let shown = [("shown", fields.get("shown"))];
        return confirmation(visit, &question, details, &path, &shown, &page).into();
    }
    change_shown(app, visit, fields, queue, Box::new(|_| Limits::new())).await
}

/// Changes the limits of a queue if they are still those that the form showed, so that two operators do not replace
/// each other's.
async fn change_shown(app: &App, visit: &Visit, fields: &Fields, queue: String, change: Change) -> Reply {
    let page = with_query("/queue", &[("name", &queue)]);
    let shown = fields.get("shown").to_owned();
    let _one_at_a_time = app.limits.lock().await;
    let set = run(app, visit, move |pq| {
        let queue = pq.queue::<()>(queue)?;
        let before = queue.limits()?;
        if fingerprint_of(&before) != shown {
            return Ok(Err(before));
        }
        let limits = change(before.clone());
        if limits != before {
            queue.set_limits(&limits)?;
        }
        Ok(Ok(limits))
    });
    match set.await {
        Ok(Ok(limits)) => reply(page, Ok(describe(&limits))),
        Ok(Err(now)) => changed(visit, &page, &now).into(),
        Err(unread) => reply(page, Err(unread)),
    }
}

/// The page that says what the limits are now, and that nothing was changed.
fn changed(visit: &Visit, page: &str, now: &Limits) -> Page {
    let reason = format!(
        "The limits of this queue have changed since the page was shown, so nothing was done. {}",
        describe(now)
    );
    Page::error(StatusCode::CONFLICT, "Not done", &reason).with(&html! {
        p { a class="button" href=(visit.url(page)) { "Back to the queue" } }
    })
}

/// Returns a text that differs for limits that differ.
pub(crate) fn fingerprint_of(limits: &Limits) -> String {
    fingerprint(&serde_json::to_string(limits).unwrap_or_default())
}

fn describe(limits: &Limits) -> String {
    if limits.is_empty() { "The queue is not limited.".to_owned() } else { format!("The queue is {limits}.") }
}

/// Returns what a form does to the limits of a queue, or of its groups.
type Change = Box<dyn FnOnce(Limits) -> Limits + Send>;

fn whole(fields: &Fields) -> Result<Change, String> {
    let [running, running_per_group] = [number(fields, "running")?, number(fields, "running_per_group")?];
    let [rate, rate_per_group] =
        [rate(fields, "rate", "burst")?, rate(fields, "rate_per_group", "burst_per_group")?];
    let is_fair = fields.get("fair") == "yes";
    Ok(Box::new(move |mut limits| {
        limits.fair = is_fair;
        limits.running = running;
        limits.rate = rate;
        limits.running_per_group = running_per_group;
        limits.rate_per_group = rate_per_group;
        limits
    }))
}

fn group(fields: &Fields) -> Result<Change, String> {
    let name = fields.get("group").to_owned();
    if name.is_empty() {
        return Err("invalid group \"\": it must have 1 to 1024 bytes".to_owned());
    }
    let [running, weight] = [number(fields, "group_running")?, number(fields, "weight")?];
    let rate = rate(fields, "group_rate", "group_burst")?;
    Ok(Box::new(move |mut limits| {
        limits.groups.remove(&name);
        if let Some(running) = running {
            limits = limits.running_of(&name, running);
        }
        if let Some(weight) = weight {
            limits = limits.weight_of(&name, weight);
        }
        match rate {
            Some(rate) => limits.rate_of(&name, rate),
            None => limits,
        }
    }))
}

fn number(fields: &Fields, name: &str) -> Result<Option<u32>, String> {
    let text = fields.get(name).trim();
    let wrong = |_| format!("invalid limit {text:?}: it must be a number from 1 to {}", Limits::MAX);
    (!text.is_empty()).then(|| text.parse().map_err(wrong)).transpose()
}

/// Reads a number of jobs and a period, such as `100/1m`, and the burst of another field.
fn rate(fields: &Fields, name: &str, burst: &str) -> Result<Option<Rate>, String> {
    let text = fields.get(name).trim();
    let burst = number(fields, burst)?;
    if text.is_empty() {
        // The form shows the burst of a rate, so that one without a rate is what is left of it.
        return Ok(None);
    }
    let wrong = || format!("invalid rate {text:?}: it must be a number and a period such as 100/1m");
    let (jobs, period) = text.split_once('/').ok_or_else(wrong)?;
    let Ok(When::In(period)) = When::parse(period.trim()) else { return Err(wrong()) };
    let period = period.to_std().ok().filter(|period| *period > Duration::ZERO).ok_or_else(wrong)?;
    let rate = Rate::new(jobs.trim().parse().map_err(|_| wrong())?, period);
    Ok(Some(burst.map_or(rate, |burst| rate.burst(burst))))
}
