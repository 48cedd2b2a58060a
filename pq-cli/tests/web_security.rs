//! The dashboard's security: who may see and act, and what jobs can do to a page.

mod common;

#[path = "common/http.rs"]
mod http;

use diesel::connection::SimpleConnection;
use pq_testing::Database;

use self::common::*;
use self::http::{Web, post, request};

const VIEWER: &str = "viewer-secret-0123456789";
const OPERATOR: &str = "operator-secret-0123456789";

/// Every page that reads.
const PAGES: [&str; 9] =
    ["/", "/queues", "/jobs", "/dead", "/workers", "/periodic", "/pauses", "/audit", "/health"];

const TOKENS: [(&str, &str); 2] = [("PQ_WEB_VIEWER_TOKEN", VIEWER), ("PQ_WEB_OPERATOR_TOKEN", OPERATOR)];

/// Opens a page, and returns its session and the token of its forms.
fn session(web: &Web, headers: &[(&str, &str)]) -> Result<(String, String), Box<dyn std::error::Error>> {
    let page = request(&web.address, "GET", "/put", headers, "")?;
    let page = if page.form_token().is_some() {
        page
    } else {
        request(&web.address, "GET", "/queue?name=mail", headers, "")?
    };
    let cookie = page.session().ok_or("a session")?.to_owned();
    Ok((cookie, page.form_token().ok_or_else(|| page.body.clone())?.to_owned()))
}

fn pauses(database: &Database) -> Result<i64, Box<dyn std::error::Error>> {
    use diesel::prelude::*;
    let sql = diesel::dsl::sql::<diesel::sql_types::BigInt>("SELECT count(*) FROM pq.queue_controls");
    Ok(sql.get_result(&mut database.connect()?)?)
}

#[test]
fn a_dashboard_without_a_usable_login_does_not_start() -> Outcome {
    let database = migrated()?;
    let folder = tempfile::tempdir()?;
    let users = folder.path().join("users");
    let start = |options: &[&str], variables: &[(&str, &str)]| {
        let words: Vec<&str> = ["web", "--listen", "0.0.0.0:0"].iter().chain(options).copied().collect();
        on(&database, &words).envs(variables.iter().copied()).output()
    };
    std::fs::write(&users, "operator ann short")?;
    let path = users.to_str().ok_or("a path")?;
    for refused in [
        start(&[], &[])?,
        start(&["--allow-actions"], &[])?,
        start(&[], &[("PQ_WEB_VIEWER_TOKEN", "")])?,
        start(&[], &[("PQ_WEB_VIEWER_TOKEN", "short")])?,
        start(&["--users", path], &[])?,
    ] {
        assert_eq!(status(&refused), 2, "{}", stderr(&refused));
        assert!(!stderr(&refused).contains("ann short"), "{}", stderr(&refused));
    }
    assert_eq!(status(&start(&["--users", "/no/such/file"], &[])?), 6);
    Ok(())
}

#[test]
fn a_token_opens_every_page_and_nothing_else_does() -> Outcome {
    let database = migrated()?;
    let web = Web::start(&database, &[], &TOKENS)?;
    // `viewer:` and `operator:` before the secrets, in base64.
    let basic = "Basic dmlld2VyOnZpZXdlci1zZWNyZXQtMDEyMzQ1Njc4OQ==";
    let wrong_name = "Basic b3BlcmF0b3I6dmlld2VyLXNlY3JldC0wMTIzNDU2Nzg5";
    for path in PAGES {
        for wrong in
            ["", "Bearer ", "Bearer wrong", "Bearer viewer-secret-012345678", wrong_name, "Basic !", VIEWER]
        {
            let headers = [("Authorization", wrong)];
            let answer =
                request(&web.address, "GET", path, if wrong.is_empty() { &[] } else { &headers }, "")?;
            assert_eq!(answer.status, 401, "{path} with {wrong:?}");
            assert!(answer.body.contains("name=\"secret\"") && !answer.body.contains("All queues"), "{path}");
            if path != "/" {
                break;
            }
        }
        for right in [&format!("Bearer {VIEWER}"), &format!("Bearer {OPERATOR}"), basic] {
            let answer = request(&web.address, "GET", path, &[("Authorization", right)], "")?;
            assert_ne!(answer.status, 401, "{path} with {right}");
        }
    }
    for path in ["/live/overview", "/job/1/payload"] {
        assert_eq!(web.get(path)?.status, 401, "{path}");
    }
    let printed = web.work.stderr();
    assert!(!printed.contains(VIEWER) && !printed.contains(OPERATOR), "{printed}");
    Ok(())
}

