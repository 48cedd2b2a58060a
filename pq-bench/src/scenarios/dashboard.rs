//! The time of each page of the dashboard beside many jobs, and what an open one costs the server.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use diesel::PgConnection;
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::Integer;
use pq_diesel::Pq;
use pq_web::Dashboard;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use super::working::figure;
use super::{Plan, Scenario};
use crate::bench::TRUNCATE_ALL;
use crate::{Bench, Figure, Target};

/// Pages beside ten million jobs, 300,000 dead jobs and half a million dead tuples that a snapshot keeps.
pub(super) const SCENARIO: Scenario = Scenario {
    name: "dashboard",
    about: "each page of the dashboard beside ten million jobs and a held snapshot, and the cost of an open one",
    run,
};

const JOBS: usize = 10_000_000;
const DEAD_JOBS: usize = 300_000;

/// Jobs at the start of the queues that are deleted while the snapshot is held.
const DEAD_TUPLES: usize = 500_000;

/// Maximum number of rows per INSERT. The transition table of the trigger would spill to disk beyond it.
const MAX_ROWS_PER_INSERT: usize = 200_000;

/// The connections of `pq web`.
const CONNECTIONS: u32 = 7;

/// The ids of the archived jobs begin here.
const FIRST_DEAD: usize = 1_000_000_000;

/// Seconds for which the open dashboard is watched.
const WATCHED: f64 = 60.0;

/// The longest wait for a page.
const PATIENCE: Duration = Duration::from_secs(120);

/// The pages. `JOB` is the id of a waiting job, and `DEAD` that of a dead one.
const PAGES: [&str; 23] = [
    "/",
    "/queues",
    "/queue?name=mail",
    "/jobs",
    "/jobs?queue=mail&state=ready",
    "/jobs?queue=mail&state=scheduled",
    "/jobs?queue=mail&state=blocked",
    "/jobs?queue=mail&state=dead",
    "/jobs?state=scheduled",
    "/jobs?queue=mail&after=JOB",
    "/jobs?key=customer+7",
    "/jobs?task=send",
    "/jobs?error=refused+DEAD",
    "/jobs?older=1h",
    "/job/JOB",
    "/job/DEAD",
    "/dead",
    "/workers",
    "/periodic",
    "/pauses",
    "/audit",
    "/health",
    "/put",
];

fn run(bench: &Bench, plan: &Plan) -> Result<Vec<Figure>> {
    let jobs = plan.jobs(JOBS);
    let mut conn = bench.connect()?;
    fill(bench, plan, &mut conn)?;
    let mut snapshot = bench.connect()?;
    snapshot.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT FROM pq.queue LIMIT 1")?;
    let dead_tuples = plan.jobs(DEAD_TUPLES);
    conn.batch_execute(&format!("DELETE FROM pq.queue WHERE id <= {dead_tuples}"))?;
    conn.batch_execute("CHECKPOINT")?;
    let site = Site::start(bench.url())?;
    // The first counts may take longer than a page waits, and all pages share them.
    let begun = Instant::now();
    while site.get("/")?.contains("still reading") && begun.elapsed() < PATIENCE {}
    let parameters = || [("jobs", jobs.to_string()), ("dead tuples", dead_tuples.to_string())];
    let mut figures = Vec::new();
    for path in PAGES {
        let name = format!("page {path}");
        let path = path
            .replace("JOB", &(dead_tuples + jobs / 2).to_string())
            .replace("DEAD", &(FIRST_DEAD + 7).to_string());
        figures.push(timed(plan, figure(SCENARIO.name, &name, "ms", parameters()), || site.get(&path))?);
    }
    let preview = figure(SCENARIO.name, "preview of deleting all jobs of a queue", "ms", parameters());
    figures.push(timed(plan, preview, || site.preview())?);
    figures.extend(cost(&mut conn, plan, &site)?);
    snapshot.batch_execute("ROLLBACK")?;
    conn.batch_execute(&format!(
        "{TRUNCATE_ALL}, pq.queue_archive, pq.queue_workers, pq.queue_controls, pq.queue_cron;
         ALTER TABLE pq.queue RESET (autovacuum_enabled)"
    ))?;
    Ok(figures)
}

