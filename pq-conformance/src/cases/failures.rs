//! What middleware and the functions of `on_failure` see of the attempts of jobs.

use std::time::Duration;

use pq_core::{Backoff, CallOptions, Failure, JobState, Outcome, Worker};
use serde_json::json;

use super::cases;
use crate::Fixture;
use crate::harness::{CaseError, Harness, Seen, both, task};

cases![
    middleware_and_on_failure_see_how_every_attempt_ends: Own,
    a_job_whose_workers_died_is_reported: Own,
    a_crash_is_reported_once_when_the_next_attempt_begins: Own,
    the_information_of_a_job_says_which_attempt_is_the_last: Own,
    a_panic_in_middleware_fails_the_attempt: Own,
    a_panic_in_on_failure_has_no_effect: Own,
];

/// What was seen of an attempt: the task, the failure, and whether the job is dead.
type Ending = (String, String, bool);

fn describe(failure: &Failure) -> &'static str {
    match failure {
        Failure::Error(_) => "error",
        Failure::Panic(_) => "panic",
        Failure::Timeout { .. } => "timeout",
        Failure::UnknownTask(_) => "unknown task",
        Failure::Undecodable(_) => "undecodable",
        _ => "crash",
    }
}

/// Returns a worker with middleware and a function for failures, and what each of them sees.
fn observed<F: Fixture>(harness: &Harness<F>) -> (Worker<F::Store>, Seen<Ending>, Seen<Ending>) {
    let (wrapped, failed) = (Seen::new(), Seen::new());
    let (around, after) = (wrapped.clone(), failed.clone());
    let worker = Worker::new(&harness.pq)
        .wrap(move |info, next| {
            let ended = next.run();
            let how = ended.as_ref().map_or_else(describe, |_| "ok");
            around.push((info.task.unwrap_or("none").to_owned(), how.to_owned(), info.is_last));
            ended
        })
        .on_failure(move |info, failure, is_last| {
            after.push((info.task.unwrap_or("none").to_owned(), describe(failure).to_owned(), is_last));
        });
    (worker, wrapped, failed)
}

fn ending(task: &str, how: &str, is_last: bool) -> Ending {
    (task.to_owned(), how.to_owned(), is_last)
}

fn middleware_and_on_failure_see_how_every_attempt_ends<F: Fixture>(harness: &Harness<F>) {
    let queue = harness.named::<()>("apples");
    let work = |job: pq_core::Job<u8>| match job.data {
        0 => Ok(Outcome::Complete),
        1 => Err("no"),
        2 => panic!("on purpose"),
        3 => Ok(Outcome::dead("for good")),
        _ => Ok(Outcome::retry(Duration::from_secs(60), "later")),
    };
    let slow = |_| {
        std::thread::sleep(Duration::from_millis(80));
        Ok::<_, CaseError>(())
    };
    let (eat, sleep) =
        (queue.task::<u8>("eat"), queue.task::<()>("sleep").timeout(Duration::from_millis(50)));
    let handlers = both::<F, _, _, _>(&eat, work).into_iter().zip(both::<F, _, _, _>(&sleep, slow));
    for (eats, sleeps) in handlers {
        eat.call_many([0, 1, 2, 3]).unwrap();
        eat.call_with(&4, &CallOptions::new().max_retries(1)).unwrap();
        sleep.call(&()).unwrap();
        queue.task::<()>("drink").call(&()).unwrap();
        queue.task::<String>("eat").call(&"text".to_owned()).unwrap();
        harness.put(json!("no task"));
        let (worker, wrapped, failed) = observed(harness);
        let report = worker.batch(1, 1).serve(eats).serve(sleeps).run_until_empty().unwrap();
        assert_eq!((report.done, report.failed, report.snoozed), (1, 7, 1));
        let last_of_eat = [("ok", true), ("error", true), ("panic", true), ("ok", true), ("ok", false)];
        let mut all: Vec<Ending> =
            last_of_eat.into_iter().map(|(how, is_last)| ending("eat", how, is_last)).collect();
        all.push(ending("sleep", "timeout", true));
        all.push(ending("drink", "unknown task", false));
        all.push(ending("eat", "undecodable", true));
        all.push(ending("none", "undecodable", true));
        assert_eq!(wrapped.all(), all);
        // A handler that returns `Dead` or `Retry` has failed, too.
        all.remove(0);
        (all[2], all[3]) = (ending("eat", "error", true), ending("eat", "error", false));
        assert_eq!(failed.all(), all);
        harness.clear();
    }
    assert!(harness.archived(JobState::Done).is_empty());
}

