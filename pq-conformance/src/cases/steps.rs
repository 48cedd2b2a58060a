//! Durable steps: what a leased handler has done is kept, and not done again.

use std::time::Duration;

use pq_core::store::{Archive, Connect, Jobs, TimeTravel};
use pq_core::{
    Backoff, ChangeOutcome, Context, Handler, Job, JobId, JobState, OnConflict, Operation, Outcome,
    PutOptions, Retention, StepKind, StepRecord, Worker,
};
use serde_json::{Value, json};

use super::cases;
use crate::Fixture;
use crate::harness::{CaseError, Harness, Seen, run_asserting, task, wait_until};

cases![
    a_step_runs_once_and_its_result_is_kept: Own,
    a_step_that_fails_keeps_nothing: Own,
    steps_of_one_name_are_numbered: Own,
    another_step_than_the_kept_one_is_left_to_other_workers: Own,
    a_result_of_another_type_is_refused: Own,
    a_step_inside_of_another_is_refused: Own,
    the_names_of_steps_are_checked: Own,
    a_result_has_the_limits_of_a_payload: Own,
    a_step_after_the_lease_was_lost_is_refused: Own,
    a_step_after_the_job_was_settled_is_refused: Own,
    the_writes_of_a_step_commit_with_its_result: Own,
    the_writes_of_a_step_after_the_lease_was_lost_are_rolled_back: Own,
    the_writes_of_a_step_that_fails_are_rolled_back: Own,
    a_step_in_a_transaction_that_is_rolled_back_runs_again: Own,
    a_step_beside_the_open_transaction_of_another_is_refused: Own,
    a_dead_job_goes_on_after_its_steps: Own,
    a_retry_from_a_step_forgets_it_and_the_later_ones: Own,
    a_retry_from_a_step_is_refused_while_the_job_runs: Own,
    the_steps_of_a_completed_job_are_forgotten: Own,
    the_steps_of_a_waiting_and_a_dead_job_are_not_forgotten: Own,
    a_job_that_is_replaced_begins_its_steps_anew: Own,
];

pub(super) const HOUR: Duration = Duration::from_secs(3_600);

pub(super) type Ctx<F> = Context<<F as Fixture>::Store>;

/// Puts a job, and returns a handler of its queue that is tried three times at once.
pub(super) fn steps<F: Fixture>(
    harness: &Harness<F>,
    work: impl Fn(&Ctx<F>, Job<Value>) -> Result<(), CaseError> + Send + Sync + 'static,
) -> (JobId, Handler<F::Store>) {
    let id = harness.queue().put(&json!(1)).unwrap().id;
    let handler = harness.queue().leased(move |context: &Ctx<F>, job: Job<Value>| work(context, job));
    (id, handler.max_retries(2).backoff(Backoff::fixed(Duration::ZERO)))
}

pub(super) fn kept<F: Fixture>(harness: &Harness<F>, id: JobId) -> Vec<StepRecord> {
    let job = harness.queue().find(id).unwrap().unwrap();
    harness.pq.steps(&job).unwrap()
}

pub(super) fn labels<F: Fixture>(harness: &Harness<F>, id: JobId) -> Vec<String> {
    kept(harness, id).iter().map(StepRecord::label).collect()
}

pub(super) fn advance<F: Fixture>(harness: &Harness<F>, duration: Duration) {
    let store = harness.pq.store();
    store.with_connection(|conn| store.advance(conn, duration)).unwrap();
}

/// Expires the lease of the job and returns it to its queue, as if its worker had stopped for too long.
fn lose_lease<F: Fixture>(context: &Ctx<F>, pq: &pq_core::Pq<F::Store>) {
    let (store, lease) = (pq.store(), context.job().lease().unwrap());
    // The worker may run maintenance at the same time.
    wait_until("the lease is lost", || {
        let extended = store.with_connection(|conn| {
            let extended = store.extend(conn, &[lease], Duration::ZERO)?;
            store.maintain(conn, &Retention::default())?;
            Ok::<_, CaseError>(extended)
        });
        extended.unwrap().is_empty()
    });
}

