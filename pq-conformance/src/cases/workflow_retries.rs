//! Jobs of workflows that are requeued, and workflows that run again.

use pq_core::{
    ChangeOutcome, Filter, JobId, JobState, OnFailure, Operation, Outcome, PutOptions, WORKFLOWS, Wait,
};

use super::cases;
use super::workflows::{
    assert_statuses, change, dead, diamond, found, graph, id_of, maintain, run, statuses, undoable,
};
use crate::Fixture;
use crate::harness::{Harness, TIMEOUT};

cases![
    a_requeued_job_releases_its_followers: Own,
    a_requeued_job_brings_back_what_was_stopped: Own,
    a_requeued_workflow_runs_again_what_has_failed: Own,
    a_requeued_workflow_runs_all_again_after_it_was_undone: Own,
    an_undoing_job_is_requeued_without_its_workflow: Own,
    a_workflow_runs_again_from_a_job: Own,
    a_follow_up_waits_again_for_a_requeued_job: Own,
];

fn a_requeued_job_releases_its_followers<F: Fixture>(harness: &Harness<F>) {
    for on_failure in [OnFailure::Stop, OnFailure::Continue] {
        let id = harness.pq.put_workflow(&diamond(harness).on_failure(on_failure)).unwrap();
        assert_eq!(run(harness, &[("b", dead())]), ["a", "b", "c"]);
        assert_statuses(
            harness,
            id,
            &[("", "dead"), ("a", "done"), ("b", "dead"), ("c", "done"), ("d", "cancelled")],
        );
        assert!(harness.queue().retry(id_of(harness, id, "b")).unwrap());
        maintain(harness);
        assert_statuses(
            harness,
            id,
            &[("", "running"), ("a", "done"), ("b", "ready"), ("c", "done"), ("d", "waiting")],
        );
        // It fails again, and is retried by another way.
        assert_eq!(run(harness, &[("b", dead())]), ["b"]);
        assert_eq!(statuses(harness, id)[""], "dead");
        let dead = Filter::queue("apples").state(JobState::Dead);
        assert_eq!(harness.pq.operate(&Operation::Retry, &dead, |_| {}).unwrap().changed, 1);
        assert_eq!(run(harness, &[]), ["b", "d"]);
        assert_eq!(statuses(harness, id)[""], "done");
    }
}

fn a_requeued_job_brings_back_what_was_stopped<F: Fixture>(harness: &Harness<F>) {
    let edges: &[(&str, &[&str])] = &[("a", &[]), ("x", &[]), ("y", &["x"])];
    let id = harness.pq.put_workflow(&graph(harness, edges)).unwrap();
    let jobs = harness.queue().lease(2, TIMEOUT, Wait::No).unwrap();
    harness.settle(&jobs[0], dead());
    maintain(harness);
    harness.settle(&jobs[1], Outcome::GiveBack);
    maintain(harness);
    assert_statuses(harness, id, &[("", "dead"), ("a", "dead"), ("x", "cancelled"), ("y", "cancelled")]);
    change(harness, jobs[0].id, &Operation::Retry);
    maintain(harness);
    assert_statuses(harness, id, &[("", "running"), ("a", "ready"), ("x", "ready"), ("y", "waiting")]);
    assert_eq!(run(harness, &[]), ["a", "x", "y"]);
    assert_eq!(statuses(harness, id)[""], "done");
}

fn a_requeued_workflow_runs_again_what_has_failed<F: Fixture>(harness: &Harness<F>) {
    let edges: &[(&str, &[&str])] = &[("a", &[]), ("b", &["a"]), ("x", &[]), ("y", &["x"]), ("k", &[])];
    let workflow = graph(harness, edges).on_failure(OnFailure::Continue);
    let id = harness.pq.put_workflow(&workflow).unwrap();
    assert_eq!(run(harness, &[("a", dead()), ("x", dead())]), ["a", "x", "k"]);
    change(harness, id, &Operation::Retry);
    assert_eq!(run(harness, &[("x", dead())]), ["a", "x", "b"]);
    let expected =
        [("", "dead"), ("a", "done"), ("b", "done"), ("x", "dead"), ("y", "cancelled"), ("k", "done")];
    assert_statuses(harness, id, &expected);
    assert!(harness.named::<()>(WORKFLOWS).retry(id).unwrap());
    assert_eq!(run(harness, &[]), ["x", "y"]);
    assert_eq!(statuses(harness, id)[""], "done");
}