#[test]
fn a_login_lasts_until_it_is_logged_out() -> Outcome {
    let database = migrated()?;
    let web = Web::start(&database, &[], &TOKENS)?;
    let form = web.get("/queues")?;
    let (cookie, token) = (form.session().ok_or("a session")?, form.form_token().ok_or("a token")?);
    let login = |secret: &str, next: &str| {
        post(
            &web,
            "/login",
            &[("Cookie", cookie)],
            &format!("form_token={token}&secret={secret}&next={next}"),
        )
    };
    assert_eq!(login("wrong-secret-0123456789", "/")?.status, 401);
    assert_eq!(login(VIEWER, "//evil.example/")?.headers("location"), ["/"]);
    let done = login(VIEWER, "/queues")?;
    assert_eq!((done.status, done.headers("location")), (303, vec!["/queues"]));
    let new = done.session().ok_or("a new session")?;
    assert_ne!(new, cookie, "the session of before the login is not raised");
    for flag in ["HttpOnly", "SameSite=Lax", "Path=/"] {
        assert!(done.headers("set-cookie").iter().all(|cookie| cookie.contains(flag)), "{flag}");
    }
    let page = request(&web.address, "GET", "/queues", &[("Cookie", new)], "")?;
    assert_eq!(page.status, 200);
    let fields = format!("form_token={}", page.form_token().ok_or("a token")?);
    assert_eq!(request(&web.address, "GET", "/", &[("Cookie", cookie)], "")?.status, 401, "the old session");
    post(&web, "/logout", &[("Cookie", new)], &fields)?;
    assert_eq!(request(&web.address, "GET", "/queues", &[("Cookie", new)], "")?.status, 401);
    Ok(())
}

#[test]
fn an_action_needs_the_token_of_a_form_of_this_session_and_site() -> Outcome {
    let database = migrated()?;
    put(&database, "mail", "1")?;
    let web = Web::start(&database, &["--allow-actions"], &[])?;
    let (cookie, token) = session(&web, &[])?;
    let (other, _) = session(&web, &[])?;
    let right = format!("form_token={token}");
    let own = format!("http://{}", web.address);
    for (headers, fields) in [
        (vec![], "".to_owned()),
        (vec![], right.clone()),
        (vec![("Cookie", cookie.as_str())], "".to_owned()),
        (vec![("Cookie", cookie.as_str())], "form_token=".to_owned()),
        (vec![("Cookie", cookie.as_str())], format!("form_token={}", "0".repeat(64))),
        (vec![("Cookie", other.as_str())], right.clone()),
        (vec![("Cookie", cookie.as_str()), ("Origin", "http://evil.example")], right.clone()),
        (vec![("Cookie", cookie.as_str()), ("Origin", "null")], right.clone()),
        (vec![("Cookie", cookie.as_str()), ("Sec-Fetch-Site", "cross-site")], right.clone()),
        (vec![("Cookie", cookie.as_str()), ("Sec-Fetch-Site", "same-site")], right.clone()),
        (vec![("Cookie", cookie.as_str()), ("Host", "evil.example")], right.clone()),
    ] {
        let answer = post(&web, "/queue/pause?name=mail", &headers, &fields)?;
        assert_eq!((answer.status, pauses(&database)?), (403, 0), "{headers:?} {fields}");
    }
    // A link cannot act, even with the token.
    web.get(&format!("/queue/pause?name=mail&{right}"))?;
    assert_eq!(pauses(&database)?, 0);
    let headers = [("Cookie", cookie.as_str()), ("Origin", own.as_str()), ("Sec-Fetch-Site", "same-origin")];
    let answer = post(&web, "/queue/pause?name=mail", &headers, &right)?;
    assert_eq!((answer.status, pauses(&database)?), (303, 1), "{}", answer.body);
    Ok(())
}

