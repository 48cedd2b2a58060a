use super::*;
use crate::memory::MemoryStore;
use crate::{JobState, Pq, Task};

type Result<T = ()> = std::result::Result<T, Error>;

fn task() -> Result<Task<MemoryStore, u32>> {
    Ok(Pq::new(MemoryStore::new()).queue("q")?.task("t"))
}

fn workflow() -> Result<Workflow> {
    let task = task()?;
    let workflow =
        Workflow::new("order \"7\"").job("stock", &task, &1).job("charge", &task, &1).undo(&task, &2);
    let workflow = workflow.job("pack", &task, &1).after(["stock", "charge"]);
    Ok(workflow.job("report", &task, &1).after_any_outcome(["pack"]))
}

fn with_states() -> Result<WorkflowGraph> {
    let mut graph = workflow()?.graph()?;
    graph.id = Some(JobId(10));
    graph.state = Some(JobState::Scheduled);
    let states = [JobState::Running, JobState::Done, JobState::Dead, JobState::Scheduled];
    for ((node, state), id) in graph.jobs.iter_mut().zip(states).zip(11..) {
        (node.id, node.state, node.is_held) = (Some(JobId(id)), Some(state), state == JobState::Scheduled);
    }
    graph.jobs[2].error = Some("no <box>\nleft".to_owned());
    graph.jobs[1].undone_by = Some(JobId(15));
    graph.jobs[1].undo_state = Some(JobState::Done);
    Ok(graph)
}

#[test]
fn a_tree_shows_each_job_once_below_the_last_one_before_it() -> Result {
    assert_eq!(
        workflow()?.graph()?.tree(),
        "workflow \"order \\\"7\\\"\": not put\n\
         ├─ stock\n\
         └─ charge\n   \
            └─ pack [also after stock]\n      \
               └─ report [whatever the outcome]\n"
    );
    assert_eq!(
        with_states()?.tree(),
        "workflow 10 \"order \\\"7\\\"\": running\n\
         ├─ stock (11): running\n\
         └─ charge (12): done, undone (15)\n   \
            └─ pack (13): dead, no <box> [also after stock]\n      \
               └─ report (14): waiting [whatever the outcome]\n"
    );
    Ok(())
}

#[test]
fn a_graph_is_drawn_in_dot() -> Result {
    assert_eq!(
        with_states()?.dot(),
        "digraph \"order \\\"7\\\"\" {\n    \
             rankdir=LR;\n    \
             node [shape=box, style=\"rounded,filled\", fillcolor=white];\n    \
             j0 [label=\"stock\\n11: running\", fillcolor=\"#b3d4f5\"];\n    \
             j1 [label=\"charge\\n12: done\\nundone\", fillcolor=\"#b7e1b0\"];\n    \
             j2 [label=\"pack\\n13: dead\", fillcolor=\"#f2b0a9\"];\n    \
             j3 [label=\"report\\n14: waiting\"];\n    \
             j0 -> j2;\n    j1 -> j2;\n    j2 -> j3 [style=dashed];\n}\n"
    );
    Ok(())
}

#[test]
fn a_graph_is_drawn_for_mermaid() -> Result {
    assert_eq!(
        workflow()?.graph()?.mermaid(),
        "flowchart LR\n    j0[\"stock\"]\n    j1[\"charge\"]\n    j2[\"pack\"]\n    j3[\"report\"]\n    \
             j0 --> j2\n    j1 --> j2\n    j2 -.-> j3\n"
    );
    assert!(with_states()?.mermaid().ends_with("    style j2 fill:#f2b0a9\n"));
    Ok(())
}

#[test]
fn an_undo_with_a_time_is_refused() -> Result {
    let task = task()?.with_defaults(CallOptions::new().schedule_at("1h"));
    let refused = workflow()?.undo(&task, &1).check().map_err(|error| error.to_string());
    assert!(
        refused.as_ref().is_err_and(|refused| refused.contains("undo: invalid undo of a job")),
        "{refused:?}"
    );
    Ok(())
}
