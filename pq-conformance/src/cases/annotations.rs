//! What is noted with a job when it is put: its trace context.

use std::time::Duration;

use pq_core::{Filter, JobRecord, JobState, OnConflict, Outcome, PutOptions, Queue, Trace, Worker};
use serde_json::{Value, json};

use super::cases;
use crate::Fixture;
use crate::harness::{Access, CaseError, Harness, Seen, TIMEOUT, roll_back};

cases![
    each_put_carries_its_trace_context: Both,
    the_trace_context_reaches_every_handler: Own,
    a_job_keeps_its_trace_context_for_each_attempt: Both,
    a_job_with_keys_and_times_keeps_its_trace_context: Both,
    an_archived_job_keeps_its_trace_context: Both,
    a_put_that_replaces_a_job_replaces_its_trace_context: Own,
    a_periodic_job_has_no_trace_context: Own,
    a_header_with_nul_is_left_out: Own,
];

/// More jobs than a store sends in one statement.
const MANY: u64 = 2_500;

const AFTER: Duration = Duration::ZERO;

/// Returns a context with characters that need escapes.
fn context() -> Trace {
    let headers = [
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ("tracestate", "a=\"ä\\🍎\""),
    ];
    headers.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
}

/// Returns the queue on a handle that is in a trace context.
fn traced<F: Fixture>(harness: &Harness<F>, trace: fn() -> Trace) -> Queue<F::Store, Value> {
    harness.pq.clone().with_trace(trace).queue("apples").unwrap()
}

/// Puts a job in the trace context.
fn put<F: Fixture>(harness: &Harness<F>, options: &PutOptions) {
    traced(harness, context).put_with(&json!(1), options).unwrap();
}

fn all<F: Fixture>(harness: &Harness<F>) -> Vec<JobRecord> {
    harness.queue().list(&Filter::default(), 10_000).unwrap()
}

/// Returns the trace context of the only job, live or archived.
fn only<F: Fixture>(harness: &Harness<F>) -> Trace {
    let jobs = all(harness);
    assert_eq!(jobs.len(), 1);
    jobs[0].annotations.trace()
}

fn each_put_carries_its_trace_context<F: Fixture>(harness: &Harness<F>) {
    let apples = traced(harness, context);
    let task = apples.pq().queue("apples").unwrap().task::<u64>("eat");
    let (one, keyed) = (json!(1), PutOptions::new().unique("a"));
    let numbers = || (0..MANY).map(|n| json!(n));
    match harness.access() {
        Access::Own => {
            apples.put(&one).unwrap();
            apples.put_with(&one, &keyed).unwrap();
            apples.put_many([&one, &one]).unwrap();
            apples.put_many_with([(&one, &PutOptions::new().priority(1))]).unwrap();
            apples.put_many(numbers()).unwrap();
            apples.put_all(numbers()).unwrap();
            task.call(&1).unwrap();
            task.call_many([1, 2]).unwrap();
            task.call_all([1, 2]).unwrap();
        }
        Access::Callers => {
            let conn = &mut harness.connect();
            apples.on(conn).put(&one).unwrap();
            apples.on(conn).put_with(&one, &keyed).unwrap();
            apples.on(conn).put_many([&one, &one]).unwrap();
            apples.on(conn).put_many_with([(&one, &PutOptions::new().priority(1))]).unwrap();
            apples.on(conn).put_many(numbers()).unwrap();
            apples.on(conn).put_all(numbers()).unwrap();
            task.on(conn).call(&1).unwrap();
            task.on(conn).call_many([1, 2]).unwrap();
            task.on(conn).call_all([1, 2]).unwrap();
        }
    }
    let jobs = all(harness);
    assert_eq!(jobs.len() as u64, 2 * MANY + 10);
    assert!(jobs.iter().all(|job| job.annotations.trace() == context()));
    harness.clear();
    harness.put(1);
    assert!(all(harness)[0].annotations.is_empty(), "another handle has no trace context");
}

fn the_trace_context_reaches_every_handler<F: Fixture>(harness: &Harness<F>) {
    let seen = Seen::new();
    for transactional in [false, true] {
        let (note, around) = (seen.clone(), seen.clone());
        let handler = match transactional {
            true => harness.queue().transactional(|_, _| Ok::<_, CaseError>(())),
            false => harness.queue().leased(move |context, _| {
                note.push(context.trace().clone());
                Ok::<_, CaseError>(())
            }),
        };
        put(harness, &PutOptions::new());
        harness.queue().put(&json!(1)).unwrap();
        let worker = Worker::new(&harness.pq).serve(handler).wrap(move |info, next| {
            around.push(info.trace.clone());
            next.run()
        });
        worker.run_until_empty().unwrap();
    }
    let none = Trace::new();
    assert_eq!(seen.all(), [context(), context(), none.clone(), none.clone(), context(), none]);
}

