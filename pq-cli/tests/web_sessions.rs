//! The sessions and forms of the dashboard: what a stranger, a foreign site and a login can do.

mod common;

#[path = "common/http.rs"]
mod http;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use self::common::*;
use self::http::{Web, post, request};

const VIEWER: &str = "viewer-secret-0123456789";
const OPERATOR: &str = "operator-secret-0123456789";

const TOKENS: [(&str, &str); 2] = [("PQ_WEB_VIEWER_TOKEN", VIEWER), ("PQ_WEB_OPERATOR_TOKEN", OPERATOR)];

/// Sends the head of a large form that never arrives, and returns the status of the response.
fn begin_form(web: &Web, path: &str, cookie: &str) -> Result<String, Box<dyn std::error::Error>> {
    let mut stream = TcpStream::connect(&web.address)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(
        stream,
        "POST {path} HTTP/1.1\r\nHost: {}\r\nCookie: {cookie}\r\nContent-Length: 4000000\r\n\r\nx=",
        web.address
    )?;
    let mut status = [0; 12];
    stream.read_exact(&mut status)?;
    Ok(String::from_utf8_lossy(&status).into_owned())
}

#[test]
fn a_stranger_cannot_make_it_read_a_large_form() -> Outcome {
    let database = migrated()?;
    let web = Web::start(&database, &["--allow-actions"], &TOKENS)?;
    let cookie = web.get("/")?.session().ok_or("a session")?.to_owned();
    assert_eq!(begin_form(&web, "/queue/pause?name=mail", "")?, "HTTP/1.1 403");
    assert_eq!(begin_form(&web, "/queue/pause?name=mail", &cookie)?, "HTTP/1.1 401");
    let fields = format!("secret={}", "x".repeat(20_000));
    assert_eq!(post(&web, "/login", &[("Cookie", &cookie)], &fields)?.status, 413);
    let viewer = [("Cookie", cookie.as_str()), ("Authorization", &format!("Bearer {OPERATOR}"))];
    assert_eq!(post(&web, "/put", &viewer, &"a&".repeat(5_000))?.status, 413);
    Ok(())
}

#[test]
fn a_foreign_site_cannot_end_a_session() -> Outcome {
    let database = migrated()?;
    let web = Web::start(&database, &[], &TOKENS)?;
    // A browser sends no cookie with the form of another site.
    for foreign in [("Origin", "http://evil.example"), ("Sec-Fetch-Site", "cross-site")] {
        let answer = post(&web, "/login", &[foreign], "")?;
        assert_eq!((answer.status, answer.session()), (403, None), "{foreign:?}");
    }
    // It sends the cookie with a link of another site, and to all ports of a host.
    let page = web.get("/queues")?;
    let port = web.address.rsplit(':').next().unwrap_or_default();
    let cookie = page.headers("set-cookie").join("");
    assert!(
        cookie.starts_with(&format!("pq_session_{port}=")) && cookie.contains("SameSite=Lax"),
        "{cookie}"
    );
    Ok(())
}

#[test]
fn a_login_leads_to_a_page() -> Outcome {
    let database = migrated()?;
    let web = Web::start(&database, &[], &TOKENS)?;
    let form = web.get("/queues")?;
    let cookie = [("Cookie", form.session().ok_or("a session")?)];
    let token = form.form_token().ok_or("a token")?;
    let login = |fields: &str| post(&web, "/login", &cookie, &format!("form_token={token}&secret={fields}"));
    let next = |path: &str| format!("name=\"next\" value=\"{path}\"");
    assert!(form.body.contains(&next("/queues")), "{}", form.body);
    let again = login("wrong-secret-0123456789&next=/queues")?;
    assert!(again.body.contains(&next("/queues")), "after a wrong token: {}", again.body);
    // The session has expired, and the operator sends a form of before.
    let expired = post(&web, "/queue/pause?name=mail", &cookie, &format!("form_token={token}"))?;
    assert!(expired.status == 401 && expired.body.contains(&next("/")), "{}", expired.body);
    for (wanted, path) in [
        ("//evil.example", "/"),
        ("/%5Cevil.example", "/"),
        ("/%09/evil.example", "/"),
        ("/login", "/"),
        ("/jobs?queue=a", "/jobs?queue=a"),
    ] {
        let done = login(&format!("{VIEWER}&next={}", wanted.replace('?', "%3F").replace("=a", "%3Da")))?;
        assert_eq!(done.headers("location"), [path], "{wanted}");
    }
    let done = login(VIEWER)?;
    let session = [("Cookie", done.session().ok_or("a session")?)];
    let page = request(&web.address, "GET", "/queues", &session, "")?;
    let token = page.form_token().ok_or("a token")?;
    let out = post(&web, "/logout", &session, &format!("form_token={token}"))?;
    assert!(out.body.contains(&next("/")) && !out.body.contains("Log out"), "{}", out.body);
    let link = request(&web.address, "GET", "/queue/pause", &session, "")?;
    assert_eq!(link.status, 401);
    Ok(())
}

