//! The SQL function that puts a workflow: what it stores, with which errors it refuses, and who may call it.

mod common;

use common::{Outcome, database};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Text};
use pq_diesel::admin::Role;
use pq_diesel::{
    Backoff, CallOptions, JobId, JobResult, OnFailure, Pq, PutOptions, Retention, Wait, Worker, Workflow,
};
use serde_json::{Value, json};

/// All that a put determines of all jobs, and what they wait for. The ids are counted from the first one of the put.
const ROWS: &str = "
    WITH first AS (SELECT min(id) AS id FROM pq.queue WHERE q_name = 'pq.workflows')
    SELECT string_agg(concat_ws('; ', job.id - first.id, q_name, CASE q_name WHEN 'pq.workflows' THEN data::jsonb::text ELSE data::text END,
        schedule_at, expected_at - enqueued_at, priority, serial_key, unique_key,
        replace(annotations::text, format('\"id\": %s', first.id), '\"id\": 0')::jsonb - 'batch', (annotations ->> 'batch')::bigint - first.id), E'\\n' ORDER BY job.id)
        || (SELECT string_agg(concat_ws(' ', '\\n', follow_up - first.id, job - CASE job IN (1, 99999) WHEN true THEN 0 ELSE first.id END, only_done, outcome), '' ORDER BY follow_up, job)
            FROM pq.queue_waits, first)
    FROM pq.queue AS job, first WHERE job.id > 1";

fn text(conn: &mut PgConnection, sql: &str) -> QueryResult<String> {
    diesel::dsl::sql::<Text>(sql).get_result(conn)
}

fn put(conn: &mut PgConnection, workflow: &Value) -> QueryResult<JobId> {
    let id: i64 = diesel::dsl::sql::<BigInt>("SELECT pq.queue_put_workflow(")
        .bind::<Text, _>(workflow.to_string())
        .sql("::json)")
        .get_result(conn)?;
    Ok(JobId(id))
}

#[test]
fn a_workflow_by_sql_stores_what_the_library_stores() -> Outcome {
    let database = database()?;
    let mut conn = database.connect()?;
    let pq = Pq::detached();
    let apples = pq.queue::<Value>("apples")?;
    let outside = apples.on(&mut conn).put(&json!(1))?.id;
    let (a, b) = (pq.queue("apples")?, pq.queue("pears")?);
    let (eat, peel, buy) = (a.task::<(u8, Value)>("eat"), b.task::<Value>("peel \"ж\""), b.task::<()>("buy"));
    let options = CallOptions::new().priority(3).serialization_key("k").group("g").cost(4).tags(["t", "u"]);
    let options = options.metadata(json!({ "m": [1, null] })).expected_at("1h").max_retries(2);
    let options = options
        .backoff(Backoff::linear(std::time::Duration::from_secs(10), std::time::Duration::from_secs(300)));
    for (policy, name) in
        [(OnFailure::Stop, "stop"), (OnFailure::Continue, "continue"), (OnFailure::Compensate, "compensate")]
    {
        let built = Workflow::new("order \"7\" ж")
            .job("last", &eat, &(1, json!({ "a": [null, 1.50] })))
            .after(["one", "two"])
            .after_any_outcome(["other"])
            .job_with("one", &peel, &json!({ "b": 1, "a": 2 }), &options)
            .undo(&buy, &())
            .job("two", &buy, &())
            .after(["one"])
            .undo(&eat, &(2, json!("\u{1f34e}\n")))
            .job_with(
                "other",
                &buy,
                &(),
                &CallOptions::from(PutOptions::new().after([outside]).after_any_outcome([JobId(99_999)])),
            )
            .job_with("later", &buy, &(), &CallOptions::new().schedule_at("2001-01-01T00:00:00Z"))
            .on_failure(policy);
        let by_sql = json!({
            "name": "order \"7\" ж", "on_failure": name,
            "jobs": [
                { "name": "last", "queue": "apples", "task": "eat", "args": [1, { "a": [null, 1.50] }],
                  "after": ["one", "two"], "after_any_outcome": ["other"] },
                { "name": "one", "queue": "pears", "task": "peel \"ж\"", "kwargs": { "b": 1, "a": 2 }, "priority": 3,
                  "serialization_key": "k", "group_key": "g", "cost": 4, "tags": ["t", "u"], "metadata": { "m": [1, null] },
                  "expected_in": "1 hour", "max_retries": 2, "backoff": "linear 10s 5m", "after": [], "undo": { "task": "buy" } },
                { "name": "two", "queue": "pears", "task": "buy", "after": ["one"], "trace": null,
                  "undo": { "queue": "apples", "task": "eat", "args": [2, "\u{1f34e}\n"] } },
                { "name": "other", "queue": "pears", "task": "buy", "after": [outside.0], "after_any_outcome": [99_999] },
                { "name": "later", "queue": "pears", "task": "buy", "schedule_at": "2001-01-01 00:00Z" },
            ],
        });
        pq.put_workflow_on(&mut conn, &built)?;
        let expected = text(&mut conn, ROWS)?;
        conn.batch_execute("DELETE FROM pq.queue WHERE id > 1; DELETE FROM pq.queue_waits")?;
        put(&mut conn, &by_sql)?;
        let stored = text(&mut conn, ROWS)?;
        for (stored, expected) in stored.lines().zip(expected.lines()) {
            assert_eq!(stored, expected, "{name}");
        }
        assert_eq!(stored, expected, "{name}");
        conn.batch_execute("DELETE FROM pq.queue WHERE id > 1; DELETE FROM pq.queue_waits")?;
    }
    Ok(())
}

