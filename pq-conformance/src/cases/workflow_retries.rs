//! Jobs of workflows that are requeued, and workflows that run again.

use std::sync::mpsc::channel;
use std::time::Duration;

use chrono::Utc;
use pq_core::store::{Archive, Connect, FollowUps, Jobs, Scan};
use pq_core::{
    After, Annotations, CallOptions, ChangeOutcome, Filter, JobId, JobState, NewJob, OnFailure, Operation,
    Outcome, Payload, PutOptions, QueueName, Retention, Settlement, WORKFLOWS, Wait, Workflow,
};

use super::cases;
use super::workflows::{
    assert_statuses, change, dead, diamond, found, graph, id_of, maintain, run, statuses, undoable,
};
use crate::Fixture;
use crate::harness::{Error, Harness, TIMEOUT, task};

cases![
    a_requeued_job_releases_its_followers: Own,
    a_requeued_job_brings_back_what_was_stopped: Own,
    a_requeued_workflow_runs_again_what_has_failed: Own,
    a_requeued_workflow_runs_all_again_after_it_was_undone: Own,
    an_undoing_job_is_requeued_without_its_workflow: Own,
    a_workflow_runs_again_from_a_job: Own,
    a_follow_up_waits_again_for_a_requeued_job: Own,
    a_follow_up_waits_for_a_job_that_is_being_requeued: Own,
    jobs_that_end_while_a_session_decides_are_noted: Own,
    a_job_that_is_requeued_while_a_session_ends_the_workflow_opens_it: Own,
    a_job_that_is_requeued_while_its_failure_is_noted_brings_back_its_followers: Own,
    a_job_that_waits_again_for_one_that_ends_meanwhile_runs: Own,
    a_requeued_job_does_not_revoke_a_cancellation: Own,
    a_requeued_job_of_a_cancelled_workflow_is_asked_to_end: Own,
    a_workflow_is_retried_once: Own,
    an_added_job_is_requeued_without_its_workflow: Own,
    jobs_run_again_after_they_are_undone: Own,
    a_requeued_job_of_an_undone_workflow_waits_for_those_before_it: Own,
    another_dead_job_does_not_stop_a_requeued_one: Own,
    jobs_are_kept_while_their_workflow_runs: Own,
    a_job_waits_again_for_one_outside_of_its_workflow: Own,
    a_workflow_that_is_due_gets_jobs: Own,
    the_error_of_a_workflow_names_the_job_that_was_cancelled_first: Own,
    the_last_calls_of_many_undoings_are_found: Own,
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
    let alone = harness.pq.retry_workflow_from(harness.put("alone"), "a").unwrap_err().to_string();
    assert!(alone.contains("from \"a\": it belongs to no workflow"), "{alone}");
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

/// The end of the job before is not noted yet when an open transaction requeues it.
fn a_follow_up_waits_for_a_job_that_is_being_requeued<F: Fixture>(harness: &Harness<F>) {
    let before = harness.put("a");
    let last = harness.put_with("last", &PutOptions::new().after([before]));
    harness.settle(&harness.lease_one(), dead());
    let store = harness.pq.store();
    harness
        .pq
        .transaction(|conn| {
            assert_eq!(store.requeue(conn, harness.queue().name(), Some(&[before]))?, 1);
            maintain_store(harness);
            Ok::<_, Error<F>>(())
        })
        .unwrap();
    maintain(harness);
    assert_eq!(harness.pq.find(last).unwrap().unwrap().state, JobState::Scheduled);
    harness.settle(&harness.lease_one(), Outcome::Complete);
    maintain(harness);
    assert_eq!(harness.lease_one().id, last);
}

/// Does the maintenance of the store only, so that workflows become due and nobody decides about them.
fn maintain_store<F: Fixture>(harness: &Harness<F>) {
    let store = harness.pq.store();
    store.with_connection(|conn| store.maintain(conn, &Retention::default())).unwrap();
}

/// Decides about a workflow that is due, as another session does: something happens before it is settled so.
fn decide<F: Fixture>(harness: &Harness<F>, outcome: Outcome, meanwhile: impl FnOnce()) {
    let (store, queue) = (harness.pq.store(), QueueName::new(WORKFLOWS).unwrap());
    harness
        .pq
        .transaction(|conn| {
            let job = &store.take(conn, &queue, 1, Scan::Full)?.jobs.pop().unwrap();
            meanwhile();
            assert!(store.settle(conn, &[Settlement { job, outcome }])?.all());
            Ok::<_, Error<F>>(())
        })
        .unwrap();
}

fn jobs_that_end_while_a_session_decides_are_noted<F: Fixture>(harness: &Harness<F>) {
    let id = harness.pq.put_workflow(&graph(harness, &[("a", &[]), ("b", &[])])).unwrap();
    let store = harness.pq.store();
    assert!(store.with_connection(|conn| store.wake(conn, id, None, Duration::ZERO)).unwrap());
    let after = (After::HELD_UNTIL - Utc::now()).to_std().unwrap();
    decide(harness, Outcome::Snooze { after, reason: None, payload: None }, || {
        let jobs = harness.queue().lease(2, TIMEOUT, Wait::No).unwrap();
        jobs.iter().for_each(|job| harness.settle(job, Outcome::Complete));
        maintain_store(harness);
    });
    maintain(harness);
    assert_eq!(statuses(harness, id)[""], "done");
}

fn a_job_that_is_requeued_while_a_session_ends_the_workflow_opens_it<F: Fixture>(harness: &Harness<F>) {
    let id = harness.pq.put_workflow(&diamond(harness)).unwrap();
    let a = harness.lease_one();
    harness.settle(&a, dead());
    while harness.queue().counts().unwrap().scheduled > 0 {
        maintain_store(harness);
    }
    std::thread::scope(|scope| {
        decide(harness, dead(), || requeue_beside(harness, scope, a.id));
    });
    assert_eq!(run(harness, &[]), ["a", "b", "c", "d"]);
    assert_eq!(statuses(harness, id)[""], "done");
}

/// Requeues a job in another thread, which waits for what holds its workflow, or is refused meanwhile, as in memory.
fn requeue_beside<'s, F: Fixture>(
    harness: &'s Harness<F>,
    scope: &'s std::thread::Scope<'s, '_>,
    job: JobId,
) {
    let (begin, begun) = channel();
    let requeuing = scope.spawn(move || {
        let (store, queue) = (harness.pq.store(), harness.queue());
        let requeued = store.with_connection(|conn| {
            begin.send(()).unwrap();
            while store.requeue(conn, queue.name(), Some(&[job]))? == 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
            Ok::<_, Error<F>>(())
        });
        requeued.unwrap();
    });
    begun.recv_timeout(TIMEOUT).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    assert!(!requeuing.is_finished(), "it does not wait");
}

