//! Tasks and their handlers, transactional and leased.

use std::time::Duration;

use pq_core::{Backoff, CallOptions, JobId, JobState, Outcome, Wait, Worker};
use serde_json::{Value, json};

use super::cases;
use crate::Fixture;
use crate::harness::{CaseError, Conn, Harness, Seen, TIMEOUT, both, roll_back, run_until_empty, task};

cases![
    a_handler_receives_the_arguments_of_the_call: Own,
    a_handler_receives_the_jobs_id_attempt_and_times: Own,
    writes_of_a_transactional_handler_commit_with_its_job: Own,
    a_failed_handler_rolls_back_only_its_own_writes: Own,
    a_failure_in_a_single_job_batch_is_recorded_and_its_writes_are_rolled_back: Own,
    an_error_is_stored_with_the_job: Own,
    a_panic_is_a_failure_and_the_worker_continues: Own,
    a_failed_job_is_retried_until_its_retries_are_exhausted: Own,
    a_requeued_job_has_all_of_its_retries_again: Own,
    a_retry_waits_for_its_backoff: Own,
    options_of_the_call_override_those_of_the_task: Own,
    a_call_that_states_no_policy_gets_that_of_the_task_that_works_it: Own,
    a_call_of_another_program_can_state_its_policy: Own,
    a_payload_that_is_not_a_task_is_moved_to_dead: Own,
    a_job_with_undecodable_arguments_is_moved_to_dead: Own,
    a_handler_can_return_every_outcome: Own,
    a_handler_can_return_retry_until_its_retries_are_exhausted: Own,
    a_handler_that_exceeds_its_timeout_fails: Own,
    a_job_whose_worker_dies_on_every_attempt_is_moved_to_dead: Own,
    crashes_use_up_no_retries: Own,
    a_job_whose_transaction_was_rolled_back_runs_under_a_lease: Own,
    a_worker_can_serve_a_plain_queue: Own,
    a_handler_can_put_jobs: Own,
];

fn a_handler_receives_the_arguments_of_the_call<F: Fixture>(harness: &Harness<F>) {
    let task = task::<F, (u8, String)>(harness);
    let seen = Seen::new();
    let note = seen.clone();
    for handler in both::<F, _, _, _>(&task, move |job| {
        note.push(job.data);
        Ok::<_, CaseError>(())
    }) {
        task.call(&(7, "ж".to_owned())).unwrap();
        assert_eq!(run_until_empty(harness, handler).done, 1);
    }
    assert_eq!(seen.all(), [(7, "ж".to_owned()), (7, "ж".to_owned())]);
    assert_eq!(harness.counts().total(), 0);
}

fn a_handler_receives_the_jobs_id_attempt_and_times<F: Fixture>(harness: &Harness<F>) {
    let task = task::<F, ()>(harness);
    let options = CallOptions::new().schedule_at("2001-01-01T00:00:00Z").expected_at("1h").priority(3);
    let seen = Seen::new();
    let note = seen.clone();
    for handler in both::<F, _, _, _>(&task, move |job| {
        note.push((
            job.id,
            job.attempt,
            job.schedule_at.is_some() && job.expected_at.is_some(),
            job.priority,
        ));
        Ok::<_, CaseError>(())
    }) {
        let id = task.call_with(&(), &options).unwrap().id;
        run_until_empty(harness, handler);
        assert_eq!(seen.all().last(), Some(&(id, 1, true, 3)));
    }
}

fn writes_of_a_transactional_handler_commit_with_its_job<F: Fixture>(harness: &Harness<F>) {
    let (task, pears) = (task::<F, u8>(harness), harness.named::<Value>("pears"));
    let writes = pears.clone();
    let handler = task.transactional(move |conn: &mut Conn<F>, job| {
        writes.on(conn).put(&json!(job.data))?;
        assert!(writes.counts()?.ready < 2, "other connections must not see uncommitted writes");
        Ok::<_, crate::harness::Error<F>>(())
    });
    task.call(&1).unwrap();
    assert_eq!(run_until_empty(harness, handler).done, 1);
    assert_eq!(pears.get(Wait::No).unwrap().map(|job| job.data), Some(json!(1)));
}

