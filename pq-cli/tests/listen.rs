//! What watches `pq work`: metrics, health and systemd.

mod common;

#[path = "common/http.rs"]
mod http;

use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;

use self::common::*;
use self::http::{Answer, Web, request};

/// A worker that listens.
struct Listening {
    work: Work,
    address: String,
}

impl Listening {
    fn start(database: &pq_testing::Database, options: &[&str]) -> Result<Self, Box<dyn std::error::Error>> {
        let words = ["work", "mail", "--listen", "127.0.0.1:0"];
        Self::of(Work::start(on(database, &[&words[..], options].concat()))?)
    }

    fn of(work: Work) -> Result<Self, Box<dyn std::error::Error>> {
        let mut address = None;
        wait_for("the address", || {
            let printed = work.stderr();
            let rest = printed.split_once("listening on http://").map(|(_, rest)| rest);
            address = rest.and_then(|rest| rest.split_once('\n')).map(|(address, _)| address.to_owned());
            Ok(address.is_some())
        })?;
        Ok(Self { work, address: address.unwrap_or_default() })
    }

    fn get(&self, path: &str) -> Result<Answer, Box<dyn std::error::Error>> {
        request(&self.address, "GET", path, &[], "")
    }
}

#[test]
fn a_worker_serves_metrics_and_health() -> Outcome {
    let database = migrated()?;
    put(&database, "mail", "1\n2\n3\n")?;
    put(&database, "a \"quoted\\ queue", "1\n")?;
    put(&database, "slow", "1\n2\n3\n")?;
    let limited = run(&database, &["limit", "slow", "--running", "5", "--rate", "1/1h"])?;
    assert_eq!((status(&limited), status(&run(&database, &["get", "slow"])?)), (0, 0));
    let listening = Listening::start(&database, &["--exec", "grep -qv 2"])?;
    let mut text = String::new();
    wait_for("the counters", || {
        text = listening.get("/metrics")?.body;
        Ok(text.contains("pq_jobs_done_total{queue=\"mail\",task=\"\"} 2\n"))
    })?;
    for line in [
        "pq_up 1.0\n",
        "pq_jobs_dead_total{queue=\"mail\",task=\"\"} 1\n",
        "pq_job_run_seconds_count{queue=\"mail\",task=\"\"} 3\n",
        "pq_job_wait_seconds_bucket{le=\"+Inf\",queue=\"mail\",task=\"\"} 3\n",
        "pq_jobs{queue=\"mail\",state=\"ready\"} 0.0\n",
        "pq_jobs{queue=\"mail\",state=\"dead\"} 1.0\n",
        "pq_jobs{queue=\"a \\\"quoted\\\\ queue\",state=\"ready\"} 1.0\n",
        "pq_jobs_held_back{queue=\"slow\",limit=\"running\"} 0.0\n",
        "pq_jobs_held_back{queue=\"slow\",limit=\"rate\"} 2.0\n",
        "pq_limit_running{queue=\"slow\"} 5.0\n",
        "pq_limit_tokens{queue=\"slow\"} 0.",
        "pq_limit_burst{queue=\"slow\"} 1.0\n",
        "pq_follow_ups{queue=\"slow\"} 0.0\n",
        "pq_jobs_suspended{reason=\"signal\"} 0.0\n",
        "pq_steps 0.0\n",
        "pq_workers{state=\"live\"} 1.0\n",
        "pq_job_ids_total 7\n",
        "# EOF\n",
    ] {
        assert!(text.contains(line), "{line}{text}");
    }
    let healthy = listening.get("/healthz")?;
    assert_eq!((healthy.status, healthy.body.as_str()), (200, "ok\n"));
    wait_for("readiness", || Ok(listening.get("/readyz")?.status == 200))?;
    let mut conn = database.connect()?;
    conn.batch_execute("ALTER TABLE pq.queue_workers RENAME TO hidden")?;
    let unready = listening.get("/readyz")?;
    assert_eq!(unready.status, 503);
    assert!(unready.body.contains("run `pq migrate`"), "{}", unready.body);
    assert_eq!(listening.get("/healthz")?.status, 200, "a restart would not help");
    assert!(listening.get("/metrics")?.body.contains("pq_up 0.0\n"));
    Ok(())
}

