//! The limits of a queue: how much of them is used, which jobs wait because of them, and the forms that set them.

use maud::{Markup, html};
use pq_diesel::store::Limiting;
use pq_diesel::{GroupUse, LimitedQueue, Limits, QueueName, Rate, Reason};

use crate::actions::limits::fingerprint_of;
use crate::dashboard::App;
use crate::database::Unread;
use crate::form::{button, button_on, field};
use crate::html::{beginning, number, text, time, with_query};
use crate::page::Visit;

/// The largest number of groups that are shown: those with the most due jobs.
const MAX_GROUPS: usize = 20;

/// The limits of a queue, and what is used of them.
#[derive(Debug)]
pub(super) struct Read {
    limits: Limits,
    /// What is used of them. `None` if the queue has no limits, or the reason why it could not be counted.
    counted: Result<Option<LimitedQueue>, Unread>,
}

impl Read {
    /// Reads the limits of a queue. Counting its jobs can take longer than a statement may, and the limits are shown
    /// all the same.
    pub(super) async fn of(app: &App, queue: Option<QueueName>) -> Result<Self, Unread> {
        let Some(queue) = queue else { return Ok(Self { limits: Limits::new(), counted: Ok(None) }) };
        let name = queue.clone();
        let counted = app.reads.read(move |pq, conn| Ok(pq.store().limited(conn, Some(&name))?.pop())).await;
        let limits = match &counted {
            Ok(counted) => counted.as_ref().map(|counted| counted.limits.clone()).unwrap_or_default(),
            Err(_) => app.reads.read(move |pq, conn| pq.store().limits(conn, &queue)).await?,
        };
        Ok(Self { limits, counted })
    }
}

/// Draws the limits of a queue, if it has any, and their forms for an operator.
pub(super) fn draw(visit: &Visit, name: &str, read: &Read) -> Markup {
    let Read { limits, counted } = read;
    html! {
        @match counted {
            _ if limits.is_empty() => p { "The queue is not limited." },
            Ok(Some(counted)) => {
                (numbers(limits, Some(counted)))
                (waiting(counted))
                (groups(visit, counted))
            },
            Ok(None) => {},
            Err(unread) => {
                (numbers(limits, None))
                p class="failure" { "What is used of the limits cannot be counted: " (text(&unread.0)) }
                (groups_alone(visit, name, limits))
            },
        }
        @if visit.can_act { (forms(visit, name, limits)) }
    }
}

/// Draws a tag for the table of queues, if the queue has limits.
pub(super) fn tag(limited: Option<&LimitedQueue>) -> Markup {
    let held: u64 = limited.map_or(0, |limited| limited.held_back().iter().map(|(_, jobs)| jobs).sum());
    html! {
        @if limited.is_some() { " " span class="tag" { "limited" } }
        @if held > 0 { " " (at_least(held)) " wait for a limit" }
    }
}

/// Returns a number of jobs, of which not more are counted than a bound.
fn at_least(jobs: u64) -> String {
    let mark = if jobs >= Reason::MAX_COUNTED { "≥ " } else { "" };
    format!("{mark}{}", number(jobs))
}

/// Draws the limits of the queue, with what is used of them if that is known.
fn numbers(limits: &Limits, counted: Option<&LimitedQueue>) -> Markup {
    html! {
        dl {
            @if limits.fair { dt { "order" } dd { "groups take turns" } }
            @if let Some(most) = limits.running {
                dt { "running" }
                dd { @if let Some(counted) = counted { (counted.used.running) " of " } "at most " (number(most.into())) }
            }
            @if let Some(rate) = limits.rate {
                dt { "started" }
                dd { (rate_words(rate)) @if let Some(counted) = counted { ", now " (tokens(counted.tokens(), rate)) } }
            }
            @if let Some(most) = limits.running_per_group { dt { "running of each group" } dd { "at most " (number(most.into())) } }
            @if let Some(rate) = limits.rate_per_group { dt { "started of each group" } dd { (rate_words(rate)) } }
        }
    }
}

