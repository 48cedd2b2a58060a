//! Results of jobs, and waits for their end.

use std::sync::Barrier;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::Scope;
use std::time::{Duration, Instant};

use pq_core::store::{Jobs, Results};
use pq_core::{
    CallOptions, Error, Filter, JobId, JobResult, JobState, Operation, Outcome, PutOptions, Retention,
    Settlement, StopMode, Wait, WakeSignal, Worker,
};
use serde_json::{Value, json};

use super::cases;
use crate::Fixture;
use crate::harness::{Access, Harness, TIMEOUT, both, run_beside, run_until_empty, task, wait_until};

cases![
    a_result_is_kept_and_read: Both,
    a_result_of_another_type_is_an_error: Own,
    a_job_that_waits_or_runs_has_no_result_yet: Both,
    a_failed_or_cancelled_job_says_what_failed: Both,
    a_job_that_was_not_kept_is_unknown: Own,
    an_awaited_job_is_kept_when_it_is_done: Both,
    an_awaited_job_of_a_worker_is_kept: Own,
    the_end_of_an_awaited_job_wakes_a_waiter: Both,
    the_end_of_an_ordinary_job_wakes_a_waiter: Both,
    a_waiter_that_comes_while_a_job_runs_is_woken: Both,
    an_end_between_look_and_sleep_ends_the_wait: Own,
    no_wake_up_is_lost_in_a_race: Own,
    every_kind_of_end_wakes_a_waiter: Own,
    an_end_wakes_a_waiter_at_the_commit: Own,
    the_end_of_one_job_wakes_no_waiter_of_another: Own,
    a_retried_job_is_still_awaited: Own,
    a_wait_times_out_with_the_state_of_the_job: Both,
    a_wait_for_an_unknown_job_returns_at_once: Own,
    a_wait_in_a_transaction_is_refused: Own,
    a_transaction_sees_the_result_of_its_own_job: Both,
    a_job_that_a_transaction_holds_is_waited_for: Own,
    a_call_is_answered: Own,
    the_answer_to_a_call_says_what_failed: Own,
    an_awaited_result_lasts_as_long_as_the_archive: Own,
];

fn result<F: Fixture>(harness: &Harness<F>, id: JobId) -> JobResult<Value> {
    match harness.access() {
        Access::Own => harness.pq.result(id).unwrap(),
        Access::Callers => harness.pq.result_on(&mut harness.connect(), id).unwrap(),
    }
}

fn wait<F: Fixture>(harness: &Harness<F>, id: JobId, wait: Wait) -> JobResult<Value> {
    match harness.access() {
        Access::Own => harness.pq.wait_for(id, wait).unwrap(),
        Access::Callers => harness.pq.wait_for_on(&mut harness.connect(), id, wait).unwrap(),
    }
}

/// Waits for the end of a job on a thread of its own. Only a notification can wake it within a case's time.
///
/// By the time this returns the job is marked as awaited, and the wait has most likely begun to sleep.
fn waiter<'s, F: Fixture>(
    harness: &'s Harness<F>,
    threads: &'s Scope<'s, '_>,
    id: JobId,
) -> Receiver<JobResult<Value>> {
    let waiter = unmarked_waiter(harness, threads, id);
    wait_until("the job is awaited", || {
        let job = harness.pq.find(id).unwrap();
        job.is_some_and(|job| job.annotations.is_awaited())
    });
    assert_eq!(waiter.recv_timeout(Duration::from_millis(20)), Err(RecvTimeoutError::Timeout));
    waiter
}

fn unmarked_waiter<'s, F: Fixture>(
    harness: &'s Harness<F>,
    threads: &'s Scope<'s, '_>,
    id: JobId,
) -> Receiver<JobResult<Value>> {
    let (result, waiter) = channel();
    threads.spawn(move || {
        let _ = result.send(wait(harness, id, Wait::For(2 * TIMEOUT)));
    });
    waiter
}

fn kept(result: &Value) -> Outcome {
    Outcome::result(result).unwrap()
}