fn a_failed_handler_rolls_back_only_its_own_writes<F: Fixture>(harness: &Harness<F>) {
    let (task, pears) = (task::<F, u8>(harness), harness.named::<Value>("pears"));
    task.call_many([0, 1, 2, 3, 4, 5, 6, 7]).unwrap();
    let writes = pears.clone();
    let handler = task.transactional(move |conn: &mut Conn<F>, job| {
        if job.data % 4 != 3 {
            writes.on(conn).put(&json!(job.data)).unwrap();
        }
        match job.data {
            2 => Err("broken"),
            4 => panic!("on purpose"),
            // Fails without a write.
            3 => Err("broken"),
            _ => Ok(()),
        }
    });
    let worker = Worker::new(&harness.pq).batch(8, 8).serve(handler);
    let report = worker.run_until_empty().unwrap();
    assert_eq!((report.done, report.failed, report.dead), (5, 3, 3));
    let kept: Vec<Value> = pears.get_many(9, Wait::No).unwrap().into_iter().map(|job| job.data).collect();
    assert_eq!(kept, [0, 1, 5, 6]);
}

fn a_failure_in_a_single_job_batch_is_recorded_and_its_writes_are_rolled_back<F: Fixture>(
    harness: &Harness<F>,
) {
    let (task, pears) = (task::<F, u8>(harness), harness.named::<Value>("pears"));
    let task = task.max_retries(1).backoff(Backoff::fixed(Duration::ZERO));
    for options in [CallOptions::new(), CallOptions::new().serialization_key("one").unique("one")] {
        for ending in 0..3 {
            task.call_with(&ending, &options).unwrap();
            let writes = pears.clone();
            let handler = task.transactional(move |conn: &mut Conn<F>, job| {
                writes.on(conn).put(&json!(job.data)).unwrap();
                match job.data {
                    0 => Ok(Outcome::Complete),
                    1 => panic!("on purpose"),
                    _ => Err("broken"),
                }
            });
            let report = Worker::new(&harness.pq).serve(handler).run_until_empty().unwrap();
            let wanted = if ending == 0 { (1, 0, 0) } else { (0, 2, 1) };
            assert_eq!((report.done, report.failed, report.dead), wanted, "{report:?}");
        }
    }
    assert!(harness.archived(JobState::Dead).iter().all(|dead| dead.attempt == 2));
    let kept: Vec<Value> = pears.get_many(9, Wait::No).unwrap().into_iter().map(|job| job.data).collect();
    assert_eq!(kept, [0, 0]);
}

fn an_error_is_stored_with_the_job<F: Fixture>(harness: &Harness<F>) {
    let task = task::<F, ()>(harness);
    for handler in both::<F, _, _, _>(&task, |_| Err::<(), _>("the tree\u{0} fell")) {
        task.call(&()).unwrap();
        let report = run_until_empty(harness, handler);
        assert_eq!((report.failed, report.dead, report.done), (1, 1, 0));
    }
    for dead in harness.archived(JobState::Dead) {
        assert!(dead.error.unwrap().contains("fell"));
        assert_eq!(dead.attempt, 1);
    }
    assert_eq!(harness.counts().dead, 2);
}

fn a_panic_is_a_failure_and_the_worker_continues<F: Fixture>(harness: &Harness<F>) {
    let task = task::<F, u8>(harness);
    let eat = |job: pq_core::Job<u8>| {
        if job.data == 1 { panic!("job {} is bad", job.data) } else { Ok::<_, CaseError>(()) }
    };
    for handler in both::<F, _, _, _>(&task, eat) {
        task.call_many([0, 1, 2]).unwrap();
        let report = run_until_empty(harness, handler);
        assert_eq!((report.done, report.failed), (2, 1));
    }
    assert!(
        harness.archived(JobState::Dead).iter().all(|dead| dead
            .error
            .as_ref()
            .unwrap()
            .contains("job 1 is bad"))
    );
}

fn a_failed_job_is_retried_until_its_retries_are_exhausted<F: Fixture>(harness: &Harness<F>) {
    let task = task::<F, ()>(harness).max_retries(2).backoff(Backoff::fixed(Duration::ZERO));
    let seen = Seen::new();
    let note = seen.clone();
    for handler in both::<F, _, _, _>(&task, move |job| {
        note.push((job.id, job.attempt));
        Err::<(), _>("again")
    }) {
        let id = task.call(&()).unwrap().id;
        let report = run_until_empty(harness, handler);
        assert_eq!((report.failed, report.dead), (3, 1));
        let attempts: Vec<(JobId, i32)> = seen.all().into_iter().rev().take(3).rev().collect();
        assert_eq!(attempts, [(id, 1), (id, 2), (id, 3)]);
    }
    assert_eq!(seen.all().len(), 6);
    assert!(harness.archived(JobState::Dead).iter().all(|dead| dead.attempt == 3));
}

