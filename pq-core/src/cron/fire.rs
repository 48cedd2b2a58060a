//! Firing: puts a job for each tick that is due.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use super::CronEntry;
use super::ticks::Ticks;
use crate::{Cron, NewJob, Pq, Store, StoreError, When};

/// The maximum delay of a tick. A tick that has not fired by then is missed.
const GRACE: TimeDelta = TimeDelta::minutes(1);

/// The pause before an entry that could not be fired is tried again. It doubles with each failure, up to the maximum.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_secs(30);

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
/// Each entry is fired in a transaction of its own, or in a savepoint if a transaction is open. If its job cannot be
/// put, the error is stored and logged, the entry is tried again after a pause, and the other entries are fired.
///
/// The handle counts the jobs as its own puts ([`Pq::store_put_counts`]).
///
/// # Errors
///
/// The store's error if the entries cannot be read, or if the store is unavailable.
pub fn fire_due_crons<S: Store>(pq: &Pq<S>, conn: &mut S::Conn) -> Result<u64, S::Error> {
    let store = pq.store();
    let mut fired = 0;
    let mut last: Option<CronEntry> = None;
    loop {
        let after = last.take().map(|entry| entry.cron.name);
        let done = store.transaction(conn, |conn| {
            let Some(entry) = store.due_cron(conn, after.as_deref())? else { return Ok(0) };
            fire(store, conn, last.insert(entry))
        });
        let Some(entry) = &last else { return done.map(|_: u64| fired) };
        match done {
            Ok(count) => {
                let Cron { queue, payload, .. } = &entry.cron;
                pq.count_jobs(queue, payload.task().map(Arc::from), count);
                fired += count;
            }
            Err(error) if error.is_unavailable() => return Err(error),
            Err(error) => fail(store, conn, entry, &error.to_string())?,
        }
    }
}

/// Fires an entry that is due.
fn fire<S: Store>(store: &S, conn: &mut S::Conn, entry: &CronEntry) -> Result<u64, S::Error> {
    let CronEntry { cron, last_at, .. } = entry;
    let Some(next_at) = entry.next_at else { return Ok(0) };
    let ticks = Ticks::new(&cron.expression, &cron.time_zone)?;
    let due = due(&ticks, cron.catch_up, next_at, store.now(conn)?);
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
    store.advance_cron(conn, &cron.name, due.fire.last().copied().or(*last_at), due.next)?;
    Ok(jobs.len() as u64)
}

/// Stores and logs that an entry could not be fired.
fn fail<S: Store>(store: &S, conn: &mut S::Conn, entry: &CronEntry, error: &str) -> Result<(), S::Error> {
    let Some(tick) = entry.next_at else { return Ok(()) };
    let pause = MAX_PAUSE.min(FIRST_PAUSE.saturating_mul(2_u32.saturating_pow(entry.failures)));
    tracing::error!(name = entry.cron.name, queue = %entry.cron.queue, error, ?pause, "periodic job not put");
    store.fail_cron(conn, &entry.cron.name, tick, error, pause)
}

/// Replaces each next tick by the one that follows from the store's clock now, if that is earlier.
///
/// A clock that was ahead for a moment leaves entries whose next tick is far in the future. A tick that has fired is
/// not fired again, unless the clock was ahead by more than a minute when it fired.
///
/// # Errors
///
/// The store's error.
pub(crate) fn bring_crons_forward<S: Store>(store: &S, conn: &mut S::Conn) -> Result<(), S::Error> {
    let entries = store.crons(conn)?;
    let now = store.now(conn)?;
    for CronEntry { cron, next_at, last_at, .. } in entries {
        let Some(stored) = next_at.filter(|next| *next > now) else { continue };
        let Ok(ticks) = Ticks::new(&cron.expression, &cron.time_zone) else { continue };
        let fired = last_at.filter(|last| *last <= now + GRACE);
        let next = ticks.after(fired.map_or(now, |last| last.max(now)));
        let Some(earlier) = next.filter(|next| *next < stored) else { continue };
        if store.bring_cron_forward(conn, &cron.name, stored, earlier)? {
            tracing::warn!(name = cron.name, from = %stored, to = %earlier, "next tick of a periodic job corrected");
        }
    }
    Ok(())
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