fn a_step_runs_once_and_its_result_is_kept<F: Fixture>(harness: &Harness<F>) {
    let runs = Seen::new();
    let seen = runs.clone();
    let (id, handler) = steps(harness, move |context, job| {
        let charged = context.step("charge", || {
            seen.push(("charge", job.attempt));
            Ok::<_, CaseError>(json!({ "\u{0}": "receipt" }))
        })?;
        assert_eq!(charged, json!({ "\u{0}": "receipt" }));
        context.step("mail", || {
            seen.push(("mail", job.attempt));
            if job.attempt < 3 { Err(CaseError("no mail today".to_owned())) } else { Ok(()) }
        })?;
        assert_eq!(context.step("count", || Ok::<_, CaseError>(7))?, 7);
        Err(CaseError("on purpose".to_owned()))
    });
    let report = run_asserting(harness, handler);
    assert_eq!((report.failed, report.dead), (3, 1));
    assert_eq!(runs.all(), [("charge", 1), ("mail", 1), ("mail", 2), ("mail", 3)]);
    let kept = kept(harness, id);
    let found: Vec<_> = kept.iter().map(|step| (step.position, step.kind, step.name.as_str())).collect();
    assert_eq!(
        found,
        [(0, StepKind::Step, "charge"), (1, StepKind::Step, "mail"), (2, StepKind::Step, "count")]
    );
    let job = harness.queue().find(id).unwrap().unwrap();
    assert!(kept.iter().all(|step| step.at >= job.enqueued_at && step.until.is_none()));
    assert_eq!(kept[2].result.as_ref().unwrap().as_str(), "7");
}

fn a_step_that_fails_keeps_nothing<F: Fixture>(harness: &Harness<F>) {
    let (id, handler) = steps(harness, |context, _| {
        let failed = context.step("charge", || Err::<(), _>(CaseError("declined".to_owned())));
        assert_eq!(failed.unwrap_err().0, "declined");
        // Its position is free again.
        context.step("refuse", || Ok::<_, CaseError>(()))?;
        Err(CaseError("on purpose".to_owned()))
    });
    run_asserting(harness, handler.max_retries(0));
    assert_eq!(labels(harness, id), ["refuse"]);
}

fn steps_of_one_name_are_numbered<F: Fixture>(harness: &Harness<F>) {
    let runs = Seen::new();
    let seen = runs.clone();
    let (id, handler) = steps(harness, move |context, job| {
        for n in 1..=3 {
            let square = context.step("square", || {
                seen.push(n);
                if n == 3 && job.attempt == 1 { Err(CaseError("tired".to_owned())) } else { Ok(n * n) }
            })?;
            assert_eq!(square, n * n);
            context.step("pause", || Ok::<_, CaseError>(()))?;
        }
        Err(CaseError("on purpose".to_owned()))
    });
    run_asserting(harness, handler);
    assert_eq!(runs.all(), [1, 2, 3, 3]);
    assert_eq!(labels(harness, id), ["square", "pause", "square#2", "pause#2", "square#3", "pause#3"]);
}

