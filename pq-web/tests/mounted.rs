//! A dashboard that an application mounts below a path of its own, over HTTP.

#[path = "../../pq-diesel/tests/common/migrated.rs"]
mod migrated;

use std::error::Error;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use axum::extract::ConnectInfo;
use axum::{Extension, Router};
use diesel::connection::SimpleConnection;
use pq_diesel::{Pq, Worker};
use pq_testing::Database;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

type Outcome = Result<(), Box<dyn Error>>;

/// Time limit of each wait.
const TIMEOUT: Duration = Duration::from_secs(120);

fn migrated() -> Result<(Database, Pq), Box<dyn Error>> {
    let database = migrated::migrated();
    let pq = Pq::connect(database.url())?;
    Ok((database, pq))
}

/// An application with the dashboard below `/jobs`. It ends with the value.
struct Application {
    address: SocketAddr,
    _stop: oneshot::Sender<()>,
}

impl Application {
    /// Serves `app`, and tells it the address of each client if `with_peers`.
    fn start(app: Router, with_peers: bool) -> Result<Self, Box<dyn Error>> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let (stop, stopped) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::spawn(move || {
            runtime.block_on(async {
                let listener = TcpListener::from_std(listener).expect("a listener");
                if with_peers {
                    let app = app.into_make_service_with_connect_info::<SocketAddr>();
                    tokio::select! { _ = axum::serve(listener, app) => {}, _ = stopped => {} }
                } else {
                    tokio::select! { _ = axum::serve(listener, app) => {}, _ = stopped => {} }
                }
            });
            runtime.shutdown_background();
        });
        Ok(Self { address, _stop: stop })
    }

    /// Sends a request and returns the stream of its response.
    fn send(&self, path: &str, host: &str, more: &str) -> Result<TcpStream, Box<dyn Error>> {
        let mut stream = TcpStream::connect(self.address)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{more}\r\n")?;
        Ok(stream)
    }

    /// Returns a page if it shows all of these texts.
    fn shows(&self, path: &str, texts: &[&str]) -> Result<Option<String>, Box<dyn Error>> {
        let (_, page) = self.get(path, "")?;
        Ok(texts.iter().all(|text| page.contains(text)).then_some(page))
    }

    /// Gets a page, and returns its status and text.
    fn get(&self, path: &str, more: &str) -> Result<(u16, String), Box<dyn Error>> {
        let mut response = String::new();
        self.send(path, "localhost", more)?.read_to_string(&mut response)?;
        let status = response.split_whitespace().nth(1).ok_or("no status")?.parse()?;
        Ok((status, response))
    }
}

/// Calls `check` until it returns something.
fn wait_for<T>(mut check: impl FnMut() -> Result<Option<T>, Box<dyn Error>>) -> Result<T, Box<dyn Error>> {
    let begun = Instant::now();
    loop {
        if let Some(found) = check()? {
            return Ok(found);
        }
        assert!(begun.elapsed() < TIMEOUT, "timed out");
    }
}

fn mounted(pq: &Pq) -> Router {
    Router::new().nest("/jobs", pq_web::router(pq))
}

#[test]
fn an_application_that_does_not_say_who_connects_exposes_nothing() -> Outcome {
    let (_database, pq) = migrated()?;
    let (status, page) = Application::start(mounted(&pq), false)?.get("/jobs/jobs", "")?;
    assert_eq!(status, 403, "{page}");
    assert!(page.contains("into_make_service_with_connect_info"), "{page}");
    Ok(())
}

#[test]
fn the_host_that_a_client_writes_does_not_make_it_local() -> Outcome {
    let (_database, pq) = migrated()?;
    for (peer, status) in [
        ("127.0.0.1:1", 200),
        ("[::1]:1", 200),
        ("[::ffff:127.0.0.1]:1", 200),
        ("192.0.2.7:1", 403),
        ("[2001:db8::1]:1", 403),
        ("[::ffff:192.0.2.7]:1", 403),
    ] {
        let peer: SocketAddr = peer.parse()?;
        let app = mounted(&pq).layer(Extension(ConnectInfo(peer)));
        assert_eq!(Application::start(app, false)?.get("/jobs/queues", "")?.0, status, "{peer}");
    }
    Ok(())
}

#[test]
fn a_request_that_a_proxy_passes_on_is_not_local() -> Outcome {
    let (_database, pq) = migrated()?;
    let application = Application::start(mounted(&pq), true)?;
    assert_eq!(application.get("/jobs/queues", "")?.0, 200);
    for added in [
        "Forwarded: for=192.0.2.7",
        "X-Forwarded-For: 192.0.2.7",
        "X-Forwarded-Host: x",
        "X-Real-IP: x",
        "Via: 1.1 x",
    ] {
        let (status, page) = application.get("/jobs/queues", &format!("{added}\r\n"))?;
        assert_eq!(status, 403, "{added}: {page}");
    }
    Ok(())
}

