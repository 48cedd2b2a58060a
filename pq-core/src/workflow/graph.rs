//! The graph of a workflow with the states of its jobs, and drawings of it.

use std::collections::HashMap;
use std::fmt::Write as _;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{MAX_JOBS, OnFailure, Plan, WORKFLOWS, WorkflowJob};
use crate::{Error, Filter, JobId, JobRecord, JobResult, JobState, Store};

/// An edge of a workflow, of a job that waits: the job before it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Edge {
    /// The name of the job before.
    pub name: String,
    /// Whether that job must be done. Otherwise it must have ended.
    pub only_done: bool,
}

/// A workflow with its jobs. See [`crate::Pq::workflow`] and [`super::Workflow::graph`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct WorkflowGraph {
    /// The id. `None` before the workflow is put.
    pub id: Option<JobId>,
    /// The name.
    pub name: String,
    /// What follows when a job fails the workflow.
    pub on_failure: OnFailure,
    /// The state of the job that stands for the workflow: scheduled until the last job has ended, and then done, dead
    /// or cancelled.
    pub state: Option<JobState>,
    /// Why the workflow is dead or cancelled.
    pub error: Option<String>,
    /// The jobs, each behind those for which it waits.
    pub jobs: Vec<WorkflowNode>,
}

/// A job of a workflow.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct WorkflowNode {
    /// The name.
    pub name: String,
    /// The name of the task.
    pub task: Option<String>,
    /// The jobs before it.
    pub after: Vec<Edge>,
    /// The id. `None` before the workflow is put, and when the job is not kept any more.
    pub id: Option<JobId>,
    /// The state.
    pub state: Option<JobState>,
    /// Whether it waits for other jobs.
    pub is_held: bool,
    /// The error of its last attempt, or the reason why it ended.
    pub error: Option<String>,
    /// The task that undoes it.
    pub undo: Option<String>,
    /// The last call that was put to undo it.
    pub undone_by: Option<JobId>,
    /// The state of that call.
    pub undo_state: Option<JobState>,
}

impl WorkflowNode {
    /// Returns the state as a word: `waiting` for other jobs, or that of [`JobState`], or `gone` if the job is not
    /// kept any more.
    #[must_use]
    pub fn status(&self) -> &'static str {
        match self.state {
            Some(JobState::Scheduled) if self.is_held => "waiting",
            Some(state) => state.as_str(),
            None => "gone",
        }
    }

    /// Returns what becomes or became of the undoing of the job. `None` if no call for that was put.
    fn undo_status(&self) -> Option<&'static str> {
        self.undo_state.map(|state| match state {
            JobState::Done => "undone",
            JobState::Dead => "undoing is dead",
            JobState::Cancelled => "undoing was cancelled",
            _ => "being undone",
        })
    }
}

/// The number of jobs that are read at a time: with those that undo others, which each undoing adds.
const MAX_MEMBERS: usize = 4 * MAX_JOBS;

/// The number of levels of a tree that are indented.
const MAX_INDENTED: u32 = 30;
/// The number of other jobs before a job that its line in a tree names.
const MAX_OTHERS: usize = 10;

impl WorkflowGraph {
    /// Returns the graph of a workflow that is not put yet.
    pub(super) fn of_plan(plan: &Plan) -> Self {
        let node = |job: &super::PlannedJob| WorkflowNode {
            name: job.name.clone(),
            task: job.task.clone(),
            after: job.after.clone(),
            undo: job.undo.as_ref().map(|undo| undo.task.clone().unwrap_or_default()),
            ..WorkflowNode::default()
        };
        Self {
            id: None,
            name: plan.workflow.clone(),
            on_failure: plan.on_failure,
            state: None,
            error: None,
            jobs: plan.jobs.iter().map(node).collect(),
        }
    }

    /// Adds the states of the jobs, and of those that undo them unless the jobs were requeued since.
    fn fill(&mut self, members: &[JobRecord], is_undone: bool) {
        let positions: HashMap<String, usize> =
            self.positions().into_iter().map(|(name, position)| (name.to_owned(), position)).collect();
        for member in members {
            let Some(place) = member.annotations.workflow() else { continue };
            let Some(position) = positions.get(&place.name) else { continue };
            let node = &mut self.jobs[*position];
            if place.undoes && !is_undone {
                continue;
            }
            if place.undoes {
                (node.undone_by, node.undo_state) = (Some(member.id), Some(member.state));
            } else if node.id.is_none_or(|id| id < member.id) {
                node.id = Some(member.id);
                node.state = Some(member.state);
                node.is_held = member.is_held();
                node.error.clone_from(&member.error);
            }
        }
    }

