//! The jobs that a job waits for, and those that wait for it.

use std::collections::HashSet;

use diesel::pg::PgConnection;
use maud::{Markup, html};
use pq_diesel::store::FollowUps;
use pq_diesel::{Error, JobId, JobState, Pq, Predecessor, WorkflowGraph};

use crate::database::Unread;
use crate::html::number;
use crate::page::{Visit, panel};

/// The largest number of jobs that are counted.
const MAX_COUNTED: usize = 10_000;

/// The largest number of jobs that are shown.
const MAX_SHOWN: usize = 100;

/// The jobs with which a job is connected.
#[derive(Debug)]
pub(super) struct Links {
    /// The jobs that it waits for or has waited for.
    predecessors: Vec<Predecessor>,
    /// The jobs that wait for it.
    followers: Vec<JobId>,
}

impl Links {
    pub(super) fn read(pq: &Pq, conn: &mut PgConnection, job: JobId) -> Result<Self, Error> {
        let predecessors = pq.store().predecessors(conn, job, MAX_COUNTED)?;
        Ok(Self { predecessors, followers: pq.store().followers(conn, job, MAX_SHOWN + 1)? })
    }

    /// Removes the jobs of a workflow. Those that were added to it stay.
    pub(super) fn without(mut self, graph: &WorkflowGraph) -> Self {
        let own: HashSet<JobId> =
            graph.jobs.iter().flat_map(|node| [node.id, node.undone_by]).flatten().collect();
        self.predecessors.retain(|predecessor| !own.contains(&predecessor.job));
        self
    }
}

/// Draws the panels of these jobs, of which most jobs have none.
pub(super) fn draw(visit: &Visit, links: Result<Links, Unread>) -> Markup {
    let Links { predecessors, followers } = match links {
        Ok(links) => links,
        Err(unread) => return panel("predecessors", "Jobs that it waits for", Err(unread)),
    };
    html! {
        @if !predecessors.is_empty() {
            (panel("predecessors", "Jobs that it waits for", Ok(draw_predecessors(visit, predecessors))))
        }
        @if !followers.is_empty() {
            (panel("followers", "Jobs that wait for it", Ok(html! {
                ul { @for job in followers.iter().take(MAX_SHOWN) { li { (link(visit, *job)) } } }
                @if followers.len() > MAX_SHOWN { p { "These are the first " (MAX_SHOWN) "." } }
            })))
        }
    }
}

fn link(visit: &Visit, job: JobId) -> Markup {
    html! { a href=(visit.url(&format!("/job/{job}"))) { "job " (job) } }
}

/// Draws how many jobs have ended in which way, and some of them: first those that have not, then those that were not
/// done.
fn draw_predecessors(visit: &Visit, mut jobs: Vec<Predecessor>) -> Markup {
    let least = if jobs.len() == MAX_COUNTED { "≥ " } else { "" };
    let states = [None, Some(JobState::Dead), Some(JobState::Cancelled), Some(JobState::Done)];
    let of = |outcome: Option<JobState>| jobs.iter().filter(|job| job.outcome == outcome).count();
    let counts = states.map(|outcome| (outcome, of(outcome)));
    jobs.sort_by_key(|job| states.iter().position(|outcome| *outcome == job.outcome));
    html! {
        p {
            @for (position, (outcome, count)) in counts.iter().filter(|(_, count)| *count > 0).enumerate() {
                @if position > 0 { ", " }
                (least) (number(*count as u64)) " " (words(*outcome))
            }
            "."
        }
        ul {
            @for Predecessor { job, only_done, outcome } in jobs.iter().take(MAX_SHOWN) {
                li {
                    (link(visit, *job)) " " (words(*outcome))
                    @if *only_done && outcome.is_none() { ", must be done" }
                }
            }
        }
        @if jobs.len() > MAX_SHOWN { p { "These are " (MAX_SHOWN) " of them: first those that have not ended." } }
    }
}

fn words(outcome: Option<JobState>) -> &'static str {
    outcome.map_or("not ended", JobState::as_str)
}
