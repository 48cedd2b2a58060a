//! Jobs that wait until other jobs have ended, and batches.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use pq_core::{
    CallOptions, EndedCounts, Filter, JobId, JobRecord, JobState, Operation, Outcome, PutOptions, Reason,
    Wait, Worker,
};
use serde_json::json;

use super::cases;
use crate::Fixture;
use crate::harness::{CaseError, Harness, TIMEOUT, both, roll_back, run_until_empty, task};

cases![
    a_job_waits_until_all_jobs_before_it_have_ended: Both,
    a_job_waits_for_a_job_that_is_retried: Both,
    a_job_is_cancelled_if_a_job_that_it_waits_for_is_not_done: Both,
    a_job_that_waits_for_any_outcome_has_the_counts_of_the_outcomes: Both,
    jobs_and_their_follow_up_are_put_by_one_transaction: Own,
    a_job_that_a_rollback_returns_has_not_ended: Own,
    a_job_that_a_lost_lease_returns_has_not_ended: Both,
    a_chain_of_jobs_runs_in_order: Own,
    a_follow_up_can_be_cancelled_and_run_by_hand: Own,
    a_retry_of_a_follow_up_waits_for_no_job: Own,
    a_chain_of_follow_ups_is_cancelled_at_once: Own,
    a_follow_up_with_a_time_or_a_unique_key_is_refused: Both,
    a_job_cannot_wait_for_its_own_batch: Both,
    a_stream_of_linked_jobs_is_refused: Both,
    a_batch_calls_its_task_once_when_all_jobs_have_ended: Own,
    a_run_until_the_queue_is_empty_runs_what_waited_for_its_jobs: Own,
    a_batch_without_jobs_calls_its_task_at_once: Own,
    a_batch_that_fails_to_be_filled_puts_nothing: Own,
    a_job_adds_jobs_to_its_own_batch: Own,
    a_job_cannot_be_added_to_a_batch_that_has_ended: Both,
    a_batch_waits_for_a_job_that_is_added_meanwhile: Own,
    a_large_batch_ends_once_on_many_threads: Own,
    an_explanation_names_the_jobs_that_a_job_waits_for: Own,
    what_a_job_waited_for_is_forgotten_with_it: Own,
];

fn a_run_until_the_queue_is_empty_runs_what_waited_for_its_jobs<F: Fixture>(harness: &Harness<F>) {
    let task = task::<F, u32>(harness);
    for handler in both::<F, _, _, _>(&task, |_| Ok::<_, CaseError>(())) {
        let mut last = task.call(&0).unwrap().id;
        for number in 1..3 {
            last = task.call_with(&number, &CallOptions::new().after([last])).unwrap().id;
        }
        assert_eq!(run_until_empty(harness, handler).done, 3);
        assert_eq!(harness.counts().total(), 0);
    }
}

fn after(jobs: &[JobId]) -> PutOptions {
    PutOptions::new().after(jobs.iter().copied())
}

fn find<F: Fixture>(harness: &Harness<F>, id: JobId) -> JobRecord {
    harness.pq.find(id).unwrap().unwrap()
}

fn state<F: Fixture>(harness: &Harness<F>, id: JobId) -> JobState {
    find(harness, id).state
}

/// Runs maintenance until it finds nothing to do.
fn maintain<F: Fixture>(harness: &Harness<F>) {
    while harness.maintain().more {}
}

/// Completes the ready jobs one by one.
fn complete_all<F: Fixture>(harness: &Harness<F>, count: usize) {
    for _ in 0..count {
        harness.settle(&harness.lease_one(), Outcome::Complete);
    }
}

fn a_job_waits_until_all_jobs_before_it_have_ended<F: Fixture>(harness: &Harness<F>) {
    let before = [harness.put("a"), harness.put("b"), harness.put("c")];
    let last = harness.put_with("last", &after(&before).priority(9).tags(["kept"]));
    let leased = harness.lease_one();
    complete_all(harness, 1);
    assert_eq!(harness.get().unwrap().data, "c");
    maintain(harness);
    assert!(harness.get().is_none());
    assert_eq!(state(harness, last), JobState::Scheduled);
    harness.settle(&leased, Outcome::Complete);
    assert!(harness.get().is_none(), "maintenance has not seen it");
    maintain(harness);
    let job = harness.get().unwrap();
    assert_eq!((job.id, &job.data, job.priority, job.schedule_at), (last, &json!("last"), 9, None));
    assert_eq!(job.annotations.tags(), ["kept"]);
    assert_eq!(job.annotations.ended(), Some(counts(3, 0, 0)));
}

