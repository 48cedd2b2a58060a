//! Workflows: graphs of named jobs.

use std::collections::BTreeMap;
use std::time::Duration;

use pq_core::store::{Archive, Connect, TimeTravel};
use pq_core::{
    CallOptions, ChangeOutcome, Filter, JobId, JobResult, JobState, OnFailure, Operation, Outcome, Retention,
    Task, WORKFLOWS, Wait, Worker, Workflow, WorkflowGraph, WorkflowJob,
};
use serde_json::Value;

use super::cases;
use crate::Fixture;
use crate::harness::{CaseError, Harness, Seen, TIMEOUT, roll_back, task};

cases![
    a_workflow_runs_its_jobs_in_the_order_of_its_edges: Own,
    a_handler_reads_the_results_of_jobs_of_its_workflow: Own,
    a_workflow_is_put_by_the_callers_transaction: Own,
    a_graph_that_cannot_run_is_refused: Own,
    a_failed_job_stops_the_rest: Own,
    a_stop_asks_running_jobs_to_end: Own,
    a_stop_reaches_a_job_that_a_transaction_returns: Own,
    a_workflow_continues_where_the_failed_job_is_not_needed: Own,
    a_failure_that_another_job_handles_fails_no_workflow: Own,
    done_jobs_are_undone_in_reverse_order: Own,
    jobs_are_undone_once_by_many_that_maintain: Own,
    a_workflow_that_is_done_undoes_nothing: Own,
    a_cancelled_workflow_ends_when_its_jobs_have_ended: Own,
    a_workflow_is_deleted_with_its_jobs_when_it_has_ended: Own,
    a_cancelled_workflow_undoes_its_jobs: Own,
    a_job_adds_jobs_to_its_workflow: Own,
    a_job_of_a_workflow_waits_for_one_outside_of_it: Own,
    a_run_until_empty_does_not_end_before_a_decision: Own,
];

pub(super) type Names = Vec<String>;

fn eat<F: Fixture>(harness: &Harness<F>) -> Task<F::Store, u32> {
    task(harness)
}

/// Returns a workflow of jobs and of those before them that must be done.
pub(super) fn graph<F: Fixture>(harness: &Harness<F>, edges: &[(&str, &[&str])]) -> Workflow {
    let eat = eat(harness);
    edges.iter().fold(Workflow::new("meal"), |workflow, (name, after)| {
        workflow.job(*name, &eat, &1).after(after.iter().copied())
    })
}

/// Returns a diamond: `a`, then `b` and `c`, then `d`.
pub(super) fn diamond<F: Fixture>(harness: &Harness<F>) -> Workflow {
    graph(harness, &[("a", &[]), ("b", &["a"]), ("c", &["a"]), ("d", &["b", "c"])])
}

pub(super) fn maintain<F: Fixture>(harness: &Harness<F>) {
    while harness.pq.maintain(&Retention::default()).unwrap().is_none_or(|report| report.more) {}
}

fn place(job: &pq_core::JobRecord) -> WorkflowJob {
    job.annotations.workflow().unwrap()
}

/// Runs what is ready, a round after the other, and returns the names in order. Jobs with these names end so, and all
/// others are completed.
pub(super) fn run<F: Fixture>(harness: &Harness<F>, outcomes: &[(&str, Outcome)]) -> Names {
    let mut names = Vec::new();
    loop {
        maintain(harness);
        let jobs = harness.queue().lease(100, TIMEOUT, Wait::No).unwrap();
        if jobs.is_empty() {
            return names;
        }
        for job in jobs {
            let WorkflowJob { name, undoes, .. } = place(&job);
            let name = if undoes { format!("undo {name}") } else { name };
            let outcome = outcomes.iter().find(|(known, _)| *known == name);
            harness
                .queue()
                .settle(&job, outcome.map_or(Outcome::Complete, |(_, outcome)| outcome.clone()))
                .unwrap();
            names.push(name);
        }
    }
}

pub(super) fn dead() -> Outcome {
    Outcome::dead("broken")
}

pub(super) fn found<F: Fixture>(harness: &Harness<F>, id: JobId) -> WorkflowGraph {
    harness.pq.workflow(id).unwrap().unwrap()
}

