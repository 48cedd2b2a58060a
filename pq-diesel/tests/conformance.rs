//! The conformance suite on PostgreSQL, for each way to build a handle.

#![allow(clippy::print_stdout, reason = "the reader must know which server was used")]

#[path = "common/empty_tables.rs"]
mod empty_tables;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use diesel::PgConnection;
use diesel::connection::SimpleConnection;
use diesel::r2d2::ConnectionManager;
use pq_conformance::{Fixture, Suite};
use pq_diesel::store::PgStore;
use pq_diesel::{Builder, Error, Notify, Pq};
use pq_testing::{Database, Server};

use self::empty_tables::EmptyTables;

/// The way in which a fixture builds its handles.
#[derive(Clone, Copy)]
enum Way {
    DefaultSchema,
    /// Names and defaults of the database that the library must not depend on.
    Hostile,
    Polling,
    AfterCommit,
    ApplicationsPool,
}

/// The timeouts are longer than any case waits for a lock.
const HOSTILE_DEFAULTS: [(&str, &str); 9] = [
    ("default_transaction_isolation", "serializable"),
    ("lock_timeout", "15s"),
    ("statement_timeout", "20s"),
    ("DateStyle", "SQL, DMY"),
    ("TimeZone", "America/St_Johns"),
    ("IntervalStyle", "sql_standard"),
    ("standard_conforming_strings", "off"),
    ("bytea_output", "escape"),
    ("search_path", ""),
];

/// Sets a default of the database, for later sessions.
fn set_default(conn: &mut PgConnection, setting: &str, value: &str) -> diesel::QueryResult<()> {
    conn.batch_execute(&format!(
        "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET {setting} TO %L', current_database(), '{value}'); END $$"
    ))
}

/// The topics in which something waits, or a transaction puts or takes. In the others a handle does the same however
/// it is woken and wherever its connections are from.
const WAKING: [&str; 17] = [
    "awaited_calls",
    "bulk_put",
    "concurrency",
    "cron",
    "follow_ups",
    "handlers",
    "limits_at_work",
    "put",
    "results",
    "signals",
    "sleeps",
    "stop",
    "tasks",
    "transactional_handlers",
    "transactions",
    "wait",
    "workers",
];

struct Postgres {
    database: Database,
    way: Way,
    tables: EmptyTables,
}

impl Postgres {
    fn new(server: &Server, way: Way) -> Result<Self, Box<dyn std::error::Error>> {
        let database = server.database()?;
        if matches!(way, Way::Hostile) {
            let mut conn = database.connect()?;
            for (setting, value) in HOSTILE_DEFAULTS {
                set_default(&mut conn, setting, value)?;
            }
            // Not every server has the German messages.
            let german = ["de_DE.UTF-8", "de_DE.utf8", "de_DE"];
            let is_set = german.iter().any(|name| set_default(&mut conn, "lc_messages", name).is_ok());
            println!("messages of the hostile database: {}", if is_set { "German" } else { "the server's" });
        }
        Ok(Self { database, way, tables: EmptyTables::default() })
    }

    /// Returns the settings of a handle to a table.
    fn builder(&self, number: usize) -> Builder {
        let url = self.database.url();
        let builder = Pq::builder().pool_size(4);
        match self.way {
            // A wait that misses a notification exceeds the limit of any case.
            Way::DefaultSchema => {
                builder.url(url).table(&format!("queue_{number}")).poll_interval(Duration::from_secs(120))
            }
            Way::Hostile => builder
                .url(url)
                .schema("The \"own\" schema's; 🍎 $3 {leases} -- ")
                // 63 bytes with a common prefix.
                .table(&format!("{}\"{number:04} '$names0$%s {{count}}$2", "ж".repeat(18))),
            Way::Polling => builder
                .url(url)
                .table(&format!("queue_{number}"))
                .listen(false)
                .poll_interval(Duration::from_millis(20)),
            Way::AfterCommit => {
                builder.url(url).table(&format!("queue_{number}")).notify(Notify::AfterCommit)
            }
            Way::ApplicationsPool => {
                let pool = r2d2::Pool::builder()
                    .max_size(4)
                    .min_idle(Some(0))
                    .build(ConnectionManager::<PgConnection>::new(url))
                    .expect("a pool");
                builder.pool(pool).url(url).table(&format!("queue_{number}"))
            }
        }
    }
}

impl Fixture for Postgres {
    type Store = PgStore;

    fn fresh(&self, table: usize) -> pq_core::Pq<PgStore> {
        let pq = self.builder(table).build().expect("names that are allowed");
        self.tables.prepare(&self.database, table, &pq);
        pq.as_ref().clone()
    }

    fn connect(&self, _: &pq_core::Pq<PgStore>) -> PgConnection {
        self.database.connect().expect("a connection")
    }

    fn core_error<'e>(&self, error: &'e Error) -> Option<&'e pq_core::Error> {
        match error {
            Error::Refused(refused) => Some(refused),
            _ => None,
        }
    }
}

fn main() -> ExitCode {
    let server = Server::shared().expect("a server");
    println!("PostgreSQL: {}", server.origin());
    let fixture = |way| Postgres::new(server, way).expect("a database");
    let outcome = Suite::new()
        .with("default schema", fixture(Way::DefaultSchema))
        .with("hostile", fixture(Way::Hostile))
        .with_topics("polling", fixture(Way::Polling), &WAKING)
        .with_topics("notified after the commit", fixture(Way::AfterCommit), &WAKING)
        .with_topics("application's pool", fixture(Way::ApplicationsPool), &WAKING)
        .run();
    wait_for_other_threads();
    outcome
}

/// Waits for the threads of an application's pool, which end some time after the pool. A thread that closes a
/// connection while the process exits crashes in the TLS library.
fn wait_for_other_threads() {
    let begun = Instant::now();
    let others = || std::fs::read_dir("/proc/self/task").is_ok_and(|threads| threads.count() > 1);
    while others() && begun.elapsed() < Duration::from_secs(5) {
        std::thread::sleep(Duration::from_millis(10));
    }
}