fn a_result_is_kept_and_read<F: Fixture>(harness: &Harness<F>) {
    let id = harness.put("a");
    harness.settle(&harness.lease_one(), kept(&json!({ "sum": 42 })));
    assert_eq!(result(harness, id), JobResult::Done(json!({ "sum": 42 })));
    assert_eq!(wait(harness, id, Wait::Forever), JobResult::Done(json!({ "sum": 42 })));
}

fn a_result_of_another_type_is_an_error<F: Fixture>(harness: &Harness<F>) {
    let id = harness.put("a");
    harness.settle(&harness.lease_one(), kept(&json!("a secret")));
    let error = harness.pq.result::<u32>(id).unwrap_err();
    let found = harness.fixture.core_error(&error);
    assert!(matches!(found, Some(Error::InvalidResult { id: of, .. }) if *of == id), "{error}");
    assert!(!error.to_string().contains("secret"), "{error}");
}

fn a_job_that_waits_or_runs_has_no_result_yet<F: Fixture>(harness: &Harness<F>) {
    let scheduled = harness.put_with("b", &PutOptions::new().schedule_at("1h"));
    assert_eq!(result(harness, scheduled), JobResult::Waiting);
    let id = harness.put("a");
    assert_eq!(result(harness, id), JobResult::Waiting);
    let job = harness.lease_one();
    assert_eq!(result(harness, id), JobResult::Running);
    harness.settle(&job, Outcome::retry(Duration::ZERO, "again"));
    assert_eq!(result(harness, id), JobResult::Waiting);
}

fn a_failed_or_cancelled_job_says_what_failed<F: Fixture>(harness: &Harness<F>) {
    let id = harness.put(json!({ "function": "charge", "args": [], "kwargs": {} }));
    harness.settle(&harness.lease_one(), Outcome::retry(Duration::ZERO, "no answer"));
    harness.settle(&harness.lease_one(), Outcome::dead("the card was declined"));
    let JobResult::Dead(failed) = result(harness, id) else { panic!("the job is dead") };
    assert_eq!((failed.id, failed.queue.as_str(), failed.attempt), (id, "apples", 2));
    assert_eq!(
        (failed.task.as_deref(), failed.error.as_deref()),
        (Some("charge"), Some("the card was declined"))
    );
    let errors: Vec<&str> = failed.attempt_log.iter().map(|entry| entry.error.as_str()).collect();
    assert_eq!(errors, ["no answer", "the card was declined"]);
    let shown =
        "job 1 of queue \"apples\", a call of \"charge\", ended after 2 attempts: the card was declined";
    assert_eq!(failed.to_string().replacen(&id.to_string(), "1", 1), shown);

    let id = harness.put("b");
    harness.settle(&harness.lease_one(), Outcome::cancel("not needed"));
    let JobResult::Cancelled(failed) = result(harness, id) else { panic!("the job is cancelled") };
    assert_eq!((failed.task, failed.error.as_deref()), (None, Some("not needed")));
}

fn a_job_that_was_not_kept_is_unknown<F: Fixture>(harness: &Harness<F>) {
    let id = harness.put("a");
    harness.settle(&harness.lease_one(), Outcome::Complete);
    assert_eq!(result(harness, id), JobResult::Unknown);
    assert_eq!(wait(harness, id, Wait::Forever), JobResult::Unknown);
}

fn an_awaited_job_is_kept_when_it_is_done<F: Fixture>(harness: &Harness<F>) {
    let options = PutOptions::new().awaited().tags(["a tag"]);
    let (leased, held) = (harness.put_with("a", &options), harness.put_with("b", &options));
    let job = harness.lease_one();
    assert!(job.annotations.is_awaited());
    harness.settle(&job, Outcome::Complete);
    assert_eq!(result(harness, leased), JobResult::Done(Value::Null));
    let queue = harness.queue();
    harness
        .transaction(|conn| {
            let job = queue.on(conn).get()?.expect("the other job");
            Ok(queue.on(conn).settle(&job, Outcome::Complete)?)
        })
        .unwrap();
    assert_eq!(result(harness, held), JobResult::Done(Value::Null));
    let job = harness.pq.find(held).unwrap().unwrap();
    assert_eq!((job.annotations.tags(), job.result), (vec!["a tag".to_owned()], None));
}

