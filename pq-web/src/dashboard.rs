//! The settings of a dashboard, and its router.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};
use axum::{Extension, Router};
use pq_diesel::Pq;
use tokio::sync::{Mutex, Semaphore, watch};

use crate::access::Access;
use crate::database::Database;
use crate::examiner::Examiner;
use crate::guard::guard;
use crate::html::Mask;
use crate::sampler::Sampler;
use crate::session::Sessions;
use crate::{actions, assets, live, pages};

/// The fields of payloads whose values are not shown, unless [`Dashboard::masked_fields`] sets others.
const MASKED_FIELDS: [&str; 12] = [
    "password",
    "passwd",
    "pwd",
    "passphrase",
    "token",
    "secret",
    "credential",
    "authorization",
    "api_key",
    "access_key",
    "private_key",
    "cookie",
];

/// The number of calls of the database at a time for pages, and for actions.
const CALLS: usize = 2;

/// How long each statement of an action may take, and how long the response waits for the database.
pub(crate) const ACTION_TIMEOUT: Duration = Duration::from_secs(30);

/// The settings of a dashboard.
///
/// ```no_run
/// use pq_diesel::Pq;
/// use pq_web::{Access, Credentials, Dashboard};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let viewer = Pq::connect("postgres://viewer@db/shop")?;
/// let operator = Pq::connect("postgres://operator@db/shop")?;
/// let users = Credentials::parse(&std::fs::read_to_string("/etc/pq/users")?)?;
/// let dashboard = Dashboard::new(&viewer).access(Access::Login(users)).allow_actions(&operator);
/// let app: axum::Router = axum::Router::new().nest("/jobs", dashboard.router());
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
#[must_use]
pub struct Dashboard {
    pq: Pq,
    operator: Option<Pq>,
    access: Access,
    masked_fields: Vec<String>,
    statement_timeout: Duration,
    closing: Arc<watch::Sender<bool>>,
}

impl fmt::Debug for Dashboard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dashboard")
            .field("pq", &self.pq)
            .field("operator", &self.operator)
            .field("access", &self.access)
            .field("masked_fields", &self.masked_fields)
            .field("statement_timeout", &self.statement_timeout)
            .finish_non_exhaustive()
    }
}

impl Dashboard {
    /// Creates the default settings: read-only, [`Access::Loopback`].
    ///
    /// The pages use at most three connections of the handle at a time, one of them to count jobs, and a check of the
    /// health two more. The role of the
    /// database needs the privileges of a reader, and the server may be a standby.
    pub fn new(pq: &Pq) -> Self {
        Self {
            pq: pq.clone(),
            operator: None,
            access: Access::default(),
            masked_fields: MASKED_FIELDS.map(str::to_owned).to_vec(),
            statement_timeout: Duration::from_millis(900),
            closing: Arc::new(watch::Sender::new(false)),
        }
    }

    /// Sets who may see the dashboard. Default: [`Access::Loopback`].
    pub fn access(mut self, access: Access) -> Self {
        self.access = access;
        self
    }

    /// Allows operators to act, on connections of this handle. Default: nobody can act.
    ///
    /// It can be the same handle, or one that connects with another role of the database.
    pub fn allow_actions(mut self, operator: &Pq) -> Self {
        self.operator = Some(operator.clone());
        self
    }

    /// Sets the names of the fields of payloads and results whose values are not shown, at any depth.
    ///
    /// A field is masked if one of the words of its name ends with one of these, or with its plural. Only letters and
    /// digits count, in any case: `secret` masks `client-secret`, `secretKey` and `secrets`. Default: `password`,
    /// `passwd`, `pwd`, `passphrase`, `token`, `secret`, `credential`, `authorization`, `api_key`, `access_key`,
    /// `private_key` and `cookie`.
    ///
    /// A pickle of Python's `pq` is decoded first, and one of more than plain data is hidden. A payload of another
    /// codec is shown as it is stored, and the texts of errors are shown whole.
    pub fn masked_fields(mut self, names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.masked_fields = names.into_iter().map(Into::into).collect();
        self
    }

