//! Signals: a job waits for one without a worker, and each is delivered once.

use std::sync::mpsc::channel;
use std::time::Duration;

use pq_core::store::{Jobs, Keeping, NewStep, Steps};
use pq_core::{Handler, Job, JobId, JobState, Operation, Outcome, Reason, Settlement, StepKind, Worker};
use serde_json::{Value, json};

use super::cases;
use super::steps::{Ctx, HOUR, advance};
use crate::Fixture;
use crate::harness::{CaseError, Harness, Seen, TIMEOUT, roll_back, run_asserting, run_beside, wait_until};

cases![
    a_signal_that_comes_first_is_kept: Own,
    a_signal_is_delivered_once: Own,
    signals_that_are_not_delivered_can_be_read: Own,
    a_signal_makes_a_waiting_job_due_and_notifies: Own,
    a_signal_can_be_null: Own,
    a_signal_of_another_name_changes_nothing: Own,
    a_signal_is_sent_when_its_transaction_commits: Own,
    a_wait_times_out_for_good: Own,
    a_wait_for_no_time_does_not_end_the_attempt: Own,
    a_signal_during_a_retry_is_kept: Own,
    a_signal_for_a_job_that_has_ended_is_refused: Own,
    the_name_and_the_value_of_a_signal_are_checked: Own,
    a_signal_of_another_type_is_refused: Own,
    a_signal_that_is_sent_during_the_look_is_not_lost: Own,
    a_signal_that_is_sent_between_the_look_and_the_sleep_is_not_lost: Own,
    a_wait_after_the_lease_was_lost_is_refused: Own,
    the_reason_of_a_job_that_sleeps_or_waits_is_explained: Own,
];

/// Returns a handler that waits for a signal for two hours, and notes its value.
fn waits<F: Fixture>(harness: &Harness<F>, seen: &Seen<Option<Value>>) -> Handler<F::Store> {
    let seen = seen.clone();
    harness.queue().leased(move |context: &Ctx<F>, _: Job<Value>| {
        let value = context.wait_for_signal::<Value>("approved", 2 * HOUR)?;
        seen.push(value);
        Ok::<_, CaseError>(())
    })
}

fn put<F: Fixture>(harness: &Harness<F>) -> JobId {
    harness.queue().put(&json!(1)).unwrap().id
}

fn state<F: Fixture>(harness: &Harness<F>, id: JobId) -> Option<JobState> {
    harness.queue().find(id).unwrap().map(|job| job.state)
}

fn kinds<F: Fixture>(harness: &Harness<F>, id: JobId) -> Vec<StepKind> {
    let job = harness.queue().find(id).unwrap().unwrap();
    harness.pq.steps(&job).unwrap().iter().map(|step| step.kind).collect()
}

fn a_signal_that_comes_first_is_kept<F: Fixture>(harness: &Harness<F>) {
    let (id, seen) = (put(harness), Seen::new());
    harness.pq.signal(id, "approved", &json!({ "by": "\u{0}Ann" })).unwrap();
    assert_eq!(state(harness, id), Some(JobState::Ready));
    let report = run_asserting(harness, waits(harness, &seen));
    assert_eq!((report.done, report.snoozed), (1, 0));
    assert_eq!(seen.all(), [Some(json!({ "by": "\u{0}Ann" }))]);
}

fn signals_that_are_not_delivered_can_be_read<F: Fixture>(harness: &Harness<F>) {
    let (id, other, seen) = (put(harness), put(harness), Seen::new());
    let read = |id: JobId, count: usize| {
        let job = harness.queue().find(id).unwrap().unwrap();
        let signals = harness.pq.signals(&job, count).unwrap();
        signals.into_iter().map(|sent| (sent.name, sent.value.as_str().to_owned())).collect::<Vec<_>>()
    };
    let sent = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    for (name, value) in [("late", 1), ("approved", 2), ("late", 3)] {
        harness.pq.signal(id, name, &value).unwrap();
    }
    harness.pq.signal(other, "approved", &4).unwrap();
    assert_eq!(read(id, 9), [sent("late", "1"), sent("approved", "2"), sent("late", "3")]);
    assert_eq!(read(id, 2), [sent("late", "1"), sent("approved", "2")]);
    assert_eq!(read(other, 9), [sent("approved", "4")]);
    let job = harness.queue().find(other).unwrap().unwrap();
    let rolled_back = harness.pq.transaction(|conn| {
        harness.pq.signal_on(conn, other, "more", &5)?;
        assert_eq!(harness.pq.store().signals(conn, &job, 9)?.len(), 2);
        assert_eq!(read(other, 9).len(), 1, "others do not see it");
        roll_back::<()>()
    });
    assert!(rolled_back.is_err());
    assert_eq!(read(other, 9).len(), 1);
    let noted = seen.clone();
    let dies = harness.queue().leased(move |context: &Ctx<F>, _: Job<Value>| {
        noted.push(context.wait_for_signal::<u32>("approved", HOUR)?);
        Err::<(), _>(CaseError("on purpose".to_owned()))
    });
    assert_eq!(run_asserting(harness, dies).dead, 2);
    assert_eq!(seen.all(), [Some(2), Some(4)]);
    assert_eq!(read(id, 9), [sent("late", "1"), sent("late", "3")], "they stay with a dead job");
    assert_eq!(read(other, 9), []);
}

