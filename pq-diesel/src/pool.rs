//! The connections of a handle's own.

use std::time::{Duration, Instant};

use diesel::connection::{CacheSize, Instrumentation, InstrumentationEvent, get_default_instrumentation};
use diesel::r2d2::{ConnectionManager, R2D2Connection};
use diesel::{Connection, PgConnection};

use crate::Error;
use crate::conninfo::ConnInfo;
use crate::shutdown_guard::{Guarded, ShutdownGuard};

/// Where a handle's own connections come from.
pub(crate) enum Pool {
    /// One that the handle made.
    Own(Own),
    /// One that the application has.
    Given(r2d2::Pool<ConnectionManager<PgConnection>>),
}

pub(crate) struct Own {
    /// There until it is dropped.
    pool: Option<r2d2::Pool<Manager>>,
    conninfo: ConnInfo,
    /// Threads of r2d2 that connect, and connections.
    shutdown_guard: ShutdownGuard,
}

impl Drop for Own {
    fn drop(&mut self) {
        drop(self.pool.take());
        self.shutdown_guard.wait();
    }
}

impl Pool {
    /// A pool of up to `size` connections, none of which is opened yet.
    pub(crate) fn new(conninfo: ConnInfo, size: u32, timeout: Duration, prepare: bool) -> Self {
        let shutdown_guard = ShutdownGuard::default();
        let manager = Manager {
            conninfo: conninfo.clone(),
            prepare,
            _guarded: shutdown_guard.enter(),
            shutdown_guard: shutdown_guard.clone(),
        };
        let pool = r2d2::Pool::builder()
            .max_size(size)
            .min_idle(Some(0))
            .connection_timeout(timeout)
            .error_handler(Box::new(Quiet))
            .build_unchecked(manager);
        Self::Own(Own { pool: Some(pool), conninfo, shutdown_guard })
    }

    /// Lends a connection. One that comes back inside a transaction, or broken, is closed.
    pub(crate) fn with<R, E: From<Error>>(
        &self,
        work: impl FnOnce(&mut PgConnection) -> Result<R, E>,
    ) -> Result<R, E> {
        match self {
            Self::Own(Own { pool, conninfo, .. }) => {
                let pool = pool.as_ref().ok_or(pq_core::Error::NoConnection).map_err(Error::from)?;
                let mut lent = pool.get().map_err(|found| Error::Unreachable {
                    server: conninfo.server(),
                    reason: conninfo.redact(&found.to_string()),
                })?;
                lent.answered = None;
                let done = work(&mut lent.conn);
                lent.answered = done.is_ok().then(Instant::now);
                done
            }
            Self::Given(pool) => {
                let mut lent = pool.get().map_err(|_| {
                    // r2d2's text repeats what libpq said, which may hold what the pool was made with.
                    Error::Unavailable("the application's pool has no connection to give".to_owned())
                })?;
                work(&mut lent)
            }
        }
    }
}

/// Opens connections, and asks one that has been idle whether it still lives.
#[derive(Debug)]
pub(crate) struct Manager {
    conninfo: ConnInfo,
    prepare: bool,
    shutdown_guard: ShutdownGuard,
    /// Whoever connects has a share in the manager.
    _guarded: Guarded,
}

/// A connection of the pool. It is closed before it counts as gone.
pub(crate) struct Lent {
    conn: PgConnection,
    /// When it was last known to live: none after work that failed, which may have been for want of it.
    answered: Option<Instant>,
    _guarded: Guarded,
}

/// A connection that was used within this time, and well, is lent without asking the server first, which
/// would cost each call a round trip. Another may have died of a restart or of a firewall.
const TRUSTED_FOR: Duration = Duration::from_secs(1);

impl r2d2::ManageConnection for Manager {
    type Connection = Lent;
    type Error = diesel::r2d2::Error;

    fn connect(&self) -> Result<Lent, Self::Error> {
        let connected = PgConnection::establish(self.conninfo.as_str());
        let mut conn = connected.map_err(diesel::r2d2::Error::ConnectionError)?;
        conn.set_instrumentation(Counting { sent: 0, applications: get_default_instrumentation() });
        if !self.prepare {
            conn.set_prepared_statement_cache_size(CacheSize::Disabled);
        }
        Ok(Lent { conn, answered: Some(Instant::now()), _guarded: self.shutdown_guard.enter() })
    }

    fn is_valid(&self, lent: &mut Lent) -> Result<(), Self::Error> {
        if lent.answered.is_some_and(|at| at.elapsed() < TRUSTED_FOR) {
            return Ok(());
        }
        lent.conn.ping().map_err(diesel::r2d2::Error::QueryError)
    }

    fn has_broken(&self, lent: &mut Lent) -> bool {
        lent.conn.is_broken()
    }
}

/// Counts what is sent on a connection of a pool that the handle made, and passes everything on to the
/// instrumentation that the application has set for its connections.
struct Counting {
    sent: u64,
    applications: Option<Box<dyn Instrumentation>>,
}

impl Instrumentation for Counting {
    fn on_connection_event(&mut self, event: InstrumentationEvent<'_>) {
        if matches!(event, InstrumentationEvent::StartQuery { .. }) {
            self.sent += 1;
        }
        if let Some(applications) = &mut self.applications {
            applications.on_connection_event(event);
        }
    }
}

/// How many statements were sent on the connection; `None` where it is not one that counts them, or where
/// somebody has given it another instrumentation.
pub(crate) fn statements_sent(conn: &mut PgConnection) -> Option<u64> {
    conn.instrumentation().downcast_ref::<Counting>().map(|counting| counting.sent)
}

/// r2d2 logs each failed attempt as an error, password and all; the one that counts is returned.
#[derive(Debug)]
struct Quiet;

impl r2d2::HandleError<diesel::r2d2::Error> for Quiet {
    fn handle_error(&self, _: diesel::r2d2::Error) {}
}
