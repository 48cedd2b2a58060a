//! The context of a handler (transactions, checkpoints, traces) and middleware.

use std::sync::Mutex;
use std::sync::mpsc::channel;
use std::time::Duration;

use pq_core::store::{Archive, Connect, Jobs};
use pq_core::{Backoff, Failure, JobState, Outcome, Trace, Worker};
use serde_json::{Value, json};

use super::cases;
use crate::Fixture;
use crate::harness::{
    CaseError, Conn, Harness, SHORT_LEASE, Seen, TIMEOUT, both, roll_back, run_until_empty, task,
    wait_for_extension,
};

cases![
    a_leased_handler_can_complete_in_its_own_transaction: Own,
    a_completion_in_a_long_transaction_does_not_block_lease_extension: Own,
    a_rolled_back_completion_has_no_effect: Own,
    a_late_completion_aborts_the_handlers_transaction: Own,
    the_next_attempt_starts_from_the_checkpoint: Own,
    a_job_that_its_handler_settled_is_counted_by_that_outcome: Own,
    both_kinds_of_handler_can_serve_one_queue: Own,
    an_outcome_that_the_store_refused_is_not_counted: Own,
    middleware_runs_around_handlers_in_order: Own,
    the_trace_context_reaches_the_handler: Own,
    a_serialization_key_can_be_computed_from_the_arguments: Own,
];

fn a_leased_handler_can_complete_in_its_own_transaction<F: Fixture>(harness: &Harness<F>) {
    let (task, pears) = (task::<F, u8>(harness), harness.named::<Value>("pears"));
    let writes = pears.clone();
    let handler = task.leased(move |context, job| {
        context.transaction(|conn| {
            writes.on(conn).put(&json!(job.data))?;
            context.complete_with(conn)
        })?;
        assert!(writes.counts()?.ready > 0);
        Ok::<_, crate::harness::Error<F>>(())
    });
    task.call_many([1, 2]).unwrap();
    let report = Worker::new(&harness.pq).batch(2, 2).serve(handler).run_until_empty().unwrap();
    assert_eq!((report.done, report.lost), (2, 0));
    assert_eq!((harness.counts().live(), pears.counts().unwrap().ready), (0, 2));
}

fn a_completion_in_a_long_transaction_does_not_block_lease_extension<F: Fixture>(harness: &Harness<F>) {
    let task = task::<F, bool>(harness);
    let pq = harness.pq.clone();
    let (start, started) = channel();
    let (proceed, wait) = channel();
    let (started, wait) = (Mutex::new(started), Mutex::new(wait));
    let handler = task.leased(move |context, job| {
        if job.data {
            let other = started.lock().unwrap().recv_timeout(TIMEOUT).unwrap();
            context.transaction(|conn| {
                context.complete_with(conn)?;
                wait_for_extension(&pq, other, SHORT_LEASE);
                Ok::<_, crate::harness::Error<F>>(())
            })?;
            proceed.send(()).unwrap();
        } else {
            start.send(job.id).unwrap();
            wait.lock().unwrap().recv_timeout(TIMEOUT).unwrap();
        }
        Ok::<_, crate::harness::Error<F>>(())
    });
    task.call_many([true, false]).unwrap();
    let worker = Worker::new(&harness.pq).threads(2).batch(1, 1).lease(SHORT_LEASE);
    let report = worker.maintain_every(Duration::MAX).serve(handler).run_jobs(2).unwrap();
    assert_eq!((report.done, report.lost), (2, 0));
}

fn a_rolled_back_completion_has_no_effect<F: Fixture>(harness: &Harness<F>) {
    let task = task::<F, ()>(harness);
    let handler = task.leased(move |context, _| {
        let rolled_back = context.transaction(|conn| {
            context.complete_with(conn)?;
            roll_back::<()>()
        });
        rolled_back.map_err(|_| "rolled back")
    });
    task.call(&()).unwrap();
    let report = run_until_empty(harness, handler);
    assert_eq!((report.done, report.dead), (0, 1));
    assert_eq!((harness.counts().dead, harness.counts().live()), (1, 0));
}

