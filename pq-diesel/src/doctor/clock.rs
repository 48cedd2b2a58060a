//! Compares this machine's clock with the server's.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use diesel::prelude::*;
use diesel::sql_types::BigInt;

use super::{Exam, Finding, Level};
use crate::Error;

pub(super) const CHECK: &str = "clock";

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
    fn a_difference_within_the_uncertainty_is_not_reported() {
        assert_eq!(assess(0.5, 0.0).level, Level::Ok);
        assert_eq!(assess(1.5, 0.6).level, Level::Ok);
        assert_eq!(assess(1.5, 0.4).level, Level::Warning);
        let behind = assess(-3600.0, 0.01);
        assert_eq!(behind.level, Level::Warning);
        assert!(behind.message.contains("behind"), "{}", behind.message);
    }
}