/// Fills the tables. Autovacuum would read them all each minute and remove nothing, so it is off meanwhile.
fn fill(bench: &Bench, plan: &Plan, conn: &mut PgConnection) -> Result<()> {
    conn.batch_execute(&format!(
        "{TRUNCATE_ALL} RESTART IDENTITY; ALTER TABLE pq.queue SET (autovacuum_enabled = off)"
    ))?;
    let mut left = plan.jobs(JOBS) + plan.jobs(DEAD_TUPLES);
    let mut first = 1;
    while left > 0 {
        let now = left.min(MAX_ROWS_PER_INSERT);
        conn.batch_execute(&format!(
            "INSERT INTO pq.queue (q_name, data, schedule_at, serial_key)
             SELECT (ARRAY['mail', 'thumbnails', 'newsletter'])[1 + n % 3],
                 json_build_object('function', 'send', 'args', json_build_array(n), 'kwargs', json_build_object()),
                 CASE WHEN n % 8 = 0 THEN now() + n * interval '1 second' END,
                 CASE WHEN n % 13 = 0 THEN 'customer ' || n % 1000 END
             FROM generate_series({first}, {last}) AS n",
            last = first + now - 1
        ))?;
        (left, first) = (left - now, first + now);
    }
    conn.batch_execute(&format!(
        "INSERT INTO pq.queue_archive (id, q_name, data, enqueued_at, priority, attempt, outcome, error)
         SELECT {FIRST_DEAD} + n, 'mail',
             json_build_object('function', 'send', 'args', json_build_array(n), 'kwargs', json_build_object()),
             now(), 0, 3, 'dead', 'connection refused ' || {FIRST_DEAD} + n
         FROM generate_series(1, {dead}) AS n;
         INSERT INTO pq.queue_workers (id, host, pid, supervisor, queues, threads, status)
         SELECT n, 'worker-' || n, n, n, '{{mail,thumbnails}}', 8, '{{\"rates\": {{\"mail\": 31.5}}}}'
         FROM generate_series(1, 20) AS n;
         INSERT INTO pq.queue_controls (q_name, paused_at) VALUES ('newsletter', now())",
        dead = plan.jobs(DEAD_JOBS),
    ))?;
    for statement in ["VACUUM ANALYZE pq.queue", "VACUUM ANALYZE pq.queue_archive"] {
        conn.batch_execute(statement)?;
    }
    let reports = bench.pq.queue::<u32>("reports")?;
    bench.pq.set_cron(&reports.cron("nightly", "30 2 * * *", &1)?)?;
    Ok(conn.batch_execute("CHECKPOINT")?)
}

/// Loads a page in each round. If a part of it cannot be shown, the figure says why.
fn timed(plan: &Plan, mut figure: Figure, load: impl Fn() -> Result<String>) -> Result<Figure> {
    for _ in 0..plan.rounds {
        let begun = Instant::now();
        let page = load().with_context(|| figure.name.clone())?;
        figure.ours.push(begun.elapsed().as_secs_f64() * 1_000.0);
        if let Some((_, rest)) = page.split_once("This cannot be shown: ") {
            let reason = rest.split('<').next().unwrap_or_default();
            figure.parameters.insert("not shown".to_owned(), reason.to_owned());
        }
    }
    Ok(Figure { target: Some(Target::AtMost(1_000.0)), ..figure })
}

/// Returns the processor time of the server beside one open page with live updates, as a share of one core.
///
/// Returns nothing if the processes of the server cannot be seen, because it runs elsewhere.
fn cost(conn: &mut PgConnection, plan: &Plan, site: &Site) -> Result<Option<Figure>> {
    let backend = diesel::dsl::sql::<Integer>("SELECT pg_backend_pid()").get_result::<i32>(conn)?;
    let Some(server) = parent(backend) else { return Ok(None) };
    let time = plan.time(WATCHED);
    let parameters = [("seconds", format!("{:.0}", time.as_secs_f64()))];
    let mut figure = Figure {
        target: Some(Target::AtMost(1.0)),
        ..figure(
            SCENARIO.name,
            "processor time of the server beside an open overview",
            "% of a core",
            parameters,
        )
    };
    for _ in 0..plan.rounds.min(3) {
        site.get("/")?;
        let Some(before) = processor_time(server) else { return Ok(None) };
        let begun = Instant::now();
        while begun.elapsed() < time {
            site.watch(time.saturating_sub(begun.elapsed()))?;
        }
        let Some(after) = processor_time(server) else { return Ok(None) };
        let spent = after.saturating_sub(before).as_secs_f64();
        figure.ours.push(spent / begun.elapsed().as_secs_f64() * 100.0);
    }
    Ok(Some(figure))
}

