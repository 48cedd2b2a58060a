//! The jobs of a workflow as a tree, with the actions on the whole and on each.

use std::collections::{BTreeMap, HashMap};

use maud::{Markup, html};
use pq_diesel::{Edge, JobId, JobState, WORKFLOWS, WorkflowGraph, WorkflowJob, WorkflowNode};

use crate::database::Unread;
use crate::form::{button, button_on};
use crate::html::{beginning, number, text, with_query};
use crate::page::{Visit, panel};

/// The path of the list of workflows.
pub(crate) const LIST: &str = "/jobs?queue=pq.workflows";

/// The largest number of jobs on a page.
const MAX_JOBS: usize = 100;

/// The largest number of jobs that are named as those before one.
const MAX_BEFORE: usize = 5;

/// The deepest indentation. A job below it says of which ones it comes after.
const MAX_DEPTH: usize = 8;

/// The largest part of a name and of an error in the table, in characters.
const MAX_CHARS: usize = 120;

/// Draws the link from a job of a workflow to the workflow.
pub(super) fn link(visit: &Visit, place: &WorkflowJob) -> Markup {
    html! {
        a href=(visit.url(&format!("/job/{}", place.id))) { "workflow " (place.id) }
        @if place.undoes { ", undoes " } @else { ", as " }
        (text(&place.name))
    }
}

/// Draws the buttons for the whole workflow.
pub(super) fn actions(visit: &Visit, id: JobId, state: JobState) -> Markup {
    let to = |action: &str| format!("/job/{id}/{action}");
    html! {
        section aria-label="Actions" { div class="buttons" {
            @if matches!(state, JobState::Dead | JobState::Cancelled) {
                (button(visit, &to("retry-workflow"), &[], "Retry the workflow…", ""))
            }
            @if !state.is_ended() { (button(visit, &to("cancel-workflow"), &[], "Cancel the workflow…", "danger")) }
        } }
    }
}

/// Draws the workflow from the line `from` of its tree on. Returns nothing if the job is no workflow after all.
pub(super) fn draw(visit: &Visit, read: Result<Option<WorkflowGraph>, Unread>, from: usize) -> Markup {
    match read {
        Ok(Some(graph)) => panel("workflow", "Jobs of the workflow", Ok(drawn(visit, &graph, from))),
        Ok(None) => html! {},
        Err(unread) => panel("workflow", "Jobs of the workflow", Err(unread)),
    }
}

fn drawn(visit: &Visit, graph: &WorkflowGraph, from: usize) -> Markup {
    let Some(id) = graph.id else { return html! {} };
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    for node in &graph.jobs {
        *counts.entry(node.status()).or_default() += 1;
    }
    let can_retry = visit.can_act && graph.jobs.iter().all(|node| !is_being_undone(node));
    let tree = Tree::new(graph);
    let shown = tree.lines.iter().skip(from).take(MAX_JOBS);
    let page = |from: usize| visit.url(&with_query(&format!("/job/{id}"), &[("from", &from.to_string())]));
    html! {
        dl {
            dt { "name" } dd { (text(&graph.name)) }
            dt { "status" } dd { span class={ "tag " (graph.status()) } { (graph.status()) } }
            dt { "if a job fails" } dd { (graph.on_failure.as_str()) }
            dt { "jobs" }
            dd {
                @for (position, (status, jobs)) in counts.iter().enumerate() {
                    @if position > 0 { ", " }
                    (number(*jobs)) " " (status)
                }
            }
        }
        div class="wide" tabindex="0" role="region" aria-label="Jobs of the workflow" { table {
            thead { tr {
                @for name in ["Job", "State", "After", "Error", "Undo"] { th scope="col" { (name) } }
                @if can_retry { th scope="col" { "Retry" } }
            } }
            tbody { @for (depth, node) in shown { (row(visit, id, &tree, *depth, node, can_retry)) } }
        } }
        @if graph.jobs.len() > MAX_JOBS {
            nav aria-label="Pages of the workflow" class="buttons" {
                span { "Jobs " (number(from as u64 + 1)) " to " (number(graph.jobs.len().min(from + MAX_JOBS) as u64))
                    " of " (number(graph.jobs.len() as u64)) }
                @if from > 0 { a href=(page(from.saturating_sub(MAX_JOBS))) rel="prev" { "Earlier jobs" } }
                @if from + MAX_JOBS < graph.jobs.len() { a href=(page(from + MAX_JOBS)) rel="next" { "Later jobs" } }
            }
        }
        p { a href=(visit.url(&with_query("/jobs", &[("workflow", &id.to_string())]))) { "These jobs as a list" } }
    }
}

fn is_being_undone(node: &WorkflowNode) -> bool {
    node.undo_state.is_some_and(|state| !state.is_ended())
}