#[test]
fn only_operators_act_and_only_if_actions_are_allowed() -> Outcome {
    let database = migrated()?;
    put(&database, "mail", "1")?;
    for (options, bearer, allowed) in [
        (&[][..], OPERATOR, false),
        (&["--allow-actions"][..], VIEWER, false),
        (&["--allow-actions"][..], OPERATOR, true),
    ] {
        let web = Web::start(&database, options, &TOKENS)?;
        let bearer = format!("Bearer {bearer}");
        let page = request(&web.address, "GET", "/queue?name=mail", &[("Authorization", &bearer)], "")?;
        assert_eq!(page.body.contains("/queue/pause"), allowed, "the button");
        // A form token is also in the login form, so that a viewer can have one.
        let form = web.get("/")?;
        let cookie = form.session().ok_or("a session")?;
        let fields = format!("form_token={}", form.form_token().ok_or("a token")?);
        let headers = [("Authorization", bearer.as_str()), ("Cookie", cookie)];
        for path in [
            "/queue/pause?name=mail",
            "/queue/clear?name=mail",
            "/jobs/bulk",
            "/put",
            "/job/1/cancel",
            "/job/1/signal",
            "/job/1/retry-from",
            "/queue/limit?name=mail",
            "/queue/limit-group?name=mail",
            "/queue/unlimit?name=mail",
            "/worker/1/stop",
        ] {
            let answer = post(&web, path, &headers, &fields)?;
            assert_eq!(answer.status != 403, allowed, "{path}: {}", answer.status);
        }
        assert_eq!(pauses(&database)?, i64::from(allowed));
    }
    Ok(())
}

#[test]
fn a_proxy_names_the_user_and_a_request_without_a_name_is_refused() -> Outcome {
    let database = migrated()?;
    put(&database, "mail", "1")?;
    let options = ["--allow-actions", "--user-header", "X-Forwarded-User", "--operators", "ann,bob"];
    let web = Web::start(&database, &options, &[])?;
    assert_eq!(web.get("/")?.status, 401);
    let page =
        |user: &str| request(&web.address, "GET", "/queue?name=mail", &[("X-Forwarded-User", user)], "");
    assert_eq!(page("")?.status, 401);
    let (operator, viewer) = (page("bob")?, page("<script>eve</script>")?);
    assert!(operator.status == 200 && operator.body.contains("/queue/pause"));
    assert!(viewer.status == 200 && !viewer.body.contains("/queue/pause"));
    assert!(!viewer.body.contains("<script>eve"), "{}", viewer.body);
    Ok(())
}

#[test]
fn a_proxy_that_adds_its_header_to_that_of_the_client_is_refused() -> Outcome {
    let database = migrated()?;
    let web = Web::start(&database, &["--user-header", "X-Forwarded-User", "--operators", "ann"], &[])?;
    let users = [("X-Forwarded-User", "ann"), ("X-Forwarded-User", "eve")];
    assert_eq!(request(&web.address, "GET", "/queues", &users, "")?.status, 401);
    for (options, variables) in [
        (["--user-header", "X-Forwarded-User"], &TOKENS[..1]),
        (["--user-header", "no header"], &[]),
        (["--user-header", ""], &[]),
    ] {
        let words: Vec<&str> = ["web", "--listen", "127.0.0.1:0"].into_iter().chain(options).collect();
        let mut command = on(&database, &words);
        let refused = command.envs(variables.iter().copied()).output()?;
        assert_eq!(status(&refused), 2, "{options:?}: {}", stderr(&refused));
    }
    Ok(())
}

