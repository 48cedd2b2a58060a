//! The hidden command `pq demo-worker`: a worker process of the demo.

use std::collections::HashMap;
use std::env;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use diesel::prelude::*;
use diesel::sql_types::Integer;
use pq_diesel::{CancellationToken, Pq, Queue, Wait};

use super::fault::{self, Fault};
use super::{QUEUE, environment, files, report};
use crate::failure::Failure;
use crate::output;

/// First and longest pause after a lost connection.
const RECONNECT_PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

struct Worker {
    url: String,
    schema: String,
    folder: PathBuf,
    number: i32,
    stop: CancellationToken,
}

/// The state of a connected worker.
struct Connected {
    pq: Pq,
    queue: Queue<String>,
    faults: HashMap<String, Vec<Fault>>,
}

/// Gets jobs and writes results until standard input is closed.
pub(crate) fn work() -> Result<ExitCode, Failure> {
    let variable = |name: &str| {
        env::var(name)
            .map_err(|_| Failure::Usage("cannot run demo-worker: only `pq demo` starts it".to_owned()))
    };
    let worker = Worker {
        url: variable("PQ_DEMO_URL")?,
        schema: variable("PQ_DEMO_SCHEMA")?,
        folder: PathBuf::from(variable("PQ_DEMO_FOLDER")?),
        number: variable("PQ_DEMO_WORKER")?.parse().unwrap_or_default(),
        stop: CancellationToken::new(),
    };
    let stop = worker.stop.clone();
    std::thread::spawn(move || {
        let _ = io::stdin().lock().read(&mut [0]);
        stop.cancel();
    });
    let (mut connected, mut pause) = (None, RECONNECT_PAUSES.0);
    loop {
        match worker.run_one(&mut connected) {
            Ok(()) => pause = RECONNECT_PAUSES.0,
            Err(_) if worker.stop.is_cancelled() => return Ok(ExitCode::SUCCESS),
            // The job is either requeued or done. The next attempt takes whatever the queue holds.
            Err(Failure::Queue(error)) if error.is_unavailable() => {
                std::thread::sleep(pause);
                pause = (pause * 2).min(RECONNECT_PAUSES.1);
            }
            Err(failure) => return Err(failure),
        }
    }
}

impl Worker {
    /// Connects if necessary, waits for a job and works it.
    fn run_one(&self, connected: &mut Option<Connected>) -> Result<(), Failure> {
        let Connected { pq, queue, faults } = match connected {
            Some(connected) => connected,
            None => connected.insert(self.connect()?),
        };
        let worked = queue.get_with(Wait::Forever, |conn, job| {
            environment::set_search_path(conn, &self.schema)?;
            self.write_result(conn, &job.data)?;
            for fault in faults.get(&job.data).into_iter().flatten() {
                // The claim has a transaction of its own, because the fault rolls back the current one.
                let claimed = pq.transaction(|conn| {
                    environment::set_search_path(conn, &self.schema)?;
                    fault::claim(conn, &job.data, *fault, self.number)
                })?;
                match fault {
                    Fault::Kill if claimed => hold()?,
                    Fault::TerminateBackend if claimed => self.hold_until_terminated(conn)?,
                    Fault::Kill | Fault::TerminateBackend => {}
                }
            }
            Ok(())
        });
        worked.map(drop)
    }

    fn connect(&self) -> Result<Connected, Failure> {
        let pq = environment::connect(&self.url, &self.schema)?;
        let queue = pq.queue::<String>(QUEUE)?.with_cancellation_token(&self.stop);
        let faults = pq.transaction(|conn| {
            environment::set_search_path(conn, &self.schema)?;
            fault::all(conn)
        })?;
        Ok(Connected { pq, queue, faults })
    }

    /// Stores the statistics of a file, or the error of reading it, in the transaction that holds its job.
    fn write_result(&self, conn: &mut PgConnection, path: &str) -> Result<(), Failure> {
        use report::demo_result::dsl;
        let insert = diesel::insert_into(dsl::demo_result);
        let who = (dsl::path.eq(path), dsl::worker.eq(self.number));
        match files::stats(&self.folder.join(Path::new(path))) {
            Ok(stats) => insert
                .values((
                    who,
                    dsl::bytes.eq(stats.bytes),
                    dsl::lines.eq(stats.lines),
                    dsl::sha256.eq(stats.sha256),
                ))
                .execute(conn)?,
            Err(error) => insert.values((who, dsl::error.eq(error.to_string()))).execute(conn)?,
        };
        Ok(())
    }

    /// Reports this connection's backend to the parent, and waits until it is terminated.
    fn hold_until_terminated(&self, conn: &mut PgConnection) -> Result<(), Failure> {
        let backend: i32 = diesel::dsl::sql::<Integer>("SELECT pg_backend_pid()").get_result(conn)?;
        report(&format!("held {backend}"))?;
        while !self.stop.is_cancelled() {
            std::thread::sleep(RECONNECT_PAUSES.0);
            diesel::sql_query("SELECT 1").execute(conn)?;
        }
        Err(pq_core::Error::Stopped.into())
    }
}

/// Reports a held job to the parent, and waits to be killed. If the parent ends first, this process ends too.
fn hold() -> Result<(), Failure> {
    report("held")?;
    let _ = io::stdin().lock().read(&mut [0]);
    Err(Failure::Demo("the parent process has ended".to_owned()))
}

fn report(line: &str) -> Result<(), Failure> {
    output::print_lines([line]).map_err(|error| Failure::Io(error.to_string()))
}