fn counts(done: u64, dead: u64, cancelled: u64) -> EndedCounts {
    let mut counts = EndedCounts::default();
    (counts.done, counts.dead, counts.cancelled) = (done, dead, cancelled);
    counts
}

fn a_job_waits_for_a_job_that_is_retried<F: Fixture>(harness: &Harness<F>) {
    let first = harness.put("first");
    let last = harness.put_with("last", &after(&[first]));
    harness.settle(&harness.lease_one(), Outcome::retry(Duration::ZERO, "broken"));
    maintain(harness);
    assert_eq!(state(harness, last), JobState::Scheduled);
    let job = harness.lease_one();
    assert_eq!(job.id, first);
    harness.settle(&job, Outcome::Complete);
    maintain(harness);
    assert_eq!(state(harness, last), JobState::Ready);
}

fn a_job_is_cancelled_if_a_job_that_it_waits_for_is_not_done<F: Fixture>(harness: &Harness<F>) {
    let (dead, other) = (harness.put("dead"), harness.put("other"));
    let second = harness.put_with("second", &after(&[dead, other]));
    let third = harness.put_with("third", &after(&[second]));
    harness.settle(&harness.lease_one(), Outcome::dead("broken"));
    maintain(harness);
    let found = find(harness, second);
    assert_eq!(found.state, JobState::Cancelled);
    assert_eq!(found.error, Some(format!("job {dead}, for which it waited, is dead")));
    maintain(harness);
    let found = find(harness, third);
    assert_eq!(found.error, Some(format!("job {second}, for which it waited, is cancelled")));
    assert_eq!(state(harness, other), JobState::Ready);
    // A cancelled job that is requeued is due: what it waited for has ended.
    assert_eq!(harness.queue().retry_many(&[second]).unwrap(), 1);
    maintain(harness);
    assert_eq!(state(harness, second), JobState::Ready);
}

fn a_job_that_waits_for_any_outcome_has_the_counts_of_the_outcomes<F: Fixture>(harness: &Harness<F>) {
    let before = ["done", "dead", "cancelled", "deleted"].map(|data| harness.put(data));
    let last = harness.put_with("last", &PutOptions::new().after_any_outcome(before));
    complete_all(harness, 1);
    harness.settle(&harness.lease_one(), Outcome::dead("broken"));
    assert!(harness.queue().cancel(before[2]).unwrap().is_accepted());
    maintain(harness);
    assert_eq!(state(harness, last), JobState::Scheduled);
    let seen = harness.pq.predecessors(last, 10).unwrap();
    let outcomes: Vec<_> = seen.iter().map(|one| (one.job, one.outcome)).collect();
    let ended = [JobState::Done, JobState::Dead, JobState::Cancelled].map(Some);
    assert_eq!(outcomes, before.into_iter().zip(ended.into_iter().chain([None])).collect::<Vec<_>>());
    let waiting = before.map(|job| harness.pq.followers(job, 10).unwrap());
    assert_eq!(waiting, [vec![], vec![], vec![], vec![last]]);
    harness.pq.change(before[3], &Operation::Delete).unwrap();
    maintain(harness);
    assert_eq!(find(harness, last).annotations.ended(), Some(counts(2, 1, 1)));
}

fn jobs_and_their_follow_up_are_put_by_one_transaction<F: Fixture>(harness: &Harness<F>) {
    let queue = harness.queue();
    let put = |conn: &mut _| -> Result<[JobId; 2], CaseError> {
        let first = queue.on(conn).put(&json!("first"))?.id;
        Ok([first, queue.on(conn).put_with(&json!("last"), &after(&[first]))?.id])
    };
    let undone = harness.pq.transaction(|conn| {
        put(conn)?;
        roll_back::<()>()
    });
    assert!(undone.is_err());
    let mut conn = harness.connect();
    let [_, last] = harness
        .nested(&mut conn, |conn| {
            let put = put(conn)?;
            // Nobody else sees the jobs yet, so they have not ended.
            maintain(harness);
            Ok(put)
        })
        .unwrap();
    maintain(harness);
    assert_eq!(state(harness, last), JobState::Scheduled);
    assert_eq!(queue.counts().unwrap().total(), 2);
    complete_all(harness, 1);
    maintain(harness);
    assert_eq!(harness.drain(), ["last"]);
}

