//! The dashboard's actions: each changes the database, and asks first if it loses something.

mod common;

#[path = "common/http.rs"]
mod http;

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::BigInt;
use pq_testing::Database;

use self::common::*;
use self::http::{Answer, Web, request};

type Failed = Box<dyn std::error::Error>;

/// A dashboard with actions, and a browser's session on it.
struct Operator {
    web: Web,
    cookie: String,
    token: String,
}

impl Operator {
    fn start(database: &Database) -> Result<Self, Failed> {
        Self::start_with(database, &[])
    }

    /// Starts a dashboard with these environment variables.
    fn start_with(database: &Database, variables: &[(&str, &str)]) -> Result<Self, Failed> {
        let web = Web::start(database, &["--allow-actions"], variables)?;
        let form = web.get("/put")?;
        let cookie = form.session().ok_or("a session")?.to_owned();
        let token = form.form_token().ok_or("a token")?.to_owned();
        Ok(Self { web, cookie, token })
    }

    fn post(&self, path: &str, fields: &str) -> Result<Answer, Failed> {
        let fields = format!("form_token={}&{fields}", self.token);
        request(&self.web.address, "POST", path, &[("Cookie", &self.cookie)], &fields)
    }

    /// Sends a form, follows to the next page, and returns the notice there.
    fn act(&self, path: &str, fields: &str) -> Result<String, Failed> {
        let done = self.post(path, fields)?;
        assert_eq!(done.status, 303, "{path} {fields}: {}", done.body);
        let notice = done.headers("set-cookie").into_iter().find(|cookie| cookie.starts_with("pq_notice"));
        let notice = notice.and_then(|cookie| cookie.split(';').next()).ok_or("a notice")?.to_owned();
        let next = done.headers("location").join("");
        let page = request(&self.web.address, "GET", &next, &[("Cookie", &notice)], "")?;
        assert_eq!(page.status, 200, "{next}");
        let (_, rest) = page.body.split_once("class=\"notice\">").ok_or_else(|| page.body.clone())?;
        let notice = rest.split("</p>").next().unwrap_or_default();
        Ok(notice.replace("<bdi>", "").replace("</bdi>", ""))
    }

    /// Returns the fields of a form of limits, with what the page of the queue has shown.
    fn with_shown(&self, fields: &str) -> Result<String, Failed> {
        let page = self.web.get("/queue?name=mail")?.body;
        let (_, rest) = page.split_once("name=\"shown\" value=\"").ok_or("a form of limits")?;
        Ok(format!("{fields}&shown={}", rest.split('"').next().unwrap_or_default()))
    }

    /// Sends a form of limits of the queue `mail`, and returns the notice.
    fn limit(&self, action: &str, fields: &str) -> Result<String, Failed> {
        self.act(&format!("/queue/{action}?name=mail"), &self.with_shown(fields)?)
    }

    /// Sends a form that asks first, checks that nothing has changed, and confirms.
    fn confirm(&self, database: &Database, path: &str, fields: &str) -> Result<String, Failed> {
        let before = fingerprint(database)?;
        let question = self.post(path, fields)?;
        assert_eq!(question.status, 200, "{path}");
        assert!(
            question.body.contains("Yes, do it") && question.body.contains("No, go back"),
            "{}",
            question.body
        );
        assert_eq!(fingerprint(database)?, before, "{path} asks before it changes anything");
        self.act(path, &format!("{fields}&confirmed=yes"))
    }
}

fn number(database: &Database, sql: &str) -> Result<i64, Failed> {
    Ok(diesel::dsl::sql::<BigInt>(sql).get_result(&mut database.connect()?)?)
}

/// Returns a number for the content of the tables.
fn fingerprint(database: &Database) -> Result<i64, Failed> {
    number(
        database,
        "SELECT hashtextextended(concat((SELECT json_agg(job ORDER BY id) FROM pq.queue AS job),
            (SELECT json_agg(job ORDER BY entry) FROM pq.queue_archive AS job),
            (SELECT json_agg(cron ORDER BY name) FROM pq.queue_cron AS cron),
            (SELECT json_agg(control ORDER BY q_name) FROM pq.queue_controls AS control),
            (SELECT json_agg(step ORDER BY job, position) FROM pq.queue_steps AS step),
            (SELECT json_agg(stop ORDER BY id) FROM pq.queue_workers)), 0)",
    )
}

