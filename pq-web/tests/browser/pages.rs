//! Every page: what it shows, whether it is accessible, and how it looks.

use std::path::PathBuf;

use pq_web::{Access, Credentials, Role};
use serde_json::json;
use thirtyfour::Key;
use thirtyfour::prelude::*;

use crate::harness::{Browser, JavaScript, Outcome, Site, with_actions, with_and_without_javascript};
use crate::workflows::{put_order, work_orders};

/// Each page with the name of its picture, and a text that it shows.
const PAGES: [(&str, &str, &str); 17] = [
    ("overview", "/", "Waiting jobs"),
    ("queues", "/queues", "newsletter"),
    ("queue", "/queue?name=mail", "Jobs by state"),
    ("jobs", "/jobs?queue=mail", "welcome"),
    ("job", "/job/1000", "connection refused"),
    ("steps", "/job/501", "Durable steps"),
    ("batch", "/job/600", "5 not ended, 3 done."),
    ("workflows", "/jobs?queue=pq.workflows", "after other jobs"),
    ("workflow", "/job/701", "no box is large"),
    ("dead", "/dead", "Latest dead jobs"),
    ("workers", "/workers", "worker-7.example"),
    ("periodic", "/periodic", "next ticks"),
    ("pauses", "/pauses", "newsletter"),
    ("health", "/health", "Check the database"),
    ("audit", "/audit", "Nobody has done anything yet."),
    ("put", "/put", "Payload as JSON"),
    ("missing", "/no-such-page", "This page does not exist."),
];

/// Fills the tables with an ordinary day.
async fn fill(site: &Site) -> Outcome {
    site.sql("SELECT setval(pg_get_serial_sequence('pq.queue', 'id'), 700)")?;
    put_order(&site.pq)?;
    work_orders(&site.pq, false).await?;
    put_order(&site.pq)?;
    site.sql("SELECT setval(pg_get_serial_sequence('pq.queue', 'id'), 1, false)")?;
    let reports = site.pq.queue::<u32>("reports")?;
    site.pq.set_cron(&reports.cron("nightly-report", "30 2 * * mon-fri", &1)?.time_zone("Europe/Berlin")?)?;
    site.sql(
        r#"INSERT INTO pq.queue (q_name, data, schedule_at, serial_key, priority)
        SELECT (ARRAY['mail', 'thumbnails', 'newsletter'])[1 + n % 3],
            json_build_object('function', (ARRAY['welcome', 'resize', 'send'])[1 + n % 3], 'args', json_build_array(n),
                'kwargs', json_build_object('to', 'user' || n || '@example.com', 'api_key', 'x')),
            CASE WHEN n % 10 = 0 THEN now() + n * interval '1 minute' END,
            CASE WHEN n % 7 = 0 THEN 'customer ' || n % 5 END, n % 4
        FROM generate_series(1, 400) AS n;
        INSERT INTO pq.queue_archive (id, q_name, data, enqueued_at, schedule_at, priority, attempt, outcome, error)
        SELECT 999 + n, 'mail',
            json_build_object('function', 'welcome', 'args', json_build_array(), 'kwargs',
                json_build_object('to', 'user' || n || '@example.com', 'password', 'x', 'locale', 'de')),
            now() - interval '3 hours', now() - interval '2 hours', 0, 5, 'dead',
            E'cannot send: connection refused\nwhile connecting to smtp.example.com:25'
        FROM generate_series(1, 12) AS n;
        INSERT INTO pq.queue_controls (q_name, paused_at, limits) VALUES ('newsletter', now(), NULL),
            ('mail', NULL, '{"running": 50, "rate": {"tokens": 6000, "per_us": 60000000, "burst": 100}, "running_per_group": 1}');
        INSERT INTO pq.queue (id, q_name, data, annotations)
        SELECT 500 + n, 'mail', '{"function": "welcome", "args": [], "kwargs": {"to": "ann@example.com"}}',
            json_build_object('group', 'tenant ' || n % 3, 'batch', 600) FROM generate_series(1, 5) AS n;
        INSERT INTO pq.queue_leases (id, q_name, lease_until, size, jobs, data, enqueued_at, priority, attempt, annotations)
        VALUES (1, 'mail', now() + interval '1 hour', 1, '{590}', '{1}', ARRAY[now()], '{0}', '{1}',
            ARRAY['{"group": "tenant 1"}'::jsonb]);
        INSERT INTO pq.queue (id, q_name, data, schedule_at)
        VALUES (600, 'mail', '{"function": "report", "args": [], "kwargs": {}}', '9999-12-31');
        INSERT INTO pq.queue_waits (follow_up, job, only_done, outcome)
        SELECT 600, 500 + n, false, CASE WHEN n > 5 THEN 'done' END FROM generate_series(1, 8) AS n;
        INSERT INTO pq.queue_steps (job, enqueued_at, position, kind, name, result)
        SELECT 501, enqueued_at, n, 'step', (ARRAY['charge', 'book'])[n + 1], '{"total": 7}'
        FROM pq.queue, generate_series(0, 1) AS n WHERE id = 501;
        INSERT INTO pq.queue_workers (id, host, pid, supervisor, queues, threads, status)
        VALUES (1, 'worker-7.example', 4711, 4700, '{mail,thumbnails}', 8,
            '{"running": [{"id": 5, "queue": "mail", "task": "welcome", "attempt": 1, "age": 3.2}],
              "report": {"done": 18234, "failed": 12, "dead": 12}, "per_second": 41.3,
              "rates": {"mail": 31.3, "thumbnails": 10.0}}')"#,
    )
}