/// Returns the states of the jobs by name, and of the workflow as ``.
pub(super) fn statuses<F: Fixture>(harness: &Harness<F>, id: JobId) -> BTreeMap<String, &'static str> {
    let graph = found(harness, id);
    let own = (String::new(), graph.status());
    graph.jobs.iter().map(|node| (node.name.clone(), node.status())).chain([own]).collect()
}

pub(super) fn assert_statuses<F: Fixture>(harness: &Harness<F>, id: JobId, expected: &[(&str, &str)]) {
    let found = statuses(harness, id);
    let expected = expected.iter().map(|(name, status)| ((*name).to_owned(), *status)).collect();
    assert_eq!(found, expected);
}

pub(super) fn id_of<F: Fixture>(harness: &Harness<F>, id: JobId, name: &str) -> JobId {
    found(harness, id).jobs.iter().find(|node| node.name == name).and_then(|node| node.id).unwrap()
}

fn error_of<F: Fixture>(harness: &Harness<F>, id: JobId, name: &str) -> String {
    found(harness, id).jobs.iter().find(|node| node.name == name).and_then(|node| node.error.clone()).unwrap()
}

pub(super) fn change<F: Fixture>(harness: &Harness<F>, id: JobId, operation: &Operation) {
    assert!(harness.pq.change(id, operation).unwrap().is_accepted());
}

fn a_workflow_runs_its_jobs_in_the_order_of_its_edges<F: Fixture>(harness: &Harness<F>) {
    let eat = eat(harness);
    // Named before it is added.
    let workflow =
        Workflow::new("meal").job("last", &eat, &1).after(["second", "first"]).job("second", &eat, &2);
    let id = harness.pq.put_workflow(&workflow.after(["first"]).job("first", &eat, &3)).unwrap();
    assert_statuses(
        harness,
        id,
        &[("", "running"), ("first", "ready"), ("second", "waiting"), ("last", "waiting")],
    );
    assert_eq!(harness.pq.find(id).unwrap().unwrap().queue.as_str(), WORKFLOWS);
    assert_eq!(run(harness, &[]), ["first", "second", "last"]);
    assert_statuses(harness, id, &[("", "done"), ("first", "done"), ("second", "done"), ("last", "done")]);
    assert_eq!(harness.pq.wait_for::<()>(id, Wait::No).unwrap(), JobResult::Done(()));
    assert_eq!(harness.pq.workflow(id_of(harness, id, "last")).unwrap().unwrap().id, Some(id));
    let other = harness.put("other");
    assert_eq!(harness.pq.workflow(other).unwrap(), None);
    let selected = harness.pq.list(&Filter::default().workflow(id), 10).unwrap();
    assert_eq!(selected.len(), 3);
}

fn a_handler_reads_the_results_of_jobs_of_its_workflow<F: Fixture>(harness: &Harness<F>) {
    let (add, double) = (
        harness.named::<()>("apples").task::<u32>("add"),
        harness.named::<()>("apples").task::<()>("double"),
    );
    let workflow = Workflow::new("sum").job("one", &add, &20).job("two", &add, &22).job("both", &double, &());
    let id = harness.pq.put_workflow(&workflow.after(["one", "two"])).unwrap();
    let adds = add.leased(|_, job| Outcome::result(&job.data));
    let seen = Seen::new();
    let errors = seen.clone();
    let doubles = double.leased(move |context, _| {
        let of = |name: &str| context.result_of::<u32>(name).map(|result| result.done().unwrap_or_default());
        errors.push(context.result_of::<u32>("three").unwrap_err().to_string());
        Outcome::result(&(2 * (of("one")? + of("two")?))).map_err(|error| CaseError(error.to_string()))
    });
    let worker = Worker::new(&harness.pq).serve(adds).serve(doubles);
    assert_eq!(worker.run_jobs(3).unwrap().done, 3);
    assert_eq!(harness.pq.workflow_result::<u32>(id, "both").unwrap(), JobResult::Done(84));
    assert_eq!(seen.all(), [format!("unknown job \"three\" of workflow {id}; expected one, two, both")]);
}