fn a_job_that_a_rollback_returns_has_not_ended<F: Fixture>(harness: &Harness<F>) {
    let first = harness.put("first");
    let last = harness.put_with("last", &after(&[first]));
    let queue = harness.queue();
    let undone = harness.pq.transaction(|conn| {
        assert!(queue.on(conn).get()?.is_some());
        maintain(harness);
        roll_back::<()>()
    });
    assert!(undone.is_err());
    maintain(harness);
    assert_eq!([first, last].map(|id| state(harness, id)), [JobState::Ready, JobState::Scheduled]);
}

fn a_job_that_a_lost_lease_returns_has_not_ended<F: Fixture>(harness: &Harness<F>) {
    let first = harness.put("first");
    let last = harness.put_with("last", &after(&[first]));
    harness.lose_lease(&harness.lease_one());
    maintain(harness);
    assert_eq!([first, last].map(|id| state(harness, id)), [JobState::Ready, JobState::Scheduled]);
}

fn a_chain_of_jobs_runs_in_order<F: Fixture>(harness: &Harness<F>) {
    let queue = harness.queue();
    let mut put = vec![harness.put(0)];
    for n in 1..4 {
        put.push(harness.put_with(n, &after(&put)));
    }
    let begun = AtomicU64::new(0);
    let handler = queue.leased(move |_, job| {
        assert_eq!(job.data, json!(begun.fetch_add(1, Ordering::Relaxed)));
        Ok::<_, CaseError>(())
    });
    let report = Worker::new(&harness.pq).serve(handler).run_jobs(4).unwrap();
    assert_eq!((report.done, report.dead), (4, 0));
}

fn a_follow_up_can_be_cancelled_and_run_by_hand<F: Fixture>(harness: &Harness<F>) {
    let first = harness.put("first");
    let [cancelled, run] = ["cancelled", "run"].map(|data| harness.put_with(data, &after(&[first])));
    harness.pq.change(cancelled, &Operation::Cancel).unwrap();
    harness.pq.change(run, &Operation::RunNow).unwrap();
    assert_eq!([cancelled, run].map(|id| state(harness, id)), [JobState::Cancelled, JobState::Ready]);
    harness.settle(&harness.lease_one(), Outcome::dead("broken"));
    maintain(harness);
    assert_eq!(state(harness, run), JobState::Ready, "it waits no more");
    assert_eq!(harness.drain(), ["run"]);
}

fn a_follow_up_with_a_time_or_a_unique_key_is_refused<F: Fixture>(harness: &Harness<F>) {
    let first = harness.put("first");
    for options in [after(&[first]).schedule_at("1h"), after(&[first]).unique("u")] {
        let refused = harness.try_put(&json!("last"), &options).unwrap_err().to_string();
        assert!(
            refused.contains("cannot put a job that waits for others with a time or a unique key"),
            "{refused}"
        );
    }
    assert_eq!(harness.counts().total(), 1);
}

fn a_stream_of_linked_jobs_is_refused<F: Fixture>(harness: &Harness<F>) {
    let first = harness.put("first");
    for options in [after(&[first]), PutOptions::new().in_batch(first)] {
        let jobs = [(json!(1), PutOptions::new()), (json!(2), options)];
        let refused = harness.queue().put_all_with(jobs).unwrap_err().to_string();
        assert!(refused.contains("use `put_many_with`"), "{refused}");
    }
    assert_eq!(harness.counts().total(), 1);
}

fn a_batch_calls_its_task_once_when_all_jobs_have_ended<F: Fixture>(harness: &Harness<F>) {
    let queue = harness.named::<()>("apples");
    let (eat, report) = (queue.task::<u32>("eat"), queue.task::<String>("report"));
    let (id, ids) = report
        .batch(&"all".to_owned(), |conn, batch| {
            let calls = (0..3).map(|n| eat.on(conn).call_with(&n, &batch.call_options()));
            calls.map(|put| put.map(|put| put.id)).collect::<Result<Vec<_>, _>>()
        })
        .unwrap();
    assert_eq!(find(harness, ids[0]).annotations.batch(), Some(id));
    let seen = AtomicU64::new(0);
    let handlers = [
        eat.leased(|_, job| match job.data {
            1 => Err(CaseError("broken".to_owned())),
            _ => Ok(()),
        }),
        report.leased(move |_, job| {
            assert_eq!(seen.fetch_add(1, Ordering::Relaxed), 0);
            assert_eq!(job.annotations.ended(), Some(counts(2, 1, 0)));
            Ok::<_, CaseError>(())
        }),
    ];
    let [eaten, reported] = handlers;
    let ended = Worker::new(&harness.pq).serve(eaten).serve(reported).run_jobs(4).unwrap();
    assert_eq!((ended.done, ended.dead), (3, 1));
}

