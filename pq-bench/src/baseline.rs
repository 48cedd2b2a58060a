//! What the server does without us: pgbench and COPY.

use std::io::Write;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use diesel::PgConnection;
use diesel::connection::SimpleConnection;
use diesel::pg::CopyFormat;
use diesel::prelude::*;

use crate::{Bench, Cost, Meter, PAYLOAD};

/// A script for `pgbench -M prepared`: statements with `;` between them, which are one transaction where they say so.
#[derive(Clone, Debug)]
pub struct Script {
    /// A statement a line, or lines of pgbench's own.
    lines: Vec<String>,
    values: Vec<(String, String)>,
}

/// What pgbench says that it did.
#[derive(Clone, Copy, Debug)]
pub struct PgbenchReport {
    /// How often the script was run a second, without the time that it takes to connect.
    pub rate: f64,
    /// How often it was run.
    pub times: u64,
}

impl Script {
    /// These statements.
    #[must_use]
    pub fn new(sql: &str) -> Self {
        let line = |statement: &str| format!("{};", statement.trim().replace('\n', " "));
        Self { lines: sql.split(';').map(line).collect(), values: Vec::new() }
    }

    /// A script as pgbench has it, whose lines may end in `\gset`.
    #[must_use]
    pub fn raw(text: &str) -> Self {
        Self { lines: text.lines().map(str::to_owned).collect(), values: Vec::new() }
    }

    /// Binds `:name` to this value: it is sent with each statement, as ours are, and not once with its text.
    #[must_use]
    pub fn bind(mut self, name: &str, value: &str) -> Self {
        self.values.push((name.to_owned(), value.to_owned()));
        self
    }

    /// With another statement behind it.
    #[must_use]
    pub fn then(mut self, sql: &str) -> Self {
        self.lines.extend(Self::new(sql).lines);
        self
    }

    /// The same between BEGIN and COMMIT.
    #[must_use]
    pub fn in_a_transaction(&self) -> Self {
        let (begin, commit) = (["BEGIN;".to_owned()], ["COMMIT;".to_owned()]);
        let lines = begin.iter().chain(&self.lines).chain(&commit).cloned().collect();
        Self { lines, values: self.values.clone() }
    }

    /// Runs it over and over for this time, which pgbench rounds to whole seconds.
    ///
    /// # Errors
    ///
    /// Where there is no pgbench, or it fails.
    pub fn run_for(&self, url: &str, clients: usize, time: Duration) -> Result<PgbenchReport> {
        self.run(url, clients, ["--time".to_owned(), (time.as_secs_f64().round() as u64).max(1).to_string()])
    }

    /// Runs it so often with each client.
    ///
    /// # Errors
    ///
    /// Where there is no pgbench, or it fails.
    pub fn run_times(&self, url: &str, clients: usize, each: usize) -> Result<PgbenchReport> {
        self.run(url, clients, ["--transactions".to_owned(), each.to_string()])
    }

    /// As [`Script::run_for`], and counts what it cost: each run of the script is a job.
    ///
    /// # Errors
    ///
    /// Where there is no pgbench, or it fails; the database's.
    pub fn cost_of(&self, bench: &Bench, clients: usize, time: Duration) -> Result<Cost> {
        self.counted(bench, 1.0, || self.run_for(bench.url(), clients, time))
    }

    /// Works so many jobs, of which each run of the script takes up to `batch`, and counts what that cost.
    ///
    /// # Errors
    ///
    /// Where there is no pgbench, or it fails; the database's.
    pub fn cost_of_jobs(&self, bench: &Bench, clients: usize, jobs: usize, batch: usize) -> Result<Cost> {
        let each = jobs.div_ceil(batch).div_ceil(clients);
        let jobs_per_run = jobs as f64 / (each * clients) as f64;
        self.counted(bench, jobs_per_run, || self.run_times(bench.url(), clients, each))
    }

    fn counted(
        &self,
        bench: &Bench,
        jobs_per_run: f64,
        run: impl FnOnce() -> Result<PgbenchReport>,
    ) -> Result<Cost> {
        let mut conn = bench.connect()?;
        let meter = Meter::start(&mut conn)?;
        let cpu = child_cpu_seconds()?;
        let ran = run()?;
        let cpu = child_cpu_seconds()? - cpu;
        let jobs = (ran.times as f64 * jobs_per_run).max(1.0);
        let cost = meter.stop(&mut conn, jobs.round() as usize)?;
        Ok(Cost {
            rate: ran.rate * jobs_per_run,
            trips: self.lines.len() as f64 / jobs_per_run,
            client_cpu: cpu * 1e6 / jobs,
            // What this process needs to start another says nothing of that one.
            peak_memory: 0.0,
            ..cost
        })
    }