fn a_requeued_workflow_runs_all_again_after_it_was_undone<F: Fixture>(harness: &Harness<F>) {
    let id = harness.pq.put_workflow(&undoable(harness, &["a", "b"], "last")).unwrap();
    let all = ["a", "b", "last", "undo b", "undo a"];
    assert_eq!(run(harness, &[("last", dead())]), all);
    change(harness, id, &Operation::Retry);
    assert_eq!(run(harness, &[("last", dead())]), all, "they are done and undone again");
    change(harness, id, &Operation::Retry);
    assert_eq!(run(harness, &[]), ["a", "b", "last"]);
    assert_eq!(statuses(harness, id)[""], "done");
}

fn an_undoing_job_is_requeued_without_its_workflow<F: Fixture>(harness: &Harness<F>) {
    let id = harness.pq.put_workflow(&undoable(harness, &["a"], "last")).unwrap();
    assert_eq!(run(harness, &[("last", dead()), ("undo a", dead())]), ["a", "last", "undo a"]);
    let undoing = found(harness, id).jobs[0].undone_by.unwrap();
    change(harness, undoing, &Operation::Retry);
    assert_eq!(run(harness, &[]), ["undo a"]);
    assert_eq!(statuses(harness, id)[""], "dead");
}

fn a_workflow_runs_again_from_a_job<F: Fixture>(harness: &Harness<F>) {
    let id = harness.pq.put_workflow(&diamond(harness)).unwrap();
    let refused = harness.pq.retry_workflow_from(id, "a").unwrap_err().to_string();
    assert!(refused.contains("cannot retry workflow") && refused.contains("\"a\" is ready"), "{refused}");
    assert_eq!(run(harness, &[]), ["a", "b", "c", "d"]);
    let unknown = harness.pq.retry_workflow_from(id, "e").unwrap_err().to_string();
    assert!(unknown.contains("unknown job \"e\" of workflow"), "{unknown}");
    let b = id_of(harness, id, "b");
    assert_eq!(harness.pq.retry_workflow_from(b, "b").unwrap(), ChangeOutcome::Changed);
    maintain(harness);
    assert_statuses(
        harness,
        id,
        &[("", "running"), ("a", "done"), ("b", "ready"), ("c", "done"), ("d", "waiting")],
    );
    assert_eq!(run(harness, &[("d", dead())]), ["b", "d"]);
    assert_eq!(harness.pq.retry_workflow_from(id, "a").unwrap(), ChangeOutcome::Changed);
    assert_eq!(run(harness, &[]), ["a", "b", "c", "d"]);
    assert_eq!(statuses(harness, id)[""], "done");
    assert_eq!(harness.pq.retry_workflow_from(JobId(id.0 + 1_000), "a").unwrap(), ChangeOutcome::NotFound);
}

fn a_follow_up_waits_again_for_a_requeued_job<F: Fixture>(harness: &Harness<F>) {
    let before = [harness.put("a"), harness.put("b")];
    let options = PutOptions::new().after_any_outcome(before);
    let last = harness.put_with("last", &options);
    harness.settle(&harness.lease_one(), dead());
    maintain(harness);
    assert!(harness.queue().retry(before[0]).unwrap());
    harness.settle(&harness.queue().lease(2, TIMEOUT, Wait::No).unwrap()[1], Outcome::Complete);
    maintain(harness);
    assert_eq!(harness.pq.find(last).unwrap().unwrap().state, JobState::Scheduled);
    harness.queue().lease(2, TIMEOUT, Wait::No).unwrap();
}