#[test]
fn a_logout_ends_the_live_updates_of_the_session() -> Outcome {
    let database = migrated()?;
    let web = Web::start(&database, &[], &TOKENS)?;
    let form = web.get("/queues")?;
    let cookie = [("Cookie", form.session().ok_or("a session")?)];
    let token = form.form_token().ok_or("a token")?;
    let done = post(&web, "/login", &cookie, &format!("form_token={token}&secret={VIEWER}"))?;
    let cookie = done.session().ok_or("a session")?;
    let session = [("Cookie", cookie)];
    let mut stream = TcpStream::connect(&web.address)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    write!(stream, "GET /live/queues HTTP/1.1\r\nHost: {}\r\nCookie: {cookie}\r\n", web.address)?;
    write!(stream, "Connection: close\r\n\r\n")?;
    let mut updates = BufReader::new(stream).lines().map_while(Result::ok);
    assert!(updates.any(|line| line == "event: update"), "an update arrives");
    let page = request(&web.address, "GET", "/queues", &session, "")?;
    let token = page.form_token().ok_or("a token")?;
    let begun = Instant::now();
    post(&web, "/logout", &session, &format!("form_token={token}"))?;
    updates.for_each(drop);
    // Without a logout the response lasts a minute.
    assert!(begun.elapsed() < Duration::from_secs(40), "{:?}", begun.elapsed());
    Ok(())
}

#[test]
fn no_path_makes_a_link_to_another_host() -> Outcome {
    let database = migrated()?;
    let web = Web::start(&database, &["--allow-actions"], &[])?;
    for path in ["//evil.example/x", "/\\evil.example/x", "///evil.example"] {
        let page = web.get(path)?;
        assert!(
            page.status == 404 && page.body.contains("<a href=\"/\">Refresh</a>"),
            "{path}: {}",
            page.body
        );
    }
    let link = web.get("/queue/pause?name=mail")?;
    assert!(link.status == 405 && link.body.contains("only a form"), "{}: {}", link.status, link.body);
    Ok(())
}

#[test]
fn only_a_form_examines_the_database_and_viewers_may() -> Outcome {
    let database = migrated()?;
    let web = Web::start(&database, &[], &[])?;
    let page = web.get("/health?run=yes")?;
    assert!(page.status == 200 && !page.body.contains("As of"), "{}", page.body);
    let cookie = [("Cookie", page.session().ok_or("a session")?)];
    let token = format!("form_token={}", page.form_token().ok_or("a token")?);
    assert_eq!(post(&web, "/health", &cookie, "")?.status, 403);
    let examine = || -> Result<String, Box<dyn std::error::Error>> {
        let done = post(&web, "/health", &cookie, &token)?;
        assert_eq!((done.status, done.headers("location")), (303, vec!["/health"]), "{}", done.body);
        let page = web.get("/health")?.body;
        let (_, rest) = page.split_once("As of <time datetime=\"").ok_or_else(|| page.clone())?;
        assert!(rest.contains("scope=\"row\""), "findings: {rest}");
        Ok(rest.split('"').next().unwrap_or_default().to_owned())
    };
    assert_eq!(examine()?, examine()?, "a result is kept");
    Ok(())
}
