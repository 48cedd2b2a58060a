//! What the server does without us: pgbench and COPY.

use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use diesel::PgConnection;
use diesel::connection::SimpleConnection;
use diesel::pg::CopyFormat;
use diesel::prelude::*;

use crate::PAYLOAD;

/// Transactions a second of `pgbench -M prepared` with so many clients, each running `sql`.
///
/// # Errors
///
/// Where there is no pgbench, or it fails.
pub fn pgbench(url: &str, sql: &str, clients: usize, time: Duration) -> Result<f64> {
    let mut script = tempfile::NamedTempFile::new()?;
    writeln!(script, "{};", sql.replace('\n', " "))?;
    run(
        script.path(),
        &["--client", &clients.to_string(), "--jobs", &clients.min(2).to_string()],
        &["--time", &time.as_secs().max(1).to_string(), url],
    )
}

/// How long `pgbench` takes to run a script so often with each of so many clients, by its own count of
/// transactions a second, without the time that it takes to connect.
pub(crate) fn pgbench_transactions(url: &str, text: &str, clients: usize, each: usize) -> Result<Duration> {
    let mut script = tempfile::NamedTempFile::new()?;
    writeln!(script, "{text}")?;
    let tps = run(
        script.path(),
        &["--client", &clients.to_string(), "--jobs", &clients.min(2).to_string()],
        &["--transactions", &each.to_string(), url],
    )?;
    Ok(Duration::from_secs_f64((each * clients) as f64 / tps))
}

/// Runs `pgbench -M prepared`, and returns the transactions a second that it counted.
fn run(script: &Path, clients: &[&str], length: &[&str]) -> Result<f64> {
    let run = Command::new("pgbench")
        .args(["--no-vacuum", "--protocol=prepared", "--file"])
        .arg(script)
        .args(clients)
        .args(length)
        .output()
        .context("pgbench cannot be run; it comes with PostgreSQL's server or contrib package")?;
    let said = String::from_utf8_lossy(&run.stdout);
    if !run.status.success() {
        bail!("pgbench failed: {}", String::from_utf8_lossy(&run.stderr));
    }
    let tps = said.lines().find_map(|line| line.strip_prefix("tps = ")?.split(' ').next()?.parse().ok());
    tps.with_context(|| format!("pgbench printed no tps: {said}"))
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