/// Returns a workflow with these jobs.
fn of(jobs: &Value) -> Value {
    json!({ "name": "w", "jobs": jobs })
}

#[test]
fn an_invalid_workflow_is_refused_with_its_place_and_the_rule() -> Outcome {
    let database = database()?;
    let mut conn = database.connect()?;
    let job = |name: &str, after: Value| json!({ "name": name, "queue": "q", "task": "t", "after": after });
    let with = |member: &str, value: Value| {
        let mut job = job("a", json!([]));
        job[member] = value;
        of(&json!([job]))
    };
    let many: Vec<Value> = (0..1_001).map(|number| job(&number.to_string(), json!([]))).collect();
    for (workflow, expected) in [
        (json!([]), "invalid workflow without a name: it must be an object, and is of type array"),
        (Value::Null, "it must be an object, and is of type null"),
        (json!({ "jobs": [job("a", json!([]))] }), "its name must have 1 to 128 bytes"),
        (
            json!({ "name": "ж".repeat(65), "jobs": [job("a", json!([]))] }),
            "its name must have 1 to 128 bytes",
        ),
        (json!({ "name": 7, "jobs": [] }), "invalid name: it must be of type string, and is of type number"),
        (
            json!({ "name": "w", "nodes": [] }),
            "invalid workflow \"w\": unknown member \"nodes\"; expected jobs, name, on_failure",
        ),
        (json!({ "name": "w" }), "it must have 1 to 1000 jobs, and has 0"),
        (of(&json!(many)), "it must have 1 to 1000 jobs, and has 1001"),
        (
            json!({ "name": "w", "on_failure": "undo", "jobs": [] }),
            "invalid on_failure 'undo': it must be stop, continue or compensate",
        ),
        (of(&json!([7])), "invalid workflow \"w\": job 1: it must be an object, and is of type number"),
        (of(&json!([job("a", json!([])), null])), "job 2: it must be an object, and is of type null"),
        (of(&json!([{ "queue": "q", "task": "t" }])), "job 1: its name must have 1 to 128 bytes"),
        (
            of(&json!([job("a", json!([])), job("a", json!([]))])),
            "job 2: another job has the name \"a\", too",
        ),
        (
            of(&json!([job("a", json!(["b"]))])),
            "job \"a\": it waits for \"b\", which is no job of the workflow",
        ),
        (of(&json!([job("a", json!(["a"]))])), "its jobs wait for each other: \"a\" after \"a\""),
        (
            of(&json!([
                job("x", json!(["c"])),
                job("c", json!(["b"])),
                job("b", json!(["a", "c"])),
                job("a", json!([]))
            ])),
            "its jobs wait for each other: \"c\" after \"b\" after \"c\"",
        ),
        (
            of(&json!([job("a", json!([null]))])),
            "job \"a\": invalid after: it must list names of jobs, and ids",
        ),
        (of(&json!([job("a", json!([1.5]))])), "job \"a\": invalid input syntax for type bigint: \"1.5\""),
        (
            of(&json!([job("a", json!("b"))])),
            "invalid after: it must be of type array, and is of type string",
        ),
        (
            with("unique_key", json!("k")),
            "job 1: unknown member \"unique_key\"; expected after, after_any_outcome, args,",
        ),
        (with("batch", json!(7)), "unknown member \"batch\""),
        (
            with("priority", json!("high")),
            "invalid priority: it must be of type number, and is of type string",
        ),
        (
            with("priority", json!(5_000_000_000_i64)),
            "job \"a\": value \"5000000000\" is out of range for type integer",
        ),
        (with("backoff", json!("soon")), "job \"a\": invalid backoff 'soon': it must be a delay such as 30s"),
        (with("timeout", json!("soon")), "job \"a\": invalid input syntax for type interval: \"soon\""),
        (
            with("schedule_at", json!("soon")),
            "job \"a\": invalid input syntax for type timestamp with time zone",
        ),
        (with("queue", Value::Null), "job \"a\": invalid queue name NULL: it must have 1 to 1024 bytes"),
        (
            with("queue", json!("pq.workflows")),
            "job \"a\": it is in the queue \"pq.workflows\", which is that",
        ),
        (
            with("undo", json!({ "task": "u", "queue": "pq.workflows" })),
            "job \"a\": it is in the queue \"pq.workflows\"",
        ),
        (with("data", json!(1)), "job \"a\": it must have either a task or data"),
        (with("task", Value::Null), "job \"a\": it must have either a task or data"),
        (
            of(&json!([{ "name": "a", "queue": "q", "data": 1, "args": [] }])),
            "must come with a task, and not with data",
        ),
        (
            with("undo", json!({ "task": "u", "after": [] })),
            "undo of job \"a\": unknown member \"after\"; expected args,",
        ),
        (with("undo", json!({})), "undo of job \"a\": it must have either a task or data"),
        (
            with("undo", json!({ "task": "u", "max_retries": -1 })),
            "undo of job \"a\": invalid max_retries -1",
        ),
        (with("undo", json!({ "task": "u", "queue": "" })), "undo of job \"a\": invalid queue name"),
        (
            of(
                &json!([job("b", json!([])), { "name": "a", "queue": "q", "data": 1, "after": ["b"], "schedule_in": "1s" }]),
            ),
            "job \"a\": cannot use after with schedule_at, schedule_in or unique_key",
        ),
    ] {
        match put(&mut conn, &workflow).map_err(|error| error.to_string()) {
            Ok(_) => return Err(format!("{workflow} was put").into()),
            Err(error) => assert!(error.contains(expected), "{workflow}: {error}"),
        }
    }
    let twice =
        text(&mut conn, "SELECT pq.queue_put_workflow('{\"name\":\"w\",\"jobs\":[],\"name\":\"v\"}')::text");
    assert!(twice.is_err_and(|error| error.to_string().contains("the member name is there twice")));
    assert_eq!(text(&mut conn, "SELECT count(*)::text FROM pq.queue")?, "0");
    Ok(())
}

