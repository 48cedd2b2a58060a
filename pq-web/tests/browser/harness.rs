//! A dashboard on a database of its own, and a browser.

use std::error::Error;
use std::future::{Future, pending};
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use pq_diesel::{Pq, Worker};
use pq_testing::Database;
use pq_web::Dashboard;
use serde_json::{Value, json};
use thirtyfour::prelude::*;
use tokio::net::TcpListener;

use crate::migrated::migrated;

pub(crate) type Outcome<T = ()> = Result<T, Box<dyn Error>>;

/// Time limit of each wait. The machine may be busy with other tests.
const TIMEOUT: Duration = Duration::from_secs(150);

/// A dashboard, served by the test itself.
pub(crate) struct Site {
    pub(crate) database: Database,
    pub(crate) pq: Pq,
    pub(crate) url: String,
}

impl Site {
    /// Serves a dashboard with these settings on a new database.
    pub(crate) async fn start(set: impl FnOnce(Dashboard, &Pq) -> Dashboard) -> Outcome<Self> {
        let database = migrated();
        let pq = Pq::builder().url(database.url()).pool_size(3).build()?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        // The machine is busy with other tests.
        let dashboard = Dashboard::new(&pq).statement_timeout(TIMEOUT);
        tokio::spawn(set(dashboard, &pq).serve(listener, pending()));
        Ok(Self { database, pq, url })
    }

    /// Changes the database by SQL.
    pub(crate) fn sql(&self, statements: &str) -> Outcome {
        Ok(self.database.connect()?.batch_execute(statements)?)
    }
}

/// Whether pages may run scripts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum JavaScript {
    On,
    Off,
}

/// Ends the driver, and with it the browser.
struct Driver(Child);

impl Driver {
    /// Starts a driver, and returns it with its port. Returns `None` if it ended before it had one.
    fn start() -> Outcome<Option<(Self, String)>> {
        let mut process = Command::new("chromedriver")
            .arg("--port=0")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| {
                format!("cannot run chromedriver: {error}; install chromium and chromium-driver")
            })?;
        let stdout = process.stdout.take().ok_or("its output")?;
        let driver = Self(process);
        let mut lines = BufReader::new(stdout).lines().map_while(Result::ok);
        let port = lines.find_map(|line| {
            line.split_once("successfully on port ").map(|(_, port)| port.trim_end_matches('.').to_owned())
        });
        Ok(port.map(|port| (driver, port)))
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A browser at a dashboard.
pub(crate) struct Browser {
    pub(crate) driver: WebDriver,
    site: String,
    _driver: Driver,
}

/// Notes what the content security policy blocks, and errors of scripts.
const WATCH: &str = "window.faults = [];
    addEventListener('securitypolicyviolation', e => faults.push(`${e.violatedDirective} ${e.blockedURI}`));
    addEventListener('error', e => faults.push(String(e.message)));";

impl Browser {
    pub(crate) async fn start(site: &Site, javascript: JavaScript) -> Outcome<Self> {
        // It chooses a free port and binds it later, so another program may have it by then.
        let started = (0..4).find_map(|_| Driver::start().transpose());
        let (process, port) = started.ok_or("chromedriver has no port")??;
        let mut capabilities = DesiredCapabilities::chrome();
        for argument in [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--window-size=1000,900",
        ] {
            capabilities.add_arg(argument)?;
        }
        if javascript == JavaScript::Off {
            let blocked = json!({"profile.managed_default_content_settings.javascript": 2});
            capabilities.add_experimental_option("prefs", blocked)?;
        }
        let driver = WebDriver::new(format!("http://127.0.0.1:{port}"), capabilities).await?;
        let browser = Self { driver, site: site.url.clone(), _driver: process };
        browser.devtools("Page.addScriptToEvaluateOnNewDocument", json!({"source": WATCH})).await?;
        Ok(browser)
    }

    /// Runs a command of the browser's developer tools.
    pub(crate) async fn devtools(&self, command: &str, parameters: Value) -> Outcome {
        self.driver.cdp().send_raw(command, parameters).await?;
        Ok(())
    }

    /// Opens a page.
    pub(crate) async fn open(&self, path: &str) -> Outcome {
        Ok(self.driver.goto(format!("{}{path}", self.site)).await?)
    }

    /// Clicks the first link or button with these words.
    pub(crate) async fn click(&self, words: &str) -> Outcome {
        let path = format!("//main//*[(self::a or self::button) and normalize-space()='{words}']");
        // A live update can replace the element between the two steps.
        for _ in 0..3 {
            let found = self.driver.find(By::XPath(path.clone())).await;
            let found = found.map_err(|error| format!("no link or button {words:?}: {error}"))?;
            if found.click().await.is_ok() {
                return Ok(());
            }
        }
        Err(format!("cannot click {words:?}").into())
    }

    /// Clicks what must be confirmed: first declines, then confirms.
    pub(crate) async fn click_and_confirm(&self, words: &str) -> Outcome {
        self.click(words).await?;
        self.see("No, go back").await?;
        self.click("No, go back").await?;
        self.click(words).await?;
        self.see("Yes, do it").await?;
        self.click("Yes, do it").await
    }

    /// Types into the input with this name.
    pub(crate) async fn fill(&self, name: &str, text: &str) -> Outcome {
        let input = self.driver.find(By::Css(format!("main [name='{name}']"))).await?;
        input.clear().await?;
        Ok(input.send_keys(text).await?)
    }

    /// Returns the visible text of the page.
    pub(crate) async fn text(&self) -> Outcome<String> {
        Ok(self.driver.find(By::Tag("body")).await?.text().await?)
    }

    /// Waits until the page shows this text.
    pub(crate) async fn see(&self, text: &str) -> Outcome {
        let mut shown = String::new();
        let begun = Instant::now();
        while begun.elapsed() < TIMEOUT {
            // The page may be in the middle of a change.
            shown = self.text().await.unwrap_or_default();
            if shown.contains(text) {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Err(format!("the page does not show {text:?}: {shown}").into())
    }

    /// Evaluates an expression in the page.
    pub(crate) async fn evaluate(&self, expression: &str) -> Outcome<Value> {
        Ok(self.driver.execute(format!("return {expression}"), vec![]).await?.json().clone())
    }

    pub(crate) async fn end(self) -> Outcome {
        Ok(self.driver.quit().await?)
    }
}

/// Runs a test with JavaScript and without, each on a database and a browser of its own.
pub(crate) async fn with_and_without_javascript<R: Future<Output = Outcome>>(
    set: fn(Dashboard, &Pq) -> Dashboard,
    test: impl Fn(Site, Browser, JavaScript) -> R,
) -> Outcome {
    for javascript in [JavaScript::On, JavaScript::Off] {
        let site = Site::start(set).await?;
        let browser = Browser::start(&site, javascript).await?;
        test(site, browser, javascript)
            .await
            .map_err(|error| format!("JavaScript {javascript:?}: {error}"))?;
    }
    Ok(())
}

/// The settings of a dashboard on which everybody may act.
pub(crate) fn with_actions(dashboard: Dashboard, pq: &Pq) -> Dashboard {
    dashboard.allow_actions(pq)
}

/// Works a queue on a thread of its own until it is empty.
pub(crate) async fn work(pq: &Pq, serve: impl Fn(Worker) -> Worker + Send + 'static) -> Outcome {
    let pq = pq.clone();
    let worked = tokio::task::spawn_blocking(move || serve(Worker::new(&pq)).run_until_empty().map(drop));
    Ok(worked.await??)
}
