//! Helpers of the tests.
#![allow(dead_code, unreachable_pub, reason = "no test binary uses all of these helpers")]

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use diesel::RunQueryDsl;
use diesel::connection::SimpleConnection;
use diesel::dsl::sql;
use diesel::pg::PgConnection;
use diesel::sql_types::Text;
use pq_testing::{Kind, Options, Server};
use tempfile::TempDir;

/// Creates a directory for clusters that the server's user can enter, also when the tests run as root.
pub fn parent() -> TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    fs::set_permissions(dir.path(), Permissions::from_mode(0o711)).expect("ours to open");
    dir
}

pub fn private_in(parent: &Path) -> Options {
    Options::throwaway().kind(Kind::Binaries).directory(parent)
}

pub fn start(options: &Options) -> Server {
    Server::start(options).expect("PostgreSQL's programs are installed")
}

pub fn run(conn: &mut PgConnection, statements: &str) {
    conn.batch_execute(statements).expect(statements);
}

pub fn value(conn: &mut PgConnection, expression: &str) -> String {
    diesel::select(sql::<Text>(expression)).get_result(conn).expect(expression)
}

/// Returns the names of a directory's entries.
pub fn entries(dir: &Path) -> Vec<String> {
    fs::read_dir(dir)
        .expect("a readable directory")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect()
}

/// Returns `true` if a process runs: it exists and is not a zombie.
pub fn lives(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.starts_with(" Z")))
}

/// Waits until the condition holds. Panics after `limit`.
pub fn within(limit: Duration, what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !holds() {
        assert!(Instant::now() < deadline, "not within {limit:?}: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Returns the process id of the watchdog of a process.
pub fn watchdog_of(process: u32) -> u32 {
    let is_watchdog = |pid: &u32| {
        let read = |file| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
        let parent = read("stat")
            .rsplit_once(')')
            .and_then(|(_, rest)| rest.split_whitespace().nth(1).and_then(|pid| pid.parse::<u32>().ok()));
        parent == Some(process) && read("cmdline").contains("pq-testing-watchdog")
    };
    entries(Path::new("/proc"))
        .iter()
        .filter_map(|name| name.parse().ok())
        .find(is_watchdog)
        .expect("a watchdog")
}
