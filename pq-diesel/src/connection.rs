//! The connections on which the store's statements run: diesel's blocking one, and asynchronous ones.
//!
//! What a store does with a connection is written once, as asynchronous functions. On a blocking connection each
//! statement has its answer before the function continues, so [`blocking`] finds the function's result at the first
//! poll.

use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use chrono::{DateTime, Utc};
use diesel::connection::{AnsiTransactionManager, DefaultLoadingMode, SimpleConnection, TransactionManager};
use diesel::pg::PgConnection;
use diesel::query_dsl::methods::LoadQuery;
use diesel::result::{DatabaseErrorInformation, Error as DieselError};
use diesel::sql_types::{Array, BigInt, Bool, Nullable, Text, Timestamptz};
use diesel::{QueryResult, RunQueryDsl};
use pq_core::{Isolation, QueueName, Taken};

use crate::isolation::{begin, depth, is_in_test_transaction};
use crate::libpq;
pub use crate::pool::Limited;
use crate::pool::limit_calls;
use crate::prepared::Bound;
use crate::rows::{
    AuditRow, AuditSql, BatchRow, BatchSql, CircumstancesRow, CircumstancesSql, CountersRow, CountersSql,
    CountsRow, CountsSql, CronRow, CronSql, DatabaseRow, DatabaseSql, GaugesRow, GaugesSql, HeartbeatRow,
    HeartbeatSql, JobRow, JobSql, LeaseRow, LeaseSql, LimitUseRow, LimitUseSql, LimitedRow, LimitedSql,
    LinesRow, LinesSql, PausedRow, PausedSql, PredecessorRow, PredecessorSql, ProgressRow, ProgressSql,
    ScannedRow, ScannedSql, SentRow, SentSql, SignalRow, SignalSql, StepRow, StepSql, TakeRow, TakeSql,
    WaitRow, WaitSql, WorkerRow, WorkerSql,
};

/// Runs statements that return rows of the SQL type `Row`, and reads them as `T`.
pub trait Load<Row, T> {
    /// Runs a statement and returns its rows.
    ///
    /// Outside of a transaction the statement is one of its own, at READ COMMITTED whatever the session's default is.
    fn load<'a>(&'a mut self, statement: Bound<'a, Row>) -> Answer<'a, Vec<T>>;
}

/// A connection on which the store runs its statements. It reads all rows that they return.
///
/// Implemented for [`PgConnection`], and by the crate `pq-diesel-async`. If a future is dropped before it has ended,
/// the state of the connection is unknown, and it must not be used again.
pub trait SqlConnection:
    Send
    + Load<BigInt, i64>
    + Load<Bool, bool>
    + Load<Text, String>
    + Load<Timestamptz, DateTime<Utc>>
    + Load<Nullable<BigInt>, Option<i64>>
    + Load<Nullable<Text>, Option<String>>
    + Load<(BigInt, Text), (i64, String)>
    + Load<(BigInt, Nullable<Array<BigInt>>), (i64, Option<Vec<i64>>)>
    + Load<(Bool, Nullable<BigInt>), (bool, Option<i64>)>
    + Load<(Nullable<Array<BigInt>>, Timestamptz), (Option<Vec<i64>>, DateTime<Utc>)>
    + Load<(Bool, Bool), (bool, bool)>
    + Load<(Bool, Nullable<Text>), (bool, Option<String>)>
    + Load<CountersSql, CountersRow>
    + Load<(BigInt, BigInt), (i64, i64)>
    + Load<AuditSql, AuditRow>
    + Load<BatchSql, BatchRow>
    + Load<CircumstancesSql, CircumstancesRow>
    + Load<CountsSql, CountsRow>
    + Load<CronSql, CronRow>
    + Load<DatabaseSql, DatabaseRow>
    + Load<GaugesSql, GaugesRow>
    + Load<HeartbeatSql, HeartbeatRow>
    + Load<JobSql, JobRow>
    + Load<LeaseSql, LeaseRow>
    + Load<LimitUseSql, LimitUseRow>
    + Load<LimitedSql, LimitedRow>
    + Load<LinesSql, LinesRow>
    + Load<PausedSql, PausedRow>
    + Load<PredecessorSql, PredecessorRow>
    + Load<WaitSql, WaitRow>
    + Load<ProgressSql, ProgressRow>
    + Load<ScannedSql, ScannedRow>
    + Load<SentSql, SentRow>
    + Load<StepSql, StepRow>
    + Load<TakeSql, TakeRow>
    + Load<SignalSql, SignalRow>
    + Load<WorkerSql, WorkerRow>
{
    /// Runs a statement, as [`Load::load`] does, and returns the number of its rows.
    fn execute<'a, Row: 'static>(&'a mut self, statement: Bound<'a, Row>) -> Answer<'a, usize>;

    /// Runs the take of the fast path, and returns the jobs with this token.
    #[doc(hidden)]
    fn scan<'a>(
        &'a mut self,
        statement: Bound<'a, ScannedSql>,
        queue: &'a QueueName,
        token: i64,
    ) -> Answer<'a, Taken> {
        Answer::later(async move {
            let rows: Vec<ScannedRow> = self.load(statement).await?;
            Ok(ScannedRow::taken(queue, token, rows.into_iter().map(Ok))?)
        })
    }

    /// Runs plain SQL without parameters.
    fn run<'a>(&'a mut self, sql: &'a str) -> Answer<'a, ()>;

    /// Returns the number of nested transactions that are open.
    ///
    /// # Errors
    ///
    /// If the connection broke inside a transaction.
    fn depth(&mut self) -> Result<u32, Failed>;

    /// Returns whether the open transaction is a test's (diesel's `begin_test_transaction`), which is never committed.
    fn is_in_test_transaction(&mut self) -> bool;

    /// Begins a transaction that is nested in `around` others. A nested one has the level of the outermost.
    fn begin(&mut self, around: u32, isolation: Isolation) -> Answer<'_, ()>;

    /// Commits the innermost transaction, which is nested in `around` others.
    ///
    /// Must fail for a transaction in which a statement has failed. PostgreSQL rolls it back and reports success.
    fn commit(&mut self, around: u32) -> Answer<'_, ()>;

    /// Rolls back until `around` transactions are open.
    fn roll_back_to(&mut self, around: u32) -> Answer<'_, ()>;

    /// Lifts the limit of the time of each statement, if there is one, for a statement that may take long.
    fn without_time_limit(&mut self) -> Option<Limited>;
}