/// Draws a job, and a button to run it again with what comes after it if it has ended.
fn row(
    visit: &Visit,
    id: JobId,
    tree: &Tree<'_>,
    depth: usize,
    node: &WorkflowNode,
    can_retry: bool,
) -> Markup {
    let has_ended = node.state.is_some_and(JobState::is_ended);
    html! { tr {
        th scope="row" class="tree" {
            @for _ in 0..depth.min(MAX_DEPTH) { span class="indent" aria-hidden="true" {} }
            (job(visit, node.id, &beginning(&node.name, MAX_CHARS)))
        }
        td { span class={ "tag " (node.status()) } { (node.status()) } }
        td { (before(visit, tree, node)) }
        @let error = node.error.as_deref().filter(|_| node.state != Some(JobState::Done));
        td class=[error.is_some().then_some("long")] { @if let Some(error) = error { (beginning(error, MAX_CHARS)) } }
        td {
            @match (node.undone_by, node.undo_state, &node.undo) {
                (Some(by), Some(state), task) => {
                    (job(visit, Some(by), &html! { (beginning(task.as_deref().unwrap_or("call"), MAX_CHARS)) }))
                    ": " (state.as_str())
                },
                (_, _, Some(task)) => (beginning(task, MAX_CHARS)),
                _ => {}
            }
        }
        @if can_retry { td { @if has_ended {
            @let path = with_query(&format!("/job/{id}/retry-from-job"), &[("job", &node.name)]);
            (button_on(visit, &path, &[], "Retry from here…", "danger", &node.name))
        } } }
    } }
}

/// Draws the jobs before one: of a job that waits, first those for which it waits.
fn before(visit: &Visit, tree: &Tree<'_>, node: &WorkflowNode) -> Markup {
    let waits_for = |edge: &Edge| {
        let state = tree.node(&edge.name).and_then(|before| before.state);
        node.is_held && state.is_some_and(|state| !state.is_ended())
    };
    let mut edges: Vec<&Edge> = node.after.iter().collect();
    edges.sort_by_key(|edge| !waits_for(edge));
    let more = edges.len().saturating_sub(MAX_BEFORE);
    html! {
        @for (position, edge) in edges.iter().take(MAX_BEFORE).enumerate() {
            @if position > 0 { ", " }
            @let before = tree.node(&edge.name);
            (job(visit, before.and_then(|before| before.id), &beginning(&edge.name, MAX_CHARS)))
            @if let Some(before) = before.filter(|_| waits_for(edge)) { " (" (before.status()) ")" }
            @if !edge.only_done { " (any outcome)" }
        }
        @if more > 0 { " and " (number(more as u64)) " more" }
    }
}

/// Draws a link to a job, or only its words if it is not known.
fn job(visit: &Visit, id: Option<JobId>, words: &Markup) -> Markup {
    html! {
        @match id {
            Some(id) => a href=(visit.url(&format!("/job/{id}"))) { (words) },
            None => (words),
        }
    }
}

/// The jobs of a workflow in the order of its tree, each below the last of those before it.
struct Tree<'g> {
    /// Each job with its depth.
    lines: Vec<(usize, &'g WorkflowNode)>,
    nodes: &'g [WorkflowNode],
    positions: HashMap<&'g str, usize>,
}

impl<'g> Tree<'g> {
    fn new(graph: &'g WorkflowGraph) -> Self {
        let nodes = &graph.jobs[..];
        let positions: HashMap<&str, usize> =
            nodes.iter().enumerate().map(|(position, node)| (&*node.name, position)).collect();
        let parent = |node: &WorkflowNode| {
            node.after.iter().filter_map(|edge| positions.get(&*edge.name).copied()).max()
        };
        let (mut children, mut roots) = (vec![Vec::new(); nodes.len()], Vec::new());
        for (position, node) in nodes.iter().enumerate() {
            match parent(node) {
                Some(parent) => children[parent].push(position),
                None => roots.push(position),
            }
        }
        // The next line is at the end.
        let mut open: Vec<(usize, usize)> = roots.into_iter().rev().map(|position| (0, position)).collect();
        let mut lines = Vec::with_capacity(nodes.len());
        while let Some((depth, position)) = open.pop() {
            lines.push((depth, &nodes[position]));
            open.extend(children[position].iter().rev().map(|child| (depth + 1, *child)));
        }
        Self { lines, nodes, positions }
    }

    fn node(&self, name: &str) -> Option<&'g WorkflowNode> {
        self.positions.get(name).map(|position| &self.nodes[*position])
    }
}

/// Returns whether jobs of a queue stand for workflows. The payload of one is not shown: it contains those of the
/// calls that undo jobs as texts, in which no field is masked.
pub(super) fn is_workflow(queue: &str) -> bool {
    queue == WORKFLOWS
}