/// A text that is harmful on a page, in a terminal, and to the eye.
const HOSTILE: &str =
    "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>\u{1b}[31m\u{202e}\u{200b}&amp;{{7*7}}";

/// Puts hostile texts into every field that a job, a worker or a periodic job has.
fn fill(database: &Database) -> Outcome {
    let text = HOSTILE.replace('\'', "''");
    let call =
        serde_json::json!({"function": HOSTILE, "args": [HOSTILE], HOSTILE: HOSTILE, "password": "hidden-1",
        "deep": [{"apiKey": "hidden-2"}]})
        .to_string()
        .replace('\'', "''");
    let status = serde_json::json!({"running": [{"id": 1, "queue": HOSTILE, "task": HOSTILE, "attempt": 1, "age": 1.0}],
        "rates": {HOSTILE: 1.0}})
    .to_string()
    .replace('\'', "''");
    database.connect()?.batch_execute(&format!(
        "INSERT INTO pq.queue (q_name, data, serial_key, error) VALUES ('{text}', '{call}', '{text}', '{text}');
         INSERT INTO pq.queue (q_name, data, unique_key, schedule_at) VALUES ('{text}', '{call}', '{text}', 'infinity');
         INSERT INTO pq.queue_archive (id, q_name, data, enqueued_at, priority, attempt, outcome, error, result)
             VALUES (1000, '{text}', '{call}', now(), 0, 1, 'dead', '{text}', '{call}');
         INSERT INTO pq.queue_workers (id, host, pid, supervisor, queues, threads, status)
             VALUES (1, '{text}', 1, 2, ARRAY['{text}'], 1, '{status}');
         INSERT INTO pq.queue_cron (name, expression, q_name, data, failures, error, next_at)
             VALUES ('{text}', '{text}', '{text}', '{call}', 1, '{text}', now() + interval '1 day');
         INSERT INTO pq.queue_controls (q_name, paused_at, limits) VALUES ('{text}', now(),
             json_build_object('running_per_group', 1, 'groups', json_build_object('{text}', json_build_object('running', 3))));
         INSERT INTO pq.queue (id, q_name, data, annotations) VALUES (3, '{text}', '{call}', json_build_object('group', '{text}'));
         INSERT INTO pq.queue_waits (follow_up, job, only_done) VALUES (2, 1, true);
         INSERT INTO pq.queue_steps (job, enqueued_at, position, kind, name, result)
             SELECT id, enqueued_at, 0, 'step', '{text}', '{call}' FROM pq.queue WHERE id = 3"
    ))?;
    Ok(())
}

/// Returns a page without the values of its inputs, which must stay as they are.
fn without_values(page: &str) -> String {
    let mut parts = page.split(" value=\"");
    let first = parts.next().unwrap_or_default().to_owned();
    let page = parts.fold(first, |page, part| page + part.split_once('"').map_or("", |(_, rest)| rest));
    let mut parts = page.split("<textarea");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |page, part| page + part.split_once("</textarea>").map_or("", |(_, rest)| rest))
}

