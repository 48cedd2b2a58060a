//! Sleeps: a job waits between its steps without a worker.

use std::time::Duration;

use pq_core::{ChangeOutcome, Job, JobState, Operation, StepKind, Worker};
use serde_json::Value;

use super::cases;
use super::steps::{Ctx, HOUR, advance, kept, labels, steps};
use crate::Fixture;
use crate::harness::{CaseError, Harness, Seen, run_asserting};

cases![
    a_sleep_ends_the_attempt_uncounted_and_the_job_goes_on_after_it: Own,
    a_sleep_that_is_cut_short_lasts_for_the_rest: Own,
    a_sleep_of_no_time_passes_at_once: Own,
    a_handler_that_ignores_a_sleep_is_reported: Own,
    a_sleeping_job_can_be_cancelled: Own,
];

fn a_sleep_ends_the_attempt_uncounted_and_the_job_goes_on_after_it<F: Fixture>(harness: &Harness<F>) {
    let runs = Seen::new();
    let seen = runs.clone();
    let work = move |context: &Ctx<F>, job: Job<Value>| {
        let step = |name: &'static str| {
            context.step(name, || {
                seen.push((name, job.attempt));
                Ok::<_, CaseError>(())
            })
        };
        step("before")?;
        context.sleep(HOUR)?;
        step("between")?;
        context.sleep(2 * HOUR)?;
        step("after")
    };
    let (id, handler) = steps(harness, work.clone());
    let report = run_asserting(harness, handler);
    assert_eq!((report.snoozed, report.failed), (1, 0));
    let job = harness.queue().find(id).unwrap().unwrap();
    assert_eq!((job.state, job.attempt, job.error), (JobState::Scheduled, 0, None));
    let sleep = kept(harness, id).pop().unwrap();
    assert_eq!((sleep.kind, sleep.label().as_str()), (StepKind::Sleep, "sleep"));
    assert!(sleep.until >= Some(sleep.at + HOUR) && job.schedule_at >= sleep.until);
    for hours in [1, 2] {
        advance(harness, hours * HOUR);
        run_asserting(harness, harness.queue().leased(work.clone()));
    }
    assert_eq!(runs.all(), [("before", 1), ("between", 1), ("after", 1)]);
    assert!(harness.queue().find(id).unwrap().is_none());
}

fn a_sleep_that_is_cut_short_lasts_for_the_rest<F: Fixture>(harness: &Harness<F>) {
    let work = |context: &Ctx<F>, _: Job<Value>| {
        context.sleep(HOUR)?;
        Ok::<_, CaseError>(())
    };
    let (id, handler) = steps(harness, work);
    run_asserting(harness, handler);
    let until = kept(harness, id)[0].until;
    assert_eq!(harness.pq.change(id, &Operation::RunNow).unwrap(), ChangeOutcome::Changed);
    let report = run_asserting(harness, harness.queue().leased(work));
    assert_eq!(report.snoozed, 1);
    assert_eq!(kept(harness, id).len(), 1);
    let job = harness.queue().find(id).unwrap().unwrap();
    assert!(
        job.schedule_at >= until && job.schedule_at < until.map(|until| until + Duration::from_secs(600))
    );
}

fn a_sleep_of_no_time_passes_at_once<F: Fixture>(harness: &Harness<F>) {
    let (id, handler) = steps(harness, |context, _| Ok(context.sleep(Duration::ZERO)?));
    let report = run_asserting(harness, handler);
    assert_eq!((report.done, report.snoozed), (1, 0));
    assert!(harness.queue().find(id).unwrap().is_none());
}

fn a_handler_that_ignores_a_sleep_is_reported<F: Fixture>(harness: &Harness<F>) {
    let failures = Seen::new();
    let seen = failures.clone();
    let (id, handler) = steps(harness, |context, _| {
        let asleep = context.sleep(HOUR).map_err(CaseError::from).unwrap_err();
        assert!(asleep.0.contains("the handler must return this error"), "{}", asleep.0);
        let refused = context.step("early", || Ok::<_, CaseError>(())).unwrap_err();
        assert_eq!(refused.0, asleep.0);
        Ok(())
    });
    let worker = Worker::new(&harness.pq).serve(handler);
    worker.on_failure(move |_, failure, _| seen.push(failure.to_string())).run_until_empty().unwrap();
    assert!(failures.all()[0].starts_with("the handler went on after a sleep"), "{:?}", failures.all());
    assert_eq!(labels(harness, id), ["sleep"]);
    let job = harness.queue().find(id).unwrap().unwrap();
    assert_eq!((job.state, job.attempt), (JobState::Scheduled, 0));
}

fn a_sleeping_job_can_be_cancelled<F: Fixture>(harness: &Harness<F>) {
    let (id, handler) = steps(harness, |context, _| Ok(context.sleep(HOUR)?));
    run_asserting(harness, handler);
    harness.queue().cancel(id).unwrap();
    assert_eq!(harness.queue().find(id).unwrap().unwrap().state, JobState::Cancelled);
}
