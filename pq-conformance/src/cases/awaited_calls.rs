//! Handlers that call tasks and wait for their results without a worker.

use std::time::Duration;

use pq_core::{
    Backoff, CallOptions, ChangeOutcome, Filter, Handler, JobId, JobResult, JobState, Operation, Outcome,
    PutOptions, StopMode, Task, Worker,
};

use super::cases;
use super::steps::{Ctx, labels};
use crate::Fixture;
use crate::harness::{CaseError, Harness, Seen, run_beside, wait_until};

cases![
    a_handler_goes_on_with_the_result_of_its_call: Own,
    a_call_is_put_once_and_its_result_is_kept: Own,
    a_call_that_fails_is_an_answer: Own,
    a_call_with_a_lost_lease_puts_nothing: Own,
    a_job_that_is_run_by_hand_looks_for_its_call: Own,
    a_call_that_waits_for_its_caller_is_refused: Own,
    jobs_that_would_wait_for_their_own_batch_are_refused: Both,
];

fn task<F: Fixture>(harness: &Harness<F>, name: &str) -> Task<F::Store, u32> {
    harness.named::<()>("apples").task(name)
}

type Answers = Seen<JobResult<u32>>;

/// Puts a call of `outer`, and returns a handler of it that asks `inner` for each number below its argument.
fn outer<F: Fixture>(harness: &Harness<F>, count: u32, fails: u32) -> (JobId, Answers, Handler<F::Store>) {
    let (outer, inner, answers) = (task(harness, "outer"), task(harness, "inner"), Seen::new());
    let id = outer.call(&count).unwrap().id;
    let seen = answers.clone();
    let failed = std::sync::atomic::AtomicU32::new(0);
    let handler = outer.max_retries(3).backoff(Backoff::fixed(Duration::ZERO)).leased(
        move |context: &Ctx<F>, job: pq_core::Job<u32>| {
            for n in 0..job.data {
                seen.push(context.call_and_wait(&inner, &n)?);
            }
            if failed.fetch_add(1, std::sync::atomic::Ordering::Relaxed) < fails {
                return Err(CaseError("broken".to_owned()));
            }
            Ok(())
        },
    );
    (id, answers, handler)
}

fn inner<F: Fixture>(harness: &Harness<F>) -> Handler<F::Store> {
    task(harness, "inner").leased(|_, job| match job.data {
        9 => Ok(Outcome::dead("nine")),
        n => Outcome::result(&(n + 100)),
    })
}

fn a_handler_goes_on_with_the_result_of_its_call<F: Fixture>(harness: &Harness<F>) {
    let (id, answers, handler) = outer(harness, 2, 0);
    // A single thread: it is free while the job waits.
    let worker = Worker::new(&harness.pq).serve(handler).serve(inner(harness)).threads(1);
    let report = worker.run_jobs(5).unwrap();
    assert_eq!((report.done, report.snoozed), (3, 2));
    let [one, two] = [100, 101].map(JobResult::Done);
    assert_eq!(answers.all(), [one.clone(), one, two]);
    assert!(harness.pq.find(id).unwrap().is_none());
}

fn a_call_is_put_once_and_its_result_is_kept<F: Fixture>(harness: &Harness<F>) {
    let (_, answers, handler) = outer(harness, 1, 2);
    let worker = Worker::new(&harness.pq).serve(handler).serve(inner(harness));
    let report = worker.run_jobs(5).unwrap();
    assert_eq!((report.done, report.snoozed, report.failed), (2, 1, 2));
    assert_eq!(answers.all(), [(); 3].map(|()| JobResult::Done(100)));
    let calls = harness.pq.list(&Filter::default().task("inner"), 10).unwrap();
    assert_eq!(calls.len(), 1);
}

fn a_call_that_fails_is_an_answer<F: Fixture>(harness: &Harness<F>) {
    let (outer, inner_task, seen) = (task(harness, "outer"), task(harness, "inner"), Seen::new());
    let id = outer.call(&9).unwrap().id;
    let answers = seen.clone();
    let handler = outer.leased(move |context: &Ctx<F>, job: pq_core::Job<u32>| {
        let answer = context.call_and_wait::<_, u32>(&inner_task, &job.data)?;
        let JobResult::Dead(failed) = answer else { return Err(CaseError(format!("{answer:?}"))) };
        answers.push(failed.to_string());
        context.sleep(Duration::from_millis(1))?;
        Ok(())
    });
    let worker = Worker::new(&harness.pq).serve(handler).serve(inner(harness));
    assert_eq!(worker.run_jobs(4).unwrap().done, 1);
    let [first, again] = seen.all().try_into().unwrap();
    assert!(first.ends_with("ended after 1 attempt: nine") && first == again, "{first} {again}");
    assert!(harness.pq.find(id).unwrap().is_none());
}

