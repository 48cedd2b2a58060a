//! The pool of a handle's connections.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use diesel::connection::{
    CacheSize, Instrumentation, InstrumentationEvent, SimpleConnection, get_default_instrumentation,
};
use diesel::r2d2::{ConnectionManager, R2D2Connection};
use diesel::result::Error as DieselError;
use diesel::{Connection, PgConnection};

use crate::Error;
use crate::call_timer::{CallTimer, CallTimers, take_cut_off};
use crate::conninfo::ConnInfo;
use crate::error::is_conflict;
use crate::isolation;
use crate::metrics::PoolGauges;
use crate::shutdown_guard::{Guarded, ShutdownGuard};

/// Lends connections to the calls of a handle.
pub(crate) enum Pool {
    /// A pool that the handle made from its URL.
    Own(Own),
    /// A pool of the application.
    Given(r2d2::Pool<ConnectionManager<PgConnection>>),
}

pub(crate) struct Own {
    /// `None` only while it is dropped.
    pool: Option<r2d2::Pool<Manager>>,
    conninfo: ConnInfo,
    /// The longest time that a statement remains without an answer.
    call_timeout: Duration,
    /// The number of calls that wait for a connection.
    waiting: AtomicU32,
    /// Waits for the connections, and for the threads of r2d2 that open them.
    shutdown_guard: ShutdownGuard,
}

impl Drop for Own {
    fn drop(&mut self) {
        drop(self.pool.take());
        self.shutdown_guard.wait();
    }
}

impl Pool {
    /// Creates a pool of up to `size` connections. None is opened yet.
    pub(crate) fn new(
        conninfo: ConnInfo,
        size: u32,
        timeout: Duration,
        call_timeout: Duration,
        prepare: bool,
    ) -> Self {
        let shutdown_guard = ShutdownGuard::default();
        let manager = Manager {
            conninfo: conninfo.clone(),
            prepare,
            timers: CallTimers::new(call_timeout),
            unanswered: Mutex::default(),
            _guarded: shutdown_guard.enter(),
            shutdown_guard: shutdown_guard.clone(),
        };
        let pool = r2d2::Pool::builder()
            .max_size(size)
            .min_idle(Some(0))
            .connection_timeout(timeout)
            .error_handler(Box::new(Quiet))
            .build_unchecked(manager);
        Self::Own(Own {
            pool: Some(pool),
            conninfo,
            call_timeout,
            waiting: AtomicU32::new(0),
            shutdown_guard,
        })
    }

    /// Lends a connection. A connection that is returned in a transaction, or broken, is closed.
    pub(crate) fn with<R, E: From<Error>>(
        &self,
        work: impl FnOnce(&mut PgConnection) -> Result<R, E>,
    ) -> Result<R, E> {
        match self {
            Self::Own(Own { pool, conninfo, call_timeout, waiting, .. }) => {
                let pool = pool.as_ref().ok_or(pq_core::Error::NoConnection).map_err(Error::from)?;
                waiting.fetch_add(1, Ordering::Relaxed);
                let lent = pool.get();
                waiting.fetch_sub(1, Ordering::Relaxed);
                let mut lent = lent.map_err(|found| {
                    exhausted(pool).unwrap_or_else(|| Error::Unreachable {
                        server: conninfo.server(),
                        reason: conninfo.redact(&found.to_string()),
                    })
                })?;
                lent.answered = None;
                lent.timer.set_limit(Some(*call_timeout));
                take_cut_off();
                let done = work(&mut lent.conn);
                lent.timer.stop();
                lent.answered = done.is_ok().then(Instant::now);
                done
            }
            Self::Given(pool) => {
                let mut lent = pool.get().map_err(|_| {
                    // The message of r2d2 repeats that of libpq, which may quote the pool's connection string.
                    exhausted(pool).unwrap_or_else(|| {
                        Error::Unavailable("the application's pool cannot connect to the server".to_owned())
                    })
                })?;
                // r2d2 closes a connection that is returned by a panic, and with it a test's transaction. A
                // transaction of this handle has been rolled back by then.
                let done = catch_unwind(AssertUnwindSafe(|| work(&mut lent)));
                drop(lent);
                done.unwrap_or_else(|panic| resume_unwind(panic))
            }
        }
    }
}