fn a_batch_without_jobs_calls_its_task_at_once<F: Fixture>(harness: &Harness<F>) {
    let report = harness.named::<()>("apples").task::<u32>("report");
    let (id, ()) = report.batch(&1, |_, _| Ok::<_, CaseError>(())).unwrap();
    assert_eq!(state(harness, id), JobState::Ready);
    assert!(harness.get().is_some());
}

fn a_batch_that_fails_to_be_filled_puts_nothing<F: Fixture>(harness: &Harness<F>) {
    let report = harness.named::<()>("apples").task::<u32>("report");
    let failed = report.batch(&1, |conn, batch| {
        report.on(conn).call_with(&2, &batch.call_options())?;
        roll_back::<()>()
    });
    assert!(failed.is_err());
    assert_eq!(harness.pq.list(&Filter::default(), 10).unwrap(), []);
}

fn a_job_adds_jobs_to_its_own_batch<F: Fixture>(harness: &Harness<F>) {
    let queue = harness.named::<()>("apples");
    let (split, report) = (queue.task::<u32>("split"), queue.task::<u32>("report"));
    let (id, _) =
        report.batch(&0, |conn, batch| split.on(conn).call_with(&3, &batch.call_options())).unwrap();
    let again = split.clone();
    let splits = split.leased(move |_, job| {
        let batch = job.annotations.batch().ok_or_else(|| CaseError("no batch".to_owned()))?;
        for _ in 0..job.data {
            again.call_with(&(job.data - 1), &CallOptions::new().in_batch(batch))?;
        }
        Ok::<_, CaseError>(())
    });
    let reports = report.leased(|_, job| {
        // 1 + 3 + 3 * 2 + 3 * 2 * 1
        assert_eq!(job.annotations.ended(), Some(counts(16, 0, 0)));
        Ok::<_, CaseError>(())
    });
    let ended = Worker::new(&harness.pq).serve(splits).serve(reports).threads(2).run_jobs(17).unwrap();
    assert_eq!((ended.done, ended.dead), (17, 0));
    assert!(harness.pq.find(id).unwrap().is_none());
}

fn a_job_cannot_be_added_to_a_batch_that_has_ended<F: Fixture>(harness: &Harness<F>) {
    let ordinary = harness.put("ordinary");
    let scheduled = harness.put_with("scheduled", &PutOptions::new().schedule_at("1d"));
    for batch in [ordinary, scheduled, JobId(ordinary.0 + 1_000)] {
        let refused = harness.try_put(&json!("late"), &PutOptions::new().in_batch(batch)).unwrap_err();
        let text = refused.to_string();
        assert!(text.contains(&format!("cannot add a job to batch {batch}")), "{text}");
    }
    assert_eq!(harness.counts().total(), 2);
}

fn a_job_cannot_wait_for_its_own_batch<F: Fixture>(harness: &Harness<F>) {
    let first = harness.put("first");
    let options = after(&[first]).in_batch(first);
    let refused = harness.try_put(&json!("last"), &options).unwrap_err().to_string();
    assert!(refused.contains("they would wait for each other"), "{refused}");
}

/// A follow-up that was made due by hand, or requeued, waits no more, also while it waits for its retry.
fn a_retry_of_a_follow_up_waits_for_no_job<F: Fixture>(harness: &Harness<F>) {
    let first = harness.put_with("first", &PutOptions::new().priority(-1));
    let last = harness.put_with("last", &after(&[first]));
    harness.pq.change(last, &Operation::RunNow).unwrap();
    harness.settle(&harness.lease_one(), Outcome::retry(TIMEOUT * 100, "broken"));
    harness.settle(&harness.lease_one(), Outcome::dead("broken"));
    maintain(harness);
    let found = find(harness, last);
    assert_eq!((found.state, found.error.as_deref()), (JobState::Scheduled, Some("broken")));
    let late = harness.try_put(&json!("late"), &in_batch(last)).unwrap_err().to_string();
    assert!(late.contains("cannot add a job to batch"), "{late}");
}