    /// Returns the status of the workflow as a word: `running` until its last job has ended.
    #[must_use]
    pub fn status(&self) -> &'static str {
        self.state.map_or("not put", |state| if state.is_ended() { state.as_str() } else { "running" })
    }

    /// Returns the graph as an indented tree with the states, a line for each job.
    ///
    /// A job that waits for several is below the last of them, and names the first others. Below the 30th level
    /// nothing is indented further.
    #[must_use]
    pub fn tree(&self) -> String {
        let id = self.id.map(|id| format!(" {id}")).unwrap_or_default();
        let mut text = format!("workflow{id} {:?}: {}\n", self.name, self.status());
        let positions = self.positions();
        // Those below each job, and behind them those below none.
        let mut below = vec![Vec::new(); self.jobs.len() + 1];
        for (position, node) in self.jobs.iter().enumerate() {
            let parent = node.after.iter().filter_map(|edge| positions.get(&*edge.name)).max();
            below[*parent.unwrap_or(&self.jobs.len())].push(position);
        }
        self.add_branches(&mut text, &below, self.jobs.len(), "", 0);
        text
    }

    /// Adds the jobs below `parent`, which is behind the last job if they are below none.
    fn add_branches(&self, text: &mut String, below: &[Vec<usize>], parent: usize, indent: &str, level: u32) {
        let name = self.jobs.get(parent).map(|node| &*node.name);
        for (index, position) in below[parent].iter().enumerate() {
            let is_last = index + 1 == below[parent].len();
            let (branch, deeper) = if is_last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
            let _ = writeln!(text, "{indent}{branch}{}", self.line(&self.jobs[*position], name));
            let deeper = if level < MAX_INDENTED { format!("{indent}{deeper}") } else { indent.to_owned() };
            self.add_branches(text, below, *position, &deeper, level + 1);
        }
    }

    /// Returns the line of a job that is below `parent`.
    fn line(&self, node: &WorkflowNode, parent: Option<&str>) -> String {
        let mut line = node.name.clone();
        if let Some(id) = node.id {
            let _ = write!(line, " ({id})");
        }
        if self.id.is_some() {
            let _ = write!(line, ": {}", node.status());
        }
        if let Some(error) = node.error.as_ref().filter(|_| node.state != Some(JobState::Done)) {
            let _ = write!(line, ", {}", error.lines().next().unwrap_or_default());
        }
        if let (Some(status), Some(id)) = (node.undo_status(), node.undone_by) {
            let _ = write!(line, ", {status} ({id})");
        }
        let others: Vec<&str> =
            node.after.iter().map(|edge| &*edge.name).filter(|name| Some(*name) != parent).collect();
        let more = others.len().saturating_sub(MAX_OTHERS);
        if more > 0 {
            let _ = write!(line, " [also after {} and {more} more]", others[..MAX_OTHERS].join(", "));
        } else if !others.is_empty() {
            let _ = write!(line, " [also after {}]", others.join(", "));
        }
        if node.after.iter().any(|edge| !edge.only_done && Some(&*edge.name) == parent) {
            line.push_str(" [whatever the outcome]");
        }
        line
    }

    /// Returns the graph in DOT, for Graphviz. An edge that allows any outcome is dashed.
    #[must_use]
    pub fn dot(&self) -> String {
        let quoted = |text: &str| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
        let mut text = format!(
            "digraph {} {{\n    rankdir=LR;\n    node [shape=box, style=\"rounded,filled\", fillcolor=white];\n",
            quoted(&self.name)
        );
        for (index, node) in self.jobs.iter().enumerate() {
            let label =
                self.label(node).map(|line| quoted(&line)).map(|line| line[1..line.len() - 1].to_owned());
            let label = label.collect::<Vec<_>>().join("\\n");
            let fill = color(node.state).map(|color| format!(", fillcolor=\"{color}\"")).unwrap_or_default();
            let _ = writeln!(text, "    j{index} [label=\"{label}\"{fill}];");
        }
        for (from, to, only_done) in self.edges() {
            let style = if only_done { "" } else { " [style=dashed]" };
            let _ = writeln!(text, "    j{from} -> j{to}{style};");
        }
        text.push_str("}\n");
        text
    }

    /// Returns the graph as a Mermaid flowchart. An edge that allows any outcome is dotted.
    #[must_use]
    pub fn mermaid(&self) -> String {
        let escaped = |text: &str| {
            text.replace('&', "&amp;").replace('"', "&quot;").replace('<', "&lt;").replace('>', "&gt;")
        };
        let mut text = "flowchart LR\n".to_owned();
        for (index, node) in self.jobs.iter().enumerate() {
            let label = self.label(node).map(|line| escaped(&line)).collect::<Vec<_>>().join("<br/>");
            let _ = writeln!(text, "    j{index}[\"{label}\"]");
        }
        for (from, to, only_done) in self.edges() {
            let _ = writeln!(text, "    j{from} {} j{to}", if only_done { "-->" } else { "-.->" });
        }
        for (index, node) in self.jobs.iter().enumerate() {
            if let Some(color) = color(node.state) {
                let _ = writeln!(text, "    style j{index} fill:{color}");
            }
        }
        text
    }

    /// Returns the lines of the label of a job: its name, and its id with its state.
    fn label<'g>(&self, node: &'g WorkflowNode) -> impl Iterator<Item = String> + use<'g> {
        let status = self.id.map(|_| match node.id {
            Some(id) => format!("{id}: {}", node.status()),
            None => node.status().to_owned(),
        });
        let one_line = |text: &str| text.replace(char::is_control, " ");
        [Some(one_line(&node.name)), status, node.undo_status().map(str::to_owned)].into_iter().flatten()
    }

    /// Returns the edges: the positions of the job before and of the one that waits, and whether the first must be
    /// done.
    fn edges(&self) -> Vec<(usize, usize, bool)> {
        let positions = self.positions();
        let nodes = self.jobs.iter().enumerate();
        let edges = nodes.flat_map(|(to, node)| node.after.iter().map(move |edge| (to, edge)));
        let known = |(to, edge): (usize, &Edge)| Some((*positions.get(&*edge.name)?, to, edge.only_done));
        edges.filter_map(known).collect()
    }

    fn positions(&self) -> HashMap<&str, usize> {
        self.jobs.iter().enumerate().map(|(position, node)| (&*node.name, position)).collect()
    }
}