/// A lock that is held keeps each check of the database waiting, as a server does that hangs.
#[test]
fn health_answers_while_the_database_hangs() -> Outcome {
    let database = migrated()?;
    let listening = Listening::start(&database, &["--exec", "true"])?;
    wait_for("readiness", || Ok(listening.get("/readyz")?.status == 200))?;
    let mut conn = database.connect()?;
    // The worker's own transaction may hold one of the tables and wait for the other.
    wait_for("both locks", || {
        let both = "BEGIN; LOCK TABLE pq.queue_workers, pq.queue IN ACCESS EXCLUSIVE MODE";
        let locked = conn.batch_execute(both).is_ok();
        if !locked {
            conn.batch_execute("ROLLBACK")?;
        }
        Ok(locked)
    })?;
    for _ in 0..3 {
        let began = Instant::now();
        let unready = listening.get("/readyz")?;
        assert_eq!(unready.status, 503);
        assert!(unready.body.contains("has not answered"), "{}", unready.body);
        assert_eq!(listening.get("/healthz")?.status, 200);
        assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    }
    conn.batch_execute("ROLLBACK")?;
    wait_for("readiness", || Ok(listening.get("/readyz")?.status == 200))
}

#[test]
fn probes_at_the_same_time_share_one_check() -> Outcome {
    let database = migrated()?;
    let listening = Listening::start(&database, &["--exec", "true"])?;
    wait_for("readiness", || Ok(listening.get("/readyz")?.status == 200))?;
    let mut conn = database.connect()?;
    conn.batch_execute("BEGIN; LOCK TABLE pq.queue_workers IN ACCESS EXCLUSIVE MODE")?;
    let probe = || listening.get("/readyz").map(|answer| answer.body).map_err(|error| error.to_string());
    let bodies: Vec<_> = std::thread::scope(|scope| {
        let probes: Vec<_> = (0..4).map(|_| scope.spawn(probe)).collect();
        probes.into_iter().map(|probe| probe.join().unwrap_or_else(|_| Err("a panic".to_owned()))).collect()
    });
    for body in bodies {
        assert_eq!(body?, "the database has not answered within 800ms\n", "each waits for the check");
    }
    conn.batch_execute("ROLLBACK")?;
    wait_for("readiness", || Ok(listening.get("/readyz")?.status == 200))
}

/// A stopped process does nothing, as one that hangs.
#[test]
fn a_process_that_hangs_makes_its_supervisor_unhealthy() -> Outcome {
    let (database, folder) = (migrated()?, folder(0)?);
    let path = folder.path().join("notify");
    let socket = UnixDatagram::bind(&path)?;
    socket.set_nonblocking(true)?;
    let notified = || socket.recv(&mut [0; 64]).is_ok();
    let mut command =
        on(&database, &["work", "mail", "--exec", "true", "--processes", "2", "--listen", "127.0.0.1:0"]);
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "100000").env_remove("WATCHDOG_PID");
    let listening = Listening::of(Work::start(command)?)?;
    wait_for("both processes", || {
        Ok(listening.get("/metrics")?.body.contains("pq_workers{state=\"live\"} 2.0\n"))
    })?;
    assert_eq!(listening.get("/healthz")?.status, 200);
    let hanging = child_of(listening.work.child.id())?.ok_or("a process")?;
    let pid = rustix::process::Pid::from_raw(i32::try_from(hanging)?).ok_or("a pid")?;
    rustix::process::kill_process(pid, rustix::process::Signal::STOP)?;
    let mut unhealthy = String::new();
    wait_for("the supervisor to notice", || {
        while notified() {}
        let answer = listening.get("/healthz")?;
        unhealthy = answer.body;
        Ok(answer.status == 503)
    })?;
    assert!(unhealthy.contains(&format!("process {hanging} ")), "{unhealthy}");
    while notified() {}
    std::thread::sleep(Duration::from_millis(500));
    assert!(!notified(), "systemd is not notified");
    rustix::process::kill_process(pid, rustix::process::Signal::CONT)?;
    wait_for("the supervisor to recover", || Ok(listening.get("/healthz")?.status == 200))?;
    wait_for("a notification", || Ok(notified()))
}

#[test]
fn an_address_in_use_is_reported_before_anything_runs() -> Outcome {
    let database = migrated()?;
    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    let address = taken.local_addr()?.to_string();
    let refused = run(&database, &["work", "mail", "--exec", "true", "--burst", "--listen", &address])?;
    assert_ne!(status(&refused), 0);
    assert!(stderr(&refused).contains(&format!("cannot listen on {address}")), "{}", stderr(&refused));
    Ok(())
}

#[test]
fn a_supervisor_listens_on_behalf_of_its_processes() -> Outcome {
    let database = migrated()?;
    let listening = Listening::start(&database, &["--exec", "true", "--processes", "2"])?;
    wait_for("both processes", || {
        Ok(listening.get("/metrics")?.body.contains("pq_workers{state=\"live\"} 2.0\n"))
    })?;
    assert_eq!(listening.get("/readyz")?.status, 200);
    Ok(())
}