/// The future of a statement's answer. On a blocking connection it is ready.
///
/// It is a type of its own, so that the compiler sees at once that it can be sent to another thread.
#[allow(missing_debug_implementations, reason = "an answer may hold payloads")]
pub struct Answer<'a, R>(State<'a, R>);

enum State<'a, R> {
    /// `None` once it was returned.
    Ready(Option<Result<R, Failed>>),
    Later(Pin<Box<dyn Future<Output = Result<R, Failed>> + Send + 'a>>),
}

impl<'a, R> Answer<'a, R> {
    /// Returns the answer that this future will have.
    pub fn later(answer: impl Future<Output = Result<R, Failed>> + Send + 'a) -> Self {
        Self(State::Later(Box::pin(answer)))
    }
}

impl<R> Unpin for Answer<'_, R> {}

impl<R> Future for Answer<'_, R> {
    type Output = Result<R, Failed>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            State::Ready(answer) => answer.take().map_or(Poll::Pending, Poll::Ready),
            State::Later(answer) => answer.as_mut().poll(context),
        }
    }
}

/// The error of a statement.
#[derive(Debug)]
pub struct Failed {
    /// The error's SQLSTATE, if the server reported one.
    pub sqlstate: Option<String>,
    /// diesel's error.
    pub source: DieselError,
}

impl Failed {
    /// Returns the error of a statement on a [`PgConnection`].
    pub(crate) fn on_blocking(source: DieselError) -> Self {
        Self::new(source, libpq::sqlstate)
    }

    /// Returns the error, with the SQLSTATE that `sqlstate` reads from the server's answer.
    pub fn new(
        source: DieselError,
        sqlstate: impl FnOnce(&(dyn DatabaseErrorInformation + Send + Sync)) -> Option<String>,
    ) -> Self {
        let sqlstate = match &source {
            DieselError::DatabaseError(_, info) => sqlstate(&**info),
            _ => None,
        };
        Self { sqlstate, source }
    }
}

/// For errors that are not the server's, such as a row that cannot be read.
impl From<DieselError> for Failed {
    fn from(source: DieselError) -> Self {
        Self { sqlstate: None, source }
    }
}

/// Returns the result of a function that runs on a blocking connection.
pub(crate) fn blocking<R>(run: impl Future<Output = R>) -> R {
    match pin!(run).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(result) => result,
        Poll::Pending => unreachable!("a blocking connection has the answer to each statement at once"),
    }
}

/// Returns the answer of a blocking connection.
fn ready<'a, R>(result: QueryResult<R>) -> Answer<'a, R> {
    Answer(State::Ready(Some(result.map_err(Failed::on_blocking))))
}

impl<Row, T: Send> Load<Row, T> for PgConnection
where
    for<'q> Bound<'q, Row>: LoadQuery<'q, Self, T>,
{
    fn load<'a>(&'a mut self, statement: Bound<'a, Row>) -> Answer<'a, Vec<T>> {
        ready(statement.run(self, |statement, conn| RunQueryDsl::load(statement, conn)))
    }
}

impl SqlConnection for PgConnection {
    fn execute<'a, Row: 'static>(&'a mut self, statement: Bound<'a, Row>) -> Answer<'a, usize> {
        ready(statement.run(self, RunQueryDsl::execute))
    }

    /// Reads the rows one by one from the result, because a list of wide rows in between is most of the work.
    fn scan<'a>(
        &'a mut self,
        statement: Bound<'a, ScannedSql>,
        queue: &'a QueueName,
        token: i64,
    ) -> Answer<'a, Taken> {
        ready(statement.run(self, |rows, conn| {
            rows.load_iter::<ScannedRow, DefaultLoadingMode>(conn)
                .and_then(|rows| ScannedRow::taken(queue, token, rows))
        }))
    }

    fn run<'a>(&'a mut self, sql: &'a str) -> Answer<'a, ()> {
        ready(self.batch_execute(sql))
    }

    fn depth(&mut self) -> Result<u32, Failed> {
        depth(self).map_err(Failed::on_blocking)
    }

    fn is_in_test_transaction(&mut self) -> bool {
        is_in_test_transaction(self)
    }

    fn begin(&mut self, around: u32, isolation: Isolation) -> Answer<'_, ()> {
        ready(begin(self, around, isolation))
    }

    /// The empty SELECT in the same round trip fails in a transaction in which a statement has failed. diesel learns
    /// from the connection's state that the transaction has ended.
    fn commit(&mut self, around: u32) -> Answer<'_, ()> {
        ready(match around {
            0 => self.batch_execute("SELECT; COMMIT"),
            _ => AnsiTransactionManager::commit_transaction(self),
        })
    }

    fn roll_back_to(&mut self, around: u32) -> Answer<'_, ()> {
        let mut roll_back = || -> QueryResult<()> {
            while depth(self)? > around {
                AnsiTransactionManager::rollback_transaction(self)?;
            }
            Ok(())
        };
        ready(roll_back())
    }

    fn without_time_limit(&mut self) -> Option<Limited> {
        limit_calls(self, None)
    }
}