/// Draws how many due jobs wait because of which limit.
fn waiting(limited: &LimitedQueue) -> Markup {
    let held = limited.held_back();
    let waits = [
        "because as many jobs of the queue run as may",
        "because the queue has no tokens",
        "because as many jobs of their group run as may",
        "because their group has no tokens",
    ];
    html! {
        @if held.iter().all(|(_, jobs)| *jobs == 0) { p { "No due job waits for a limit." } }
        @else { ul { @for ((_, jobs), why) in held.iter().zip(waits).filter(|((_, jobs), _)| *jobs > 0) {
            li { (at_least(*jobs)) " due jobs wait " (why) "." }
        } } }
    }
}

fn rate_words(rate: Rate) -> String {
    format!("at most {}, {} at once", period(rate), number(rate.burst.into()))
}

fn tokens(held: Option<f64>, rate: Rate) -> String {
    let held = held.unwrap_or_default().floor();
    // A bucket holds at most a million tokens, and owes less than 2^53.
    let shown = if held < 0.0 { format!("owes {}", number(-held as u64)) } else { number(held as u64) };
    format!("{shown} of {} tokens", number(rate.burst.into()))
}

/// Draws the groups with the most due jobs.
fn groups(visit: &Visit, limited: &LimitedQueue) -> Markup {
    let name = limited.queue.as_str();
    let mut groups: Vec<&GroupUse> = limited.groups.iter().filter(|group| group.group.is_some()).collect();
    groups.sort_by_key(|group| std::cmp::Reverse((group.due, group.used.running)));
    let more = groups.len().saturating_sub(MAX_GROUPS);
    groups.truncate(MAX_GROUPS);
    html! {
        @if !groups.is_empty() {
            div class="wide" tabindex="0" role="region" aria-label="Groups" { table {
                thead { tr {
                    th scope="col" { "Group" }
                    @for column in ["Due", "Running", "Tokens"] { th scope="col" class="number" { (column) } }
                    @if limited.limits.fair { th scope="col" class="number" { "Jobs of a turn" } }
                    th scope="col" { "Waits because" }
                    @if visit.can_act { th scope="col" { "Own limits" } }
                } }
                tbody { @for group in groups { (group_row(visit, name, limited, group)) } }
            } }
            @if more > 0 { p { "There are " (number(more as u64)) " more groups." } }
        }
    }
}

fn group_row(visit: &Visit, queue: &str, limited: &LimitedQueue, group: &GroupUse) -> Markup {
    let name = group.group.as_deref().unwrap_or_default();
    let limits = limited.limits.of_group(name);
    html! { tr {
        th scope="row" { (beginning(name, 60)) }
        td class="number" { (at_least(group.due)) }
        td class="number" { (group.used.running) @if let Some(most) = limits.running { " of " (number(most.into())) } }
        td class="number" { @if let Some(rate) = limits.rate { (tokens(limited.tokens_of(group), rate)) } }
        @if limited.limits.fair { td class="number" { (limits.weight.unwrap_or(1)) } }
        td { @if group.due > 0 { @if let Some(reason) = limited.reached(group).first() { (why(reason)) } } }
        @if visit.can_act { td { (remove_button(visit, queue, &limited.limits, name)) } }
    } }
}

/// Draws the groups with limits of their own, without what is used of them.
fn groups_alone(visit: &Visit, queue: &str, limits: &Limits) -> Markup {
    let more = limits.groups.len().saturating_sub(MAX_GROUPS);
    html! {
        @if !limits.groups.is_empty() {
            div class="wide" tabindex="0" role="region" aria-label="Groups" { table {
                thead { tr {
                    th scope="col" { "Group" }
                    @for column in ["Running", "Started", "Jobs of a turn"] { th scope="col" { (column) } }
                    @if visit.can_act { th scope="col" { "Own limits" } }
                } }
                tbody { @for (name, own) in limits.groups.iter().take(MAX_GROUPS) { tr {
                    th scope="row" { (beginning(name, 60)) }
                    td { @if let Some(most) = own.running { "at most " (number(most.into())) } }
                    td { @if let Some(rate) = own.rate { (rate_words(rate)) } }
                    td { @if let Some(weight) = own.weight { (weight) } }
                    @if visit.can_act { td { (remove_button(visit, queue, limits, name)) } }
                } } }
            } }
            @if more > 0 { p { "There are " (number(more as u64)) " more groups with limits of their own." } }
        }
    }
}