fn a_chain_of_follow_ups_is_cancelled_at_once<F: Fixture>(harness: &Harness<F>) {
    let mut chain = vec![harness.put("first")];
    for n in 0..5 {
        chain.push(harness.put_with(n, &after(&chain[n..])));
    }
    harness.settle(&harness.lease_one(), Outcome::dead("broken"));
    maintain(harness);
    assert!(chain[1..].iter().all(|id| state(harness, *id) == JobState::Cancelled));
}

fn a_batch_waits_for_a_job_that_is_added_meanwhile<F: Fixture>(harness: &Harness<F>) {
    let report = harness.named::<()>("apples").task::<u32>("report");
    let (id, _) = report
        .batch(&0, |conn, batch| harness.queue().on(conn).put_with(&json!("a"), &in_batch(batch.id())))
        .unwrap();
    harness
        .nested(&mut harness.connect(), |conn| {
            harness.queue().on(conn).put_with(&json!("b"), &in_batch(id))?;
            complete_all(harness, 1);
            maintain(harness);
            assert_eq!(state(harness, id), JobState::Scheduled, "the added job is not committed");
            Ok(())
        })
        .unwrap();
    maintain(harness);
    assert_eq!(state(harness, id), JobState::Scheduled);
    complete_all(harness, 1);
    maintain(harness);
    assert_eq!(find(harness, id).annotations.ended(), Some(counts(2, 0, 0)));
}

fn in_batch(follow_up: JobId) -> PutOptions {
    PutOptions::new().in_batch(follow_up)
}

fn a_large_batch_ends_once_on_many_threads<F: Fixture>(harness: &Harness<F>) {
    const JOBS: u64 = 12_000;
    let queue = harness.named::<()>("apples");
    let (eat, report) = (queue.task::<u64>("eat"), queue.task::<u32>("report"));
    report
        .batch(&0, |conn, batch| {
            let calls = (0..JOBS).map(|n| (n, batch.call_options()));
            eat.on(conn).call_many_with(calls)
        })
        .unwrap();
    let called = std::sync::Arc::new(AtomicU64::new(0));
    let counted = std::sync::Arc::clone(&called);
    let eats = eat.leased(|_, _| Ok::<_, CaseError>(()));
    let reports = report.leased(move |_, job| {
        counted.fetch_add(1, Ordering::Relaxed);
        assert_eq!(job.annotations.ended(), Some(counts(JOBS, 0, 0)));
        Ok::<_, CaseError>(())
    });
    let worker = Worker::new(&harness.pq).serve(eats).serve(reports).threads(4);
    let ended = worker.run_jobs(JOBS + 1).unwrap();
    assert_eq!((ended.done, called.load(Ordering::Relaxed)), (JOBS + 1, 1));
    maintain(harness);
    assert!(harness.queue().get(Wait::No).unwrap().is_none());
}

fn an_explanation_names_the_jobs_that_a_job_waits_for<F: Fixture>(harness: &Harness<F>) {
    let before = [harness.put("a"), harness.put("b")];
    let last = harness.put_with("last", &after(&before));
    complete_all(harness, 1);
    maintain(harness);
    let reasons = harness.pq.explain(last).unwrap();
    assert_eq!(reasons[0], Reason::After { jobs: 1, first: before[1] });
    assert_eq!(reasons[0].to_string(), format!("it waits for 1 job: job {}", before[1]));
    assert!(!reasons.iter().any(|reason| matches!(reason, Reason::NotDue { .. })), "{reasons:?}");
}

fn what_a_job_waited_for_is_forgotten_with_it<F: Fixture>(harness: &Harness<F>) {
    let first = harness.put("first");
    let last = harness.put_with("last", &after(&[first]));
    complete_all(harness, 1);
    maintain(harness);
    assert_eq!(harness.pq.predecessors(last, 10).unwrap().len(), 1);
    complete_all(harness, 1);
    maintain(harness);
    assert_eq!(harness.pq.predecessors(last, 10).unwrap(), []);
    assert_eq!(harness.pq.list(&Filter::default(), 10).unwrap(), []);
}
