//! What is to happen in the middle of which job, so that it does happen however fast the workers are.

use std::collections::HashMap;

use diesel::prelude::*;

use super::report::demo_fate::dsl;
use crate::failure::Failure;

/// What happens to the first process that comes so far with a file: after it has written the result, and
/// before it commits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It is killed.
    Killed,
    /// Its backend is terminated.
    Terminated,
}

impl Fate {
    fn as_str(self) -> &'static str {
        match self {
            Self::Killed => "killed",
            Self::Terminated => "terminated",
        }
    }
}

/// Notes fates, in the transaction that puts the jobs.
pub(super) fn note(conn: &mut PgConnection, fates: &[(&str, Fate)]) -> Result<(), Failure> {
    let rows: Vec<_> =
        fates.iter().map(|(path, fate)| (dsl::path.eq(path), dsl::fate.eq(fate.as_str()))).collect();
    diesel::insert_into(dsl::demo_fate).values(rows).execute(conn)?;
    Ok(())
}

/// The fates of the files that have any.
pub(super) fn all(conn: &mut PgConnection) -> Result<HashMap<String, Vec<Fate>>, Failure> {
    let mut all = HashMap::<String, Vec<Fate>>::new();
    for fate in [Fate::Killed, Fate::Terminated] {
        let paths = dsl::demo_fate.filter(dsl::fate.eq(fate.as_str())).select(dsl::path);
        for path in paths.load::<String>(conn)? {
            all.entry(path).or_default().push(fate);
        }
    }
    Ok(all)
}

/// Whether this worker is the first that meets the fate.
pub(super) fn meet(conn: &mut PgConnection, path: &str, fate: Fate, worker: i32) -> Result<bool, Failure> {
    let free = dsl::demo_fate
        .filter(dsl::path.eq(path))
        .filter(dsl::fate.eq(fate.as_str()))
        .filter(dsl::worker.is_null());
    Ok(diesel::update(free).set(dsl::worker.eq(worker)).execute(conn)? == 1)
}
