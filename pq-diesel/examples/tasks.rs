//! Tasks with transactional and leased handlers, and a worker that runs them.
//!
//! Without arguments the example puts calls and runs them. With arguments it does one of the two, so that a program in
//! another language can do the other: `tasks call NAME JSON [RETRIES]` puts a call, and `tasks work [JOBS]` runs a
//! worker until the queue is empty or it has run that many jobs.

#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Text};
use pq_diesel::{Backoff, CallOptions, Error, Outcome, Pq, Queue, Settings, Task, Worker};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Named arguments. Python receives them as keyword arguments.
#[derive(Debug, Serialize, Deserialize)]
struct Mail {
    to: String,
    subject: String,
}

fn ran(conn: &mut PgConnection, task: &str, job: i64, what: &str) -> QueryResult<()> {
    diesel::sql_query("INSERT INTO ran VALUES ('rust', $1, $2, $3)")
        .bind::<Text, _>(task)
        .bind::<BigInt, _>(job)
        .bind::<Text, _>(what)
        .execute(conn)
        .map(drop)
}

/// The tasks. A caller needs only these, and not the handlers.
struct Shop {
    add: Task<(i64, i64)>,
    mail: Task<Mail>,
    flaky: Task<i32>,
}

fn tasks(pq: &Pq) -> Result<Shop, Error> {
    let shop: Queue<()> = pq.queue("shop")?;
    Ok(Shop {
        add: shop.task("shop.add"),
        mail: shop.task("shop.mail").max_retries(2).timeout(Duration::from_secs(30)),
        flaky: shop.task("shop.flaky").max_retries(3).backoff(Backoff::fixed(Duration::ZERO)),
    })
}

fn worker(pq: &Pq) -> Result<Worker, Error> {
    let Shop { add, mail, flaky } = tasks(pq)?;
    // The handler's writes commit with its job. The queue also has leased handlers, so its jobs are taken under leases.
    let add = add.transactional(|conn, job| {
        let (a, b) = job.data;
        ran(conn, "add", job.id.0, &format!("{}", a + b))
    });
    // Sending a mail takes long, so no transaction is open meanwhile. The record of it is written in the transaction
    // that completes the job.
    let mail = mail.leased(|context, job| {
        let Mail { to, subject } = &job.data;
        context.transaction(|conn| {
            ran(conn, "mail", job.id.0, &format!("{to}: {subject}"))?;
            context.complete_with(conn)
        })
    });
    let other = pq.clone();
    let flaky = flaky.leased(move |_, job| {
        let (attempt, wanted) = (job.attempt, job.data);
        other
            .transaction(|conn| Ok::<_, Error>(ran(conn, "flaky", job.id.0, &format!("attempt {attempt}"))?))
            .map_err(|error| error.to_string())?;
        if wanted > 0 && attempt > wanted {
            Ok(Outcome::Complete)
        } else {
            Err("the task is flaky".to_owned())
        }
    });
    Ok(Worker::new(pq).threads(2).serve(add).serve(mail).serve(flaky))
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let pq = Pq::connect(Settings::from_env().conninfo())?;
    pq.migrate()?;
    pq.transaction(|conn| {
        conn.batch_execute(
            "SET LOCAL client_min_messages TO warning;
            CREATE TABLE IF NOT EXISTS ran (language text, task text, job bigint, what text)",
        )?;
        Ok::<_, Error>(())
    })?;
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["call", name, json] => call(&pq, name, json, "0")?,
        ["call", name, json, retries] => call(&pq, name, json, retries)?,
        ["work"] => println!("{:?}", worker(&pq)?.run_until_empty()?),
        ["work", jobs] => println!("{:?}", worker(&pq)?.run_jobs(jobs.parse()?)?),
        [] => all(&pq)?,
        _ => return Err("tasks [call NAME JSON [RETRIES] | work [JOBS]]".into()),
    }
    Ok(())
}

fn call(pq: &Pq, name: &str, json: &str, retries: &str) -> Result<(), Box<dyn std::error::Error>> {
    let task = pq.queue("shop")?.task::<Value>(name);
    let options = CallOptions::new().max_retries(retries.parse()?).retry_in(Duration::ZERO);
    println!("{}", task.call_with(&serde_json::from_str(json)?, &options)?.id);
    Ok(())
}

fn all(pq: &Pq) -> Result<(), Box<dyn std::error::Error>> {
    let Shop { add, mail, flaky } = tasks(pq)?;
    add.call(&(2, 3))?;
    mail.call(&Mail { to: "a@example.com".to_owned(), subject: "Your order".to_owned() })?;
    flaky.call(&2)?;
    let report = worker(pq)?.run_until_empty()?;
    println!("done {}, failed and retried {}", report.done, report.failed);
    if (report.done, report.failed) != (3, 2) {
        return Err("the calls had other outcomes than expected".into());
    }
    Ok(())
}