fn a_workflow_is_put_by_the_callers_transaction<F: Fixture>(harness: &Harness<F>) {
    let workflow = diamond(harness);
    let undone = harness.pq.transaction(|conn| {
        harness.pq.put_workflow_on(conn, &workflow)?;
        roll_back::<()>()
    });
    assert!(undone.is_err());
    assert_eq!(harness.pq.list(&Filter::default(), 10).unwrap(), []);
    let mut conn = harness.connect();
    let id = harness
        .nested(&mut conn, |conn| {
            let id = harness.pq.put_workflow_on(conn, &workflow)?;
            assert_eq!(harness.pq.workflow_on(conn, id)?.unwrap().jobs.len(), 4);
            maintain(harness);
            assert!(harness.pq.workflow(id)?.is_none(), "it is not committed");
            Ok(id)
        })
        .unwrap();
    assert_eq!(run(harness, &[]), ["a", "b", "c", "d"]);
    assert_eq!(statuses(harness, id)[""], "done");
}

fn a_graph_that_cannot_run_is_refused<F: Fixture>(harness: &Harness<F>) {
    let eat = eat(harness);
    let one = |options: &CallOptions| Workflow::new("meal").job_with("a", &eat, &1, options);
    let long = "n".repeat(129);
    let own = harness.named::<()>(WORKFLOWS).task::<u32>("eat");
    let cases = [
        (graph(harness, &[]), "it must have 1 to 1000 jobs, and has 0"),
        (graph(harness, &[("a", &["b"])]), "job \"a\" waits for \"b\", which is no job of it"),
        (graph(harness, &[("a", &[]), ("a", &[])]), "two jobs have the name \"a\""),
        (graph(harness, &[("a", &["a"])]), "its jobs wait for each other: \"a\" after \"a\""),
        (
            graph(harness, &[("x", &[]), ("a", &["x", "c"]), ("b", &["a"]), ("c", &["b"])]),
            "its jobs wait for each other: \"a\" after \"c\" after \"b\" after \"a\"",
        ),
        (graph(harness, &[("", &[])]), "the name \"\" of a job must have 1 to 128 bytes"),
        (graph(harness, &[(&long, &[])]), "of a job must have 1 to 128 bytes"),
        (Workflow::new("").job("a", &eat, &1), "its name must have 1 to 128 bytes"),
        (Workflow::new("meal").after(["a"]), "after must follow a job"),
        (Workflow::new("meal").undo(&eat, &1), "undo must follow a job"),
        (one(&CallOptions::new().unique("u")), "job \"a\" has a unique key"),
        (one(&CallOptions::new().in_batch(JobId(1))), "job \"a\" is in a batch"),
        (
            one(&CallOptions::new())
                .job_with("b", &eat, &1, &CallOptions::new().schedule_at("1h"))
                .after(["a"]),
            "job \"b\" has a time and waits for others",
        ),
        (one(&CallOptions::new().cost(0)), "job \"a\": invalid cost 0"),
        (
            Workflow::new("meal").job("a", &own, &1),
            "job \"a\" is in the queue \"pq.workflows\", which is that",
        ),
        (
            Workflow::new("meal").job("a", &eat, &1).undo(&own, &1),
            "job \"a\" is in the queue \"pq.workflows\"",
        ),
    ];
    for (workflow, expected) in cases {
        let refused = harness.pq.put_workflow(&workflow).unwrap_err().to_string();
        assert!(refused.starts_with("invalid workflow ") && refused.contains(expected), "{refused}");
        assert!(workflow.check().is_err());
    }
    assert_eq!(harness.pq.list(&Filter::default(), 10).unwrap(), []);
}

