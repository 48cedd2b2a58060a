//! How far this machine's clock is from the server's.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use diesel::prelude::*;
use diesel::sql_types::BigInt;

use super::{Exam, Finding, Level};
use crate::Error;

pub(super) const CHECK: &str = "clock";

/// The quickest of so many round trips is the most exact.
const ROUNDS: usize = 5;

/// A difference of less than this is of no interest, in seconds.
const CLOSE: f64 = 1.0;

pub(super) fn examine(exam: &Exam<'_>, conn: &mut PgConnection) -> Result<Vec<Finding>, Error> {
    let Some(now) = exam.how.clock else {
        return Ok(Vec::new());
    };
    let mut best: Option<(f64, f64)> = None;
    for _ in 0..ROUNDS {
        let begun = Instant::now();
        let here = seconds(now());
        let there: i64 =
            diesel::dsl::sql::<BigInt>("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint")
                .get_result(conn)?;
        let trip = begun.elapsed().as_secs_f64();
        // The server looked about half way.
        let ahead = here + trip / 2.0 - there as f64 / 1e6;
        if best.is_none_or(|(_, quickest)| trip < quickest) {
            best = Some((ahead, trip));
        }
    }
    Ok(best.map(|(ahead, trip)| judge(ahead, trip / 2.0)).into_iter().collect())
}

fn seconds(time: SystemTime) -> f64 {
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => since.as_secs_f64(),
        Err(before) => -before.duration().as_secs_f64(),
    }
}

/// `ahead` is how far this machine's clock is before the server's, give or take `doubt`, in seconds.
fn judge(ahead: f64, doubt: f64) -> Finding {
    let milliseconds = |seconds: f64| format!("{:.0} ms", seconds * 1000.0);
    let side = if ahead < 0.0 { "behind" } else { "ahead of" };
    let what = format!(
        "this machine's clock is {} {side} the server's (± {})",
        milliseconds(ahead.abs()),
        milliseconds(doubt)
    );
    let level = if ahead.abs() - doubt > CLOSE { Level::Warning } else { Level::Ok };
    Finding::new(CHECK, level, what).advise_if_bad(
        "only the database's clock decides what is due, so no job is early or late by this; but instants that are \
         computed here, and the times of logs, are: let NTP set both clocks",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_half_a_round_trip_may_explain_is_no_difference() {
        assert_eq!(judge(0.5, 0.0).level, Level::Ok);
        assert_eq!(judge(1.5, 0.6).level, Level::Ok);
        assert_eq!(judge(1.5, 0.4).level, Level::Warning);
        let behind = judge(-3600.0, 0.01);
        assert_eq!(behind.level, Level::Warning);
        assert!(behind.what.contains("behind"), "{}", behind.what);
    }
}