#[test]
fn systemd_learns_that_a_worker_is_ready_works_and_stops() -> Outcome {
    let (database, folder) = (migrated()?, folder(0)?);
    let path = folder.path().join("notify");
    let socket = UnixDatagram::bind(&path)?;
    socket.set_read_timeout(Some(Duration::from_secs(60)))?;
    for options in [&[][..], &["--processes", "2"]] {
        let words = [&["work", "mail", "--exec", "true"][..], options].concat();
        let mut command = on(&database, &words);
        command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "100000").env_remove("WATCHDOG_PID");
        let work = Work::start(command)?;
        let mut buffer = [0; 64];
        let mut next = || -> Result<String, Box<dyn std::error::Error>> {
            let length = socket.recv(&mut buffer)?;
            Ok(String::from_utf8(buffer[..length].to_vec())?)
        };
        assert_eq!([next()?, next()?, next()?], ["READY=1", "WATCHDOG=1", "WATCHDOG=1"]);
        signal(&work.child, rustix::process::Signal::TERM)?;
        while next()? != "STOPPING=1" {}
        assert_eq!(work.end()?.0, 0);
        socket.set_nonblocking(true)?;
        while socket.recv(&mut buffer).is_ok() {}
        socket.set_nonblocking(false)?;
    }
    Ok(())
}

/// Commands may leave processes behind, and process 1 becomes their parent.
#[test]
#[allow(clippy::print_stdout, reason = "a skipped test says why")]
fn as_process_1_a_worker_reaps_orphans_and_forwards_signals() -> Outcome {
    let namespace = ["--user", "--map-root-user", "--pid", "--fork", "--kill-child"];
    if !Command::new("unshare").args(namespace).arg("true").status().is_ok_and(|status| status.success()) {
        println!("skipped, because this machine allows no namespaces");
        return Ok(());
    }
    let database = migrated()?;
    put(&database, "mail", &"1\n".repeat(20))?;
    let worker = on(&database, &["work", "mail", "--exec", "sleep 0 & exit 0", "--keep-history"]);
    let mut command = Command::new("unshare");
    command.args(namespace).arg(worker.get_program()).args(worker.get_args());
    command.envs(worker.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.stderr(std::process::Stdio::piped());
    let work = Work::start(command)?;
    wait_until(&database, "SELECT (count(*) = 20)::int::bigint FROM pq.queue_archive")?;
    let init = child_of(work.child.id())?.ok_or("process 1 of the namespace")?;
    wait_for("the orphans to be reaped", || {
        let processes = std::fs::read_dir("/proc")?.filter_map(|entry| Some(entry.ok()?.path().join("stat")));
        let stats = processes.filter_map(|path| std::fs::read_to_string(path).ok());
        let is_zombie = |stat: &str| stat.contains(&format!(") Z {init} "));
        Ok(!stats.into_iter().any(|stat| is_zombie(&stat)))
    })?;
    let pid = rustix::process::Pid::from_raw(i32::try_from(init)?).ok_or("a pid")?;
    rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
    let (status, stderr) = work.end()?;
    assert_eq!(status, 0, "{stderr}");
    assert!(stderr.contains("done 20"), "{stderr}");
    Ok(())
}

/// Returns a child of the process.
fn child_of(pid: u32) -> Result<Option<u32>, Box<dyn std::error::Error>> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    Ok(children.split_whitespace().next().and_then(|pid| pid.parse().ok()))
}

#[test]
fn the_dashboard_serves_them_too() -> Outcome {
    let database = migrated()?;
    let open = Web::start(&database, &[], &[])?;
    assert!(open.get("/metrics")?.body.contains("pq_up 1.0\n"));
    assert_eq!((open.get("/healthz")?.status, open.get("/readyz")?.status), (200, 200));
    let token = "0123456789abcdef0123456789abcdef";
    let closed = Web::start(&database, &[], &[("PQ_WEB_VIEWER_TOKEN", token)])?;
    assert_ne!(closed.get("/metrics")?.status, 200);
    let header = format!("Bearer {token}");
    let shown = request(&closed.address, "GET", "/metrics", &[("Authorization", &header)], "")?;
    assert!(shown.body.contains("pq_up 1.0\n"), "{}", shown.body);
    assert_eq!((closed.get("/healthz")?.status, closed.get("/readyz")?.status), (200, 200));
    Ok(())
}