fn a_failed_job_stops_the_rest<F: Fixture>(harness: &Harness<F>) {
    let edges: &[(&str, &[&str])] = &[("a", &[]), ("b", &["a"]), ("x", &[]), ("y", &["x"]), ("z", &["y"])];
    let id = harness.pq.put_workflow(&graph(harness, edges)).unwrap();
    assert_eq!(run(harness, &[("a", dead())]), ["a", "x"]);
    let expected = [
        ("", "dead"),
        ("a", "dead"),
        ("b", "cancelled"),
        ("x", "done"),
        ("y", "cancelled"),
        ("z", "cancelled"),
    ];
    assert_statuses(harness, id, &expected);
    let a = id_of(harness, id, "a");
    assert_eq!(error_of(harness, id, "b"), format!("job {a}, for which it waited, is dead"));
    assert_eq!(error_of(harness, id, "z"), format!("workflow {id} was stopped: job {a} \"a\" is dead"));
    assert_eq!(found(harness, id).error, Some(format!("job {a} \"a\" is dead")));
}

fn a_stop_asks_running_jobs_to_end<F: Fixture>(harness: &Harness<F>) {
    let id = harness.pq.put_workflow(&graph(harness, &[("a", &[]), ("x", &[]), ("y", &["x"])])).unwrap();
    let jobs = harness.queue().lease(2, TIMEOUT, Wait::No).unwrap();
    harness.queue().settle(&jobs[0], dead()).unwrap();
    maintain(harness);
    assert_statuses(harness, id, &[("", "running"), ("a", "dead"), ("x", "running"), ("y", "cancelled")]);
    // Its worker has learnt that it should end.
    harness.queue().settle(&jobs[1], Outcome::GiveBack).unwrap();
    maintain(harness);
    assert_statuses(harness, id, &[("", "dead"), ("a", "dead"), ("x", "cancelled"), ("y", "cancelled")]);
}

fn a_stop_reaches_a_job_that_a_transaction_returns<F: Fixture>(harness: &Harness<F>) {
    let id = harness.pq.put_workflow(&graph(harness, &[("a", &[]), ("x", &[])])).unwrap();
    let job = harness.lease_one();
    let undone = harness.pq.transaction(|conn| {
        assert!(harness.queue().on(conn).get()?.is_some());
        harness.queue().settle(&job, dead())?;
        maintain(harness);
        roll_back::<()>()
    });
    assert!(undone.is_err());
    assert_eq!(statuses(harness, id)["x"], "ready");
    let store = harness.pq.store();
    store.with_connection(|conn| store.advance(conn, Duration::from_secs(2))).unwrap();
    maintain(harness);
    assert_statuses(harness, id, &[("", "dead"), ("a", "dead"), ("x", "cancelled")]);
}

fn a_workflow_continues_where_the_failed_job_is_not_needed<F: Fixture>(harness: &Harness<F>) {
    let edges: &[(&str, &[&str])] = &[("a", &[]), ("b", &["a"]), ("x", &[]), ("y", &["x"]), ("z", &["y"])];
    let workflow = graph(harness, edges).on_failure(OnFailure::Continue);
    let id = harness.pq.put_workflow(&workflow).unwrap();
    assert_eq!(run(harness, &[("a", dead())]), ["a", "x", "y", "z"]);
    let expected =
        [("", "dead"), ("a", "dead"), ("b", "cancelled"), ("x", "done"), ("y", "done"), ("z", "done")];
    assert_statuses(harness, id, &expected);
}

fn a_failure_that_another_job_handles_fails_no_workflow<F: Fixture>(harness: &Harness<F>) {
    let eat = eat(harness);
    for on_failure in [OnFailure::Stop, OnFailure::Continue, OnFailure::Compensate] {
        let workflow = Workflow::new("meal").job("a", &eat, &1).job("then", &eat, &1).after(["a"]);
        let workflow = workflow.job("x", &eat, &1).job("otherwise", &eat, &1).after_any_outcome(["a"]);
        let workflow = workflow.job("last", &eat, &1).after_any_outcome(["then"]).after(["otherwise"]);
        let id = harness.pq.put_workflow(&workflow.on_failure(on_failure)).unwrap();
        assert_eq!(run(harness, &[("a", dead())]), ["a", "x", "otherwise", "last"]);
        let expected = [
            ("", "done"),
            ("a", "dead"),
            ("then", "cancelled"),
            ("x", "done"),
            ("otherwise", "done"),
            ("last", "done"),
        ];
        assert_statuses(harness, id, &expected);
    }
}