fn a_job_that_is_requeued_while_its_failure_is_noted_brings_back_its_followers<F: Fixture>(
    harness: &Harness<F>,
) {
    let id = harness.pq.put_workflow(&diamond(harness)).unwrap();
    let (a, store) = (harness.lease_one(), harness.pq.store());
    harness.settle(&a, dead());
    std::thread::scope(|scope| {
        let noted = harness.pq.transaction(|conn| {
            store.maintain(conn, &Retention::default())?;
            requeue_beside(harness, scope, a.id);
            Ok::<_, Error<F>>(())
        });
        noted.unwrap();
    });
    maintain(harness);
    assert_statuses(
        harness,
        id,
        &[("", "running"), ("a", "ready"), ("b", "waiting"), ("c", "waiting"), ("d", "waiting")],
    );
    assert_eq!(run(harness, &[]), ["a", "b", "c", "d"]);
    assert_eq!(statuses(harness, id)[""], "done");
}

fn a_requeued_job_does_not_revoke_a_cancellation<F: Fixture>(harness: &Harness<F>) {
    let workflow = graph(harness, &[("a", &[]), ("x", &[])]).on_failure(OnFailure::Continue);
    let id = harness.pq.put_workflow(&workflow).unwrap();
    let a = harness.lease_one();
    harness.settle(&a, dead());
    maintain(harness);
    assert!(harness.named::<()>(WORKFLOWS).cancel(id).unwrap().is_accepted());
    assert!(harness.queue().retry(a.id).unwrap());
    maintain(harness);
    assert_statuses(harness, id, &[("", "cancelled"), ("a", "cancelled"), ("x", "cancelled")]);
}