#[test]
fn nothing_that_a_job_brings_can_act_on_a_page_or_hide() -> Outcome {
    let database = migrated()?;
    fill(&database)?;
    let web = Web::start(&database, &["--allow-actions"], &[])?;
    let encoded: String = HOSTILE.bytes().map(|byte| format!("%{byte:02X}")).collect();
    let mut pages = PAGES.map(str::to_owned).to_vec();
    for path in [
        "/queue?name=",
        "/jobs?queue=",
        "/jobs?key=",
        "/jobs?id=",
        "/jobs?state=",
        "/dead?queue=",
        "/put?queue=",
        "/put?payload=",
        "/job/",
    ] {
        pages.push(format!("{path}{encoded}"));
    }
    pages.extend(
        ["/job/1", "/job/2", "/job/3", "/job/1000", "/job/1000/payload", "/job/1000/result"]
            .map(str::to_owned),
    );
    let mut seen = 0;
    for path in &pages {
        let page = web.get(path)?;
        assert!(page.status < 500, "{path}: {}", page.status);
        if page.headers("content-type").iter().all(|kind| kind.starts_with("text/html")) {
            for harmful in ["<script>alert", "<img", "\"'>"] {
                assert!(!page.body.contains(harmful), "{path}: {harmful} in {}", page.body);
            }
            seen += usize::from(page.body.contains("&lt;script&gt;alert(1)"));
        } else {
            assert_eq!(page.headers("content-type"), ["text/plain; charset=utf-8"], "{path}");
            assert_eq!(page.headers("x-content-type-options"), ["nosniff"], "{path}");
        }
        for c in ['\u{1b}', '\u{202e}', '\u{200b}'] {
            assert!(!without_values(&page.body).contains(c), "{path}: {c:?}");
        }
        assert!(!page.body.contains("hidden-"), "{path} shows a masked field");
    }
    assert!(seen > 15, "the pages show the texts: {seen}");
    Ok(())
}

#[test]
fn masked_fields_are_shown_as_such_and_can_be_added() -> Outcome {
    let database = migrated()?;
    put(
        &database,
        "mail",
        r#"{"password": "hidden-1", "list": [{"X-API-Key": {"a": "hidden-2"}}], "iban": "hidden-3", "to": "ann"}"#,
    )?;
    let web = Web::start(&database, &["--mask", "iban"], &[])?;
    for path in ["/jobs", "/job/1", "/job/1/payload"] {
        let page = web.get(path)?;
        assert!(page.body.contains("ann") && page.body.contains("[masked]"), "{path}: {}", page.body);
        assert!(!page.body.contains("hidden-"), "{path}: {}", page.body);
    }
    Ok(())
}

#[test]
fn a_large_payload_is_cut_with_a_link_to_all_of_it() -> Outcome {
    let database = migrated()?;
    put(&database, "mail", &format!(r#"{{"text": "{}", "end": "the end"}}"#, "x".repeat(1_000_000)))?;
    let web = Web::start(&database, &[], &[])?;
    for path in ["/job/1", "/jobs", "/queue?name=mail"] {
        let page = web.get(path)?;
        assert!(
            page.body.len() < 60_000 && !page.body.contains("the end"),
            "{path}: {} bytes",
            page.body.len()
        );
    }
    assert!(web.get("/job/1")?.body.contains("href=\"/job/1/payload\""));
    let whole = web.get("/job/1/payload")?;
    assert!(whole.body.len() > 1_000_000 && whole.body.contains("the end"));
    Ok(())
}

#[test]
fn a_reader_on_a_read_only_server_sees_every_page() -> Outcome {
    let database = migrated()?;
    fill(&database)?;
    let role = format!("viewer_{}", std::process::id());
    database.connect()?.batch_execute(&format!("CREATE ROLE {role} LOGIN"))?;
    assert_eq!(status(&run(&database, &["grant", &role, "reader"])?), 0);
    let options = format!("-c role={role} -c default_transaction_read_only=on");
    let web = Web::start(&database, &[], &[("PGOPTIONS", &options)])?;
    for path in PAGES.iter().copied().chain(["/job/1", "/job/1000", "/queue?name=mail"]) {
        let page = web.get(path)?;
        assert_eq!(page.status, 200, "{path}");
        assert!(!page.body.contains("cannot be shown"), "{path}: {}", page.body);
    }
    drop(web);
    let sql = format!("DROP OWNED BY {role}; DROP ROLE {role}");
    database.connect()?.batch_execute(&sql)?;
    Ok(())
}