/// Returns the colour of a job in a drawing.
fn color(state: Option<JobState>) -> Option<&'static str> {
    Some(match state? {
        JobState::Done => "#b7e1b0",
        JobState::Dead => "#f2b0a9",
        JobState::Cancelled => "#d9d9d9",
        JobState::Running | JobState::Dequeued => "#b3d4f5",
        JobState::Ready | JobState::Blocked | JobState::Scheduled => return None,
    })
}

/// A workflow with its stored graph and its jobs.
pub(crate) type Found = (WorkflowGraph, Plan, Vec<JobRecord>);

/// Reads the workflow with this id, or that of the job with this id.
pub(crate) fn read<S: Store>(store: &S, conn: &mut S::Conn, id: JobId) -> Result<Option<Found>, S::Error> {
    let mut found = store.list(conn, &Filter::id(id), 1)?.pop();
    if let Some(place) = found.as_ref().and_then(|job| job.annotations.workflow()) {
        found = store.list(conn, &Filter::id(place.id), 1)?.pop();
    }
    let own = found.filter(|job| job.queue.as_str() == WORKFLOWS);
    let Some((own, plan)) = own.and_then(|own| Plan::read(&own.payload).map(|plan| (own, plan))) else {
        return Ok(None);
    };
    let members = members(store, conn, own.id)?;
    let mut graph = WorkflowGraph::of_plan(&plan);
    (graph.id, graph.state, graph.error) = (Some(own.id), Some(own.state), own.error);
    graph.fill(&members, plan.is_undone);
    Ok(Some((graph, plan, members)))
}

/// Returns the jobs of a workflow, by their ids, without payloads, results and logs.
pub(super) fn members<S: Store>(
    store: &S,
    conn: &mut S::Conn,
    id: JobId,
) -> Result<Vec<JobRecord>, S::Error> {
    let mut members = Vec::new();
    loop {
        let after = members.last().map(|job: &JobRecord| job.id);
        let page = store.members(conn, id, after, MAX_MEMBERS)?;
        let is_last = page.len() < MAX_MEMBERS;
        members.extend(page);
        if is_last {
            return Ok(members);
        }
    }
}

impl WorkflowJob {
    /// Selects the job with this name, and those that undo it, if they have ended: what another job of the workflow
    /// reads in most cases. So the payloads of leases are not looked through.
    pub fn ended(workflow: JobId, name: &str) -> Filter {
        let filter = Filter::default().workflow_job(workflow, name);
        [JobState::Done, JobState::Dead, JobState::Cancelled].into_iter().fold(filter, Filter::state)
    }

    /// Returns whether this is a job of a workflow, and not one that undoes another.
    #[must_use]
    pub fn is_own(job: &JobRecord) -> bool {
        job.annotations.workflow().is_some_and(|place| !place.undoes)
    }

    /// Returns what became of a job of a workflow, for a crate with connections of another kind.
    ///
    /// `found` are the jobs that [`Filter::workflow_job`] selects. `own` is the job that stands for the workflow,
    /// which tells a name that no job has from a job that is not kept any more. It is needed only if none is found.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidSetting`] for an unknown name; [`Error::InvalidResult`].
    pub fn result<R: DeserializeOwned>(
        workflow: JobId,
        name: &str,
        found: &[JobRecord],
        own: Option<&JobRecord>,
    ) -> Result<JobResult<R>, Error> {
        let found = found.iter().rfind(|job| Self::is_own(job));
        if let (None, Some(plan)) = (found, own.and_then(|own| Plan::read(&own.payload)))
            && !plan.jobs.iter().any(|job| job.name == name)
        {
            return Err(unknown(workflow, name, &plan));
        }
        JobResult::of(found)
    }
}

/// Returns the error for a name that no job of the workflow has.
pub(crate) fn unknown(workflow: JobId, name: &str, plan: &Plan) -> Error {
    let known: Vec<&str> = plan.jobs.iter().map(|job| &*job.name).collect();
    Error::InvalidSetting(format!(
        "unknown job {name:?} of workflow {workflow}; expected {}",
        known.join(", ")
    ))
}