fn an_awaited_job_of_a_worker_is_kept<F: Fixture>(harness: &Harness<F>) {
    let task = task::<F, u32>(harness);
    for handler in both::<F, _, _, _>(&task, |_| Ok::<_, String>(())) {
        let awaited = CallOptions::new().awaited();
        let ids = [
            task.call_with(&1, &awaited).unwrap().id,
            task.call(&2).unwrap().id,
            task.call_with(&3, &awaited).unwrap().id,
        ];
        assert_eq!(run_until_empty(harness, handler).done, 3);
        let results = ids.map(|id| harness.pq.result::<()>(id).unwrap());
        assert_eq!(results, [JobResult::Done(()), JobResult::Unknown, JobResult::Done(())]);
    }
}

fn the_end_of_an_awaited_job_wakes_a_waiter<F: Fixture>(harness: &Harness<F>) {
    let id = harness.put_with("a", &PutOptions::new().awaited());
    std::thread::scope(|threads| {
        let waiter = waiter(harness, threads, id);
        harness.settle(&harness.lease_one(), kept(&json!(1)));
        assert_eq!(waiter.recv_timeout(TIMEOUT).unwrap(), JobResult::Done(json!(1)));
    });
}

fn the_end_of_an_ordinary_job_wakes_a_waiter<F: Fixture>(harness: &Harness<F>) {
    let id = harness.put_with("a", &PutOptions::new().tags(["a tag"]).unique("a"));
    std::thread::scope(|threads| {
        let waiter = waiter(harness, threads, id);
        let job = harness.lease_one();
        assert_eq!((job.id, job.annotations.tags()), (id, vec!["a tag".to_owned()]));
        harness.settle(&job, Outcome::Complete);
        assert_eq!(waiter.recv_timeout(TIMEOUT).unwrap(), JobResult::Done(Value::Null));
    });
}

fn a_waiter_that_comes_while_a_job_runs_is_woken<F: Fixture>(harness: &Harness<F>) {
    let tagged = PutOptions::new().tags(["a tag"]);
    let ids = [harness.put("a"), harness.put_with("b", &tagged), harness.put("c")];
    let jobs = harness.lease(3, TIMEOUT);
    std::thread::scope(|threads| {
        let waiters = [waiter(harness, threads, ids[1]), waiter(harness, threads, ids[2])];
        // One is settled while others of its lease run, and one with all that are left.
        harness.settle(&jobs[1], Outcome::Complete);
        assert_eq!(waiters[0].recv_timeout(TIMEOUT).unwrap(), JobResult::Done(Value::Null));
        harness.settle(&jobs[0], Outcome::Complete);
        harness.settle(&jobs[2], Outcome::Complete);
        assert_eq!(waiters[1].recv_timeout(TIMEOUT).unwrap(), JobResult::Done(Value::Null));
    });
    // Nobody waited for the first.
    assert_eq!(result(harness, ids[0]), JobResult::Unknown);
    let job = harness.pq.find(ids[1]).unwrap().unwrap();
    assert_eq!((job.state, job.annotations.tags()), (JobState::Done, vec!["a tag".to_owned()]));

    // The jobs of a lease that are settled at once.
    let ids = [harness.put("d"), harness.put("e")];
    let jobs = harness.lease(2, TIMEOUT);
    std::thread::scope(|threads| {
        let waiter = waiter(harness, threads, ids[1]);
        let settlement = |job| Settlement { job, outcome: Outcome::Complete };
        let settlements: Vec<_> = jobs.iter().map(|job| settlement(job)).collect();
        assert!(harness.queue().settle_many(&settlements).unwrap().all());
        assert_eq!(waiter.recv_timeout(TIMEOUT).unwrap(), JobResult::Done(Value::Null));
    });
    assert_eq!(result(harness, ids[0]), JobResult::Unknown);
}