impl Pool {
    /// Returns the numbers of connections and of waiting calls.
    pub(crate) fn gauges(&self) -> PoolGauges {
        let (size, state, waiting) = match self {
            Self::Own(Own { pool, waiting, .. }) => {
                let waiting = waiting.load(Ordering::Relaxed);
                (pool.as_ref().map_or(0, r2d2::Pool::max_size), pool.as_ref().map(r2d2::Pool::state), waiting)
            }
            Self::Given(pool) => (pool.max_size(), Some(pool.state()), 0),
        };
        let (open, idle) = state.map_or((0, 0), |state| (state.connections, state.idle_connections));
        PoolGauges { size, open, idle, waiting }
    }
}

/// Returns the error for a pool whose connections are all in use. Returns `None` if it could not open one.
fn exhausted<M: r2d2::ManageConnection>(pool: &r2d2::Pool<M>) -> Option<Error> {
    let is_full = pool.state().connections >= pool.max_size();
    is_full.then(|| Error::PoolExhausted { size: pool.max_size(), waited: pool.connection_timeout() })
}

/// Opens connections, and checks whether an idle one is still alive.
#[derive(Debug)]
pub(crate) struct Manager {
    conninfo: ConnInfo,
    prepare: bool,
    timers: CallTimers,
    /// When a check was last not answered. The connections that were idle then are not checked one after the other.
    unanswered: Mutex<Option<Instant>>,
    shutdown_guard: ShutdownGuard,
    /// Each thread that connects shares the manager, and thereby this.
    _guarded: Guarded,
}

/// A connection of the pool. Its fields are dropped in order: the guard is released after the connection has closed.
pub(crate) struct Lent {
    conn: PgConnection,
    /// When the server last answered. `None` after an error, since a broken connection may have caused it.
    answered: Option<Instant>,
    /// When it was last returned to the pool, or opened.
    idle_since: Instant,
    timer: Arc<CallTimer>,
    _guarded: Guarded,
}

/// The time after a success for which a connection is lent without a check.
///
/// The check costs a round trip. An idle connection needs it, since a restart of the server or a firewall may have
/// closed it.
const TRUSTED_FOR: Duration = Duration::from_secs(1);

/// The longest time that a check waits for its answer. It is short, because the caller can open another connection.
const CHECK_WITHIN: Duration = Duration::from_secs(2);

impl r2d2::ManageConnection for Manager {
    type Connection = Lent;
    type Error = diesel::r2d2::Error;

    fn connect(&self) -> Result<Lent, Self::Error> {
        let connected = PgConnection::establish(self.conninfo.complete());
        let mut conn = connected.map_err(diesel::r2d2::Error::ConnectionError)?;
        let timer = self.timers.add();
        conn.set_instrumentation(Counting {
            counts: Counts::default(),
            runs_singles: false,
            timer: Arc::clone(&timer),
            applications: get_default_instrumentation(),
        });
        if self.prepare {
            let is_read_committed =
                isolation::is_read_committed(&mut conn).map_err(diesel::r2d2::Error::QueryError)?;
            if let Some(counting) = conn.instrumentation().downcast_mut::<Counting>() {
                counting.runs_singles = is_read_committed;
            }
        } else {
            conn.set_prepared_statement_cache_size(CacheSize::Disabled);
        }
        let now = Instant::now();
        Ok(Lent { conn, answered: Some(now), idle_since: now, timer, _guarded: self.shutdown_guard.enter() })
    }

    fn is_valid(&self, lent: &mut Lent) -> Result<(), Self::Error> {
        if lent.answered.is_some_and(|at| at.elapsed() < TRUSTED_FOR) {
            return Ok(());
        }
        if lock(&self.unanswered).is_some_and(|at| lent.idle_since < at) {
            return Err(diesel::r2d2::Error::QueryError(DieselError::BrokenTransactionManager));
        }
        lent.timer.set_limit(Some(CHECK_WITHIN.min(self.timers.limit())));
        // A statement that diesel prepares is sent in two parts, which a pooler may give to two sessions.
        let answered = lent.conn.batch_execute("SELECT 1");
        if lent.timer.is_cut_off() {
            *lock(&self.unanswered) = Some(Instant::now());
        }
        answered.map_err(diesel::r2d2::Error::QueryError)
    }