fn a_late_completion_aborts_the_handlers_transaction<F: Fixture>(harness: &Harness<F>) {
    let (task, pears) = (task::<F, ()>(harness), harness.named::<Value>("pears"));
    let writes = pears.clone();
    let pq = harness.pq.clone();
    let handler = task.leased(move |context, job| {
        // Simulates a process that slept past its lease while another process ran maintenance.
        let lease = job.lease().unwrap();
        let store = pq.store();
        store.with_connection(|conn| store.extend(conn, &[lease], Duration::ZERO)).map(drop)?;
        while store.with_connection(|conn| store.maintain(conn, &pq_core::Retention::default()))?.is_none() {}
        let late = context.transaction(|conn| {
            writes.on(conn).put(&json!("written with the completion"))?;
            context.complete_with(conn)
        });
        assert!(late.is_err());
        Ok::<_, crate::harness::Error<F>>(())
    });
    task.call(&()).unwrap();
    let report = Worker::new(&harness.pq).serve(handler).run_jobs(1).unwrap();
    assert_eq!((report.done, report.lost), (0, 1));
    assert_eq!((pears.counts().unwrap().ready, harness.counts().ready), (0, 1));
}

fn the_next_attempt_starts_from_the_checkpoint<F: Fixture>(harness: &Harness<F>) {
    let task = task::<F, u8>(harness).max_retries(3).backoff(Backoff::fixed(Duration::ZERO));
    let seen = Seen::new();
    let note = seen.clone();
    let handler = task.leased(move |context, job| {
        note.push(job.data);
        context.checkpoint(&(job.data + 1)).map_err(|error| error.to_string())?;
        if job.data < 2 { Err("not yet".to_owned()) } else { Ok(()) }
    });
    task.call(&0).unwrap();
    let report = run_until_empty(harness, handler);
    assert_eq!((report.done, report.failed), (1, 2));
    assert_eq!(seen.all(), [0, 1, 2]);
}

fn a_job_that_its_handler_settled_is_counted_by_that_outcome<F: Fixture>(harness: &Harness<F>) {
    let task = task::<F, u8>(harness);
    let handler = task.leased(|context, _| {
        context.transaction(|conn| context.complete_with(conn)).map_err(|error| error.to_string())?;
        Err::<(), _>("an error after the job was completed".to_owned())
    });
    task.call(&1).unwrap();
    let report = run_until_empty(harness, handler);
    assert_eq!((report.done, report.failed, report.lost), (1, 0, 0));
    assert_eq!(harness.counts().total(), 0);
}

fn both_kinds_of_handler_can_serve_one_queue<F: Fixture>(harness: &Harness<F>) {
    let apples = harness.named::<()>("apples");
    let (fast, slow) = (apples.task::<u8>("fast"), apples.task::<u8>("slow"));
    let pears = harness.named::<Value>("pears");
    let writes = pears.clone();
    let transactional = fast.transactional(move |conn: &mut Conn<F>, job| {
        writes.on(conn).put(&json!(job.data)).map_err(|error| error.to_string())?;
        if job.data == 1 { Err("broken".to_owned()) } else { Ok(()) }
    });
    let leased = slow.leased(|_, _| Ok::<_, CaseError>(()));
    fast.call_many([0, 1, 2]).unwrap();
    slow.call_many([0, 1]).unwrap();
    let report = Worker::new(&harness.pq).serve(transactional).serve(leased).run_until_empty().unwrap();
    assert_eq!((report.done, report.dead), (4, 1));
    assert_eq!(pears.counts().unwrap().ready, 2, "writes of the failed handler are rolled back");
}