/// The job ends after the look at it and before the sleep: a notification that came in between is not lost.
fn an_end_between_look_and_sleep_ends_the_wait<F: Fixture>(harness: &Harness<F>) {
    let store = harness.pq.store();
    let id = harness.put_with("a", &PutOptions::new().awaited());
    let signal = WakeSignal::new();
    let _subscription = store.subscribe_to_end(id, &signal);
    let seen = signal.generation();
    let mut conn = harness.connect();
    assert!(!store.look(&mut conn, id).unwrap().unwrap().state.is_ended());
    harness.settle(&harness.lease_one(), Outcome::Complete);
    // A store that does not listen notifies nobody: its waits poll.
    let (begun, pause) = (Instant::now(), store.poll_interval().min(TIMEOUT));
    signal.wait_past(seen, pause);
    assert!(begun.elapsed() < TIMEOUT);
    assert!(store.look(&mut conn, id).unwrap().unwrap().state.is_ended());
    assert_eq!(wait(harness, id, Wait::Forever), JobResult::Done(Value::Null));
}

/// Ends and waits that begin at the same moment: each wait finds the end at its look, or is woken.
fn no_wake_up_is_lost_in_a_race<F: Fixture>(harness: &Harness<F>) {
    for round in 0..40 {
        let options = if round % 2 == 0 { PutOptions::new().awaited() } else { PutOptions::new() };
        let id = harness.put_with(round, &options);
        let (job, start) = (harness.lease_one(), Barrier::new(2));
        std::thread::scope(|threads| {
            let waiting = threads.spawn(|| {
                start.wait();
                let begun = Instant::now();
                (harness.pq.wait_for::<()>(id, Wait::For(2 * TIMEOUT)).unwrap(), begun.elapsed())
            });
            start.wait();
            std::thread::sleep(Duration::from_micros(100 * round));
            harness.settle(&job, Outcome::Complete);
            let (found, elapsed) = waiting.join().unwrap();
            // A job that nobody had asked for when it ended was not kept.
            assert!(
                found == JobResult::Done(()) || (round % 2 == 1 && found == JobResult::Unknown),
                "{found:?}"
            );
            assert!(elapsed < TIMEOUT, "round {round}: the wait took {elapsed:?}");
        });
    }
}

fn every_kind_of_end_wakes_a_waiter<F: Fixture>(harness: &Harness<F>) {
    let ends: [(&str, &dyn Fn(JobId)); 5] = [
        ("dead", &|_| harness.settle(&harness.lease_one(), Outcome::dead("broken"))),
        ("cancelled", &|_| harness.settle(&harness.lease_one(), Outcome::cancel("no"))),
        ("cancelled", &|id| assert!(harness.queue().cancel(id).unwrap().is_accepted())),
        ("cancelled", &|id| {
            let job = harness.lease_one();
            harness.queue().cancel(id).unwrap();
            harness.lose_lease(&job);
        }),
        ("cancelled", &|id| {
            let report = harness.pq.operate(&Operation::Cancel, &Filter::id(id), |_| {}).unwrap();
            assert_eq!(report.changed, 1);
        }),
    ];
    for (state, end) in ends {
        let id = harness.put("a");
        std::thread::scope(|threads| {
            let waiter = waiter(harness, threads, id);
            end(id);
            let ended = waiter.recv_timeout(TIMEOUT).unwrap();
            let found = match ended {
                JobResult::Dead(_) => "dead",
                JobResult::Cancelled(_) => "cancelled",
                _ => "something else",
            };
            assert_eq!(found, state);
        });
    }
}