/// Lists the texts whose contrast with their background is below 4.5, without those that are large.
const LOW_CONTRAST: &str = r#"(() => {
    const parse = c => { const n = c.match(/[\d.]+/g).map(Number); return n.length < 4 ? [...n, 1] : n; };
    const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
        .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    const back = e => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor); if (c[3] > 0) return c; } return [255, 255, 255]; };
    return [...document.body.querySelectorAll('*')].filter(e => e.checkVisibility()
        && [...e.childNodes].some(n => n.nodeType == 3 && n.textContent.trim()))
        .map(e => { const [a, b] = [light(parse(getComputedStyle(e).color)), light(back(e))].sort((x, y) => y - x);
            return [(a + 0.05) / (b + 0.05), e.tagName + ': ' + e.textContent.trim().slice(0, 40)]; })
        .filter(([ratio]) => ratio < 4.5).map(String);
})()"#;

/// Lists the inputs without a label, images without a text, and tables without headers.
const UNLABELLED: &str = r#"(() => [
    ...[...document.querySelectorAll('input:not([type=hidden]), select, textarea')].filter(e => !e.labels.length && !e.ariaLabel),
    ...[...document.querySelectorAll('svg, img')].filter(e => !e.ariaLabel && !e.alt),
    ...[...document.querySelectorAll('button, a')].filter(e => !e.textContent.trim() && !e.ariaLabel),
    ...[...document.querySelectorAll('table')].filter(e => !e.querySelector('th[scope=col]')),
].map(e => e.outerHTML.slice(0, 120)))()"#;

