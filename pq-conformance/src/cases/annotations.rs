//! What is noted with a job when it is put: its trace context, its tags and its metadata.

use std::time::Duration;

use pq_core::{
    CallOptions, Filter, JobRecord, JobState, OnConflict, Operation, Outcome, PutOptions, Queue, Trace,
    Worker,
};
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
    tags_and_metadata_are_kept_with_the_job: Both,
    a_call_has_the_tags_of_its_task_unless_it_states_some: Own,
    a_put_that_replaces_a_job_replaces_its_tags: Own,
    jobs_are_found_by_their_tags: Both,
    jobs_are_found_by_their_group: Both,
    jobs_are_found_by_members_of_their_metadata: Own,
    an_operation_changes_the_jobs_with_a_tag: Own,
    invalid_tags_and_metadata_put_nothing: Both,
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

/// Describes the tags and the metadata of a job.
fn noted(job: &JobRecord) -> (Vec<String>, Value) {
    (job.annotations.tags(), Value::Object(job.annotations.metadata()))
}

fn tags_and_metadata_are_kept_with_the_job<F: Fixture>(harness: &Harness<F>) {
    let (tags, metadata) =
        (["z", "ä \"b\"", "z"], json!({ "é\\": [1.5, -2, null, { "x": true }], "a": "🍎" }));
    let wanted = (tags.map(str::to_owned).to_vec(), metadata.clone());
    let id = harness.put_with(1, &PutOptions::new().tags(tags).metadata(&metadata));
    assert_eq!(noted(&all(harness)[0]), wanted);
    let job = harness.lease_one();
    assert_eq!(noted(&job), wanted, "a handler can read them");
    assert_eq!(noted(&all(harness)[0]), wanted, "of a running job");
    harness.settle(&job, Outcome::retry(AFTER, "again"));
    let conn = &mut harness.connect();
    let done: Result<(), CaseError> = harness.nested(conn, |conn| {
        let job = harness.queue().on(conn).get()?.unwrap();
        assert_eq!(noted(&job), wanted);
        harness.queue().on(conn).settle(&job, Outcome::dead("bad")).map_err(CaseError::from)
    });
    done.unwrap();
    assert_eq!(noted(&harness.archived(JobState::Dead)[0]), wanted);
    assert!(harness.queue().retry(id).unwrap());
    assert_eq!(noted(&all(harness)[0]), wanted, "of a job that was requeued");
    harness.clear();
    harness.put_with(1, &PutOptions::new().tags(Vec::<String>::new()).metadata(json!({})));
    assert!(all(harness)[0].annotations.is_empty());
}

fn a_call_has_the_tags_of_its_task_unless_it_states_some<F: Fixture>(harness: &Harness<F>) {
    let defaults = CallOptions::new().tags(["task"]).metadata(json!({ "of": "task" }));
    let task = harness.named("apples").task::<u8>("eat").with_defaults(defaults);
    task.call(&1).unwrap();
    task.call_with(&2, &CallOptions::new().tags(["call"])).unwrap();
    task.call_with(&3, &CallOptions::new().tags([""; 0]).metadata(json!({ "of": "call" }))).unwrap();
    let noted: Vec<_> = all(harness).iter().map(noted).collect();
    let tags = |tags: &[&str]| tags.iter().map(|tag| (*tag).to_owned()).collect::<Vec<_>>();
    let expected = [
        (tags(&["task"]), json!({ "of": "task" })),
        (tags(&["call"]), json!({ "of": "task" })),
        (tags(&[]), json!({ "of": "call" })),
    ];
    assert_eq!(noted, expected);
}

fn a_put_that_replaces_a_job_replaces_its_tags<F: Fixture>(harness: &Harness<F>) {
    let put = |tag: &str, on_conflict| {
        let options = PutOptions::new().tags([tag]).unique_or("u", on_conflict);
        harness.queue().put_with(&json!(1), &options).unwrap();
        all(harness)[0].annotations.tags()
    };
    assert_eq!(put("first", OnConflict::Keep), ["first"]);
    assert_eq!(put("second", OnConflict::Keep), ["first"]);
    assert_eq!(put("second", OnConflict::Reschedule), ["first"]);
    assert_eq!(put("second", OnConflict::KeepWaiting), ["first"]);
    assert_eq!(put("second", OnConflict::Replace), ["second"]);
}

/// Returns the data of the jobs that a filter selects, by id.
fn found<F: Fixture>(harness: &Harness<F>, filter: &Filter) -> Vec<Value> {
    let jobs = match harness.access() {
        Access::Own => harness.pq.list(filter, 100).unwrap(),
        Access::Callers => harness.queue().on(&mut harness.connect()).list(filter, 100).unwrap(),
    };
    jobs.iter().map(|job| serde_json::from_str(job.payload.as_str()).unwrap()).collect()
}

/// Puts jobs with these tags, and ends or leases some of them.
fn put_tagged<F: Fixture>(harness: &Harness<F>) {
    for (n, tags) in [(1, &["a"][..]), (2, &["a", "b"]), (3, &["b", "a b"]), (4, &[]), (5, &["a", "b"])] {
        harness.put_with(n, &PutOptions::new().tags(tags.iter().copied()));
        if n == 1 {
            harness.settle(&harness.lease_one(), Outcome::dead("bad"));
        }
    }
    harness.lease_one();
    traced(harness, context).put(&json!(6)).unwrap();
}