fn an_end_wakes_a_waiter_at_the_commit<F: Fixture>(harness: &Harness<F>) {
    let (id, other) = (harness.put("a"), harness.put_with("b", &PutOptions::new().awaited()));
    let (queue, job) = (harness.queue(), harness.lease_one());
    let second = harness.lease_one();
    std::thread::scope(|threads| {
        let (waiter, witness) = (waiter(harness, threads, id), waiter(harness, threads, other));
        harness
            .transaction(|conn| {
                queue.on(conn).settle(&job, Outcome::Complete)?;
                // By the time another end has woken a waiter, a notification of this one would have come.
                harness.settle(&second, Outcome::Complete);
                assert_eq!(witness.recv_timeout(TIMEOUT).unwrap(), JobResult::Done(Value::Null));
                assert!(waiter.try_recv().is_err());
                Ok(())
            })
            .unwrap();
        assert_eq!(waiter.recv_timeout(TIMEOUT).unwrap(), JobResult::Done(Value::Null));
    });
}

fn the_end_of_one_job_wakes_no_waiter_of_another<F: Fixture>(harness: &Harness<F>) {
    let store = harness.pq.store();
    let put = |data: &str| harness.put_with(data, &PutOptions::new().awaited());
    let ids = ["a", "b", "c", "d"].map(put);
    let jobs = harness.lease(4, TIMEOUT);
    let signal = WakeSignal::new();
    let _subscription = store.subscribe_to_end(ids[0], &signal);
    std::thread::scope(|threads| {
        let [one, other] = [waiter(harness, threads, ids[2]), waiter(harness, threads, ids[3])];
        // The store has confirmed the subscription when it wakes a waiter that came later.
        harness.settle(&jobs[2], Outcome::Complete);
        assert_eq!(one.recv_timeout(TIMEOUT).unwrap(), JobResult::Done(Value::Null));
        let seen = signal.generation();
        harness.settle(&jobs[1], Outcome::Complete);
        // By the time another end has woken a waiter, the one before has been notified.
        harness.settle(&jobs[3], Outcome::Complete);
        assert_eq!(other.recv_timeout(TIMEOUT).unwrap(), JobResult::Done(Value::Null));
        assert_eq!(signal.generation(), seen);
    });
}

fn a_retried_job_is_still_awaited<F: Fixture>(harness: &Harness<F>) {
    let id = harness.put("a");
    std::thread::scope(|threads| {
        let waiter = waiter(harness, threads, id);
        harness.settle(&harness.lease_one(), Outcome::retry(Duration::ZERO, "again"));
        harness.lose_lease(&harness.lease_one());
        harness.settle(&harness.lease_one(), Outcome::dead("broken"));
        assert!(matches!(waiter.recv_timeout(TIMEOUT).unwrap(), JobResult::Dead(_)));
    });
    // It is awaited under its id, so also after it was requeued.
    assert!(harness.queue().retry(id).unwrap());
    harness.settle(&harness.lease_one(), Outcome::Complete);
    assert_eq!(result(harness, id), JobResult::Done(Value::Null));
}

fn a_wait_times_out_with_the_state_of_the_job<F: Fixture>(harness: &Harness<F>) {
    let id = harness.put("a");
    let (begun, short) = (Instant::now(), Duration::from_millis(100));
    assert_eq!(wait(harness, id, Wait::For(short)), JobResult::Waiting);
    assert!(begun.elapsed() >= short);
    assert_eq!(wait(harness, id, Wait::No), JobResult::Waiting);
    let job = harness.lease_one();
    assert_eq!(wait(harness, id, Wait::For(short)), JobResult::Running);
    harness.settle(&job, Outcome::Complete);
}

fn a_wait_for_an_unknown_job_returns_at_once<F: Fixture>(harness: &Harness<F>) {
    assert_eq!(wait(harness, JobId(i64::MAX), Wait::Forever), JobResult::Unknown);
}

fn a_wait_in_a_transaction_is_refused<F: Fixture>(harness: &Harness<F>) {
    let queue = harness.queue();
    harness
        .transaction(|conn| {
            let id = queue.on(conn).put(&json!("a"))?.id;
            let error = harness.pq.wait_for_on::<Value>(conn, id, Wait::Forever).unwrap_err();
            let found = harness.fixture.core_error(&error);
            assert!(matches!(found, Some(Error::WaitInTransaction { id: of, .. }) if *of == id), "{error}");
            // The transaction can go on.
            assert_eq!(harness.pq.wait_for_on::<Value>(conn, id, Wait::No)?, JobResult::Waiting);
            Ok(())
        })
        .unwrap();
}

