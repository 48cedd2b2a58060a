//! Faults that are injected in the middle of a job.
//!
//! They are stored in the database before the jobs are put, so that they happen however fast the workers are.

use std::collections::HashMap;

use diesel::prelude::*;

use super::report::demo_fault::dsl;
use crate::failure::Failure;

/// A fault for the first worker that takes the job of a file. It happens between its result and its commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The worker process is killed.
    Kill,
    /// The worker's backend is terminated.
    TerminateBackend,
}

impl Fault {
    fn as_str(self) -> &'static str {
        match self {
            Self::Kill => "killed",
            Self::TerminateBackend => "terminated",
        }
    }
}

/// Stores faults, in the transaction that puts the jobs.
pub(super) fn insert(conn: &mut PgConnection, faults: &[(&str, Fault)]) -> Result<(), Failure> {
    let rows: Vec<_> =
        faults.iter().map(|(path, fault)| (dsl::path.eq(path), dsl::fault.eq(fault.as_str()))).collect();
    diesel::insert_into(dsl::demo_fault).values(rows).execute(conn)?;
    Ok(())
}

/// Returns the faults of the files that have any.
pub(super) fn all(conn: &mut PgConnection) -> Result<HashMap<String, Vec<Fault>>, Failure> {
    let mut all = HashMap::<String, Vec<Fault>>::new();
    for fault in [Fault::Kill, Fault::TerminateBackend] {
        let paths = dsl::demo_fault.filter(dsl::fault.eq(fault.as_str())).select(dsl::path);
        for path in paths.load::<String>(conn)? {
            all.entry(path).or_default().push(fault);
        }
    }
    Ok(all)
}

/// Claims a fault for a worker. Returns `false` if another worker has claimed it.
pub(super) fn claim(conn: &mut PgConnection, path: &str, fault: Fault, worker: i32) -> Result<bool, Failure> {
    let free = dsl::demo_fault
        .filter(dsl::path.eq(path))
        .filter(dsl::fault.eq(fault.as_str()))
        .filter(dsl::worker.is_null());
    Ok(diesel::update(free).set(dsl::worker.eq(worker)).execute(conn)? == 1)
}