    fn run(&self, url: &str, clients: usize, limit: [String; 2]) -> Result<PgbenchReport> {
        let mut script = tempfile::NamedTempFile::new()?;
        for line in &self.lines {
            writeln!(script, "{line}")?;
        }
        let mut command = Command::new("pgbench");
        command.args(["--no-vacuum", "--protocol=prepared", "--file"]).arg(script.path());
        command.args(["--client", &clients.to_string(), "--jobs", &clients.min(2).to_string()]);
        for (name, value) in &self.values {
            command.arg(format!("--define={name}={value}"));
        }
        let run = command
            .args(limit)
            .arg(url)
            .output()
            .context("pgbench cannot be run; it comes with PostgreSQL's server or contrib package")?;
        let output = String::from_utf8_lossy(&run.stdout);
        if !run.status.success() {
            bail!("pgbench failed: {}", String::from_utf8_lossy(&run.stderr));
        }
        let number = |before: &str| -> Option<f64> {
            let rest = output.lines().find_map(|line| line.strip_prefix(before))?;
            rest.trim().split([' ', '/']).next()?.parse().ok()
        };
        let rate = number("tps =").with_context(|| format!("pgbench printed no tps: {output}"))?;
        let times = number("number of transactions actually processed:")
            .with_context(|| format!("pgbench did not say how often it ran: {output}"))?;
        Ok(PgbenchReport { rate, times: times as u64 })
    }
}

/// Seconds of processor time of the programs that this process has run to their end.
fn child_cpu_seconds() -> Result<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").context("no /proc/self/stat")?;
    // The second field is a name in parentheses, which may hold anything; the 16th and 17th are the children's time,
    // in hundredths of a second whatever the kernel's own clock ticks.
    let (_, fields) = stat.rsplit_once(')').context("/proc/self/stat names no program")?;
    let ticks: Vec<f64> =
        fields.split_whitespace().skip(13).take(2).map(str::parse).collect::<Result<_, _>>()?;
    Ok(ticks.iter().sum::<f64>() / 100.0)
}

/// The first jobs of a queue, locked, by the index that workers use.
pub(crate) fn first_jobs(queue: &str, jobs: usize) -> String {
    format!(
        "ctid = ANY (ARRAY(SELECT ctid FROM pq.queue \
            WHERE q_name = '{queue}' AND dequeued_at IS NULL AND schedule_at IS NULL AND serial_key IS NULL \
            ORDER BY -priority::bigint, coalesce(expected_at, 'infinity'::timestamptz), id \
            LIMIT {jobs} FOR UPDATE SKIP LOCKED))"
    )
}

/// A take of so many jobs as anybody would write it who has no other jobs than those that are ready.
pub(crate) fn plain_take(queue: &str, jobs: usize) -> String {
    format!("DELETE FROM pq.queue WHERE {} RETURNING id, data", first_jobs(queue, jobs))
}

/// Transactions a second of `pgbench -M prepared` with so many clients, each running `sql`.
///
/// # Errors
///
/// Where there is no pgbench, or it fails.
pub fn pgbench(url: &str, sql: &str, clients: usize, time: Duration) -> Result<f64> {
    Ok(Script::new(sql).run_for(url, clients, time)?.rate)
}

/// How long psql takes to `\copy` these rows into `target` (a table with its columns) so often, by its own clock:
/// without the time that it takes to start and to connect.
///
/// # Errors
///
/// Where there is no psql, or it fails.
pub fn psql_copy(url: &str, target: &str, row: &str, rows: usize, times: usize) -> Result<Duration> {
    let mut data = tempfile::NamedTempFile::new()?;
    data.write_all(format!("{row}\n").repeat(rows).as_bytes())?;
    let mut script = tempfile::NamedTempFile::new()?;
    writeln!(script, "\\timing on")?;
    for _ in 0..times {
        writeln!(script, "\\copy {target} from '{}'", data.path().display())?;
    }
    let run = Command::new("psql")
        .env("LC_ALL", "C")
        .args(["--no-psqlrc", "--set=ON_ERROR_STOP=1", "--file"])
        .arg(script.path())
        .arg(url)
        .output()
        .context("psql cannot be run; it comes with PostgreSQL's client package")?;
    let output = String::from_utf8_lossy(&run.stdout);
    if !run.status.success() {
        bail!("psql failed: {}", String::from_utf8_lossy(&run.stderr));
    }
    let copied = output.lines().filter(|line| *line == format!("COPY {rows}")).count();
    ensure!(copied == times, "psql copied {copied} times and not {times}: {output}");
    let milliseconds: Vec<f64> = output
        .lines()
        .filter_map(|line| line.strip_prefix("Time: ")?.split(' ').next()?.parse().ok())
        .collect();
    ensure!(milliseconds.len() == times, "psql did not say how long each COPY took: {output}");
    Ok(Duration::from_secs_f64(milliseconds.iter().sum::<f64>() / 1_000.0))
}

/// Rows a second of COPY into the queue's table.
///
/// # Errors
///
/// The database's.
pub fn copy_rate(conn: &mut PgConnection, rows: usize) -> Result<f64> {
    conn.batch_execute("TRUNCATE pq.queue")?;
    let row = format!("copied\t{PAYLOAD}\n");
    let text = row.repeat(rows);
    let begun = Instant::now();
    let copied = diesel::copy_from(pq_diesel::schema::queue::table)
        .from_raw_data((pq_diesel::schema::queue::q_name, pq_diesel::schema::queue::data), |copy| {
            copy.write_all(text.as_bytes()).map_err(|e| diesel::result::Error::SerializationError(e.into()))
        })
        .with_format(CopyFormat::Text)
        .execute(conn)?;
    anyhow::ensure!(copied == rows, "{copied} rows were copied of {rows}");
    Ok(rows as f64 / begun.elapsed().as_secs_f64())
}