/// Returns the server's first process, if this backend runs on this machine.
fn parent(backend: i32) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{backend}/status")).ok()?;
    let is_postgres = status.lines().any(|line| line.starts_with("Name:") && line.ends_with("postgres"));
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
    parent.trim().parse().ok().filter(|_| is_postgres)
}

/// Returns the processor time of a server: of its processes, and of those that have ended.
fn processor_time(server: u32) -> Option<Duration> {
    let children = std::fs::read_to_string(format!("/proc/{server}/task/{server}/children")).ok()?;
    let running = children.split_whitespace().filter_map(|child| {
        // The first number is the time on a processor in nanoseconds. A process that has just ended has no file.
        let times = std::fs::read_to_string(format!("/proc/{child}/schedstat")).ok()?;
        times.split_whitespace().next()?.parse::<u64>().ok()
    });
    let stat = std::fs::read_to_string(format!("/proc/{server}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    // The times of children that have ended are the 16th and 17th fields of the line, in hundredths of a second.
    let ended: u64 =
        fields.split_whitespace().skip(13).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
    Some(Duration::from_nanos(running.sum::<u64>()) + Duration::from_millis(10 * ended))
}

/// A dashboard, and a client of it.
struct Site {
    address: SocketAddr,
    _stop: oneshot::Sender<()>,
}

impl Site {
    fn start(url: &str) -> Result<Self> {
        let pq = Pq::builder().url(url).pool_size(CONNECTIONS).build()?;
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let (stop, stopped) = oneshot::channel::<()>();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::spawn(move || {
            let served = runtime.block_on(async {
                let dashboard = Dashboard::new(&pq).allow_actions(&pq);
                dashboard.serve(TcpListener::from_std(listener)?, async { drop(stopped.await) }).await
            });
            runtime.shutdown_background();
            served
        });
        Ok(Self { address, _stop: stop })
    }

    fn send(&self, method: &str, path: &str, cookie: &str, body: &str) -> Result<BufReader<TcpStream>> {
        let mut stream = TcpStream::connect(self.address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut request = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n");
        if !cookie.is_empty() {
            write!(request, "Cookie: {cookie}\r\n")?;
        }
        write!(request, "Content-Length: {}\r\n\r\n{body}", body.len())?;
        stream.write_all(request.as_bytes())?;
        Ok(BufReader::new(stream))
    }

    /// Returns the response to a request, which must succeed.
    fn request(&self, method: &str, path: &str, cookie: &str, body: &str) -> Result<String> {
        let mut response = String::new();
        self.send(method, path, cookie, body)?.read_to_string(&mut response)?;
        let line = response.lines().next().unwrap_or_default();
        ensure!(line.contains(" 200 "), "{method} {path}: {line}");
        Ok(response)
    }

    fn get(&self, path: &str) -> Result<String> {
        self.request("GET", path, "", "")
    }

    /// Asks to delete all jobs of a queue, which the page that asks back counts.
    fn preview(&self) -> Result<String> {
        let page = self.get("/put")?;
        let between = |before: &str, after: &str| -> Result<String> {
            let (_, rest) = page.split_once(before).with_context(|| format!("no {before}"))?;
            Ok(rest.split(after).next().unwrap_or_default().to_owned())
        };
        let cookie = between("set-cookie: ", ";")?;
        let token = between("name=\"form_token\" value=\"", "\"")?;
        let fields = format!("form_token={token}&action=delete&scope=filter");
        self.request("POST", "/jobs/bulk?queue=mail", &cookie, &fields)
    }

    /// Reads the live updates of the overview for this time, or until the dashboard ends the response.
    fn watch(&self, time: Duration) -> Result<()> {
        let begun = Instant::now();
        let mut updates = self.send("GET", "/live/overview", "", "")?;
        let mut line = String::new();
        while let Some(left) = time.checked_sub(begun.elapsed()).filter(|left| !left.is_zero()) {
            updates.get_ref().set_read_timeout(Some(left))?;
            line.clear();
            match updates.read_line(&mut line) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error)
                    if matches!(
                        error.kind(),
                        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
                    ) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}