/// Draws the button that removes the limits of a group, if it has limits of its own.
fn remove_button(visit: &Visit, queue: &str, limits: &Limits, group: &str) -> Markup {
    // The name is in the query, because browsers change line breaks in the fields of a form.
    let path = with_query("/queue/limit-group", &[("name", queue), ("group", group)]);
    html! {
        @if limits.groups.contains_key(group) {
            (button_on(visit, &path, &[("shown", &fingerprint_of(limits))], "Remove", "", group))
        }
    }
}

fn why(reason: &Reason) -> Markup {
    html! {
        @match reason {
            Reason::Full { group: None, .. } => "the queue is full",
            Reason::Full { .. } => "the group is full",
            Reason::NoTokens { group: None, until } => { "the queue has no tokens until " (time(*until)) },
            Reason::NoTokens { until, .. } => { "it has no tokens until " (time(*until)) },
            other => (text(&other.to_string())),
        }
    }
}

fn forms(visit: &Visit, name: &str, limits: &Limits) -> Markup {
    let to = |path: &str| with_query(path, &[("name", name)]);
    let fingerprint = fingerprint_of(limits);
    let shown = |number: Option<u32>| number.map(|number| number.to_string()).unwrap_or_default();
    let rate = |rate: Option<Rate>| rate.map(period).unwrap_or_default();
    let burst = |rate: Option<Rate>| shown(rate.map(|rate| rate.burst));
    let (rate_of_queue, rate_of_each) = (limits.rate, limits.rate_per_group);
    html! {
        details {
            summary { "Set limits" }
            form method="post" action=(visit.url(&to("/queue/limit"))) class="filters" {
                (visit.token_field())
                input type="hidden" name="shown" value=(fingerprint);
                label { "Groups take turns" input type="checkbox" name="fair" value="yes" checked[limits.fair]; }
                (field("running", "Running, at most", "number", &shown(limits.running)))
                (field("rate", "Started, such as 100/1m", "text", &rate(rate_of_queue)))
                (field("burst", "of these at once", "number", &burst(rate_of_queue)))
                (field("running_per_group", "Running of each group", "number", &shown(limits.running_per_group)))
                (field("rate_per_group", "Started of each group", "text", &rate(rate_of_each)))
                (field("burst_per_group", "of these at once", "number", &burst(rate_of_each)))
                button { "Set the limits" }
            }
            form method="post" action=(visit.url(&to("/queue/limit-group"))) class="filters" {
                (visit.token_field())
                input type="hidden" name="shown" value=(fingerprint);
                (field("group", "Limits of the group", "text", ""))
                (field("group_running", "Running, at most", "number", ""))
                (field("group_rate", "Started, such as 100/1m", "text", ""))
                (field("group_burst", "of these at once", "number", ""))
                (field("weight", "Jobs of a turn", "number", ""))
                button { "Set the limits of the group" }
            }
            @if !limits.is_empty() {
                (button(visit, &to("/queue/unlimit"), &[("shown", &fingerprint)], "Remove all limits…", "danger"))
            }
        }
    }
}

/// Returns a rate as the form takes it: a number, and the period as text that the form reads back.
fn period(rate: Rate) -> String {
    let micros = rate.per.as_micros();
    let units =
        [("d", 86_400_000_000), ("h", 3_600_000_000), ("m", 60_000_000), ("s", 1_000_000), ("ms", 1_000)];
    let (unit, length) =
        units.into_iter().find(|(_, length)| micros.is_multiple_of(*length)).unwrap_or(("us", 1));
    format!("{}/{}{unit}", rate.tokens, micros / length)
}
