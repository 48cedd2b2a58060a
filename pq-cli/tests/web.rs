//! `pq web`: it starts, serves and stops, and refuses what would expose the jobs.

mod common;

#[path = "common/http.rs"]
mod http;

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::BigInt;
use rustix::process::Signal;

use self::common::*;
use self::http::{Web, request};

#[test]
fn the_overview_shows_the_queues_of_the_database() -> Outcome {
    let database = migrated()?;
    put(&database, "mail", "1\n2\n")?;
    let web = Web::start(&database, &[], &[])?;
    let page = web.get("/")?;
    assert_eq!(page.status, 200, "{}", page.body);
    assert!(page.body.contains("<a href=\"/jobs?queue=mail&amp;state=ready\">2</a>"), "{}", page.body);
    assert_eq!(web.get("/no/such/page")?.status, 404);
    let policy = page.headers("content-security-policy").join(" ");
    assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
    assert!(!page.body.contains("style=\"") && !page.body.contains("<style"), "{}", page.body);
    for name in ["style.css", "dashboard.js", "htmx.js", "sse.js", "LICENSE", "icon.svg"] {
        assert_eq!(web.get(&format!("/assets/{name}"))?.status, 200, "{name}");
    }
    Ok(())
}

#[test]
fn term_ends_the_dashboard_although_a_browser_waits_for_updates() -> Outcome {
    let database = migrated()?;
    let web = Web::start(&database, &[], &[])?;
    let mut stream = TcpStream::connect(&web.address)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    write!(stream, "GET /live/overview HTTP/1.1\r\nHost: {}\r\n\r\n", web.address)?;
    let updates = BufReader::new(stream).lines().map_while(Result::ok);
    assert!(updates.into_iter().any(|line| line == "event: update"), "an update arrives");
    signal(&web.work.child, Signal::TERM)?;
    let (status, stderr) = web.work.end()?;
    assert_eq!(status, 0, "{stderr}");
    Ok(())
}

#[test]
fn term_ends_the_dashboard_although_a_statement_waits() -> Outcome {
    let database = migrated()?;
    let web = Web::start(&database, &["--allow-actions"], &[])?;
    let form = web.get("/put")?;
    let (cookie, token) = (form.session().ok_or("a session")?, form.form_token().ok_or("a token")?);
    let mut lock = database.connect()?;
    lock.batch_execute("BEGIN; LOCK TABLE pq.queue_controls IN ACCESS EXCLUSIVE MODE")?;
    let mut stream = TcpStream::connect(&web.address)?;
    write!(
        stream,
        "POST /queue/pause?name=mail HTTP/1.1\r\nHost: {}\r\nCookie: {cookie}\r\nContent-Length: {}\r\n\r\nform_token={token}",
        web.address,
        token.len() + 11
    )?;
    wait_for("the statement", || {
        let waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
        Ok(diesel::dsl::sql::<BigInt>(waiting).get_result::<i64>(&mut database.connect()?)? > 0)
    })?;
    let begun = Instant::now();
    signal(&web.work.child, Signal::TERM)?;
    let (status, stderr) = web.work.end()?;
    assert_eq!(status, 0, "{stderr}");
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    lock.batch_execute("ROLLBACK")?;
    Ok(())
}

#[test]
fn without_the_table_the_page_says_so_and_stays() -> Outcome {
    let database = pq_testing::Server::shared()?.database()?;
    let web = Web::start(&database, &[], &[])?;
    let page = web.get("/")?;
    assert_eq!(page.status, 200);
    assert!(page.body.contains("run `pq migrate`"), "{}", page.body);
    Ok(())
}

#[test]
fn other_machines_need_a_login() -> Outcome {
    let database = migrated()?;
    let refused = run(&database, &["web", "--listen", "0.0.0.0:0"])?;
    assert_eq!(status(&refused), 2);
    assert!(stderr(&refused).contains("without a login"), "{}", stderr(&refused));
    Ok(())
}

#[test]
fn a_site_with_another_name_cannot_read_through_a_browser() -> Outcome {
    let database = migrated()?;
    let web = Web::start(&database, &[], &[])?;
    for (host, status) in [
        ("localhost", 200),
        ("127.0.0.1:1", 200),
        ("[::1]:8080", 200),
        ("evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("", 403),
    ] {
        let answer = request(&web.address, "GET", "/", &[("Host", host)], "")?;
        assert_eq!(answer.status, status, "{host:?}");
    }
    Ok(())
}