/// It was asked to end before, when the workflow was stopped.
fn a_requeued_job_of_a_cancelled_workflow_is_asked_to_end<F: Fixture>(harness: &Harness<F>) {
    let id = harness.pq.put_workflow(&graph(harness, &[("a", &[]), ("x", &[]), ("y", &[])])).unwrap();
    let queue = harness.queue();
    let [a, x, y] = queue.lease(3, TIMEOUT, Wait::No).unwrap().try_into().ok().unwrap();
    harness.settle(&a, dead());
    maintain(harness);
    assert_eq!(queue.extend(&y, TIMEOUT).unwrap().cancelled, [x.id, y.id]);
    harness.settle(&x, dead());
    maintain(harness);
    assert!(harness.named::<()>(WORKFLOWS).cancel(id).unwrap().is_accepted());
    assert!(queue.retry(x.id).unwrap());
    let x = harness.lease_one();
    maintain(harness);
    assert_eq!(queue.extend(&x, TIMEOUT).unwrap().cancelled, [x.id]);
    harness.settle(&x, Outcome::GiveBack);
    harness.settle(&y, Outcome::GiveBack);
    maintain(harness);
    assert_statuses(harness, id, &[("", "cancelled"), ("a", "dead"), ("x", "cancelled"), ("y", "cancelled")]);
}

fn a_workflow_is_retried_once<F: Fixture>(harness: &Harness<F>) {
    let workflow = graph(harness, &[("a", &[]), ("x", &[])]).on_failure(OnFailure::Continue);
    let id = harness.pq.put_workflow(&workflow).unwrap();
    assert_eq!(run(harness, &[("a", dead()), ("x", dead())]), ["a", "x"]);
    change(harness, id, &Operation::Retry);
    let a = harness.lease_one();
    harness.settle(&a, dead());
    change(harness, id, &Operation::RunNow);
    assert_statuses(harness, id, &[("", "running"), ("a", "dead"), ("x", "ready")]);
}

fn an_added_job_is_requeued_without_its_workflow<F: Fixture>(harness: &Harness<F>) {
    let id = harness.pq.put_workflow(&undoable(harness, &["a"], "last")).unwrap();
    let added = task(harness).call_with(&1, &CallOptions::new().in_batch(id)).unwrap().id;
    for job in harness.queue().lease(2, TIMEOUT, Wait::No).unwrap() {
        harness.settle(&job, if job.id == added { dead() } else { Outcome::Complete });
    }
    assert_eq!(run(harness, &[("last", dead())]), ["last", "undo a"]);
    change(harness, added, &Operation::Retry);
    maintain(harness);
    assert_statuses(harness, id, &[("", "dead"), ("a", "done"), ("last", "dead")]);
    harness.settle(&harness.lease_one(), dead());
    maintain(harness);
    assert_statuses(harness, id, &[("", "dead"), ("a", "done"), ("last", "dead")]);
}