fn a_requeued_job_has_all_of_its_retries_again<F: Fixture>(harness: &Harness<F>) {
    let task = task::<F, ()>(harness).max_retries(2).backoff(Backoff::fixed(Duration::ZERO));
    for handler in both::<F, _, _, _>(&task, |_| Err::<(), _>("again")) {
        let id = task.call(&()).unwrap().id;
        let worker = |handler| Worker::new(&harness.pq).serve(handler).run_until_empty().unwrap();
        assert_eq!(worker(handler).failed, 3);
        assert!(harness.queue().retry(id).unwrap());
        assert_eq!(worker(task.leased(|_, _| Err::<(), _>("again"))).failed, 3);
    }
}

fn a_retry_waits_for_its_backoff<F: Fixture>(harness: &Harness<F>) {
    let task = task::<F, ()>(harness).max_retries(1).backoff(Backoff::custom(|attempt| TIMEOUT * attempt));
    for handler in both::<F, _, _, _>(&task, |_| Err::<(), _>("again")) {
        let id = task.call(&()).unwrap().id;
        assert_eq!(run_until_empty(harness, handler).failed, 1);
        let job = harness.queue().find(id).unwrap().unwrap();
        assert_eq!((job.state, job.attempt), (JobState::Scheduled, 1));
        assert!(job.error.unwrap().contains("again"));
        let left = job.schedule_at.unwrap().signed_duration_since(chrono::Utc::now());
        assert!(left > chrono::TimeDelta::zero(), "{left}");
    }
}

fn options_of_the_call_override_those_of_the_task<F: Fixture>(harness: &Harness<F>) {
    let task = task::<F, ()>(harness)
        .max_retries(9)
        .backoff(Backoff::fixed(TIMEOUT))
        .with_defaults(CallOptions::new().priority(1).serialization_key("of the task"));
    let options = CallOptions::new().max_retries(1).retry_in(Duration::ZERO).priority(2);
    let seen = Seen::new();
    let note = seen.clone();
    for handler in both::<F, _, _, _>(&task, move |job| {
        note.push((job.priority, job.serialization_key.as_ref().map(|key| key.as_str().to_owned())));
        Err::<(), _>("no")
    }) {
        task.call_with(&(), &options).unwrap();
        assert_eq!(run_until_empty(harness, handler).failed, 2);
    }
    assert_eq!(seen.all(), vec![(2, Some("of the task".to_owned())); 4]);
    let own = CallOptions::new().backoff(Backoff::custom(|_| Duration::ZERO));
    assert!(task.call_with(&(), &own).is_err(), "a custom backoff cannot be stored with a call");
}

fn a_call_that_states_no_policy_gets_that_of_the_task_that_works_it<F: Fixture>(harness: &Harness<F>) {
    let old = task::<F, ()>(harness).backoff(Backoff::fixed(10 * TIMEOUT));
    let new = task::<F, ()>(harness).max_retries(2).backoff(Backoff::fixed(Duration::ZERO));
    for handler in both::<F, _, _, _>(&new, |_| Err::<(), _>("no")) {
        // By plain SQL, by Python with its defaults, and by an older version of the program.
        harness.put(json!({ "function": "eat" }));
        harness.put(json!({
            "function": "eat", "args": [], "kwargs": {}, "retried": 0, "max_retries": 0, "retry_in": "30s"
        }));
        old.call(&()).unwrap();
        old.call_with(&(), &CallOptions::new().max_retries(0)).unwrap();
        let report = run_until_empty(harness, handler);
        assert_eq!((report.failed, report.dead), (3 + 3 + 3 + 1, 4));
    }
    assert_eq!(harness.counts().live(), 0);
}

fn a_call_of_another_program_can_state_its_policy<F: Fixture>(harness: &Harness<F>) {
    let task = task::<F, ()>(harness).max_retries(5).backoff(Backoff::fixed(10 * TIMEOUT));
    for handler in both::<F, _, _, _>(&task, |_| Err::<(), _>("no")) {
        harness.put(json!({ "function": "eat", "max_retries": 1, "retry_in": null }));
        harness.put(json!({ "function": "eat", "retry_in": "0s", "retried": 4 }));
        let report = run_until_empty(harness, handler);
        assert_eq!((report.failed, report.dead), (2 + 2, 2));
    }
}