/// Returns jobs that each can be undone.
pub(super) fn undoable<F: Fixture>(harness: &Harness<F>, names: &[&str], last: &str) -> Workflow {
    let eat = eat(harness);
    let each = |workflow: Workflow, name: &&str| workflow.job(*name, &eat, &1).undo(&eat, &2);
    let workflow = names.iter().fold(Workflow::new("meal"), each).on_failure(OnFailure::Compensate);
    workflow.job(last, &eat, &1).after(names.iter().copied())
}

fn done_jobs_are_undone_in_reverse_order<F: Fixture>(harness: &Harness<F>) {
    let id = harness.pq.put_workflow(&undoable(harness, &["a", "b", "c"], "last")).unwrap();
    let outcomes = [("last", dead()), ("undo b", dead())];
    assert_eq!(run(harness, &outcomes), ["a", "b", "c", "last", "undo c", "undo b", "undo a"]);
    let graph = found(harness, id);
    assert_eq!(graph.status(), "dead");
    let undone: Vec<_> = graph.jobs.iter().map(|node| node.undo_state).collect();
    assert_eq!(undone, [Some(JobState::Done), Some(JobState::Dead), Some(JobState::Done), None]);
    maintain(harness);
    assert_eq!(harness.counts().total(), 7, "they are undone once");
}

fn jobs_are_undone_once_by_many_that_maintain<F: Fixture>(harness: &Harness<F>) {
    let ids: Vec<JobId> =
        (0..10).map(|_| harness.pq.put_workflow(&undoable(harness, &["a"], "last")).unwrap()).collect();
    let first = harness.queue().lease(10, TIMEOUT, Wait::No).unwrap();
    first.iter().for_each(|job| harness.settle(job, Outcome::Complete));
    maintain(harness);
    harness.queue().lease(10, TIMEOUT, Wait::No).unwrap().iter().for_each(|job| harness.settle(job, dead()));
    std::thread::scope(|threads| {
        for _ in 0..4 {
            threads.spawn(|| (0..20).for_each(|_| drop(harness.pq.maintain(&Retention::default()))));
        }
    });
    maintain(harness);
    for id in ids {
        assert_eq!(harness.pq.list(&Filter::default().workflow(id), 10).unwrap().len(), 3);
    }
}

fn a_workflow_that_is_done_undoes_nothing<F: Fixture>(harness: &Harness<F>) {
    let id = harness.pq.put_workflow(&undoable(harness, &["a", "b"], "last")).unwrap();
    assert_eq!(run(harness, &[]), ["a", "b", "last"]);
    assert_eq!(statuses(harness, id)[""], "done");
    let id = harness.pq.put_workflow(&undoable(harness, &["a"], "last")).unwrap();
    assert_eq!(run(harness, &[("a", dead())]), ["a"]);
    assert_eq!(statuses(harness, id)[""], "dead");
}

fn a_cancelled_workflow_ends_when_its_jobs_have_ended<F: Fixture>(harness: &Harness<F>) {
    let workflow = graph(harness, &[("a", &[]), ("b", &["a"])]);
    let [id, other] = [(); 2].map(|()| harness.pq.put_workflow(&workflow).unwrap());
    let running = harness.lease_one();
    assert_eq!(harness.pq.change(id, &Operation::Cancel).unwrap(), ChangeOutcome::Requested);
    maintain(harness);
    assert_statuses(harness, id, &[("", "running"), ("a", "running"), ("b", "cancelled")]);
    assert_eq!(error_of(harness, id, "b"), format!("workflow {id} was cancelled"));
    harness.settle(&running, Outcome::GiveBack);
    maintain(harness);
    assert_statuses(harness, id, &[("", "cancelled"), ("a", "cancelled"), ("b", "cancelled")]);
    let report = harness.pq.operate(&Operation::Cancel, &Filter::queue(WORKFLOWS), |_| {}).unwrap();
    assert_eq!(report.changed, 1);
    maintain(harness);
    assert_statuses(harness, other, &[("", "cancelled"), ("a", "cancelled"), ("b", "cancelled")]);
    change(harness, other, &Operation::Retry);
    assert_eq!(run(harness, &[]), ["a", "b"]);
    assert_eq!(statuses(harness, other)[""], "done");
    assert_eq!(statuses(harness, id)[""], "cancelled");
}

