//! Compares this machine's clock with the server's, and looks for signs that the server's clock has jumped.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use diesel::prelude::*;
use diesel::sql_types::{BigInt, Double};

use super::{Exam, Finding, Level, span};
use crate::Error;

pub(super) const CHECK: &str = "clock";
pub(super) const JUMPS: &str = "server clock";

/// How far stored times may lie in the future, in seconds. A commit is not instantaneous.
const MAX_FUTURE: f64 = 5.0;

/// The number of round trips. The fastest gives the most exact result.
const ROUNDS: usize = 5;

/// The largest difference that is not reported, in seconds.
const TOLERANCE: f64 = 1.0;

pub(super) fn examine(exam: &Exam<'_>, conn: &mut PgConnection) -> Result<Vec<Finding>, Error> {
    let Some(now) = exam.how.clock else {
        return Ok(Vec::new());
    };
    let mut best: Option<(f64, f64)> = None;
    for _ in 0..ROUNDS {
        let started = Instant::now();
        let here = seconds(now());
        let there: i64 =
            diesel::dsl::sql::<BigInt>("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint")
                .get_result(conn)?;
        let trip = started.elapsed().as_secs_f64();
        // The server read its clock about halfway through.
        let ahead = here + trip / 2.0 - there as f64 / 1e6;
        if best.is_none_or(|(_, fastest)| trip < fastest) {
            best = Some((ahead, trip));
        }
    }
    Ok(best.map(|(ahead, trip)| assess(ahead, trip / 2.0)).into_iter().collect())
}

/// Returns how far the latest of the times that the server's clock has given lies in the future, in seconds.
///
/// The jobs with the highest ids are the newest. The formatted names are the tables of jobs and of workers.
fn future_sql(jobs: &str, workers: &str) -> String {
    format!(
        "SELECT extract(epoch FROM greatest(
            pg_postmaster_start_time(),
            (SELECT max(backend_start) FROM pg_stat_activity),
            (SELECT max(enqueued_at) FROM (SELECT enqueued_at FROM {jobs} ORDER BY id DESC LIMIT 100) AS newest),
            (SELECT max(heartbeat_at) FROM {workers})
        ) - clock_timestamp())::float8"
    )
}

pub(super) fn examine_jumps(exam: &Exam<'_>, conn: &mut PgConnection) -> Result<Vec<Finding>, Error> {
    let table = &exam.store.table;
    let future = diesel::dsl::sql::<Double>(&future_sql(&table.jobs(), &table.derived("workers")));
    Ok(vec![assess_future(future.get_result(conn)?)])
}

/// Returns the finding for times that lie this many seconds in the future.
fn assess_future(seconds: f64) -> Finding {
    if seconds <= MAX_FUTURE {
        return Finding::ok(JUMPS, "no stored time lies in the future");
    }
    let message =
        format!("times of the server's clock lie {} in the future, so it was set back", span(seconds));
    Finding::new(JUMPS, Level::Failure, message).advise(
        "keep the clock by NTP, which slews it; until the clock has caught up, leases last longer, and jobs that were \
         scheduled by a delay are late",
    )
}

fn seconds(time: SystemTime) -> f64 {
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => since.as_secs_f64(),
        Err(before) => -before.duration().as_secs_f64(),
    }
}

/// Returns the finding for a clock that is `ahead` of the server's, give or take `uncertainty`, in seconds.
fn assess(ahead: f64, uncertainty: f64) -> Finding {
    let milliseconds = |seconds: f64| format!("{:.0} ms", seconds * 1000.0);
    let side = if ahead < 0.0 { "behind" } else { "ahead of" };
    let message = format!(
        "this machine's clock is {} {side} the server's (± {})",
        milliseconds(ahead.abs()),
        milliseconds(uncertainty)
    );
    let level = if ahead.abs() - uncertainty > TOLERANCE { Level::Warning } else { Level::Ok };
    Finding::new(CHECK, level, message).advise_if_bad(
        "only the database's clock decides when a job is due, but times that this machine computes or logs are wrong; \
         synchronize both clocks by NTP",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_in_the_future_are_a_failure() {
        assert_eq!(assess_future(-3.0).level, Level::Ok);
        assert_eq!(assess_future(4.9).level, Level::Ok);
        assert!(assess_future(3_600.0).message.contains("lie 1h in the future"));
    }

    #[test]
    fn a_difference_within_the_uncertainty_is_not_reported() {
        assert_eq!(assess(0.5, 0.0).level, Level::Ok);
        assert_eq!(assess(1.5, 0.6).level, Level::Ok);
        assert_eq!(assess(1.5, 0.4).level, Level::Warning);
        let behind = assess(-3600.0, 0.01);
        assert_eq!(behind.level, Level::Warning);
        assert!(behind.message.contains("behind"), "{}", behind.message);
    }
}