/// Counts the jobs that wait in a queue.
fn waiting(database: &Database, queue: &str) -> Result<i64, Failed> {
    number(database, &format!("SELECT count(*) FROM pq.queue WHERE q_name = '{queue}'"))
}

/// Archives dead jobs with these ids.
fn dead(database: &Database, queue: &str, ids: std::ops::RangeInclusive<i64>) -> Outcome {
    database.connect()?.batch_execute(&format!(
        "INSERT INTO pq.queue_archive (id, q_name, data, enqueued_at, priority, attempt, outcome, error)
         SELECT id, '{queue}', '1', now(), 0, 1, 'dead', 'failed' FROM generate_series({}, {}) AS id",
        ids.start(),
        ids.end()
    ))?;
    Ok(())
}

#[test]
fn a_job_is_put_from_the_form() -> Outcome {
    let database = migrated()?;
    let operator = Operator::start(&database)?;
    let fields = "queue=a%2Fb&payload=%7B%22n%22%3A1%7D&priority=3&schedule=1h&key=k&unique=u";
    assert_eq!(operator.act("/put", fields)?, "The job is put.");
    let exact =
        "SELECT count(*) FROM pq.queue WHERE q_name = 'a/b' AND data::text = '{\"n\":1}' AND priority = 3
        AND schedule_at > now() + interval '59 minutes' AND serial_key = 'k' AND unique_key = 'u'";
    assert_eq!(number(&database, exact)?, 1);
    assert!(operator.act("/put", fields)?.starts_with("Nothing was put"));
    operator.act("/put", "queue=mail&task=send&payload=%7B%22to%22%3A%22ann%22%7D")?;
    let call =
        "SELECT count(*) FROM pq.queue WHERE data->>'function' = 'send' AND data->'kwargs'->>'to' = 'ann'";
    assert_eq!(number(&database, call)?, 1);
    operator.act("/put", "queue=noted&payload=1&tags=a%2C+b+c%2C&metadata=%7B%22n%22%3A%22%3Cb%3E%22%7D")?;
    let noted = "SELECT count(*) FROM pq.queue WHERE annotations = '{\"tags\": [\"a\", \"b c\"], \"metadata\": {\"n\": \"<b>\"}}'";
    assert_eq!(number(&database, noted)?, 1);
    let id = number(&database, "SELECT max(id) FROM pq.queue")?;
    let job = operator.web.get(&format!("/job/{id}"))?.body;
    assert!(
        job.contains("/jobs?tag=b%20c") && job.contains("{&quot;n&quot;: &quot;&lt;b&gt;&quot;}"),
        "{job}"
    );
    let listed =
        |tag: &str| Ok::<_, Box<dyn std::error::Error>>(operator.web.get(&format!("/jobs?tag={tag}"))?.body);
    assert!(
        listed("b%20c")?.contains(&format!("/job/{id}\"")) && !listed("b")?.contains(&format!("/job/{id}\""))
    );
    for wrong in [
        "queue=&payload=1",
        "queue=a&payload=%7B",
        "queue=a&payload=1&priority=x",
        "queue=a&payload=1&schedule=soon",
        "queue=a&payload=1&metadata=7",
    ] {
        let form = operator.post("/put", wrong)?;
        assert!(form.status == 422 && form.body.contains("role=\"alert\""), "{wrong}: {}", form.status);
    }
    assert_eq!(waiting(&database, "a")?, 0);
    Ok(())
}

#[test]
fn a_queue_is_paused_resumed_emptied_and_moved() -> Outcome {
    let database = migrated()?;
    let operator = Operator::start(&database)?;
    // A name that a path or a field of a form would change.
    let name = "..%2F%0Ax";
    let of = |action: &str| format!("/queue/{action}?name={name}");
    operator.act("/put", &format!("queue={name}&payload=1"))?;
    let recorded = "SELECT count(*) FROM pq.queue_audit WHERE actor = 'local' AND action = 'put' AND job = 1";
    assert_eq!(number(&database, recorded)?, 1);
    let paused = "SELECT count(*) FROM pq.queue_controls WHERE q_name = E'../\\nx'";
    operator.act(&of("pause"), "")?;
    assert_eq!(number(&database, paused)?, 1);
    operator.act(&of("resume"), "")?;
    assert_eq!(number(&database, paused)?, 0);
    operator.confirm(&database, &of("move"), "to=other")?;
    assert_eq!(waiting(&database, "other")?, 1);
    operator.confirm(&database, "/queue/clear?name=other", "")?;
    assert_eq!(waiting(&database, "other")?, 0);
    dead(&database, "mail", 100..=102)?;
    operator.act("/queue/retry-dead?name=mail", "")?;
    assert_eq!(waiting(&database, "mail")?, 3);
    assert_eq!(operator.post("/queue/explode?name=mail", "")?.status, 404);
    Ok(())
}