#[test]
fn workers_run_a_workflow_by_sql() -> Outcome {
    let database = database()?;
    let pq = Pq::connect(database.url())?;
    let mut conn = database.connect()?;
    let jobs = json!([
        { "name": "pack", "queue": "orders", "task": "pack", "after": ["charge"] },
        { "name": "charge", "queue": "orders", "task": "charge", "args": [7], "undo": { "task": "refund", "args": [7] } },
    ]);
    let workflow = json!({ "name": "order", "on_failure": "compensate", "jobs": jobs });
    let rolled_back = conn.transaction(|conn| {
        put(conn, &workflow).and(Err::<(), _>(diesel::result::Error::RollbackTransaction))
    });
    assert!(rolled_back.is_err() && text(&mut conn, "SELECT count(*)::text FROM pq.queue")? == "0");
    // A producer needs no further privileges.
    conn.batch_execute("CREATE ROLE workflow_producer")?;
    pq.grant_on(&mut conn, Role::Producer, "workflow_producer")?;
    conn.batch_execute("SET ROLE workflow_producer")?;
    let id = put(&mut conn, &workflow)?;
    conn.batch_execute("RESET ROLE")?;
    assert_eq!(pq.put_workflow_json(&workflow.to_string())?, JobId(id.0 + 3));
    let error = pq.put_workflow_json("{}").map(drop).map_err(|error| error.to_string());
    assert_eq!(error, Err("invalid workflow without a name: its name must have 1 to 128 bytes".to_owned()));
    // What is put by SQL is not counted.
    pq.store_put_counts()?;
    let counted: Vec<_> = pq.counters()?.into_iter().map(|one| (one.task, one.counters.put)).collect();
    assert_eq!(counted, [("charge".to_owned(), 1), ("pack".to_owned(), 1), (String::new(), 1)]);

    let queue = pq.queue("orders")?;
    let (charge, pack, refund) =
        (queue.task::<u32>("charge"), queue.task::<()>("pack"), queue.task::<u32>("refund"));
    let refused = pack.leased(|context, _| {
        assert_eq!(context.result_of::<u32>("charge")?.done(), Some(7));
        Ok::<_, pq_diesel::Error>(pq_diesel::Outcome::dead("no box"))
    });
    let worker = Worker::new(&pq)
        .serve(charge.leased(|_, job| pq_diesel::Outcome::result(&job.data)))
        .serve(refused)
        .serve(refund.leased(|_, job| pq_diesel::Outcome::result(&job.data)));
    worker.run_until_empty()?;
    pq.maintain(&Retention::default())?;
    for id in [id, JobId(id.0 + 3)] {
        assert!(matches!(pq.wait_for::<()>(id, Wait::Forever)?, JobResult::Dead(_)));
        let graph = pq.workflow(id)?.map(|workflow| workflow.tree()).unwrap_or_default();
        assert!(graph.contains("undone") && graph.contains("no box"), "{graph}");
    }
    Ok(())
}