fn a_workflow_is_deleted_with_its_jobs_when_it_has_ended<F: Fixture>(harness: &Harness<F>) {
    let workflow = graph(harness, &[("a", &[]), ("b", &["a"])]);
    let [id, other] = [(); 2].map(|()| harness.pq.put_workflow(&workflow).unwrap());
    let refused = harness.pq.change(id, &Operation::Delete).unwrap_err().to_string();
    assert!(refused.starts_with(&format!("cannot delete workflow {id}: it has not ended")), "{refused}");
    let report = harness.pq.operate(&Operation::Delete, &Filter::queue(WORKFLOWS), |_| {}).unwrap();
    assert_eq!((report.changed, report.skipped), (0, 2));
    assert_eq!(run(harness, &[]), ["a", "a", "b", "b"]);
    change(harness, id, &Operation::Delete);
    assert!(harness.pq.workflow(id).unwrap().is_none());
    assert_eq!(statuses(harness, other)["b"], "done");
    assert_eq!(harness.counts().total(), 2, "the jobs of the other one");
}

fn a_cancelled_workflow_undoes_its_jobs<F: Fixture>(harness: &Harness<F>) {
    let id = harness.pq.put_workflow(&undoable(harness, &["a", "b"], "last")).unwrap();
    harness.settle(&harness.lease_one(), Outcome::Complete);
    assert!(harness.named::<()>(WORKFLOWS).cancel(id).unwrap().is_accepted());
    assert_eq!(run(harness, &[]), ["undo a"]);
    assert_statuses(
        harness,
        id,
        &[("", "cancelled"), ("a", "done"), ("b", "cancelled"), ("last", "cancelled")],
    );
}

fn a_job_adds_jobs_to_its_workflow<F: Fixture>(harness: &Harness<F>) {
    let id = harness.pq.put_workflow(&graph(harness, &[("a", &[])])).unwrap();
    let job = harness.lease_one();
    let batch = job.annotations.batch().unwrap();
    let added = eat(harness).call_with(&1, &CallOptions::new().in_batch(batch)).unwrap().id;
    harness.settle(&job, Outcome::Complete);
    maintain(harness);
    assert_statuses(harness, id, &[("", "running"), ("a", "done")]);
    let job = harness.lease_one();
    assert_eq!(job.id, added);
    harness.settle(&job, dead());
    maintain(harness);
    assert_statuses(harness, id, &[("", "done"), ("a", "done")]);
}

fn a_job_of_a_workflow_waits_for_one_outside_of_it<F: Fixture>(harness: &Harness<F>) {
    let outside = harness.put("outside");
    let options = CallOptions::new().after([outside]);
    let workflow = Workflow::new("meal").job_with("a", &eat(harness), &1, &options);
    let id = harness.pq.put_workflow(&workflow).unwrap();
    assert_statuses(harness, id, &[("", "running"), ("a", "waiting")]);
    let job: pq_core::Job<Value> = harness.lease_one();
    harness.settle(&job, Outcome::Complete);
    assert_eq!(run(harness, &[]), ["a"]);
    assert_eq!(statuses(harness, id)[""], "done");
}

/// The jobs that the decision puts are not there yet, and no job has ended that is not noted.
fn a_run_until_empty_does_not_end_before_a_decision<F: Fixture>(harness: &Harness<F>) {
    let store = harness.pq.store();
    let needs_maintenance = || store.with_connection(|conn| store.needs_maintenance(conn, &[])).unwrap();
    harness.pq.put_workflow(&graph(harness, &[("a", &[])])).unwrap();
    assert!(!needs_maintenance());
    harness.settle(&harness.lease_one(), Outcome::Complete);
    let noted = store.with_connection(|conn| store.maintain(conn, &Retention::default())).unwrap();
    assert!(noted.is_some_and(|report| report.workflows));
    assert!(needs_maintenance(), "another worker may be about to decide");
    maintain(harness);
    assert!(!needs_maintenance());
}