    /// Adds names of fields to those of [`Dashboard::masked_fields`].
    pub fn mask_also(mut self, names: &[String]) -> Self {
        self.masked_fields.extend_from_slice(names);
        self
    }

    /// Sets how long a statement of a page may take. Default: 900 ms.
    ///
    /// A panel whose statement takes longer shows an error.
    pub fn statement_timeout(mut self, timeout: Duration) -> Self {
        self.statement_timeout = timeout.max(Duration::from_millis(10));
        self
    }

    /// Returns who may see the dashboard.
    pub(crate) fn access_setting(&self) -> &Access {
        &self.access
    }

    /// Returns what ends the endless responses when the server stops.
    pub(crate) fn closing(&self) -> Arc<watch::Sender<bool>> {
        Arc::clone(&self.closing)
    }

    /// Returns the pages and actions as a router, for any path.
    ///
    /// It also has `/metrics`, which needs the same login, and `/healthz` and `/readyz`, which need none.
    ///
    /// It starts to read the database at the first request, and needs a runtime of tokio.
    pub fn router(self) -> Router {
        let reads = Database::new(&self.pq, CALLS, self.statement_timeout);
        let counts = Database::new(&self.pq, 1, self.statement_timeout);
        let operator = self
            .operator
            .map(|pq| Database::new(&pq.with_operation_timeout(ACTION_TIMEOUT), CALLS, ACTION_TIMEOUT));
        let app: App = Arc::new(State {
            sampler: Sampler::new(reads.clone(), counts),
            examiner: Examiner::new(&self.pq),
            reads,
            operator,
            access: self.access,
            mask: Mask::new(&self.masked_fields),
            sessions: Arc::default(),
            closing: self.closing,
            limits: Mutex::new(()),
            streams: Arc::new(Semaphore::new(live::MAX_STREAMS)),
        });
        let guarded = Router::new()
            .route("/", get(pages::overview::page))
            .route("/queues", get(pages::queues::page))
            .route("/queue", get(pages::queue::page))
            .route("/queue/{action}", post(actions::queue::act))
            .route("/jobs", get(pages::jobs::page))
            .route("/job/{id}", get(pages::job::page))
            .route("/jobs/bulk", post(actions::bulk::act))
            .route("/job/{id}/{part}", get(pages::job::part).post(actions::job::act))
            .route("/dead", get(pages::dead::page))
            .route("/workers", get(pages::workers::page))
            .route("/worker/{id}/stop", post(actions::worker::stop))
            .route("/periodic", get(pages::periodic::page))
            .route("/periodic/{action}", post(actions::periodic::act))
            .route("/pauses", get(pages::pauses::page))
            .route("/health", get(pages::health::page).post(pages::health::examine))
            .route("/audit", get(pages::audit::page))
            .route("/put", get(pages::put::page).post(actions::put::act))
            .route("/live/{page}", get(live::updates))
            .merge(pq_metrics::metrics_router(pq_metrics::Collector::new(&self.pq)))
            .fallback(pages::not_found)
            .method_not_allowed_fallback(pages::method_not_allowed)
            .layer(from_fn_with_state(Arc::clone(&app), guard));
        Router::new()
            .route("/assets/{name}", get(assets::serve))
            .merge(pq_metrics::health_router(&self.pq, || Ok(())))
            .merge(guarded)
            .layer(Extension(app))
    }
}

/// What all requests share.
pub(crate) struct State {
    pub(crate) reads: Database,
    pub(crate) sampler: Sampler,
    pub(crate) examiner: Examiner,
    /// Runs the actions, if there are any.
    pub(crate) operator: Option<Database>,
    pub(crate) access: Access,
    /// Knows which fields of payloads are not shown.
    pub(crate) mask: Mask,
    pub(crate) sessions: Arc<Sessions>,
    /// Becomes `true` when the server stops.
    pub(crate) closing: Arc<watch::Sender<bool>>,
    /// Is held while limits are compared with those that a form showed, and changed.
    pub(crate) limits: Mutex<()>,
    /// Limits the live updates.
    pub(crate) streams: Arc<Semaphore>,
}

pub(crate) type App = Arc<State>;