fn another_step_than_the_kept_one_is_left_to_other_workers<F: Fixture>(harness: &Harness<F>) {
    let runs = Seen::new();
    let task = task::<F, u8>(harness).max_retries(5).backoff(Backoff::fixed(Duration::ZERO));
    let id = task.call(&1).unwrap().id;
    let worker = || {
        let seen = runs.clone();
        Worker::new(&harness.pq).serve(task.leased(move |context: &Ctx<F>, _| {
            seen.push("attempt");
            context.step("load", || Ok::<_, CaseError>(()))?;
            match seen.all().len() {
                1 => {
                    context.step("charge", || Ok::<_, CaseError>(()))?;
                    Err(CaseError("on purpose".to_owned()))
                }
                2 | 5 => context.step("ship", || {
                    seen.push("ship");
                    Ok(())
                }),
                _ => Ok(context.sleep(HOUR)?),
            }
        }))
    };
    for asked in ["the step \"ship\"", "a sleep"] {
        worker().run_until_empty().unwrap();
        let job = harness.pq.find(id).unwrap().unwrap();
        assert_eq!((job.state, job.attempt), (JobState::Scheduled, 1), "another worker may have the program");
        let error = job.error.unwrap();
        let text = format!(
            "cannot go on with job {id}: its step 2 was the step \"charge\", and the handler now asks for {asked}; "
        );
        assert!(error.starts_with(&text) && error.contains("--from-step charge` forgets"), "{error}");
        assert_eq!(labels(harness, id), ["load", "charge"]);
        assert!(harness.pq.change(id, &Operation::RunNow).unwrap().is_accepted());
    }
    assert!(!runs.all().contains(&"ship"), "a refused step does not run");
    worker().leave_unknown_tasks_for(Duration::ZERO).run_until_empty().unwrap();
    assert_eq!(harness.pq.find(id).unwrap().unwrap().state, JobState::Dead);
    assert!(harness.pq.retry_from_step(id, "charge").unwrap().is_accepted());
    worker().run_until_empty().unwrap();
    assert!(runs.all().contains(&"ship"), "the step was forgotten");
}

fn a_result_of_another_type_is_refused<F: Fixture>(harness: &Harness<F>) {
    let (id, handler) = steps(harness, |context, job| {
        match job.attempt {
            1 => drop(context.step("count", || Ok::<_, CaseError>("many".to_owned()))?),
            _ => drop(context.step("count", || Ok::<u32, CaseError>(7))?),
        }
        Err(CaseError("on purpose".to_owned()))
    });
    run_asserting(harness, handler);
    let dead = harness.archived(JobState::Dead).pop().unwrap();
    assert_eq!(dead.attempt, 3, "a job that is no call of a task has failed");
    let error = dead.error.unwrap();
    let text = format!(
        "cannot run step \"count\" of job {id}: its kept result has another type: expected u32, and it is a string"
    );
    assert!(error.starts_with(&text), "{error}");
}

fn a_step_inside_of_another_is_refused<F: Fixture>(harness: &Harness<F>) {
    let (id, handler) = steps(harness, |context, _| {
        let inner = context.step("outer", || context.step("inner", || Ok::<_, CaseError>(())));
        assert!(inner.unwrap_err().0.contains("another step of the job runs"));
        context.step("next", || Ok::<_, CaseError>(()))?;
        Err(CaseError("on purpose".to_owned()))
    });
    run_asserting(harness, handler.max_retries(0));
    assert_eq!(labels(harness, id), ["next"]);
}

fn the_names_of_steps_are_checked<F: Fixture>(harness: &Harness<F>) {
    let (id, handler) = steps(harness, |context, _| {
        for name in ["", "a#2", "a\u{0}", &"x".repeat(129)] {
            let refused = context.step(name, || Ok::<_, CaseError>(())).unwrap_err();
            assert!(refused.0.contains("1 to 128 bytes"), "{}", refused.0);
        }
        context.step("ж\n\u{1f34e}", || Ok::<_, CaseError>(()))?;
        Err(CaseError("on purpose".to_owned()))
    });
    run_asserting(harness, handler);
    assert_eq!(labels(harness, id), ["ж\n\u{1f34e}"]);
}

fn a_result_has_the_limits_of_a_payload<F: Fixture>(harness: &Harness<F>) {
    let (id, handler) = steps(harness, |context, _| {
        let large = context.step("large", || Ok::<_, CaseError>("x".repeat(1 << 20)));
        assert!(large.unwrap_err().0.contains("it must have at most 1048576 bytes"));
        Err(CaseError("on purpose".to_owned()))
    });
    run_asserting(harness, handler);
    assert!(labels(harness, id).is_empty());
}

