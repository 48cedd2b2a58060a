//! Baselines that run without `pq`: pgbench scripts and COPY.

use std::io::Write;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use diesel::PgConnection;
use diesel::connection::SimpleConnection;
use diesel::pg::CopyFormat;
use diesel::prelude::*;

use crate::{Bench, Cost, Meter, PAYLOAD};

/// A script for `pgbench -M prepared`.
///
/// Each statement is a transaction of its own unless the script has BEGIN and COMMIT.
#[derive(Clone, Debug)]
pub struct Script {
    /// One statement, or one pgbench meta-command, per line.
    lines: Vec<String>,
    values: Vec<(String, String)>,
}

/// The rate and the number of runs that pgbench reports.
#[derive(Clone, Copy, Debug)]
pub struct PgbenchReport {
    /// Runs of the script per second, without the time to connect.
    pub rate: f64,
    /// Number of runs.
    pub times: u64,
}

impl Script {
    /// Creates a script of statements separated by `;`.
    #[must_use]
    pub fn new(sql: &str) -> Self {
        let line = |statement: &str| format!("{};", statement.trim().replace('\n', " "));
        Self { lines: sql.split(';').map(line).collect(), values: Vec::new() }
    }

    /// Creates a script in pgbench's syntax, whose lines may end in `\gset`.
    #[must_use]
    pub fn raw(text: &str) -> Self {
        Self { lines: text.lines().map(str::to_owned).collect(), values: Vec::new() }
    }

    /// Binds `:name` to a value, which is sent with each statement as a parameter.
    #[must_use]
    pub fn bind(mut self, name: &str, value: &str) -> Self {
        self.values.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Appends a statement.
    #[must_use]
    pub fn then(mut self, sql: &str) -> Self {
        self.lines.extend(Self::new(sql).lines);
        self
    }

    /// Returns the same script between BEGIN and COMMIT.
    #[must_use]
    pub fn in_a_transaction(&self) -> Self {
        let (begin, commit) = (["BEGIN;".to_owned()], ["COMMIT;".to_owned()]);
        let lines = begin.iter().chain(&self.lines).chain(&commit).cloned().collect();
        Self { lines, values: self.values.clone() }
    }

    /// Runs the script repeatedly for a time, rounded to whole seconds.
    ///
    /// # Errors
    ///
    /// If pgbench is missing or fails.
    pub fn run_for(&self, url: &str, clients: usize, time: Duration) -> Result<PgbenchReport> {
        self.run(url, clients, ["--time".to_owned(), (time.as_secs_f64().round() as u64).max(1).to_string()])
    }

    /// Runs the script `each` times on each client.
    ///
    /// # Errors
    ///
    /// If pgbench is missing or fails.
    pub fn run_times(&self, url: &str, clients: usize, each: usize) -> Result<PgbenchReport> {
        self.run(url, clients, ["--transactions".to_owned(), each.to_string()])
    }

    /// Runs the script as [`Script::run_for`] does and counts the cost; each run of the script is a job.
    ///
    /// # Errors
    ///
    /// If pgbench is missing or fails; database errors.
    pub fn cost_of(&self, bench: &Bench, clients: usize, time: Duration) -> Result<Cost> {
        self.counted(bench, 1.0, || self.run_for(bench.url(), clients, time))
    }

    /// Processes `jobs` jobs, at most `batch` per run of the script, and counts the cost.
    ///
    /// # Errors
    ///
    /// If pgbench is missing or fails; database errors.
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
            // The memory of this process does not include that of pgbench.
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
        command.args(limit).arg(url);
        // On a busy machine a short run may end before its clients are connected. It then reports no rate.
        let mut attempts = 1;
        let (output, rate) = loop {
            let run = command
                .output()
                .context("cannot run pgbench; install PostgreSQL's server or contrib package")?;
            if !run.status.success() {
                bail!("pgbench failed: {}", String::from_utf8_lossy(&run.stderr));
            }
            let output = String::from_utf8_lossy(&run.stdout).into_owned();
            match number_after(&output, "tps =") {
                Some(rate) => break (output, rate),
                None if attempts < 5 => attempts += 1,
                None => bail!("pgbench printed no tps: {output}"),
            }
        };
        let number = |before: &str| number_after(&output, before);
        let times = number("number of transactions actually processed:")
            .with_context(|| format!("pgbench printed no number of transactions: {output}"))?;
        Ok(PgbenchReport { rate, times: times as u64 })
    }
}

