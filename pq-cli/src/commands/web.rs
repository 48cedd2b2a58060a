//! `pq web`.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use pq_web::{Access, Credentials, Dashboard, Role};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use super::examples;
use crate::failure::Failure;
use crate::global::Global;
use crate::{output, signals};

/// The number of connections for reading: two for the pages, one to count jobs, two for a check of the health, one
/// for a scrape, and one for readiness.
const CONNECTIONS: u32 = 7;

/// The number of connections for actions.
const OPERATOR_CONNECTIONS: u32 = 2;

/// The number of threads that wait for the database: two for the pages, one to count jobs, one for a check of the
/// health, one for a scrape, one for readiness, and two for actions. One more formats large payloads.
const BLOCKING_THREADS: usize = 9;

/// How long a request waits for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a statement may remain without an answer of the server. Longer than each statement timeout of the
/// dashboard.
const CALL_TIMEOUT: Duration = Duration::from_secs(40);

/// The environment variables with secrets, which would be visible to other users as arguments.
const VIEWER_TOKEN: &str = "PQ_WEB_VIEWER_TOKEN";
const OPERATOR_TOKEN: &str = "PQ_WEB_OPERATOR_TOKEN";
const OPERATOR_URL: &str = "PQ_WEB_OPERATOR_URL";

/// Serve the dashboard: queues, jobs, workers, periodic jobs and the health of the database.
///
/// By default it listens on the local machine, without a login, and shows without changing. To listen on another
/// address it needs a login: a token in PQ_WEB_VIEWER_TOKEN or PQ_WEB_OPERATOR_TOKEN, --users, or --user-header.
#[derive(Debug, clap::Args)]
#[command(after_help = examples(
    "pq web\npq web --listen 0.0.0.0:8080 --users /etc/pq/users --allow-actions\n\
     pq web --listen 10.0.0.5:8080 --user-header X-Forwarded-User --operators ann,bob --allow-actions"
))]
pub(crate) struct Web {
    /// Address and port to listen on. With port 0 the system chooses one.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080")]
    listen: String,
    /// Allow operators to change jobs, queues, periodic jobs and workers. They connect to the database by
    /// PQ_WEB_OPERATOR_URL, if that is set.
    #[arg(long)]
    allow_actions: bool,
    /// File with one user per line: `viewer NAME SECRET` or `operator NAME SECRET`. The secret is a token, or the
    /// password of basic authentication.
    #[arg(long, value_name = "FILE")]
    users: Option<PathBuf>,
    /// Header with the name of the user, set by a proxy that authenticates users and removes the header from their
    /// requests.
    #[arg(long, value_name = "NAME", conflicts_with = "users")]
    user_header: Option<String>,
    /// Users of --user-header that are operators, separated by commas.
    #[arg(long, value_name = "NAMES", value_delimiter = ',', requires = "user_header")]
    operators: Vec<String>,
    /// Name of a field of payloads whose value is not shown, in addition to password, token, secret, credential,
    /// authorization, api_key and others. The texts of errors are shown whole. Can be repeated.
    #[arg(long, value_name = "NAME")]
    mask: Vec<String>,
}

impl Web {
    pub(crate) fn run(&self, global: &Global) -> Result<ExitCode, Failure> {
        let access = self.access()?;
        let addresses = self.addresses()?;
        for address in &addresses {
            access.check_address(*address).map_err(|refused| {
                let remedy = format!("{VIEWER_TOKEN}, {OPERATOR_TOKEN}, --users or --user-header");
                Failure::Usage(format!("{refused}: use {remedy}"))
            })?;
        }
        let conninfo = global.conninfo()?;
        let pq = global.handle(&conninfo, CONNECTIONS, CONNECT_TIMEOUT, CALL_TIMEOUT)?;
        let mut dashboard = Dashboard::new(&pq).access(access).mask_also(&self.mask);
        if self.allow_actions {
            let url = variable(OPERATOR_URL).unwrap_or(conninfo);
            let operator = global.handle(&url, OPERATOR_CONNECTIONS, CONNECT_TIMEOUT, CALL_TIMEOUT)?;
            dashboard = dashboard.allow_actions(&operator);
        }
        if let Err(error) = pq.now() {
            // The dashboard also serves while the database is down, and shows the reason.
            output::print_status(&format!("pq: {error}"));
        }
        serve(dashboard, &addresses)
    }

    fn access(&self) -> Result<Access, Failure> {
        if let Some(header) = &self.user_header {
            if [VIEWER_TOKEN, OPERATOR_TOKEN].into_iter().any(|name| variable(name).is_some()) {
                let rule = format!("--user-header cannot be used with {VIEWER_TOKEN} or {OPERATOR_TOKEN}");
                return Err(Failure::Usage(rule));
            }
            return Access::proxy(header, self.operators.clone()).map_err(Failure::Usage);
        }
        let mut credentials = match &self.users {
            Some(path) => Credentials::parse(&read(path)?)
                .map_err(|rule| Failure::Usage(format!("{}: {rule}", path.display())))?,
            None => Credentials::new(),
        };
        for (name, role) in [(VIEWER_TOKEN, Role::Viewer), (OPERATOR_TOKEN, Role::Operator)] {
            if let Some(token) = variable(name) {
                let added = credentials.add(role, &role.to_string(), &token);
                added.map_err(|rule| Failure::Usage(format!("{name}: {rule}")))?;
            }
        }
        let wants_login = self.users.is_some() || !credentials.is_empty();
        Ok(if wants_login { Access::Login(credentials) } else { Access::Loopback })
    }

    fn addresses(&self) -> Result<Vec<SocketAddr>, Failure> {
        let invalid = |rule: &dyn std::fmt::Display| {
            Failure::Usage(format!("invalid address {:?}: {rule}; an example is 127.0.0.1:8080", self.listen))
        };
        let found: Vec<_> = self.listen.to_socket_addrs().map_err(|error| invalid(&error))?.collect();
        if found.is_empty() { Err(invalid(&"no such host")) } else { Ok(found) }
    }
}

/// Returns an environment variable that is set and not empty.
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn read(path: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(path)
        .map_err(|error| Failure::Io(format!("cannot read {}: {error}", path.display())))
}

/// Serves until a signal asks to stop.
fn serve(dashboard: Dashboard, addresses: &[SocketAddr]) -> Result<ExitCode, Failure> {
    let mut caught = signals::catch([SIGINT, SIGTERM, SIGHUP])?;
    let (stop, stopped) = oneshot::channel();
    std::thread::spawn(move || {
        if caught.forever().next().is_some() {
            // An error means that the server has ended already.
            let _ = stop.send(());
        }
    });
    let failed = |error: std::io::Error| Failure::Io(format!("cannot serve: {error}"));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .max_blocking_threads(BLOCKING_THREADS)
        .enable_all()
        .build()
        .map_err(failed)?;
    let served = runtime.block_on(async {
        let listener = TcpListener::bind(addresses).await?;
        output::print_status(&format!("listening on http://{}", listener.local_addr()?));
        dashboard
            .serve(listener, async {
                // An error means that the thread of the signals has ended, which never happens before a signal.
                let _ = stopped.await;
            })
            .await
    });
    // An operation that is still running has this long to end its transaction.
    runtime.shutdown_timeout(Duration::from_secs(5));
    served.map_err(failed)?;
    Ok(ExitCode::SUCCESS)
}