fn a_step_after_the_lease_was_lost_is_refused<F: Fixture>(harness: &Harness<F>) {
    let refused = Seen::new();
    let (seen, pq) = (refused.clone(), harness.pq.clone());
    let (id, handler) = steps(harness, move |context, job| {
        if job.attempt == 1 {
            let late = context.step("charge", || {
                lose_lease::<F>(context, &pq);
                Ok::<_, CaseError>(())
            });
            seen.push(late.unwrap_err().0);
        }
        Err(CaseError("on purpose".to_owned()))
    });
    run_asserting(harness, handler);
    let lost = format!("cannot change job {id}: its lease expired, or it was settled already");
    assert_eq!(refused.all(), [lost]);
    assert!(labels(harness, id).is_empty());
}

fn a_step_after_the_job_was_settled_is_refused<F: Fixture>(harness: &Harness<F>) {
    let refused = Seen::new();
    let (seen, pq) = (refused.clone(), harness.pq.clone());
    // Another job of the lease keeps the lease alive.
    harness.queue().put(&json!(0)).unwrap();
    let (id, handler) = steps(harness, move |context, job| {
        if job.data == json!(1) && seen.all().is_empty() {
            pq.transaction(|conn| context.settle_with(conn, Outcome::dead("on purpose")))?;
            seen.push(context.step("charge", || Ok::<_, CaseError>(())).unwrap_err().0);
        }
        Ok(())
    });
    run_asserting(harness, handler);
    assert_eq!(refused.all().len(), 1);
    assert!(refused.all()[0].contains("it was settled already"), "{:?}", refused.all());
    assert!(labels(harness, id).is_empty());
}

fn the_writes_of_a_step_commit_with_its_result<F: Fixture>(harness: &Harness<F>) {
    let (pq, pears) = (harness.pq.clone(), harness.named::<u32>("pears"));
    let (id, handler) = steps(harness, move |context, _| {
        pq.transaction(|conn| {
            let put =
                context.step_with(conn, "book", |conn| Ok::<_, CaseError>(pears.on(conn).put(&7)?.id))?;
            assert!(pears.on(conn).find(put)?.is_some());
            Ok::<_, CaseError>(())
        })?;
        Err(CaseError("on purpose".to_owned()))
    });
    let report = run_asserting(harness, handler);
    assert_eq!(report.failed, 3);
    let pears = harness.named::<u32>("pears");
    assert_eq!(pears.counts().unwrap().ready, 1, "the step ran once");
    let put = pears.get(pq_core::Wait::No).unwrap().unwrap();
    let kept = kept(harness, id);
    assert_eq!(kept[0].result.as_ref().unwrap().as_str(), put.id.to_string());
}

fn the_writes_of_a_step_after_the_lease_was_lost_are_rolled_back<F: Fixture>(harness: &Harness<F>) {
    let refused = Seen::new();
    let (seen, pq, pears) = (refused.clone(), harness.pq.clone(), harness.named::<u32>("pears"));
    let fixture = std::sync::Arc::clone(&harness.fixture);
    let (id, handler) = steps(harness, move |context, job| {
        if job.attempt == 1 {
            let mut conn = fixture.connect(&pq);
            let late = context.step_with(&mut conn, "book", |conn| {
                pears.on(conn).put(&7)?;
                lose_lease::<F>(context, &pq);
                Ok::<_, CaseError>(())
            });
            seen.push(late.unwrap_err().0);
        }
        Err(CaseError("on purpose".to_owned()))
    });
    run_asserting(harness, handler);
    let lost = format!("cannot change job {id}: its lease expired, or it was settled already");
    assert_eq!(refused.all(), [lost]);
    assert_eq!(harness.named::<u32>("pears").counts().unwrap().ready, 0);
    assert!(labels(harness, id).is_empty());
}