fn a_transaction_sees_the_result_of_its_own_job<F: Fixture>(harness: &Harness<F>) {
    let id = harness.put("a");
    let queue = harness.queue();
    harness
        .transaction(|conn| {
            let job = queue.on(conn).get()?.expect("a job");
            queue.on(conn).settle(&job, kept(&json!(7)))?;
            assert_eq!(harness.pq.result_on::<u32>(conn, id)?, JobResult::Done(7));
            assert_eq!(harness.pq.result::<u32>(id)?, JobResult::Waiting, "nobody else sees it");
            Ok(())
        })
        .unwrap();
    assert_eq!(harness.pq.result::<u32>(id).unwrap(), JobResult::Done(7));
}

fn a_job_that_a_transaction_holds_is_waited_for<F: Fixture>(harness: &Harness<F>) {
    let id = harness.put("a");
    let queue = harness.queue();
    std::thread::scope(|threads| {
        let mut waits = None;
        harness
            .transaction(|conn| {
                let job = queue.on(conn).get()?.expect("a job");
                let waiter = unmarked_waiter(harness, threads, id);
                let early = waiter.recv_timeout(Duration::from_millis(50));
                assert_eq!(early, Err(RecvTimeoutError::Timeout));
                waits = Some(waiter);
                queue.on(conn).settle(&job, kept(&json!(7)))?;
                Ok(())
            })
            .unwrap();
        assert_eq!(waits.unwrap().recv_timeout(TIMEOUT).unwrap(), JobResult::Done(json!(7)));
    });
}

fn a_call_is_answered<F: Fixture>(harness: &Harness<F>) {
    let double = harness.named::<()>("sums").task::<i64>("double");
    let nothing = harness.named::<()>("other").task::<()>("nothing");
    let handler = double.leased(|_, job| Outcome::result(&(job.data * 2)));
    let worker =
        Worker::new(&harness.pq).serve(handler).serve(nothing.transactional(|_, _| Ok::<_, String>(())));
    run_beside::<F>(worker, |control| {
        let answer = double.call_and_wait::<i64>(&21, Wait::For(2 * TIMEOUT)).unwrap();
        assert_eq!(answer.result, JobResult::Done(42));
        assert_eq!(harness.pq.result::<i64>(answer.id).unwrap(), JobResult::Done(42), "it can be read again");
        let answer = nothing.call_and_wait::<()>(&(), Wait::For(2 * TIMEOUT)).unwrap();
        assert_eq!(answer.result, JobResult::Done(()));
        control.stop(StopMode::Finish);
    });
}

fn the_answer_to_a_call_says_what_failed<F: Fixture>(harness: &Harness<F>) {
    let charge = harness.named::<()>("sums").task::<i64>("charge");
    let handler = charge.leased(|_, _| Err::<(), _>("the card was declined"));
    run_beside::<F>(Worker::new(&harness.pq).serve(handler), |control| {
        let answer = charge.call_and_wait::<()>(&1, Wait::For(2 * TIMEOUT)).unwrap();
        let JobResult::Dead(failed) = answer.result else { panic!("the job is dead") };
        assert_eq!((failed.id, failed.task.as_deref()), (answer.id, Some("charge")));
        assert_eq!(failed.error.as_deref(), Some("the card was declined"));
        control.stop(StopMode::Finish);
    });
}

fn an_awaited_result_lasts_as_long_as_the_archive<F: Fixture>(harness: &Harness<F>) {
    let id = harness.put_with("a", &PutOptions::new().awaited());
    harness.settle(&harness.lease_one(), Outcome::Complete);
    harness.maintain();
    assert_eq!(result(harness, id), JobResult::Done(Value::Null));
    let retention = Retention::default().done_days(0);
    harness.pq.maintain(&retention).unwrap().unwrap();
    assert_eq!(result(harness, id), JobResult::Unknown);
}
