//! The limits of a queue: how much of them is used, which jobs wait because of them, and the forms that set them.

use maud::{Markup, html};
use pq_diesel::{GroupUse, LimitedQueue, Rate, Reason};

use crate::form::{button, button_on, field};
use crate::html::{beginning, number, text, time, with_query};
use crate::page::Visit;

/// The largest number of groups that are shown: those with the most due jobs.
const MAX_GROUPS: usize = 20;

/// Draws the limits of a queue, if it has any, and their forms for an operator.
pub(super) fn draw(visit: &Visit, name: &str, limited: Option<&LimitedQueue>) -> Markup {
    html! {
        @match limited {
            Some(limited) => (numbers(visit, limited)),
            None => p { "The queue is not limited." },
        }
        @if visit.can_act { (forms(visit, name, limited)) }
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

fn numbers(visit: &Visit, limited: &LimitedQueue) -> Markup {
    let limits = &limited.limits;
    let held = limited.held_back();
    let waits = [
        "because as many jobs of the queue run as may",
        "because the queue has no tokens",
        "because as many jobs of their group run as may",
        "because their group has no tokens",
    ];
    html! {
        dl {
            @if limits.fair { dt { "order" } dd { "groups take turns" } }
            @if let Some(most) = limits.running { dt { "running" } dd { (limited.used.running) " of at most " (number(most.into())) } }
            @if let Some(rate) = limits.rate {
                dt { "started" }
                dd { (rate_words(rate)) ", now " (tokens(limited.tokens(), rate)) }
            }
            @if let Some(most) = limits.running_per_group { dt { "running of each group" } dd { "at most " (number(most.into())) } }
            @if let Some(rate) = limits.rate_per_group { dt { "started of each group" } dd { (rate_words(rate)) } }
        }
        @if held.iter().all(|(_, jobs)| *jobs == 0) { p { "No due job waits for a limit." } }
        @else { ul { @for ((_, jobs), why) in held.iter().zip(waits).filter(|((_, jobs), _)| *jobs > 0) {
            li { (at_least(*jobs)) " due jobs wait " (why) "." }
        } } }
        (groups(visit, limited))
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
    let path = with_query("/queue/limit-group", &[("name", queue)]);
    html! { tr {
        th scope="row" { (beginning(name, 60)) }
        td class="number" { (at_least(group.due)) }
        td class="number" { (group.used.running) @if let Some(most) = limits.running { " of " (number(most.into())) } }
        td class="number" { @if let Some(rate) = limits.rate { (tokens(limited.tokens_of(group), rate)) } }
        @if limited.limits.fair { td class="number" { (limits.weight.unwrap_or(1)) } }
        td { @if group.due > 0 { @if let Some(reason) = limited.reached(group).first() { (why(reason)) } } }
        @if visit.can_act { td {
            @if limited.limits.groups.contains_key(name) {
                (button_on(visit, &path, &[("group", name)], "Remove", "", name))
            }
        } }
    } }
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

fn forms(visit: &Visit, name: &str, limited: Option<&LimitedQueue>) -> Markup {
    let to = |path: &str| with_query(path, &[("name", name)]);
    let limits = limited.map(|limited| &limited.limits);
    let shown = |number: Option<u32>| number.map(|number| number.to_string()).unwrap_or_default();
    let rate = |rate: Option<Rate>| rate.map(period).unwrap_or_default();
    let burst = |rate: Option<Rate>| shown(rate.map(|rate| rate.burst));
    let (rate_of_queue, rate_of_each) =
        (limits.and_then(|limits| limits.rate), limits.and_then(|limits| limits.rate_per_group));
    html! {
        details {
            summary { "Set limits" }
            form method="post" action=(visit.url(&to("/queue/limit"))) class="filters" {
                (visit.token_field())
                label { "Groups take turns" input type="checkbox" name="fair" value="yes" checked[limits.is_some_and(|limits| limits.fair)]; }
                (field("running", "Running, at most", "number", &shown(limits.and_then(|limits| limits.running))))
                (field("rate", "Started, such as 100/1m", "text", &rate(rate_of_queue)))
                (field("burst", "of these at once", "number", &burst(rate_of_queue)))
                (field("running_per_group", "Running of each group", "number", &shown(limits.and_then(|limits| limits.running_per_group))))
                (field("rate_per_group", "Started of each group", "text", &rate(rate_of_each)))
                (field("burst_per_group", "of these at once", "number", &burst(rate_of_each)))
                button { "Set the limits" }
            }
            form method="post" action=(visit.url(&to("/queue/limit-group"))) class="filters" {
                (visit.token_field())
                (field("group", "Limits of the group", "text", ""))
                (field("group_running", "Running, at most", "number", ""))
                (field("group_rate", "Started, such as 100/1m", "text", ""))
                (field("group_burst", "of these at once", "number", ""))
                (field("weight", "Jobs of a turn", "number", ""))
                button { "Set the limits of the group" }
            }
            @if limited.is_some() { (button(visit, &to("/queue/unlimit"), &[], "Remove all limits…", "danger")) }
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