/// Returns the number that follows this text at the start of a line of pgbench's report.
fn number_after(output: &str, before: &str) -> Option<f64> {
    let rest = output.lines().find_map(|line| line.strip_prefix(before))?;
    rest.trim().split([' ', '/']).next()?.parse().ok()
}

/// Returns the processor seconds of the child processes that have ended.
fn child_cpu_seconds() -> Result<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").context("cannot read /proc/self/stat")?;
    // The second field is a name in parentheses that may contain spaces. Fields 16 and 17 are the user and system
    // time of children, in hundredths of a second.
    let (_, fields) = stat.rsplit_once(')').context("/proc/self/stat contains no program name")?;
    let ticks: Vec<f64> =
        fields.split_whitespace().skip(13).take(2).map(str::parse).collect::<Result<_, _>>()?;
    Ok(ticks.iter().sum::<f64>() / 100.0)
}

/// Returns a condition that selects and locks the first ready jobs, by the index that workers use.
pub(crate) fn first_jobs(queue: &str, jobs: usize) -> String {
    format!(
        "ctid = ANY (ARRAY(SELECT ctid FROM pq.queue \
            WHERE q_name = '{queue}' AND dequeued_at IS NULL AND schedule_at IS NULL AND serial_key IS NULL \
            ORDER BY -priority::bigint, coalesce(expected_at, 'infinity'::timestamptz), id \
            LIMIT {jobs} FOR UPDATE SKIP LOCKED))"
    )
}

/// Returns a plain DELETE that takes ready jobs and ignores schedules and keys.
pub(crate) fn plain_take(queue: &str, jobs: usize) -> String {
    format!("DELETE FROM pq.queue WHERE {} RETURNING id, data", first_jobs(queue, jobs))
}

/// Returns the transactions per second of `pgbench -M prepared`, each running `sql`.
///
/// # Errors
///
/// If pgbench is missing or fails.
pub fn pgbench(url: &str, sql: &str, clients: usize, time: Duration) -> Result<f64> {
    Ok(Script::new(sql).run_for(url, clients, time)?.rate)
}

/// Returns how long psql takes to `\copy` these rows `times` times.
///
/// `target` is a table with its columns. The time is psql's own, without starting and connecting.
///
/// # Errors
///
/// If psql is missing or fails.
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
        .context("cannot run psql; install PostgreSQL's client package")?;
    let output = String::from_utf8_lossy(&run.stdout);
    if !run.status.success() {
        bail!("psql failed: {}", String::from_utf8_lossy(&run.stderr));
    }
    let copied = output.lines().filter(|line| *line == format!("COPY {rows}")).count();
    ensure!(copied == times, "psql copied {copied} times, expected {times}: {output}");
    let milliseconds: Vec<f64> = output
        .lines()
        .filter_map(|line| line.strip_prefix("Time: ")?.split(' ').next()?.parse().ok())
        .collect();
    ensure!(milliseconds.len() == times, "psql did not print the time of each COPY: {output}");
    Ok(Duration::from_secs_f64(milliseconds.iter().sum::<f64>() / 1_000.0))
}

/// Returns the rows per second of COPY into the queue's table.
///
/// # Errors
///
/// Database errors.
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
    anyhow::ensure!(copied == rows, "copied {copied} rows, expected {rows}");
    Ok(rows as f64 / begun.elapsed().as_secs_f64())
}
