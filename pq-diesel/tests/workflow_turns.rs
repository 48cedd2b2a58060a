//! Decisions about workflows: how often there is one, which must not grow with the number of jobs, and one that fails.

mod common;

use std::sync::Barrier;
use std::time::Duration;

use common::{Outcome, close_gate, database, open_gate, until};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::BigInt;
use pq_diesel::{
    ChangeOutcome, Error, Filter, JobResult, JobState, OnFailure, Operation, Outcome as Ended, Pq, Retention,
    Wait, Worker, Workflow,
};
use serde_json::Value;

/// Counts how often the job of a workflow was put: once by its put, and once before and after each decision.
const COUNT_TURNS: &str = "
    CREATE TABLE turns (id bigint);
    CREATE FUNCTION count_turn() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO turns VALUES (NEW.id);
        RETURN NULL;
    END $$;
    CREATE TRIGGER count_turn AFTER INSERT ON pq.queue FOR EACH ROW WHEN (NEW.q_name = 'pq.workflows')
        EXECUTE FUNCTION count_turn()";

/// Runs a workflow that fans out and in, whose last job fails, so that all are undone. Returns how often its job was
/// put.
fn turns(jobs: usize, bytes: usize) -> Result<i64, Box<dyn std::error::Error>> {
    let database = database()?;
    let mut conn = database.connect()?;
    conn.batch_execute(COUNT_TURNS)?;
    let pq = Pq::connect(database.url())?;
    let queue = pq.queue("orders")?;
    let (work, undo) = (queue.task::<String>("work"), queue.task::<String>("undo"));
    let data = "x".repeat(bytes);
    let mut workflow = Workflow::new("wide").on_failure(OnFailure::Compensate).job("first", &work, &data);
    let names: Vec<String> = (0..jobs - 2).map(|number| number.to_string()).collect();
    for name in &names {
        workflow = workflow.job(name, &work, &data).after(["first"]).undo(&undo, &data);
    }
    workflow = workflow.job("last", &work, &"fail".to_owned()).after(names);
    let id = pq.put_workflow(&workflow)?;
    let worker = Worker::new(&pq)
        .serve(work.leased(|_, job| match job.data.as_str() {
            "fail" => Ok::<_, Error>(Ended::dead("it fails")),
            _ => Ok(Ended::result(&job.data)?),
        }))
        .serve(undo.leased(|_, job| Ok::<_, Error>(Ended::result(&job.data)?)));
    worker.run_until_empty()?;
    pq.maintain(&Retention::default())?;
    assert!(matches!(pq.wait_for::<()>(id, Wait::Forever)?, JobResult::Dead(_)));
    Ok(diesel::dsl::sql::<BigInt>("SELECT count(*) FROM turns").get_result(&mut conn)?)
}

#[test]
fn a_workflow_is_decided_as_often_however_many_jobs_it_has() -> Outcome {
    for jobs in [5, 20] {
        // Its put, the decision to undo, the return until all are undone, and the last decision.
        assert_eq!(turns(jobs, 10_000)?, 4, "{jobs} jobs");
    }
    Ok(())
}

/// A job of each of several workers runs when the first one of the workflow fails.
#[test]
fn a_running_job_is_asked_once_to_end() -> Outcome {
    let database = database()?;
    let mut conn = database.connect()?;
    conn.batch_execute(
        "CREATE TABLE public.asked (job bigint);
        CREATE FUNCTION count_asked() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            INSERT INTO public.asked VALUES (NEW.job);
            RETURN NULL;
        END $$;
        CREATE TRIGGER count_asked AFTER INSERT ON pq.queue_settled FOR EACH ROW EXECUTE FUNCTION count_asked()",
    )?;
    let pq = Pq::connect(database.url())?;
    let queue = pq.queue::<Value>("orders")?;
    let work = pq.queue("orders")?.task::<u32>("work");
    let workflow =
        ["a", "b", "c", "d"].iter().fold(Workflow::new("wide"), |all, name| all.job(*name, &work, &1));
    let id = pq.put_workflow(&workflow)?;
    let running: Vec<_> =
        (0..4).map(|_| queue.lease(1, Duration::from_secs(60), Wait::No)).collect::<Result<_, _>>()?;
    for (number, job) in running.iter().flatten().enumerate() {
        let outcome = if number == 0 { Ended::dead("it fails") } else { Ended::GiveBack };
        queue.settle(job, outcome)?;
        pq.maintain(&Retention::default())?;
    }
    assert!(matches!(pq.result::<()>(id)?, JobResult::Dead(_)));
    let asked = diesel::dsl::sql::<BigInt>("SELECT count(*) FROM asked").get_result::<i64>(&mut conn)?;
    assert_eq!(asked, 3);
    Ok(())
}

/// Retries from a job lock the workflow before its jobs, as decisions do. So they neither deadlock nor are two of
/// them accepted.
#[test]
fn retries_from_a_job_wait_for_each_other_and_for_decisions() -> Outcome {
    const ROUNDS: usize = 30;
    let database = database()?;
    let pq = Pq::builder().url(database.url()).pool_size(8).connect()?;
    let work = pq.queue("orders")?.task::<u32>("work");
    let workflow = Workflow::new("line").job("a", &work, &1).job("b", &work, &1).after(["a"]);
    let workflow = workflow.job("c", &work, &1).after(["a", "b"]);
    let id = pq.put_workflow(&workflow)?;
    for round in 0..ROUNDS {
        Worker::new(&pq).serve(work.leased(|_, _| Ok::<_, Error>(()))).run_until_empty()?;
        pq.maintain(&Retention::default())?;
        assert!(matches!(pq.result::<()>(id)?, JobResult::Done(())), "round {round}");
        let begin = Barrier::new(3);
        let accepted = std::thread::scope(|scope| {
            let retry = |name| {
                begin.wait();
                match pq.retry_workflow_from(id, name) {
                    Ok(outcome) => Ok(usize::from(outcome == ChangeOutcome::Changed)),
                    // The other one was first.
                    Err(error) if error.to_string().contains("is ready") => Ok(0),
                    Err(error) => Err(error),
                }
            };
            let retries = [scope.spawn(move || retry("a")), scope.spawn(move || retry("b"))];
            begin.wait();
            pq.maintain(&Retention::default())?;
            let accepted = retries.map(|retry| retry.join().unwrap_or_else(|e| std::panic::resume_unwind(e)));
            accepted.into_iter().sum::<Result<usize, Error>>()
        })?;
        assert!(accepted > 0, "round {round}");
    }
    Ok(())
}