    fn has_broken(&self, lent: &mut Lent) -> bool {
        lent.idle_since = Instant::now();
        lent.timer.is_cut_off() || lent.conn.is_broken()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The statements of a connection.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) sent: u64,
    /// Those that failed because of a conflict with another transaction.
    pub(crate) conflicts: u64,
}

/// Counts and times the statements that are sent on a connection, and forwards all events to the application's
/// instrumentation.
struct Counting {
    counts: Counts,
    /// Whether a single statement is correct outside of a transaction: the connection's default isolation level is READ
    /// COMMITTED, and statements are prepared by name. diesel sends an unnamed one in two parts, which a pooler in
    /// transaction mode would give to two sessions.
    runs_singles: bool,
    timer: Arc<CallTimer>,
    applications: Option<Box<dyn Instrumentation>>,
}

impl Instrumentation for Counting {
    fn on_connection_event(&mut self, event: InstrumentationEvent<'_>) {
        let starts = matches!(event, InstrumentationEvent::StartQuery { .. });
        if let InstrumentationEvent::FinishQuery { error, .. } = &event {
            self.timer.stop();
            self.counts.conflicts += u64::from(error.is_some_and(is_conflict));
        }
        if let Some(applications) = &mut self.applications {
            applications.on_connection_event(event);
        }
        // The time of the application's code is not the server's.
        if starts {
            self.counts.sent += 1;
            self.timer.start();
        }
    }
}

/// Returns the counts of the connection's statements.
///
/// Returns `None` for a connection that the handle's own pool did not open, or whose instrumentation was replaced.
pub(crate) fn counts(conn: &mut PgConnection) -> Option<Counts> {
    conn.instrumentation().downcast_ref::<Counting>().map(|counting| counting.counts)
}

/// Returns whether a single statement is correct outside of a transaction. Returns `None` as [`counts`] does.
pub(crate) fn runs_singles(conn: &mut PgConnection) -> Option<bool> {
    conn.instrumentation().downcast_ref::<Counting>().map(|counting| counting.runs_singles)
}

/// Runs `work` with another limit of the time that each statement on the connection may remain without an answer. See
/// [`limit_calls`].
pub(crate) fn with_call_timeout<R>(
    conn: &mut PgConnection,
    limit: Option<Duration>,
    work: impl FnOnce(&mut PgConnection) -> R,
) -> R {
    let _limited = limit_calls(conn, limit);
    work(conn)
}

/// Sets another limit of the time that each statement on the connection may remain without an answer, until the
/// result is dropped. The limit can be lowered or removed.
///
/// Has no effect on a connection that the handle's own pool did not open.
pub(crate) fn limit_calls(conn: &mut PgConnection, limit: Option<Duration>) -> Option<Limited> {
    call_timer(conn).map(|timer| {
        let before = timer.limit();
        timer.set_limit(limit.map(|limit| before.map_or(limit, |before| before.min(limit))));
        Limited { timer, before }
    })
}

/// Returns the timer of a connection that the handle's own pool opened.
pub(crate) fn call_timer(conn: &mut PgConnection) -> Option<Arc<CallTimer>> {
    conn.instrumentation().downcast_ref::<Counting>().map(|counting| Arc::clone(&counting.timer))
}

/// Restores the limit of a timer when it is dropped.
#[derive(Debug)]
pub struct Limited {
    timer: Arc<CallTimer>,
    before: Option<Duration>,
}

impl Drop for Limited {
    fn drop(&mut self) {
        self.timer.set_limit(self.before);
    }
}

/// Ignores failed attempts to connect.
///
/// By default r2d2 logs each of them with libpq's message, which may quote the connection string. The last one is
/// returned to the caller.
#[derive(Debug)]
struct Quiet;

impl r2d2::HandleError<diesel::r2d2::Error> for Quiet {
    fn handle_error(&self, _: diesel::r2d2::Error) {}
}