fn a_call_with_a_lost_lease_puts_nothing<F: Fixture>(harness: &Harness<F>) {
    let (outer, inner, errors) = (task(harness, "outer"), task(harness, "inner"), Seen::new());
    outer.call(&1).unwrap();
    let (seen, pq) = (errors.clone(), harness.pq.clone());
    let handler = outer.leased(move |context: &Ctx<F>, job: pq_core::Job<u32>| {
        let complete = pq.queue::<()>("apples")?;
        complete.transaction(|conn| context.complete_with(conn))?;
        seen.push(context.call_and_wait::<_, u32>(&inner, &job.data).unwrap_err().to_string());
        Ok::<_, CaseError>(())
    });
    Worker::new(&harness.pq).serve(handler).run_jobs(1).unwrap();
    assert!(errors.all()[0].contains("lease"), "{:?}", errors.all());
    assert_eq!(harness.pq.list(&Filter::default(), 10).unwrap(), []);
}

fn a_job_that_is_run_by_hand_looks_for_its_call<F: Fixture>(harness: &Harness<F>) {
    let (id, answers, handler) = outer(harness, 1, 0);
    let worker = Worker::new(&harness.pq).serve(handler).serve(inner(harness)).maintain_every(Duration::MAX);
    let report = run_beside::<F>(worker, |control| {
        wait_until("the job waits", || labels(harness, id) == ["call inner"]);
        let called = harness.pq.list(&Filter::default().task("inner"), 10).unwrap()[0].id;
        wait_until("its call is done", || harness.pq.find(called).unwrap().unwrap().state == JobState::Done);
        assert_eq!(
            harness.pq.explain(id).unwrap()[0].to_string(),
            format!("it waits for 1 job: job {called}")
        );
        assert_eq!(harness.pq.change(id, &Operation::RunNow).unwrap(), ChangeOutcome::Changed);
        wait_until("the job is done", || harness.pq.find(id).unwrap().is_none());
        control.stop(StopMode::Finish);
    });
    assert_eq!((report.done, report.snoozed), (2, 1));
    assert_eq!(answers.all(), [JobResult::Done(100)]);
}

fn a_call_that_waits_for_its_caller_is_refused<F: Fixture>(harness: &Harness<F>) {
    let (outer, inner, errors) = (task(harness, "outer"), task(harness, "inner"), Seen::new());
    let id = outer.call(&1).unwrap().id;
    let seen = errors.clone();
    let handler = outer.leased(move |context: &Ctx<F>, job: pq_core::Job<u32>| {
        let options = CallOptions::new().after_any_outcome([job.id]);
        let refused = context.call_and_wait_with::<_, u32>(&inner, &job.data, &options);
        seen.push(refused.unwrap_err().to_string());
        Ok::<_, CaseError>(())
    });
    assert_eq!(Worker::new(&harness.pq).serve(handler).run_jobs(1).unwrap().done, 1);
    assert!(errors.all()[0].contains(&format!("cannot let job {id} wait for job")), "{:?}", errors.all());
    assert_eq!(harness.pq.list(&Filter::default(), 10).unwrap(), []);
}

fn jobs_that_would_wait_for_their_own_batch_are_refused<F: Fixture>(harness: &Harness<F>) {
    let first = harness.put("first");
    let batch = harness.put_with("batch", &PutOptions::new().after([first]));
    let second = harness.put_with("second", &PutOptions::new().after_any_outcome([batch]));
    let third = harness.put_with("third", &PutOptions::new().after([first, second]));
    let options = PutOptions::new().after([first, third]).in_batch(batch);
    let refused = harness.try_put(&"circle".into(), &options).unwrap_err().to_string();
    assert!(refused.contains(&format!("cannot let job {batch} wait for job {third}")), "{refused}");
    assert_eq!(harness.counts().total(), 4);
    harness.put_with("no circle", &PutOptions::new().after([first]).in_batch(batch));
}