fn an_outcome_that_the_store_refused_is_not_counted<F: Fixture>(harness: &Harness<F>) {
    let queue = harness.queue();
    // One job has the transaction to itself, and several share one.
    for jobs in [1, 3] {
        queue.put_many(vec![json!(1); jobs]).unwrap();
        let own = queue.clone();
        let handler = queue.transactional(move |conn: &mut Conn<F>, job| {
            own.on(conn).give_back(&job).map_err(|error| error.to_string())?;
            Ok::<_, String>(Outcome::cancel("the job was given back before"))
        });
        let worker =
            Worker::new(&harness.pq).batch(jobs, jobs).serve(handler.share_transaction(jobs).max_retries(9));
        let report = worker.run_jobs(jobs as u64).unwrap();
        // A busy machine may give jobs back that have not begun.
        assert!(report.cancelled == 0 && (1..=jobs as u64).contains(&report.lost), "{report:?}");
        let counts = harness.counts();
        assert_eq!((counts.ready, counts.cancelled), (jobs as u64, 0));
        harness.clear();
    }
}

fn middleware_runs_around_handlers_in_order<F: Fixture>(harness: &Harness<F>) {
    let task = task::<F, u8>(harness);
    let seen = Seen::<String>::new();
    for handler in both::<F, _, _, _>(&task, |job| if job.data == 1 { Err("odd") } else { Ok(()) }) {
        let (outer, inner) = (seen.clone(), seen.clone());
        task.call_many([0, 1]).unwrap();
        let worker = Worker::new(&harness.pq).serve(handler).wrap(move |info, next| {
            outer.push(format!("begin {}", info.task.unwrap()));
            let ended = next.run();
            outer.push(format!("end {}", ended.is_ok()));
            ended
        });
        let worker = worker.wrap(move |info, next| {
            inner.push(format!("attempt {}", info.job.attempt));
            match next.run() {
                Err(Failure::Error(text)) => Err(Failure::Error(format!("wrapped: {text}"))),
                ended => ended,
            }
        });
        worker.run_until_empty().unwrap();
    }
    let each = ["begin eat", "attempt 1", "end true", "begin eat", "attempt 1", "end false"];
    assert_eq!(seen.all(), [each, each].concat());
    assert!(
        harness.archived(JobState::Dead).iter().all(|dead| dead.error.as_deref() == Some("wrapped: odd"))
    );
}

fn the_trace_context_reaches_the_handler<F: Fixture>(harness: &Harness<F>) {
    let parent = Trace::from([("traceparent".to_owned(), "00-0af7-b7ad-01".to_owned())]);
    let given = parent.clone();
    let traced = harness.pq.clone().with_trace(move || given.clone());
    let task = traced.queue("apples").unwrap().task::<()>("eat");
    let seen = Seen::new();
    let (note, around) = (seen.clone(), seen.clone());
    let handler = task.leased(move |context, _| {
        note.push(context.trace().clone());
        Ok::<_, CaseError>(())
    });
    task.call(&()).unwrap();
    let worker = Worker::new(&harness.pq).serve(handler).wrap(move |info, next| {
        around.push(info.trace.clone());
        next.run()
    });
    worker.run_until_empty().unwrap();
    assert_eq!(seen.all(), [parent.clone(), parent]);
}

fn a_serialization_key_can_be_computed_from_the_arguments<F: Fixture>(harness: &Harness<F>) {
    let task = task::<F, (String, u8)>(harness).serialize_by(|(customer, _)| customer.clone());
    for (customer, n) in [("a", 1), ("a", 2), ("b", 3)] {
        task.call(&(customer.to_owned(), n)).unwrap();
    }
    let jobs = harness.lease(10, TIMEOUT);
    let keys: Vec<&str> = jobs.iter().map(|job| job.serialization_key.as_ref().unwrap().as_str()).collect();
    assert_eq!(keys, ["a", "b"]);
    jobs.iter().for_each(|job| harness.settle(job, Outcome::GiveBack));
}