fn a_payload_that_is_not_a_task_is_moved_to_dead<F: Fixture>(harness: &Harness<F>) {
    let task = task::<F, ()>(harness).max_retries(5);
    for (n, handler) in both::<F, _, _, _>(&task, |_| Ok::<_, CaseError>(())).into_iter().enumerate() {
        harness.queue().put_many(&[json!(null), json!({ "functions": 1 }), json!([])]).unwrap();
        task.call(&()).unwrap();
        let report = run_until_empty(harness, handler);
        assert_eq!((report.done, report.dead), (1, 3));
        assert_eq!(harness.counts().dead, 3 * (n as u64 + 1));
    }
}

fn a_job_with_undecodable_arguments_is_moved_to_dead<F: Fixture>(harness: &Harness<F>) {
    let (numbers, texts) = (task::<F, u8>(harness).max_retries(5), task::<F, String>(harness));
    for handler in both::<F, _, _, _>(&numbers, |_| Ok::<_, CaseError>(())) {
        texts.call(&"a secret".to_owned()).unwrap();
        numbers.call(&1).unwrap();
        let report = run_until_empty(harness, handler);
        assert_eq!((report.done, report.dead), (1, 1));
    }
    let dead = harness.archived(JobState::Dead);
    assert!(dead.iter().all(|dead| !dead.error.as_ref().unwrap().contains("secret")));
}

fn a_handler_can_return_retry_until_its_retries_are_exhausted<F: Fixture>(harness: &Harness<F>) {
    let task = task::<F, u8>(harness).max_retries(1).backoff(Backoff::fixed(10 * TIMEOUT));
    for handler in both::<F, _, _, _>(&task, |_| Ok::<_, CaseError>(Outcome::retry(Duration::ZERO, "busy"))) {
        task.call(&1).unwrap();
        let report = run_until_empty(harness, handler);
        assert_eq!((report.failed, report.dead), (2, 1), "its own delay applies, and retries are counted");
    }
    let dead = harness.archived(JobState::Dead);
    assert!(dead.iter().all(|dead| dead.error.as_deref() == Some("busy") && dead.attempt == 2));
}

fn a_handler_can_return_every_outcome<F: Fixture>(harness: &Harness<F>) {
    let task = task::<F, u8>(harness).max_retries(5);
    let eat = |job: pq_core::Job<u8>| {
        Ok::<_, CaseError>(match job.data {
            0 => Outcome::Complete,
            1 => Outcome::result(&json!({ "z": 1 })).unwrap(),
            2 => Outcome::snooze(10 * TIMEOUT),
            3 => Outcome::dead("for good"),
            _ => Outcome::cancel("not wanted"),
        })
    };
    for handler in both::<F, _, _, _>(&task, eat) {
        task.call_many([0, 1, 2, 3, 4]).unwrap();
        let report = run_until_empty(harness, handler);
        assert_eq!((report.done, report.snoozed, report.dead, report.cancelled), (2, 1, 1, 1));
    }
    let counts = harness.counts();
    assert_eq!((counts.done, counts.dead, counts.cancelled, counts.scheduled), (2, 2, 2, 2));
    assert!(
        harness
            .archived(JobState::Done)
            .iter()
            .all(|done| done.result.as_ref().unwrap().as_str() == "{\"z\":1}")
    );
}

fn a_handler_that_exceeds_its_timeout_fails<F: Fixture>(harness: &Harness<F>) {
    let task = task::<F, ()>(harness).timeout(Duration::from_millis(20));
    let seen = Seen::new();
    let note = seen.clone();
    let leased = task.leased(move |context, _| {
        while !context.should_stop() {
            std::thread::yield_now();
        }
        note.push((context.is_timed_out(), context.is_aborting()));
        Ok::<_, CaseError>(())
    });
    let transactional = task.transactional(|_, _| {
        std::thread::sleep(Duration::from_millis(40));
        Ok::<_, CaseError>(())
    });
    for handler in [leased, transactional] {
        task.call(&()).unwrap();
        let report = run_until_empty(harness, handler);
        assert_eq!((report.done, report.dead), (0, 1));
    }
    assert_eq!(seen.all(), [(true, false)]);
    assert!(
        harness.archived(JobState::Dead).iter().all(|dead| dead
            .error
            .as_ref()
            .unwrap()
            .contains("longer than"))
    );
}