fn jobs_are_found_by_their_tags<F: Fixture>(harness: &Harness<F>) {
    put_tagged(harness);
    let tag = |tag: &str| Filter::default().tag(tag);
    assert_eq!(found(harness, &tag("a")), [1, 2, 5]);
    assert_eq!(found(harness, &tag("b")), [2, 3, 5]);
    assert_eq!(found(harness, &tag("a").tag("b")), [2, 5]);
    assert_eq!(found(harness, &tag("a").state(JobState::Running)), [2]);
    assert_eq!(found(harness, &tag("a").state(JobState::Dead)), [1]);
    assert_eq!(found(harness, &tag("a b")), [3]);
    assert!(found(harness, &tag("A")).is_empty());
    assert_eq!(found(harness, &Filter::default()), [1, 2, 3, 4, 5, 6]);
}

fn jobs_are_found_by_their_group<F: Fixture>(harness: &Harness<F>) {
    let of_group = |group: &str| PutOptions::new().group(group);
    for (n, options) in [
        (1, of_group("a")),
        (2, of_group("a")),
        (3, of_group("b").tags(["t"])),
        (4, of_group("a").tags(["t"])),
    ] {
        harness.put_with(n, &options);
    }
    harness.put(5);
    harness.settle(&harness.lease_one(), Outcome::dead("bad"));
    harness.lease_one();
    let group = |group: &str| Filter::queue("apples").group(group);
    assert_eq!(found(harness, &group("a")), [1, 2, 4]);
    assert_eq!(found(harness, &group("a").tag("t")), [4]);
    assert_eq!(found(harness, &group("a").state(JobState::Running)), [2]);
    assert!(found(harness, &group("A")).is_empty() && found(harness, &group("")).is_empty());
}

fn jobs_are_found_by_members_of_their_metadata<F: Fixture>(harness: &Harness<F>) {
    let puts = [
        json!({ "customer": 7, "from": { "host": "one", "pid": 1 } }),
        json!({ "customer": 7.0, "list": [1, [2, 3]] }),
        json!({ "customer": "7", "tags": ["a"] }),
    ];
    for (n, metadata) in puts.iter().enumerate() {
        harness.put_with(n, &PutOptions::new().tags(["t"]).metadata(metadata));
    }
    harness.lease_one();
    for (wanted, expected) in [
        (json!({ "customer": 7 }), &[0, 1][..]),
        (json!({ "from": { "pid": 1 } }), &[0]),
        (json!({ "list": [[3]] }), &[1]),
        (json!({ "list": [2] }), &[]),
        (json!({ "tags": "a" }), &[]),
        (json!({ "none": null }), &[]),
        (json!({}), &[0, 1, 2]),
    ] {
        let Value::Object(members) = wanted.clone() else { panic!("an object") };
        let filter = Filter::default().metadata(members.clone());
        assert_eq!(found(harness, &filter), expected, "{wanted}");
        let both = Filter::default().tag("t").metadata(members);
        assert_eq!(found(harness, &both), expected, "{wanted}");
    }
}

fn an_operation_changes_the_jobs_with_a_tag<F: Fixture>(harness: &Harness<F>) {
    put_tagged(harness);
    let filter = Filter::default().tag("a");
    let pq = &harness.pq;
    let to = pq.queue::<()>("pears").unwrap().name().clone();
    let operation = Operation::Move { to };
    assert_eq!(pq.preview(&operation, &filter, 10).unwrap(), 1);
    assert_eq!(pq.operate(&operation, &filter, |_| {}).unwrap().changed, 1);
    assert_eq!(found(harness, &Filter::queue("pears")), [5]);
    assert_eq!(
        pq.operate(&Operation::Cancel, &filter, |_| {}).unwrap().changed,
        2,
        "the running one is asked"
    );
    assert_eq!(found(harness, &filter.clone().state(JobState::Cancelled)), [5]);
    assert_eq!(pq.operate(&Operation::Retry, &filter, |_| {}).unwrap().changed, 2);
    assert_eq!(pq.operate(&Operation::Delete, &Filter::default().tag("b"), |_| {}).unwrap().changed, 2);
    assert_eq!(found(harness, &Filter::default()), [1, 2, 4, 6]);
}

fn invalid_tags_and_metadata_put_nothing<F: Fixture>(harness: &Harness<F>) {
    let options = PutOptions::new;
    let long = json!({ "a": "x".repeat(4_096) });
    for (options, reason) in [
        (options().tags([""]), "invalid tag \"\": it must have 1 to 128 bytes, and has 0"),
        (options().tags(["x".repeat(129)]), "it must have 1 to 128 bytes, and has 129"),
        (options().tags(["a\0"]), "it must not contain NUL"),
        (options().tags((0..17).map(|n| n.to_string())), "there must be at most 16, and there are 17"),
        (options().metadata(1), "invalid metadata: it must be a JSON object"),
        (options().metadata(["a"]), "invalid metadata: it must be a JSON object"),
        (options().metadata(&long), "it must have at most 4096 bytes as JSON, and has 4104"),
        (options().metadata(json!({ "a": [{ "b": "\0" }] })), "it must not contain NUL"),
        (options().metadata(json!({ "a": { "\0": 1 } })), "it must not contain NUL"),
    ] {
        let error = harness.try_put(&json!(1), &options).unwrap_err();
        let refused = harness.fixture.core_error(&error).map(ToString::to_string).unwrap_or_default();
        assert!(refused.contains(reason), "{refused:?} instead of {reason:?}");
        assert_eq!(options.check().unwrap_err().to_string(), refused);
    }
    let most =
        options().tags((0..16).map(|n| format!("{n:x>128}"))).metadata(json!({ "a": "x".repeat(4_088) }));
    harness.put_with(1, &most);
    assert_eq!(all(harness).len(), 1);
}