fn jobs_run_again_after_they_are_undone<F: Fixture>(harness: &Harness<F>) {
    let id = harness.pq.put_workflow(&undoable(harness, &["a"], "last")).unwrap();
    harness.settle(&harness.lease_one(), Outcome::Complete);
    maintain(harness);
    let last = harness.lease_one();
    harness.settle(&last, dead());
    maintain(harness);
    change(harness, last.id, &Operation::Retry);
    maintain(harness);
    assert_statuses(harness, id, &[("", "running"), ("a", "done"), ("last", "dead")]);
    let refused = harness.pq.retry_workflow_from(id, "a").unwrap_err().to_string();
    assert!(refused.contains("job \"a\" is being undone"), "{refused}");
    assert_eq!(run(harness, &[]), ["undo a", "a", "last"]);
    assert_eq!(statuses(harness, id)[""], "done");
}

fn a_requeued_job_of_an_undone_workflow_waits_for_those_before_it<F: Fixture>(harness: &Harness<F>) {
    let id = harness.pq.put_workflow(&undoable(harness, &["a"], "last")).unwrap();
    let all = ["a", "last", "undo a"];
    let waits = [("", "running"), ("a", "ready"), ("last", "waiting")];
    assert_eq!(run(harness, &[("last", dead())]), all);
    let last = id_of(harness, id, "last");
    change(harness, last, &Operation::Retry);
    assert_statuses(harness, id, &waits);
    assert_eq!(run(harness, &[("last", dead())]), all, "they are done and undone again");
    // The same by the queue and by a filter, which leave the decision to maintenance.
    assert!(harness.queue().retry(last).unwrap());
    assert_eq!(harness.queue().counts().unwrap().ready, 0);
    maintain(harness);
    assert_statuses(harness, id, &waits);
    assert_eq!(run(harness, &[("last", dead())]), all);
    let dead_jobs = Filter::queue("apples").state(JobState::Dead);
    assert_eq!(harness.pq.operate(&Operation::Retry, &dead_jobs, |_| {}).unwrap().changed, 1);
    assert_eq!(harness.queue().counts().unwrap().ready, 0);
    assert_eq!(run(harness, &[]), ["a", "last"]);
    assert_eq!(statuses(harness, id)[""], "done");
}

fn another_dead_job_does_not_stop_a_requeued_one<F: Fixture>(harness: &Harness<F>) {
    let edges: &[(&str, &[&str])] = &[("b", &[]), ("e", &[]), ("c", &["b"])];
    let id = harness.pq.put_workflow(&graph(harness, edges)).unwrap();
    let jobs = harness.queue().lease(2, TIMEOUT, Wait::No).unwrap();
    jobs.iter().for_each(|job| harness.settle(job, dead()));
    maintain(harness);
    assert_statuses(harness, id, &[("", "dead"), ("b", "dead"), ("e", "dead"), ("c", "cancelled")]);
    change(harness, jobs[0].id, &Operation::Retry);
    maintain(harness);
    assert_statuses(harness, id, &[("", "running"), ("b", "ready"), ("e", "dead"), ("c", "waiting")]);
    assert_eq!(run(harness, &[]), ["b", "c"]);
    assert_statuses(harness, id, &[("", "dead"), ("b", "done"), ("e", "dead"), ("c", "done")]);
}

fn jobs_are_kept_while_their_workflow_runs<F: Fixture>(harness: &Harness<F>) {
    let id = harness.pq.put_workflow(&undoable(harness, &["a"], "last")).unwrap();
    harness.settle(&harness.lease_one(), Outcome::Complete);
    maintain(harness);
    let mut none = Retention::default();
    none.done = Some(Duration::ZERO);
    harness.pq.maintain(&none).unwrap();
    assert_eq!(harness.queue().prune(JobState::Done, Duration::ZERO).unwrap(), 0);
    assert_eq!(run(harness, &[("last", dead())]), ["last", "undo a"]);
    assert_eq!(statuses(harness, id)[""], "dead");
    harness.pq.maintain(&none).unwrap();
    assert_eq!(statuses(harness, id)["a"], "gone");
}