fn a_job_whose_worker_dies_on_every_attempt_is_moved_to_dead<F: Fixture>(harness: &Harness<F>) {
    let task = task::<F, ()>(harness).max_retries(9).max_crashes(2);
    let too_often = |_| -> Result<(), CaseError> { panic!("it was started once too often") };
    for handler in both::<F, _, _, _>(&task, too_often) {
        task.call(&()).unwrap();
        for _ in 0..2 {
            assert_eq!(harness.lease(1, Duration::ZERO).len(), 1);
            harness.maintain();
        }
        assert_eq!(run_until_empty(harness, handler).dead, 1);
        let dead = harness.archived(JobState::Dead).remove(0);
        assert!(dead.crashes == 2 && dead.error.unwrap().contains("died 2 times while it ran"));
    }
}

fn crashes_use_up_no_retries<F: Fixture>(harness: &Harness<F>) {
    let task = task::<F, u32>(harness).max_retries(1).backoff(Backoff::fixed(Duration::ZERO));
    let seen = Seen::new();
    let note = seen.clone();
    let fail = move |job: pq_core::Job<u32>| {
        note.push((job.data, job.attempt));
        Err::<(), _>("always")
    };
    for (handler, data) in both::<F, _, _, _>(&task, fail).into_iter().zip(0..) {
        task.call(&data).unwrap();
        for _ in 0..2 {
            assert_eq!(harness.lease(1, Duration::ZERO).len(), 1);
            harness.maintain();
        }
        assert_eq!(run_until_empty(harness, handler).failed, 2);
    }
    assert_eq!(seen.all(), [(0, 3), (0, 4), (1, 3), (1, 4)]);
}

fn a_job_whose_transaction_was_rolled_back_runs_under_a_lease<F: Fixture>(harness: &Harness<F>) {
    let task = task::<F, u32>(harness).max_retries(1).backoff(Backoff::fixed(Duration::ZERO));
    task.call_many(0..3).unwrap();
    let (queue, seen) = (harness.queue(), Seen::new());
    harness
        .transaction(|conn| {
            assert!(queue.on(conn).get()?.is_some());
            roll_back::<()>()
        })
        .unwrap_err();
    let note = seen.clone();
    let handler = task.transactional(move |_, job| {
        note.push((job.data, job.attempt, job.lease().is_some()));
        if job.data == 0 { Err("no") } else { Ok(()) }
    });
    Worker::new(&harness.pq).batch(1, 1).serve(handler).run_until_empty().unwrap();
    let mut runs = seen.all();
    runs.sort_unstable();
    assert_eq!(runs, [(0, 1, true), (0, 2, true), (1, 1, false), (2, 1, false)]);
}

fn a_worker_can_serve_a_plain_queue<F: Fixture>(harness: &Harness<F>) {
    let numbers = harness.named::<u32>("apples");
    let seen = Seen::new();
    let (one, other) = (seen.clone(), seen.clone());
    let transactional = numbers.transactional(move |_, job| {
        one.push(job.data);
        if job.data == 2 { Err("no") } else { Ok(()) }
    });
    let leased = numbers.leased(move |_, job| {
        other.push(job.data);
        if job.data == 2 { Err("no") } else { Ok(()) }
    });
    for handler in [transactional, leased.max_retries(1).backoff(Backoff::fixed(Duration::ZERO))] {
        numbers.put_many([1, 2, 3]).unwrap();
        harness.put("not a number");
        let report = run_until_empty(harness, handler);
        assert_eq!((report.done, report.dead), (2, 2));
    }
    assert_eq!(seen.all().iter().filter(|data| **data == 2).count(), 3);
}

fn a_handler_can_put_jobs<F: Fixture>(harness: &Harness<F>) {
    let task = task::<F, u8>(harness);
    let (again, other) = (task.clone(), task.clone());
    let transactional = task.transactional(move |conn: &mut Conn<F>, job| match job.data {
        0 => Ok(()),
        n => again.on(conn).call(&(n - 1)).map(drop),
    });
    let leased = task.leased(move |_, job| match job.data {
        0 => Ok(()),
        n => other.call(&(n - 1)).map(drop),
    });
    for handler in [transactional, leased] {
        task.call(&5).unwrap();
        assert_eq!(run_until_empty(harness, handler).done, 6);
    }
}