fn the_writes_of_a_step_that_fails_are_rolled_back<F: Fixture>(harness: &Harness<F>) {
    let (pq, pears) = (harness.pq.clone(), harness.named::<u32>("pears"));
    let (id, handler) = steps(harness, move |context, _| {
        pq.transaction(|conn| {
            let failed = context.step_with(conn, "book", |conn| {
                pears.on(conn).put(&7)?;
                Err::<(), _>(CaseError("no room".to_owned()))
            });
            assert_eq!(failed.unwrap_err().0, "no room");
            pears.on(conn).put(&8)?;
            Ok::<_, CaseError>(())
        })?;
        Ok(())
    });
    run_asserting(harness, handler);
    assert!(harness.queue().find(id).unwrap().is_none());
    let pears = harness.named::<u32>("pears");
    let left: Vec<u32> =
        std::iter::from_fn(|| pears.get(pq_core::Wait::No).unwrap()).map(|job| job.data).collect();
    assert_eq!(left, [8]);
}

fn a_step_in_a_transaction_that_is_rolled_back_runs_again<F: Fixture>(harness: &Harness<F>) {
    let (pq, pears, runs) = (harness.pq.clone(), harness.named::<u32>("pears"), Seen::new());
    let seen = runs.clone();
    let (_, handler) = steps(harness, move |context, job| {
        let booked = pq.transaction(|conn| {
            context.step_with(conn, "book", |conn| {
                seen.push(job.attempt);
                Ok::<_, CaseError>(pears.on(conn).put(&7)?.id)
            })?;
            if job.attempt == 1 { Err(CaseError("no room".to_owned())) } else { Ok(()) }
        });
        if booked.is_err() {
            // A later step cannot be kept before the one that was rolled back.
            let refused = context.step("mail", || Ok::<_, CaseError>(())).unwrap_err();
            assert!(refused.0.contains("rolled back"), "{}", refused.0);
        }
        booked
    });
    let report = run_asserting(harness, handler);
    assert_eq!((report.done, report.failed), (1, 1));
    assert_eq!(runs.all(), [1, 2]);
    assert_eq!(harness.named::<u32>("pears").counts().unwrap().ready, 1);
}

/// It would wait for that transaction, which waits for the handler.
fn a_step_beside_the_open_transaction_of_another_is_refused<F: Fixture>(harness: &Harness<F>) {
    let (pq, seen) = (harness.pq.clone(), Seen::new());
    let refusals = seen.clone();
    let (_, handler) = steps(harness, move |context, _| {
        pq.transaction(|conn| {
            context.step_with(conn, "book", |_| Ok::<_, CaseError>(()))?;
            refusals.push(context.step("mail", || Ok::<_, CaseError>(())).unwrap_err().0);
            context.step_with(conn, "ship", |_| Ok::<_, CaseError>(()))
        })?;
        context.step("mail", || Ok::<_, CaseError>(()))
    });
    let report = run_asserting(harness, handler);
    assert_eq!((report.done, report.failed), (1, 0));
    let refusals = seen.all();
    assert!(refusals.len() == 1 && refusals[0].contains("has not been committed"), "{refusals:?}");
}

fn a_dead_job_goes_on_after_its_steps<F: Fixture>(harness: &Harness<F>) {
    let runs = Seen::new();
    let seen = runs.clone();
    let work = move |context: &Ctx<F>, _| {
        context.step("charge", || {
            seen.push("charge");
            Ok::<_, CaseError>(())
        })?;
        seen.push("after");
        Err(CaseError("on purpose".to_owned()))
    };
    let (id, handler) = steps(harness, work.clone());
    run_asserting(harness, handler.max_retries(0));
    harness.maintain();
    assert!(harness.queue().retry(id).unwrap());
    let handler = harness.queue().leased(work);
    run_asserting(harness, handler);
    assert_eq!(runs.all(), ["charge", "after", "after"]);
}