/// A job dies, and maintenance cancels its follower, when a requeue of all dead jobs has locked their workflows.
#[test]
fn a_job_that_dies_during_a_requeue_of_all_dead_ones_keeps_its_followers() -> Outcome {
    for by_filter in [false, true] {
        let database = database()?;
        let [mut holder, mut gate, mut conn] =
            [database.connect()?, database.connect()?, database.connect()?];
        let pq = Pq::builder().url(database.url()).pool_size(4).connect()?;
        let queue = pq.queue::<Value>("orders")?;
        let work = pq.queue("orders")?.task::<u32>("work");
        let workflow = Workflow::new("line").job("a", &work, &1).job("b", &work, &1).after(["a"]);
        let workflows = [pq.put_workflow(&workflow)?, pq.put_workflow(&workflow)?];
        let first = queue.lease(2, Duration::from_secs(60), Wait::No)?;
        queue.settle(&first[0], Ended::dead("it fails"))?;
        while !matches!(pq.result::<()>(workflows[0])?, JobResult::Dead(_)) {
            pq.maintain(&Retention::default())?;
        }
        close_gate(
            &mut gate,
            &[
                "CREATE TRIGGER wait AFTER INSERT ON pq.queue_archive FOR EACH ROW WHEN (NEW.outcome = 'cancelled')",
            ],
        )?;
        let waits = |count: usize| {
            format!(
                "SELECT (count(*) >= {count})::int::bigint FROM pg_stat_activity
                WHERE datname = current_database() AND wait_event_type = 'Lock'"
            )
        };
        let ended = workflows[0];
        holder
            .batch_execute(&format!("BEGIN; SELECT FROM pq.queue_archive WHERE id = {ended} FOR UPDATE"))?;
        let requeued = std::thread::scope(|scope| -> Result<u64, Box<dyn std::error::Error>> {
            // The threads end if this fails.
            let (mut holder, mut gate) = (holder, gate);
            let requeuing = scope.spawn(|| match by_filter {
                true => {
                    let dead = Filter::queue("orders").state(JobState::Dead);
                    pq.operate(&Operation::Retry, &dead, |_| {}).map(|all| all.changed)
                }
                false => queue.retry_all_dead(),
            });
            until(&mut conn, &waits(1))?;
            queue.settle(&first[1], Ended::dead("it fails"))?;
            let maintaining = scope.spawn(|| pq.maintain(&Retention::default()));
            until(&mut conn, &waits(2))?;
            holder.batch_execute("COMMIT")?;
            while !requeuing.is_finished()
                && diesel::dsl::sql::<BigInt>(&waits(2)).get_result::<i64>(&mut conn)? == 0
            {
                std::thread::sleep(Duration::from_millis(2));
            }
            open_gate(&mut gate)?;
            maintaining.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            Ok(requeuing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?)
        })?;
        if requeued == 1 {
            assert!(queue.retry(first[1].id)?);
        }
        pq.maintain(&Retention::default())?;
        Worker::new(&pq).serve(work.leased(|_, _| Ok::<_, Error>(()))).run_until_empty()?;
        pq.maintain(&Retention::default())?;
        for workflow in workflows {
            assert!(matches!(pq.result::<()>(workflow)?, JobResult::Done(())), "by filter: {by_filter}");
        }
    }
    Ok(())
}

#[test]
fn a_decision_that_fails_stops_no_other_workflow() -> Outcome {
    let database = database()?;
    let mut conn = database.connect()?;
    conn.batch_execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'on purpose'; END $$;
        CREATE TRIGGER refuse BEFORE INSERT ON pq.queue_archive FOR EACH ROW
            WHEN (NEW.q_name = 'pq.workflows' AND NEW.data ->> 'workflow' = 'bad') EXECUTE FUNCTION refuse()",
    )?;
    let pq = Pq::connect(database.url())?;
    let work = pq.queue("orders")?.task::<u32>("work");
    let [bad, good] = ["bad", "good"].map(|name| Workflow::new(name).job("only", &work, &1));
    let (bad, good) = (pq.put_workflow(&bad)?, pq.put_workflow(&good)?);
    Worker::new(&pq).serve(work.leased(|_, _| Ok::<_, Error>(()))).run_jobs(2)?;
    pq.maintain(&Retention::default())?;
    assert!(matches!(pq.result::<()>(good)?, JobResult::Done(())));
    assert!(matches!(pq.result::<()>(bad)?, JobResult::Waiting), "it is tried again later");
    conn.batch_execute("DROP TRIGGER refuse ON pq.queue_archive")?;
    pq.change(bad, &Operation::RunNow)?;
    pq.maintain(&Retention::default())?;
    assert!(matches!(pq.result::<()>(bad)?, JobResult::Done(())));
    Ok(())
}