fn a_signal_is_delivered_once<F: Fixture>(harness: &Harness<F>) {
    let (id, seen) = (put(harness), Seen::new());
    for n in 1..=2 {
        harness.pq.signal(id, "approved", &n).unwrap();
    }
    let noted = seen.clone();
    let work = move |context: &Ctx<F>, job: Job<Value>| {
        let first = context.wait_for_signal::<u32>("approved", HOUR)?;
        if job.attempt == 1 {
            return Err(CaseError("on purpose".to_owned()));
        }
        let second = context.wait_for_signal::<u32>("approved", HOUR)?;
        noted.push((first, second));
        let third = context.wait_for_signal::<u32>("approved", HOUR)?;
        noted.push((third, None));
        Ok(())
    };
    let handler = harness.queue().leased(work).max_retries(1);
    let report = run_asserting(harness, handler.backoff(pq_core::Backoff::fixed(Duration::ZERO)));
    assert_eq!((report.failed, report.snoozed), (1, 1));
    assert_eq!(seen.all(), [(Some(1), Some(2))]);
    assert_eq!(kinds(harness, id), [StepKind::Signal, StepKind::Signal, StepKind::Waiting]);
}

fn a_signal_makes_a_waiting_job_due_and_notifies<F: Fixture>(harness: &Harness<F>) {
    let (id, seen) = (put(harness), Seen::new());
    let report = run_asserting(harness, waits(harness, &seen));
    assert_eq!((report.snoozed, report.done), (1, 0));
    let job = harness.queue().find(id).unwrap().unwrap();
    assert_eq!((job.state, job.attempt), (JobState::Scheduled, 0));
    std::thread::scope(|threads| {
        let waiter = harness.blocked_waiter(threads);
        harness.pq.signal(id, "approved", &true).unwrap();
        assert_eq!(waiter.recv_timeout(TIMEOUT).unwrap(), Some(json!(1)));
    });
}

fn a_signal_can_be_null<F: Fixture>(harness: &Harness<F>) {
    let (id, seen) = (put(harness), Seen::new());
    harness.pq.signal(id, "approved", &()).unwrap();
    run_asserting(harness, waits(harness, &seen));
    assert_eq!(seen.all(), [Some(Value::Null)]);
}

fn a_signal_of_another_name_changes_nothing<F: Fixture>(harness: &Harness<F>) {
    let (id, seen) = (put(harness), Seen::new());
    run_asserting(harness, waits(harness, &seen));
    harness.pq.signal(id, "refused", &true).unwrap();
    assert_eq!(state(harness, id), Some(JobState::Scheduled));
    harness.pq.signal(id, "approved", &true).unwrap();
    assert_eq!(state(harness, id), Some(JobState::Ready));
    run_asserting(harness, waits(harness, &seen));
    assert_eq!(seen.all(), [Some(json!(true))]);
}

fn a_signal_is_sent_when_its_transaction_commits<F: Fixture>(harness: &Harness<F>) {
    let (id, seen) = (put(harness), Seen::new());
    run_asserting(harness, waits(harness, &seen));
    let rolled_back = harness.pq.transaction(|conn| {
        harness.pq.signal_on(conn, id, "approved", &1)?;
        roll_back::<()>()
    });
    assert!(rolled_back.is_err());
    assert_eq!(state(harness, id), Some(JobState::Scheduled));
    harness
        .pq
        .transaction(|conn| {
            harness.pq.signal_on(conn, id, "approved", &2)?;
            assert_eq!(state(harness, id), Some(JobState::Scheduled), "others do not see it");
            Ok::<_, CaseError>(())
        })
        .unwrap();
    assert_eq!(state(harness, id), Some(JobState::Ready));
    run_asserting(harness, waits(harness, &seen));
    assert_eq!(seen.all(), [Some(json!(2))]);
}