#[test]
fn every_link_of_the_navigation_leads_to_a_page() -> Outcome {
    let (_database, pq) = migrated()?;
    let application = Application::start(mounted(&pq), true)?;
    let (_, page) = application.get("/jobs?x=1", "")?;
    let links: Vec<&str> = page.split("href=\"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
    assert!(links.contains(&"/jobs/queues") && links.contains(&"/jobs"), "{links:?}");
    for link in links.into_iter().filter(|link| !link.starts_with('#')) {
        assert!(link == "/jobs" || link.starts_with("/jobs/") || link.starts_with("/jobs?"), "{link}");
        assert_eq!(application.get(link, "")?.0, 200, "{link}");
    }
    Ok(())
}

#[test]
fn the_numbers_of_a_mounted_dashboard_are_live() -> Outcome {
    let (_database, pq) = migrated()?;
    let application = Application::start(mounted(&pq), true)?;
    let stream = application.send("/jobs/live/overview", "localhost", "")?;
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    assert!(lines.any(|line| line == "event: update"), "an update arrives");
    assert!(lines.any(|line| line == "event: update"), "and another one");
    Ok(())
}

#[test]
fn slow_counts_take_nothing_else_along() -> Outcome {
    const MISSING: &str = "This cannot be shown";
    let (database, pq) = migrated()?;
    let application = Application::start(mounted(&pq), true)?;
    let mut conn = database.connect()?;
    conn.batch_execute(
        "INSERT INTO pq.queue_workers (id, host, pid, supervisor, queues, threads, status)
         VALUES (1, 'a-host', 1, 1, '{mail}', 1, '{}');
         INSERT INTO pq.queue_controls (q_name, paused_at, paused_by) VALUES ('mail', now(), 'ann')",
    )?;
    conn.batch_execute("BEGIN; LOCK TABLE pq.queue IN ACCESS EXCLUSIVE MODE")?;
    // The workers are read beside the counts, which the lock keeps waiting.
    let workers = wait_for(|| application.shows("/jobs/workers", &["a-host"]))?;
    assert!(!workers.contains(MISSING), "{workers}");
    let overview = application.get("/jobs", "")?.1;
    assert!(overview.contains("Done per second") && overview.contains(MISSING), "{overview}");
    wait_for(|| application.shows("/jobs/pauses", &["<bdi>mail</bdi>", "by <bdi>ann</bdi>"]))?;
    conn.batch_execute("ROLLBACK")?;
    wait_for(|| application.shows("/jobs", &["Waiting jobs", "Done per second"]))?;
    Ok(())
}

#[test]
fn requests_do_not_shorten_the_pause_between_samples() -> Outcome {
    let (_database, pq) = migrated()?;
    let application = Application::start(mounted(&pq), true)?;
    let page = wait_for(|| application.shows("/jobs/queues", &["As of"]))?;
    let at = |page: &str| {
        page.split("<time datetime=\"").nth(1).and_then(|rest| rest.split('"').next()).map(str::to_owned)
    };
    let (first, begun) = (at(&page), Instant::now());
    let mut samples = 0;
    let mut last = first;
    while begun.elapsed() < Duration::from_secs(3) {
        let now = at(&application.get("/jobs/queues", "")?.1);
        samples += usize::from(now != last);
        last = now;
    }
    // The least pause is half a second, and the last sample may come after the end.
    assert!(samples <= 7, "{samples} samples");
    wait_for(|| {
        let page = application.get("/jobs/queues", "")?.1;
        Ok((at(&page) != last).then_some(()))
    })
}

#[test]
fn the_number_of_live_updates_is_bounded() -> Outcome {
    let (_database, pq) = migrated()?;
    let application = Application::start(mounted(&pq), true)?;
    let mut open = Vec::new();
    for _ in 0..100 {
        let mut lines = BufReader::new(application.send("/jobs/live/queues", "localhost", "")?).lines();
        assert_eq!(lines.next().ok_or("a status")??, "HTTP/1.1 200 OK");
        open.push(lines);
    }
    assert_eq!(application.get("/jobs/live/queues", "")?.0, 503);
    assert_eq!(application.get("/jobs/queues", "")?.0, 200);
    Ok(())
}

#[test]
fn a_job_has_its_progress_and_its_log() -> Outcome {
    let (_database, pq) = migrated()?;
    let task = pq.queue::<()>("imports")?.task::<u32>("import").keep_history(true);
    let id = task.call(&1)?.id;
    let handler = task.leased(|context, _| {
        context.progress(1, 4, "<b>rows</b>");
        context.log("<script>alert(1)</script>\u{202e}");
        Ok::<_, String>(())
    });
    Worker::new(&pq).serve(handler).run_until_empty()?;
    pq.queue::<u32>("imports")?.put(&1)?;
    let application = Application::start(mounted(&pq), true)?;
    let (status, page) = application.get(&format!("/jobs/job/{id}"), "")?;
    assert_eq!(status, 200, "{page}");
    for text in
        ["1/4 (25 %) &lt;b&gt;rows", "&lt;script&gt;alert(1)", "<progress max=\"4\" value=\"1\"", ">info<"]
    {
        assert!(page.contains(text), "{text}: {page}");
    }
    assert!(!page.contains("<script>alert") && !page.contains('\u{202e}'), "{page}");
    let (_, list) = application.get("/jobs/jobs?queue=imports", "")?;
    assert!(list.contains(">Progress<") && list.contains("1/4 (25 %) &lt;b&gt;rows"), "{list}");
    let (_, list) = application.get("/jobs/jobs?queue=imports&state=ready", "")?;
    assert!(!list.contains(">Progress<"), "{list}");
    Ok(())
}