fn a_job_whose_workers_died_is_reported<F: Fixture>(harness: &Harness<F>) {
    let task = task::<F, ()>(harness);
    task.call(&()).unwrap();
    let (worker, wrapped, failed) = observed(harness);
    for _ in 0..3 {
        assert_eq!(harness.lease(1, Duration::ZERO).len(), 1);
        harness.maintain();
    }
    let handler = task.leased(|_, _| -> Result<(), CaseError> { panic!("it was started once too often") });
    assert_eq!(worker.serve(handler).run_until_empty().unwrap().dead, 1);
    assert_eq!(wrapped.all(), [ending("eat", "crash", true)]);
    assert_eq!(failed.all(), wrapped.all());
}

fn a_crash_is_reported_once_when_the_next_attempt_begins<F: Fixture>(harness: &Harness<F>) {
    let task = task::<F, ()>(harness).max_retries(1).backoff(Backoff::fixed(Duration::ZERO));
    let runs = Seen::new();
    let seen = runs.clone();
    let work = move |_| {
        seen.push(());
        match seen.all().len() % 3 {
            1 => Ok(Outcome::snooze(Duration::ZERO)),
            2 => Err("no"),
            _ => Ok(Outcome::Complete),
        }
    };
    for handler in both::<F, _, _, _>(&task, work) {
        task.call(&()).unwrap();
        assert_eq!(harness.lease(1, Duration::ZERO).len(), 1);
        harness.maintain();
        let (worker, wrapped, failed) = observed(harness);
        let report = worker.serve(handler).run_until_empty().unwrap();
        assert_eq!((report.done, report.dead), (1, 0));
        let ran = [("ok", false), ("error", false), ("ok", true)];
        assert_eq!(wrapped.all(), ran.map(|(how, is_last)| ending("eat", how, is_last)));
        assert_eq!(failed.all(), [ending("eat", "crash", false), ending("eat", "error", false)]);
    }
}

fn the_information_of_a_job_says_which_attempt_is_the_last<F: Fixture>(harness: &Harness<F>) {
    let task = task::<F, ()>(harness).max_retries(2).backoff(Backoff::fixed(Duration::ZERO));
    for handler in both::<F, _, _, _>(&task, |_| Err::<(), _>("no")) {
        // In Python each retry is a job of its own.
        harness.put(json!({ "function": "eat", "retried": 1 }));
        task.call_with(&(), &CallOptions::new().max_retries(1)).unwrap();
        let seen = Seen::new();
        let (around, after) = (seen.clone(), seen.clone());
        let worker = Worker::new(&harness.pq).batch(1, 1).serve(handler).wrap(move |info, next| {
            around.push((info.attempt, info.max_retries, info.is_last));
            next.run()
        });
        let worker = worker.on_failure(move |info, _, is_last| {
            assert_eq!(info.is_last, is_last);
            after.push((info.attempt, info.max_retries, info.is_last));
        });
        worker.run_until_empty().unwrap();
        let mut all = seen.all();
        all.sort_unstable();
        let both = |ending| [ending, ending];
        assert_eq!(
            all,
            [both((1, 1, false)), both((2, 1, true)), both((2, 2, false)), both((3, 2, true))].concat()
        );
    }
}

fn a_panic_in_middleware_fails_the_attempt<F: Fixture>(harness: &Harness<F>) {
    let task = task::<F, u8>(harness);
    for handler in both::<F, _, _, _>(&task, |_| Ok::<_, CaseError>(())) {
        task.call_many([0, 1]).unwrap();
        let (worker, _, failed) = observed(harness);
        let worker = worker.serve(handler).wrap(|info, next| {
            let ended = next.run();
            assert!(info.job.payload.as_str().contains("[0]"), "middleware panics");
            ended
        });
        let report = worker.run_until_empty().unwrap();
        assert_eq!((report.done, report.dead), (1, 1));
        assert_eq!(failed.all(), [ending("eat", "panic", true)]);
    }
}

fn a_panic_in_on_failure_has_no_effect<F: Fixture>(harness: &Harness<F>) {
    let task = task::<F, ()>(harness);
    for handler in both::<F, _, _, _>(&task, |_| Err::<(), _>("no")) {
        task.call(&()).unwrap();
        let seen = Seen::new();
        let note = seen.clone();
        let worker = Worker::new(&harness.pq).serve(handler).on_failure(|_, _, _| panic!("on purpose"));
        let worker = worker.on_failure(move |_, _, is_last| note.push(is_last));
        assert_eq!(worker.run_until_empty().unwrap().dead, 1);
        assert_eq!(seen.all(), [true]);
    }
}