async fn show(browser: &Browser, scheme: &str, width: u32, height: u32) -> Outcome {
    let features = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
    browser.devtools("Emulation.setEmulatedMedia", features).await?;
    let metrics = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false});
    browser.devtools("Emulation.setDeviceMetricsOverride", metrics).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_page_is_accessible_and_fits_in_light_and_dark() -> Outcome {
    let site = Site::start(with_actions).await?;
    fill(&site).await?;
    let pictures = std::env::var_os("PQ_WEB_SCREENSHOTS").map(PathBuf::from);
    let browser = Browser::start(&site, JavaScript::On).await?;
    for (name, path, text) in PAGES {
        for scheme in ["light", "dark"] {
            show(&browser, scheme, 1000, 800).await?;
            browser.open(path).await?;
            browser.see(text).await?;
            let what = format!("{name}, {scheme}");
            assert_eq!(browser.evaluate(LOW_CONTRAST).await?, json!([]), "{what}");
            assert_eq!(browser.evaluate(UNLABELLED).await?, json!([]), "{what}");
            assert_eq!(browser.evaluate("faults").await?, json!([]), "{what}");
            assert_eq!(browser.evaluate("document.querySelectorAll('h1').length").await?, json!(1), "{what}");
            assert_eq!(browser.evaluate("typeof htmx").await?, json!("object"), "{what}");
            if name == "overview" {
                // A chart needs two samples.
                browser.see("last ").await?;
            }
            if let Some(folder) = pictures.as_ref().filter(|_| name != "missing") {
                let height = browser.evaluate("document.documentElement.scrollHeight").await?;
                let height = u32::try_from(height.as_u64().unwrap_or(800))?.clamp(400, 1100);
                show(&browser, scheme, 1000, height).await?;
                browser.driver.screenshot(&folder.join(format!("{name}-{scheme}.png"))).await?;
            }
        }
        show(&browser, "light", 360, 740).await?;
        browser.open(path).await?;
        let fits = browser.evaluate("document.documentElement.scrollWidth <= 360").await?;
        assert_eq!(fits, json!(true), "{name} is wider than 360 px");
    }
    browser.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_page_is_complete_without_javascript() -> Outcome {
    let site = Site::start(with_actions).await?;
    fill(&site).await?;
    let browser = Browser::start(&site, JavaScript::Off).await?;
    for (name, path, text) in PAGES {
        browser.open(path).await?;
        browser.see(text).await.map_err(|error| format!("{name}: {error}"))?;
        assert_eq!(browser.driver.find_all(By::Css("footer a")).await?.len(), 2, "{name}");
    }
    browser.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn numbers_are_live_with_javascript_and_refreshed_by_a_link_without() -> Outcome {
    with_and_without_javascript(with_actions, async |site, browser, javascript| {
        browser.open("/queues").await?;
        browser.see("There are no queues.").await?;
        site.sql("INSERT INTO pq.queue (q_name, data) VALUES ('invoices', '1')")?;
        if javascript == JavaScript::Off {
            // A page shows an older sample if it is requested soon after that.
            while !browser.text().await?.contains("invoices") {
                browser.driver.find(By::LinkText("Refresh")).await?.click().await?;
            }
        }
        browser.see("invoices").await?;
        browser.end().await
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_keyboard_reaches_the_content_first() -> Outcome {
    let site = Site::start(with_actions).await?;
    let browser = Browser::start(&site, JavaScript::On).await?;
    browser.open("/jobs").await?;
    let body = browser.driver.find(By::Tag("body")).await?;
    body.send_keys(Key::Tab).await?;
    let focused = browser.evaluate("document.activeElement.className").await?;
    assert_eq!(focused, json!("skip"));
    let visible = "getComputedStyle(document.activeElement).outlineStyle + document.activeElement.getBoundingClientRect().left";
    assert_eq!(browser.evaluate(visible).await?, json!("solid8"), "the focus is visible");
    browser.driver.active_element().await?.send_keys(Key::Enter).await?;
    assert_eq!(browser.evaluate("document.activeElement.id").await?, json!("content"));
    browser.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_update_does_not_take_the_focus_away() -> Outcome {
    let site = Site::start(with_actions).await?;
    fill(&site).await?;
    let browser = Browser::start(&site, JavaScript::On).await?;
    browser.open("/queues").await?;
    browser.evaluate("void document.querySelector('main td a').focus()").await?;
    site.sql("INSERT INTO pq.queue (q_name, data) VALUES ('invoices', '1')")?;
    browser
        .evaluate("void (window.updates = 0, addEventListener('htmx:sseBeforeMessage', () => updates++))")
        .await?;
    while browser.evaluate("updates").await?.as_i64() < Some(2) {
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    assert_eq!(browser.evaluate("document.activeElement.tagName").await?, json!("A"));
    assert!(!browser.text().await?.contains("invoices"));
    browser.evaluate("void document.activeElement.blur()").await?;
    browser.see("invoices").await?;
    browser.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hidden_page_has_no_updates_and_failures_are_announced_once() -> Outcome {
    let site = Site::start(with_actions).await?;
    let browser = Browser::start(&site, JavaScript::On).await?;
    browser.open("/queues").await?;
    browser
        .evaluate(
            "void (window.updates = 0, addEventListener('htmx:sseMessage', () => updates++),
                window.announced = 0, new MutationObserver(() => announced++)
                    .observe(document.querySelector('.announced'), {childList: true}),
                window.hide = hidden => { Object.defineProperty(document, 'hidden', {value: hidden, configurable: true});
                    document.dispatchEvent(new Event('visibilitychange')); })",
        )
        .await?;
    let updates = async |more: i64| -> Outcome {
        let seen = browser.evaluate("updates").await?.as_i64().unwrap_or_default();
        while browser.evaluate("updates").await?.as_i64() < Some(seen + more) {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        Ok(())
    };
    updates(1).await?;
    browser.evaluate("void hide(true)").await?;
    assert_eq!(browser.evaluate("stream.readyState == EventSource.CLOSED").await?, json!(true));
    browser.evaluate("void hide(false)").await?;
    updates(1).await?;
    site.sql("ALTER TABLE pq.queue RENAME TO hidden")?;
    // The next sample comes after a pause, which is long on a busy machine.
    while !browser.text().await?.contains("There are no newer numbers") {
        updates(1).await?;
    }
    updates(2).await?;
    assert_eq!(browser.evaluate("announced").await?, json!(1), "a failure is announced once");
    site.sql("ALTER TABLE pq.hidden RENAME TO queue")?;
    browser.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_logs_in_and_out() -> Outcome {
    const TOKEN: &str = "viewer-secret-0123456789";
    with_and_without_javascript(
        |dashboard, _| {
            let mut users = Credentials::new();
            assert_eq!(users.add(Role::Viewer, "ann", TOKEN), Ok(()));
            dashboard.access(Access::Login(users))
        },
        async |_site, browser, _| {
            browser.open("/queues").await?;
            browser.fill("secret", "wrong-secret-0123456789").await?;
            browser.click("Log in").await?;
            browser.see("This token is not known.").await?;
            browser.fill("secret", TOKEN).await?;
            browser.click("Log in").await?;
            browser.see("There are no queues.").await?;
            assert!(!browser.driver.current_url().await?.as_str().contains(TOKEN));
            assert!(browser.text().await?.contains("read-only"));
            browser.driver.find(By::XPath("//button[.='Log out']")).await?.click().await?;
            browser.see("You are logged out.").await?;
            browser.open("/queues").await?;
            browser.see("Token").await?;
            browser.end().await
        },
    )
    .await
}