/// Runs the job in each way that puts it back into its queue.
fn assert_kept_for_each_attempt<F: Fixture>(harness: &Harness<F>) {
    let returns = [Outcome::retry(AFTER, "again"), Outcome::snooze(AFTER), Outcome::GiveBack];
    for outcome in &returns {
        let job = harness.lease_one();
        assert_eq!(job.annotations.trace(), context());
        harness.settle(&job, outcome.clone());
        let conn = &mut harness.connect();
        let done: Result<(), CaseError> = harness.nested(conn, |conn| {
            let job = harness.queue().on(conn).get()?.unwrap();
            assert_eq!(job.annotations.trace(), context());
            harness.queue().on(conn).settle(&job, outcome.clone()).map_err(CaseError::from)
        });
        done.unwrap();
    }
    let _: Result<(), CaseError> = harness.transaction(|conn| {
        assert_eq!(harness.queue().on(conn).get()?.unwrap().annotations.trace(), context());
        roll_back()
    });
    harness.lose_lease(&harness.lease(1, TIMEOUT)[0]);
    assert_eq!(only(harness), context());
}

fn a_job_keeps_its_trace_context_for_each_attempt<F: Fixture>(harness: &Harness<F>) {
    put(harness, &PutOptions::new());
    assert_kept_for_each_attempt(harness);
}

fn a_job_with_keys_and_times_keeps_its_trace_context<F: Fixture>(harness: &Harness<F>) {
    let options = PutOptions::new().serialization_key("s").unique("u").priority(1).expected_at("0s");
    put(harness, &options.schedule_at("2001-01-01T00:00:00Z"));
    assert_kept_for_each_attempt(harness);
}

fn an_archived_job_keeps_its_trace_context<F: Fixture>(harness: &Harness<F>) {
    put(harness, &PutOptions::new());
    let pears = harness.named::<Value>("pears");
    let id = all(harness)[0].id;
    assert_eq!(harness.queue().move_to(&pears, None).unwrap(), 1);
    assert_eq!(pears.move_to(&harness.queue(), Some(&[id])).unwrap(), 1);
    for outcome in [Outcome::dead("bad"), Outcome::cancel("no")] {
        harness.settle(&harness.lease_one(), outcome.clone());
        assert_eq!(only(harness), context(), "of the archived job");
        assert!(harness.queue().retry(id).unwrap());
        let conn = &mut harness.connect();
        let done: Result<(), CaseError> = harness.nested(conn, |conn| {
            let job = harness.queue().on(conn).get()?.unwrap();
            harness.queue().on(conn).settle(&job, outcome.clone()).map_err(CaseError::from)
        });
        done.unwrap();
        assert_eq!(only(harness), context(), "of the job that ended in a transaction");
        assert!(harness.queue().retry(id).unwrap());
    }
    assert!(harness.queue().cancel(id).unwrap().is_accepted());
    assert_eq!(harness.archived(JobState::Cancelled)[0].annotations.trace(), context());
    assert!(harness.queue().retry(id).unwrap());
    harness.settle(&harness.lease_one(), Outcome::Keep { result: None });
    assert_eq!(harness.archived(JobState::Done)[0].annotations.trace(), context());
}

fn a_put_that_replaces_a_job_replaces_its_trace_context<F: Fixture>(harness: &Harness<F>) {
    fn other() -> Trace {
        [("traceparent".to_owned(), "00-2-2-00".to_owned())].into()
    }
    let unique = |on_conflict| PutOptions::new().unique_or("u", on_conflict);
    put(harness, &unique(OnConflict::Keep));
    let second = traced(harness, other);
    for on_conflict in [OnConflict::Keep, OnConflict::Reschedule, OnConflict::KeepWaiting] {
        second.put_with(&json!(2), &unique(on_conflict)).unwrap();
        assert_eq!(only(harness), context(), "{on_conflict:?}");
    }
    second.put_with(&json!(3), &unique(OnConflict::Replace)).unwrap();
    assert_eq!(only(harness), other());
    harness.queue().put_with(&json!(4), &unique(OnConflict::Replace)).unwrap();
    assert_eq!(only(harness), Trace::new());
}

fn a_periodic_job_has_no_trace_context<F: Fixture>(harness: &Harness<F>) {
    let task = traced(harness, context).pq().queue("apples").unwrap().task::<u8>("eat");
    harness.pq.clone().with_trace(context).set_cron(&task.cron("yearly", "@yearly", &1).unwrap()).unwrap();
    harness.pq.clone().with_trace(context).run_cron("yearly").unwrap().unwrap();
    assert_eq!(only(harness), Trace::new());
    assert!(!all(harness)[0].payload.as_str().contains("traceparent"));
}

fn a_header_with_nul_is_left_out<F: Fixture>(harness: &Harness<F>) {
    fn broken() -> Trace {
        let headers = [("a", "1\0"), ("b\0", "2"), ("c", "3")];
        headers.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
    }
    traced(harness, broken).put(&json!(1)).unwrap();
    assert_eq!(only(harness), Trace::from([("c".to_owned(), "3".to_owned())]));
}