fn a_job_waits_again_for_one_outside_of_its_workflow<F: Fixture>(harness: &Harness<F>) {
    let outside = harness.put("outside");
    let options = CallOptions::new().after([outside]);
    let workflow = Workflow::new("meal").job_with("a", &task::<F, u32>(harness), &1, &options);
    let id = harness.pq.put_workflow(&workflow).unwrap();
    change(harness, id, &Operation::Cancel);
    maintain(harness);
    assert_statuses(harness, id, &[("", "cancelled"), ("a", "cancelled")]);
    change(harness, id, &Operation::Retry);
    assert_statuses(harness, id, &[("", "running"), ("a", "waiting")]);
    harness.settle(&harness.lease_one(), Outcome::Complete);
    assert_eq!(run(harness, &[]), ["a"]);
    assert_eq!(statuses(harness, id)[""], "done");
}

fn a_workflow_that_is_due_gets_jobs<F: Fixture>(harness: &Harness<F>) {
    let id = harness.pq.put_workflow(&graph(harness, &[("a", &[]), ("x", &[])])).unwrap();
    harness.settle(&harness.lease_one(), dead());
    maintain_store(harness);
    task(harness).call_with(&1, &CallOptions::new().in_batch(id)).unwrap();
    maintain(harness);
    assert_statuses(harness, id, &[("", "running"), ("a", "dead"), ("x", "cancelled")]);
    harness.settle(&harness.lease_one(), Outcome::Complete);
    maintain(harness);
    assert_eq!(statuses(harness, id)[""], "dead");
}

fn the_error_of_a_workflow_names_the_job_that_was_cancelled_first<F: Fixture>(harness: &Harness<F>) {
    let id = harness.pq.put_workflow(&graph(harness, &[("x", &[]), ("y", &[])])).unwrap();
    let y = id_of(harness, id, "y");
    change(harness, y, &Operation::Cancel);
    maintain(harness);
    assert_statuses(harness, id, &[("", "dead"), ("x", "cancelled"), ("y", "cancelled")]);
    assert_eq!(found(harness, id).error, Some(format!("job {y} \"y\" is cancelled")));
}

fn the_last_calls_of_many_undoings_are_found<F: Fixture>(harness: &Harness<F>) {
    let id = harness.pq.put_workflow(&undoable(harness, &["a"], "last")).unwrap();
    assert_eq!(run(harness, &[("last", dead())]), ["a", "last", "undo a"]);
    let place = format!(r#"{{"workflow":{{"id":{id},"name":"a","undoes":true}}}}"#);
    let mut call = NewJob::new(Payload::from_stored("1".to_owned()));
    call.annotations = Annotations::from_stored(Some(place));
    let (store, queue) = (harness.pq.store(), harness.queue());
    let puts = store.with_connection(|conn| store.put(conn, queue.name(), &vec![call; 4_000])).unwrap();
    assert_eq!(found(harness, id).jobs[0].undone_by, puts.last().map(|put| put.id));
    let refused = harness.pq.retry_workflow_from(id, "a").unwrap_err().to_string();
    assert!(refused.contains("job \"a\" is being undone"), "{refused}");
}

fn a_job_that_waits_again_for_one_that_ends_meanwhile_runs<F: Fixture>(harness: &Harness<F>) {
    let workflow = graph(harness, &[("x", &[]), ("d", &["x"])]).on_failure(OnFailure::Continue);
    let id = harness.pq.put_workflow(&workflow).unwrap();
    let (x, d) = (harness.lease_one(), id_of(harness, id, "d"));
    change(harness, d, &Operation::Cancel);
    harness
        .pq
        .transaction(|conn| {
            harness.pq.store().wait_again(conn, id, &[d], true)?;
            harness.settle(&x, Outcome::Complete);
            maintain_store(harness);
            Ok::<_, Error<F>>(())
        })
        .unwrap();
    assert_eq!(run(harness, &[]), ["d"]);
    assert_eq!(statuses(harness, id)[""], "done");
}