#[test]
fn limits_are_set_for_a_queue_and_its_groups() -> Outcome {
    let database = migrated()?;
    let operator = Operator::start(&database)?;
    let limits = |json: &str| {
        let sql =
            format!("SELECT count(*) FROM pq.queue_controls WHERE q_name = 'mail' AND limits = '{json}'");
        number(&database, &sql)
    };
    operator.limit("limit-group", "group=a+%22b&group_running=7")?;
    let fields =
        "running=3&rate=100%2F1m&burst=20&running_per_group=&rate_per_group=5%2F100ms&burst_per_group=";
    assert!(operator.limit("limit", fields)?.contains("3 running"));
    let all = r#"{"running": 3, "rate": {"tokens": 100, "per_us": 60000000, "burst": 20},
        "rate_per_group": {"tokens": 5, "per_us": 100000, "burst": 50}, "groups": {"a \"b": {"running": 7}}}"#;
    assert_eq!(limits(all)?, 1);
    let page = operator.web.get("/queue?name=mail")?.body;
    for shown in ["value=\"100/1m\"", "value=\"5/100ms\"", "<bdi>a &quot;b</bdi>"] {
        assert!(page.contains(shown), "{shown}: {page}");
    }
    for wrong in [
        "running=-1",
        "running=0",
        "running=x",
        "rate=5",
        "rate=5%2Fsoon",
        "rate=5%2F0s",
        "rate=0%2F1s",
        "rate=5%2F5M",
        "rate=5%2F1s&burst=0",
        "running=2000000",
    ] {
        let refused = operator.post("/queue/limit?name=mail", &operator.with_shown(wrong)?)?;
        assert_eq!(refused.status, 409, "{wrong}");
    }
    assert_eq!(
        operator
            .post("/queue/limit-group?name=mail", &operator.with_shown("group=&group_running=1")?)?
            .status,
        409
    );
    assert_eq!(limits(all)?, 1);
    operator.limit("limit", "fair=yes")?;
    operator.limit("limit-group", "group=a+%22b&weight=3")?;
    assert_eq!(limits(r#"{"fair": true, "groups": {"a \"b": {"weight": 3}}}"#)?, 1);
    assert!(operator.web.get("/queue?name=mail")?.body.contains("groups take turns"));
    assert_eq!(
        operator.post("/queue/limit?name=mail", &operator.with_shown("running=4")?)?.status,
        409,
        "a weight needs turns"
    );
    operator.limit("limit-group", "group=a+%22b")?;
    operator.limit("limit", "running=4")?;
    assert_eq!(limits(r#"{"running": 4}"#)?, 1);
    assert_eq!(
        operator.confirm(&database, "/queue/unlimit?name=mail", &operator.with_shown("")?)?,
        "The queue is not limited."
    );
    assert_eq!(number(&database, "SELECT count(*) FROM pq.queue_controls")?, 0);
    let recorded = "SELECT count(*) FROM pq.queue_audit WHERE actor = 'local' AND action = 'limit'";
    assert_eq!(number(&database, recorded)?, 7);
    Ok(())
}

#[test]
fn a_signal_is_sent_and_steps_are_forgotten() -> Outcome {
    let database = migrated()?;
    put(&database, "mail", "1")?;
    let operator = Operator::start(&database)?;
    operator.act("/job/1/signal", "signal=approved&value=%7B%22by%22%3A1.50%7D")?;
    operator.act("/job/1/signal", "signal=approved&value=")?;
    let sent = "SELECT count(*) FROM pq.queue_signals WHERE job = 1 AND name = 'approved' AND value::text IN ('{\"by\":1.50}', 'null')";
    assert_eq!(number(&database, sent)?, 2);
    for (path, wrong) in [
        ("/job/1/signal", "signal=&value=1"),
        ("/job/1/signal", "signal=a%23b&value=1"),
        ("/job/1/signal", "signal=a&value=%7B"),
        ("/job/99/signal", "signal=a&value=1"),
        ("/job/1/retry-from", "step=none&confirmed=yes"),
        ("/job/99/retry-from", "step=none&confirmed=yes"),
    ] {
        assert_eq!(operator.post(path, wrong)?.status, 409, "{path} {wrong}");
    }
    database.connect()?.batch_execute(
        "INSERT INTO pq.queue_steps (job, enqueued_at, position, kind, name, result)
         SELECT id, enqueued_at, n, 'step', 'page', '1' FROM pq.queue, generate_series(0, 2) AS n",
    )?;
    operator.confirm(&database, "/job/1/retry-from", "step=page%232")?;
    assert_eq!(number(&database, "SELECT count(*) FROM pq.queue_steps")?, 1);
    let recorded = |action: &str| {
        number(
            &database,
            &format!("SELECT count(*) FROM pq.queue_audit WHERE job = 1 AND details = '{action}'"),
        )
    };
    assert_eq!((recorded("approved")?, recorded("from step page#2")?), (2, 1));
    Ok(())
}

#[test]
fn viewers_and_operators_have_roles_of_their_own_in_the_database() -> Outcome {
    let database = migrated()?;
    put(&database, "mail", "1")?;
    let mut conn = database.connect()?;
    let [viewer, operator] = ["viewer", "operator"].map(|name| format!("web_{name}_{}", std::process::id()));
    for (role, privileges) in [(&viewer, "reader"), (&operator, "consumer")] {
        conn.batch_execute(&format!("CREATE ROLE {role} LOGIN"))?;
        assert_eq!(status(&run(&database, &["grant", role, privileges])?), 0);
    }
    let is_viewer = format!("-c role={viewer}");
    let is_operator = format!("{}?options=-c%20role%3D{operator}", database.url());
    let both = [("PGOPTIONS", is_viewer.as_str()), ("PQ_WEB_OPERATOR_URL", is_operator.as_str())];
    let paused = "SELECT count(*) FROM pq.queue_controls WHERE paused_by = 'local'";
    let acting = Operator::start_with(&database, &both)?;
    acting.act("/queue/pause?name=mail", "")?;
    assert_eq!(number(&database, paused)?, 1);
    assert!(acting.web.get("/pauses")?.body.contains("<bdi>mail</bdi>"));
    let viewing = Operator::start_with(&database, &both[..1])?;
    let refused = viewing.post("/queue/resume?name=mail", "")?;
    assert_eq!(refused.status, 409);
    assert!(refused.body.contains("permission denied"), "{}", refused.body);
    assert_eq!(
        number(&database, paused)?,
        1,
        "the role of viewers cannot act, whatever the dashboard allows"
    );
    drop((acting, viewing));
    Ok(conn.batch_execute(&format!("DROP OWNED BY {viewer}, {operator}; DROP ROLE {viewer}, {operator}"))?)
}

#[test]
fn a_job_is_cancelled_retried_and_moved() -> Outcome {
    let database = migrated()?;
    put(&database, "mail", "1")?;
    let operator = Operator::start(&database)?;
    operator.act("/job/1/move", "to=other")?;
    assert_eq!(waiting(&database, "other")?, 1);
    assert_eq!(operator.confirm(&database, "/job/1/cancel", "")?, "Job 1: changed.");
    assert_eq!(waiting(&database, "other")?, 0);
    assert_eq!(operator.act("/job/1/retry", "")?, "Job 1: changed.");
    assert_eq!(waiting(&database, "other")?, 1);
    assert_eq!(operator.post("/job/1/explode", "")?.status, 404);
    assert_eq!(operator.post("/job/x/cancel", "")?.status, 404);
    Ok(())
}

#[test]
fn selected_jobs_are_changed_together() -> Outcome {
    let database = migrated()?;
    put(&database, "a", "1\n2\n3\n")?;
    put(&database, "b", "4\n")?;
    let operator = Operator::start(&database)?;
    assert_eq!(operator.post("/jobs/bulk", "action=cancel")?.status, 409, "nothing is selected");
    operator.confirm(&database, "/jobs/bulk", "action=cancel&id=1&id=2&id=4")?;
    assert_eq!((waiting(&database, "a")?, waiting(&database, "b")?), (1, 0));
    operator.act("/jobs/bulk", "action=retry&id=1&id=4")?;
    assert_eq!((waiting(&database, "a")?, waiting(&database, "b")?), (2, 1));
    operator.act("/jobs/bulk", "action=move&to=c&id=1&id=3&id=4")?;
    assert_eq!(waiting(&database, "c")?, 3);
    Ok(())
}

#[test]
fn a_periodic_job_is_paused_resumed_and_removed() -> Outcome {
    let database = migrated()?;
    assert_eq!(status(&run(&database, &["cron", "add", "nightly", "30 2 * * *", "mail", "--data", "1"])?), 0);
    let operator = Operator::start(&database)?;
    let page = operator.web.get("/periodic")?;
    assert!(page.body.matches("<li><time datetime=").count() >= 10, "ten ticks: {}", page.body);
    let paused = "SELECT count(*) FROM pq.queue_cron WHERE paused AND next_at IS NULL";
    operator.act("/periodic/run?name=nightly", "")?;
    assert_eq!(waiting(&database, "mail")?, 1);
    operator.act("/periodic/pause?name=nightly", "")?;
    assert_eq!(number(&database, paused)?, 1);
    operator.act("/periodic/resume?name=nightly", "")?;
    assert_eq!(number(&database, paused)?, 0);
    operator.confirm(&database, "/periodic/remove?name=nightly", "")?;
    assert_eq!(number(&database, "SELECT count(*) FROM pq.queue_cron")?, 0);
    Ok(())
}

#[test]
fn a_worker_is_asked_to_stop() -> Outcome {
    let database = migrated()?;
    database.connect()?.batch_execute(
        "INSERT INTO pq.queue_workers (id, host, pid, supervisor, queues, threads, status)
         SELECT id, 'host', id, id, '{mail}', 1, '{}' FROM generate_series(1, 3) AS id",
    )?;
    let operator = Operator::start(&database)?;
    operator.act("/worker/1/stop", "mode=drain")?;
    operator.act("/worker/2/stop", "mode=finish")?;
    operator.confirm(&database, "/worker/3/stop", "mode=abort")?;
    let asked = "SELECT count(*) FROM pq.queue_workers WHERE (id, stop) IN ((1, 'drain'), (2, 'finish'), (3, 'abort'))";
    assert_eq!(number(&database, asked)?, 3);
    assert!(operator.act("/worker/4/stop", "mode=drain")?.contains("no longer registered"));
    Ok(())
}

#[test]
fn a_waiting_job_is_rescheduled_edited_run_and_deleted() -> Outcome {
    let database = migrated()?;
    put(&database, "mail", "1\n{\"token\": 1}\n")?;
    let operator = Operator::start(&database)?;
    operator.act("/job/1/reschedule", "schedule=1h")?;
    let later = "SELECT count(*) FROM pq.queue WHERE id = 1 AND schedule_at > now() + interval '59 minutes'";
    assert_eq!(number(&database, later)?, 1);
    operator.act("/job/1/run-now", "")?;
    assert_eq!(number(&database, later)?, 0);
    operator.act("/job/1/set-priority", "priority=7")?;
    assert_eq!(number(&database, "SELECT priority::bigint FROM pq.queue WHERE id = 1")?, 7);
    for wrong in ["/job/1/set-priority", "/job/1/reschedule", "/job/1/move", "/job/99/cancel"] {
        assert_ne!(operator.post(wrong, "confirmed=yes")?.status, 303, "{wrong}");
    }
    let form = request(&operator.web.address, "GET", "/job/1/edit", &[("Cookie", &operator.cookie)], "")?;
    let (_, rest) = form.body.split_once("name=\"shown\" value=\"").ok_or_else(|| form.body.clone())?;
    let shown = rest.split('"').next().unwrap_or_default().to_owned();
    operator.act("/job/1/edit", &format!("shown={shown}&payload=%7B%22n%22%3A2%7D"))?;
    let edited = "SELECT count(*) FROM pq.queue WHERE id = 1 AND data::text = '{\"n\":2}'";
    assert_eq!(number(&database, edited)?, 1);
    assert_eq!(
        operator.post("/job/1/edit", &format!("shown={shown}&payload=3"))?.status,
        409,
        "it has changed"
    );
    assert_eq!(operator.web.get("/job/2/edit")?.status, 409, "a payload with a masked field is not shown");
    operator.confirm(&database, "/job/1/delete", "")?;
    assert_eq!(waiting(&database, "mail")?, 1);
    assert!(
        operator.web.get("/job/2")?.body.contains("no live worker"),
        "{}",
        operator.web.get("/job/2")?.body
    );
    Ok(())
}

#[test]
fn all_jobs_of_a_filter_are_counted_changed_and_recorded() -> Outcome {
    let database = migrated()?;
    put(&database, "a", "1\n2\n3\n")?;
    put(&database, "b", "4\n")?;
    let operator = Operator::start(&database)?;
    let question = operator.post("/jobs/bulk?queue=a", "action=set-priority&priority=5&scope=filter")?;
    assert!(question.body.contains("Set priority 3 jobs?"), "{}", question.body);
    operator.confirm(&database, "/jobs/bulk?queue=a", "action=set-priority&priority=5&scope=filter")?;
    let changed = "SELECT count(*) FROM pq.queue WHERE priority = 5 AND q_name = 'a'";
    assert_eq!((number(&database, changed)?, waiting(&database, "b")?), (3, 1));
    operator.confirm(&database, "/jobs/bulk?queue=a", "action=delete&scope=filter")?;
    assert_eq!((waiting(&database, "a")?, waiting(&database, "b")?), (0, 1));
    let log = operator.web.get("/audit")?.body;
    for text in ["local", "set priority", "delete", "<td class=\"number\">3</td>"] {
        assert!(log.contains(text), "{text} in {log}");
    }
    Ok(())
}

#[test]
fn limits_that_have_changed_since_they_were_shown_are_kept() -> Outcome {
    let database = migrated()?;
    let operator = Operator::start(&database)?;
    let shown = operator.with_shown("")?;
    operator.limit("limit", "running=3")?;
    for (action, fields) in
        [("limit", "rate=100%2F1m"), ("limit-group", "group=a&group_running=7"), ("unlimit", "confirmed=yes")]
    {
        let refused = operator.post(&format!("/queue/{action}?name=mail"), &format!("{fields}&{shown}"))?;
        assert_eq!(refused.status, 409, "{action}");
        assert!(refused.body.contains("The queue is limited to 3 running."), "{}", refused.body);
        let unseen = operator.post(&format!("/queue/{action}?name=mail"), fields)?;
        assert_eq!(unseen.status, 409, "{action}");
    }
    let kept = "SELECT count(*) FROM pq.queue_controls WHERE limits = '{\"running\": 3}'";
    assert_eq!(number(&database, kept)?, 1);
    Ok(())
}

#[test]
fn limits_are_shown_and_set_if_what_is_used_of_them_cannot_be_counted() -> Outcome {
    let database = migrated()?;
    let operator = Operator::start(&database)?;
    operator.limit("limit", "running=3&running_per_group=2")?;
    let broken = "ALTER TABLE pq.queue_buckets RENAME TO hidden";
    database.connect()?.batch_execute(broken)?;
    operator.limit("limit-group", "group=a%0Ab&group_running=7")?;
    let page = operator.web.get("/queue?name=mail")?.body;
    for shown in ["at most 3", "at most 2", "at most 7", "What is used of the limits cannot be counted"] {
        assert!(page.contains(shown), "{shown}: {page}");
    }
    Ok(())
}

#[test]
fn groups_and_steps_with_line_breaks_are_changed() -> Outcome {
    let database = migrated()?;
    let operator = Operator::start(&database)?;
    operator.limit("limit-group", "group=a%0Ab&group_running=7")?;
    // As a browser sends it: the name is in the path of the form, and each line break in a field is a CR and an LF.
    let page = operator.web.get("/queue?name=mail")?.body;
    let path = "/queue/limit-group?name=mail&amp;group=a%0Ab";
    assert!(page.contains(path), "{page}");
    operator.act(&path.replace("amp;", ""), &operator.with_shown("group=a%0D%0Ab")?)?;
    assert_eq!(number(&database, "SELECT count(*) FROM pq.queue_controls")?, 0);
    database.connect()?.batch_execute(
        "INSERT INTO pq.queue (id, q_name, data) VALUES (7, 'mail', '1');
         INSERT INTO pq.queue_steps (job, enqueued_at, position, kind, name, result)
         SELECT id, enqueued_at, n, 'step', (ARRAY['one', E'a\nb'])[n + 1], '1' FROM pq.queue, generate_series(0, 1) AS n",
    )?;
    let page = operator.web.get("/job/7")?.body;
    let path = "/job/7/retry-from?step=a%0Ab";
    assert!(page.contains(path), "{page}");
    assert!(operator.post(path, "")?.body.contains(path), "the confirmation, too");
    operator.act(path, "confirmed=yes")?;
    assert_eq!(number(&database, "SELECT count(*) FROM pq.queue_steps")?, 1);
    Ok(())
}