fn a_retry_from_a_step_forgets_it_and_the_later_ones<F: Fixture>(harness: &Harness<F>) {
    let (id, handler) = steps(harness, |context, _| {
        for name in ["load", "mail", "mail", "sum"] {
            context.step(name, || Ok::<_, CaseError>(()))?;
        }
        Err(CaseError("on purpose".to_owned()))
    });
    run_asserting(harness, handler.max_retries(0));
    let unknown = harness.pq.retry_from_step(id, "mail#3").unwrap_err();
    let text = format!("unknown step \"mail#3\" of job {id}; expected load, mail, mail#2, sum");
    assert_eq!(harness.fixture.core_error(&unknown).unwrap().to_string(), text);
    assert_eq!(harness.pq.retry_from_step(id, "mail#2").unwrap(), ChangeOutcome::Changed);
    assert_eq!(labels(harness, id), ["load", "mail"]);
    let job = harness.queue().find(id).unwrap().unwrap();
    assert_eq!((job.state, job.attempt), (JobState::Ready, 0));
    assert_eq!(harness.pq.retry_from_step(id, "load#1").unwrap(), ChangeOutcome::Changed);
    assert!(labels(harness, id).is_empty());
    assert_eq!(harness.pq.retry_from_step(JobId(i64::MAX), "load").unwrap(), ChangeOutcome::NotFound);
}

fn a_retry_from_a_step_is_refused_while_the_job_runs<F: Fixture>(harness: &Harness<F>) {
    let pq = harness.pq.clone();
    let (id, handler) = steps(harness, move |context, job| {
        context.step("load", || Ok::<_, CaseError>(()))?;
        assert_eq!(pq.retry_from_step(job.id, "load")?, ChangeOutcome::WrongState(JobState::Running));
        Err(CaseError("on purpose".to_owned()))
    });
    run_asserting(harness, handler.max_retries(0));
    assert_eq!(labels(harness, id), ["load"]);
}

fn the_steps_of_a_completed_job_are_forgotten<F: Fixture>(harness: &Harness<F>) {
    let records = Seen::new();
    let seen = records.clone();
    let (_, handler) = steps(harness, move |context, job| {
        context.step("load", || Ok::<_, CaseError>(()))?;
        seen.push(job.record.clone());
        Ok(())
    });
    run_asserting(harness, handler);
    harness.maintain();
    assert!(harness.pq.steps(&records.all()[0]).unwrap().is_empty());
}

fn the_steps_of_a_waiting_and_a_dead_job_are_not_forgotten<F: Fixture>(harness: &Harness<F>) {
    let (id, handler) = steps(harness, |context, job| {
        context.step("load", || Ok::<_, CaseError>(()))?;
        if job.attempt == 1 { Ok(context.sleep(HOUR)?) } else { Err(CaseError("on purpose".to_owned())) }
    });
    run_asserting(harness, handler);
    harness.maintain();
    assert_eq!(labels(harness, id), ["load", "sleep"]);
    harness.queue().cancel(id).unwrap();
    harness.maintain();
    assert_eq!(labels(harness, id), ["load", "sleep"]);
}

fn a_job_that_is_replaced_begins_its_steps_anew<F: Fixture>(harness: &Harness<F>) {
    let runs = Seen::new();
    let seen = runs.clone();
    let queue = harness.queue();
    let work = move |context: &Ctx<F>, job: Job<Value>| {
        let data = context.step("load", || Ok::<_, CaseError>(job.data.clone()))?;
        seen.push(data);
        context.sleep(HOUR)?;
        Ok::<_, CaseError>(())
    };
    let options = PutOptions::new().unique_or("one", OnConflict::Replace);
    let first = queue.put_with(&json!("first"), &options).unwrap().id;
    run_asserting(harness, queue.leased(work.clone()));
    assert_eq!(queue.put_with(&json!("second"), &options).unwrap().id, first);
    assert!(labels(harness, first).is_empty());
    run_asserting(harness, queue.leased(work));
    assert_eq!(runs.all(), [json!("first"), json!("second")]);
}
