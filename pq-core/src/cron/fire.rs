//! Firing: puts a job for each tick that is due.

use chrono::{DateTime, TimeDelta, Utc};

use super::CronEntry;
use super::ticks::Ticks;
use crate::{NewJob, Store, When};

/// The maximum delay of a tick. A tick that has not fired by then is missed.
const GRACE: TimeDelta = TimeDelta::minutes(1);

/// The ticks of an entry that fire now, and the next tick.
#[derive(Debug, PartialEq, Eq)]
struct Due {
    fire: Vec<DateTime<Utc>>,
    next: Option<DateTime<Utc>>,
}

fn due(ticks: &Ticks, catch_up: bool, next_at: DateTime<Utc>, now: DateTime<Utc>) -> Due {
    let mut fire = Vec::new();
    let mut next = Some(next_at);
    if next_at < now - GRACE {
        if catch_up {
            fire.push(next_at);
        }
        next = ticks.after(now - GRACE);
    }
    while let Some(tick) = next.filter(|tick| *tick <= now) {
        fire.push(tick);
        next = ticks.after(tick);
    }
    Due { fire, next }
}

/// Puts a job for each tick that is due, and returns the number of jobs.
///
/// Workers and [`Pq::maintain`](crate::Pq::maintain) call this. Call it yourself to fire ticks in a transaction of
/// your own. If that rolls back, the ticks are due again.
///
/// # Errors
///
/// The store's error.
pub fn fire_due_crons<S: Store>(store: &S, conn: &mut S::Conn) -> Result<u64, S::Error> {
    store.transaction(conn, |conn| {
        let mut fired = 0;
        let entries = store.due_crons(conn)?;
        let Some(now) = (!entries.is_empty()).then(|| store.now(conn)).transpose()? else { return Ok(0) };
        for CronEntry { cron, next_at, last_at, .. } in entries {
            let Some(next_at) = next_at else { continue };
            let ticks = match Ticks::new(&cron.expression, &cron.time_zone) {
                Ok(ticks) => ticks,
                Err(error) => {
                    // The entry was written without this library. If it failed the transaction, no other entry
                    // would fire, so it is disabled instead.
                    tracing::error!(name = cron.name, %error, "cron entry disabled: it is invalid");
                    store.advance_cron(conn, &cron.name, last_at, None)?;
                    continue;
                }
            };
            let due = due(&ticks, cron.catch_up, next_at, now);
            let jobs: Vec<NewJob> = due
                .fire
                .iter()
                .map(|tick| NewJob {
                    priority: cron.priority,
                    expected_at: Some(When::At(*tick)),
                    ..NewJob::new(cron.payload.clone())
                })
                .collect();
            if !jobs.is_empty() {
                store.put(conn, &cron.queue, &jobs)?;
            }
            fired += jobs.len() as u64;
            store.advance_cron(conn, &cron.name, due.fire.last().copied().or(last_at), due.next)?;
        }
        Ok(fired)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> DateTime<Utc> {
        DateTime::parse_from_rfc3339(text).map(|at| at.with_timezone(&Utc)).unwrap_or_default()
    }

    #[test]
    fn ticks_of_the_last_minute_fire_and_missed_ticks_at_most_once() {
        let each_second = Ticks::new("* * * * * *", "UTC").unwrap_or_else(|error| panic!("{error}"));
        let now = at("2026-01-01T12:00:00.5Z");
        let some = due(&each_second, false, at("2026-01-01T11:59:58Z"), now);
        assert_eq!((some.fire.len(), some.next), (3, Some(at("2026-01-01T12:00:01Z"))));
        let hourly = Ticks::new("0 * * * *", "UTC").unwrap_or_else(|error| panic!("{error}"));
        let long_ago = at("2026-01-01T03:00:00Z");
        assert_eq!(due(&hourly, false, long_ago, now).fire, [at("2026-01-01T12:00:00Z")]);
        assert_eq!(due(&hourly, true, long_ago, now).fire, [long_ago, at("2026-01-01T12:00:00Z")]);
        let now = at("2026-01-01T12:30:00Z");
        assert!(due(&hourly, false, long_ago, now).fire.is_empty());
        assert_eq!(
            due(&hourly, true, long_ago, now),
            Due { fire: vec![long_ago], next: Some(at("2026-01-01T13:00:00Z")) }
        );
    }
}