fn a_wait_times_out_for_good<F: Fixture>(harness: &Harness<F>) {
    let (id, seen) = (put(harness), Seen::new());
    let noted = seen.clone();
    let work = move |context: &Ctx<F>, job: Job<Value>| {
        let value = context.wait_for_signal::<Value>("approved", HOUR)?;
        noted.push(value);
        if job.attempt == 1 { Err(CaseError("on purpose".to_owned())) } else { Ok(()) }
    };
    run_asserting(harness, harness.queue().leased(work.clone()));
    advance(harness, HOUR / 2);
    // An early attempt does not begin the time anew.
    harness.pq.change(id, &Operation::RunNow).unwrap();
    run_asserting(harness, harness.queue().leased(work.clone()));
    assert_eq!(kinds(harness, id), [StepKind::Waiting]);
    advance(harness, HOUR / 2);
    let handler = harness.queue().leased(work.clone()).max_retries(1);
    run_asserting(harness, handler.backoff(pq_core::Backoff::fixed(HOUR)));
    assert_eq!(kinds(harness, id), [StepKind::Timeout]);
    harness.pq.signal(id, "approved", &"too late").unwrap();
    assert_eq!(state(harness, id), Some(JobState::Scheduled), "the job does not wait for it");
    advance(harness, HOUR);
    run_asserting(harness, harness.queue().leased(work));
    assert_eq!(seen.all(), [None, None]);
}

fn a_wait_for_no_time_does_not_end_the_attempt<F: Fixture>(harness: &Harness<F>) {
    put(harness);
    let handler = harness.queue().leased(|context: &Ctx<F>, _: Job<Value>| {
        assert_eq!(context.wait_for_signal::<u32>("approved", Duration::ZERO)?, None);
        Ok::<_, CaseError>(())
    });
    assert_eq!(run_asserting(harness, handler).done, 1);
}

fn a_signal_during_a_retry_is_kept<F: Fixture>(harness: &Harness<F>) {
    let (id, seen) = (put(harness), Seen::new());
    let job = harness.lease_one();
    harness.settle(&job, Outcome::retry(HOUR, "on purpose"));
    harness.pq.signal(id, "approved", &1).unwrap();
    assert_eq!(state(harness, id), Some(JobState::Scheduled), "the job does not wait for it");
    advance(harness, HOUR);
    harness.maintain();
    run_asserting(harness, waits(harness, &seen));
    assert_eq!(seen.all(), [Some(json!(1))]);
}

fn a_signal_for_a_job_that_has_ended_is_refused<F: Fixture>(harness: &Harness<F>) {
    let dead = put(harness);
    harness.settle(&harness.lease_one(), Outcome::dead("on purpose"));
    let done = put(harness);
    harness.settle(&harness.lease_one(), Outcome::Complete);
    for id in [dead, done, JobId(i64::MAX)] {
        // The transaction goes on.
        harness
            .pq
            .transaction(|conn| {
                let refused = harness.pq.signal_on(conn, id, "approved", &1).unwrap_err();
                let text =
                    format!("cannot signal job {id}: no job with this id waits or runs; it may have ended");
                assert_eq!(harness.fixture.core_error(&refused).unwrap().to_string(), text);
                harness.queue().on(conn).put(&json!(2))?;
                Ok::<_, CaseError>(())
            })
            .unwrap();
    }
    assert_eq!(harness.queue().counts().unwrap().ready, 3);
}

fn the_name_and_the_value_of_a_signal_are_checked<F: Fixture>(harness: &Harness<F>) {
    let id = put(harness);
    for name in ["", "a#2", "a\u{0}", &"x".repeat(129)] {
        let refused = harness.pq.signal(id, name, &1).unwrap_err();
        assert!(refused.to_string().contains("1 to 128 bytes"), "{refused}");
    }
    let refused = harness.pq.signal(id, "approved", &"x".repeat(1 << 20)).unwrap_err();
    assert!(refused.to_string().contains("it must have at most 1048576 bytes"), "{refused}");
}

fn a_signal_of_another_type_is_refused<F: Fixture>(harness: &Harness<F>) {
    let id = put(harness);
    harness.pq.signal(id, "approved", &"yes").unwrap();
    let seen = Seen::new();
    let handler = || {
        let noted = seen.clone();
        harness.queue().leased(move |context: &Ctx<F>, _: Job<Value>| {
            noted.push(context.wait_for_signal::<bool>("approved", HOUR)?);
            Ok::<_, CaseError>(())
        })
    };
    run_asserting(harness, handler());
    let error = harness.archived(JobState::Dead).pop().unwrap().error.unwrap();
    assert!(
        error.contains("the signal has another type: expected bool, and it is a string; it was removed"),
        "{error}"
    );
    let log: Vec<String> = harness.pq.log(id).unwrap().into_iter().map(|stored| stored.line.text).collect();
    assert_eq!(log, ["removed the signal \"approved\" with the value \"yes\""]);
    // The next attempt waits for another one.
    assert_eq!(kinds(harness, id), []);
    harness.pq.change(id, &Operation::Retry).unwrap();
    run_asserting(harness, handler());
    assert_eq!(kinds(harness, id), [StepKind::Waiting]);
    harness.pq.signal(id, "approved", &true).unwrap();
    run_asserting(harness, handler());
    assert_eq!(seen.all(), [Some(true)]);
}

/// A signal that is sent before the job looks and committed after it sleeps.
fn a_signal_that_is_sent_during_the_look_is_not_lost<F: Fixture>(harness: &Harness<F>) {
    let (id, seen) = (put(harness), Seen::new());
    harness
        .pq
        .transaction(|conn| {
            harness.pq.signal_on(conn, id, "approved", &1)?;
            let report = run_asserting(harness, waits(harness, &seen));
            assert_eq!((report.snoozed, report.done), (1, 0));
            Ok::<_, CaseError>(())
        })
        .unwrap();
    let worker = Worker::new(&harness.pq).serve(waits(harness, &seen));
    run_beside::<F>(worker, |control| {
        wait_until("the signal is delivered", || !seen.all().is_empty());
        control.stop(pq_core::StopMode::Drain);
    });
    assert_eq!(seen.all(), [Some(json!(1))]);
}

/// A signal that is sent after the job has looked, while its sleep is not committed.
fn a_signal_that_is_sent_between_the_look_and_the_sleep_is_not_lost<F: Fixture>(harness: &Harness<F>) {
    let id = put(harness);
    let job = harness.lease_one();
    let (pq, step) = (&harness.pq, || NewStep {
        position: 0,
        kind: StepKind::Waiting,
        name: "approved",
        result: None,
        after: Some(HOUR),
    });
    let (sent, has_sent) = channel();
    std::thread::scope(|threads| {
        pq.transaction(|conn| {
            let waits = pq.store().await_signal(conn, &job, &step())?;
            assert!(matches!(waits, Keeping::Waits(_)), "{waits:?}");
            threads.spawn(move || sent.send(pq.signal(id, "approved", &1).map_err(|e| e.to_string())));
            // A store that lets the sender wait for this transaction does not answer before it has ended.
            let early = has_sent.recv_timeout(Duration::from_millis(300));
            let settlement = Settlement { job: &job, outcome: Outcome::snooze(HOUR) };
            assert!(pq.store().settle(conn, &[settlement])?.all());
            Ok::<_, CaseError>(early)
        })
        .map(|early| early.unwrap_or_else(|_| has_sent.recv_timeout(TIMEOUT).unwrap()).unwrap())
        .unwrap();
    });
    assert_eq!(state(harness, id), Some(JobState::Ready));
}

fn a_wait_after_the_lease_was_lost_is_refused<F: Fixture>(harness: &Harness<F>) {
    let id = put(harness);
    let job = harness.lease_one();
    harness.pq.signal(id, "approved", &1).unwrap();
    harness.lose_lease(&job);
    let store = harness.pq.store();
    let step =
        NewStep { position: 0, kind: StepKind::Waiting, name: "approved", result: None, after: Some(HOUR) };
    let refused =
        harness.pq.transaction(|conn| Ok::<_, CaseError>(store.await_signal(conn, &job, &step)?)).unwrap();
    assert_eq!(refused, Keeping::LeaseLost);
    let seen = Seen::new();
    run_asserting(harness, waits(harness, &seen));
    assert_eq!(seen.all(), [Some(json!(1))], "the signal was not delivered to the lost attempt");
}

fn the_reason_of_a_job_that_sleeps_or_waits_is_explained<F: Fixture>(harness: &Harness<F>) {
    let (sleeping, waiting) = (put(harness), put(harness));
    let handler = harness.queue().leased(move |context: &Ctx<F>, job: Job<Value>| {
        if job.id == sleeping {
            context.sleep(HOUR)?;
        } else {
            context.wait_for_signal::<Value>("approved", HOUR)?;
        }
        Ok::<_, CaseError>(())
    });
    run_asserting(harness, handler);
    let reason = |id| harness.pq.explain(id).unwrap().remove(0);
    let until = |id| {
        let job = harness.queue().find(id).unwrap().unwrap();
        harness.pq.steps(&job).unwrap()[0].until.unwrap()
    };
    assert_eq!(reason(sleeping), Reason::Sleeps { until: until(sleeping) });
    let waits = Reason::WaitsForSignal { name: "approved".to_owned(), until: until(waiting) };
    assert_eq!(reason(waiting), waits);
    let text = waits.to_string();
    assert!(text.starts_with("it waits for the signal \"approved\" until "), "{text}");
    harness.pq.signal(waiting, "approved", &1).unwrap();
    assert!(!matches!(reason(waiting), Reason::WaitsForSignal { .. }));
}
