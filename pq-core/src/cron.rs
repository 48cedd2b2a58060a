//! Periodic jobs: when they are due, and the put of each.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, TimeDelta, Utc};
use chrono_tz::Tz;
use croner::parser::{CronParser, Seconds, Year};

use crate::{Error, NewJob, Payload, QueueName, Store, When};

/// A tick that nobody was there to fire for longer than this was missed.
const GRACE: TimeDelta = TimeDelta::minutes(1);

/// The longest name, in bytes.
const MAX_NAME_BYTES: usize = 200;

/// A periodic job: at each tick of its expression a job is put, exactly one, whoever is there to do it.
///
/// The tick stands in the job as its `expected_at`. Every worker fires what is due when it sweeps, whichever queues
/// it serves, and the put commits with the note that the tick was fired; so no tick is fired twice. While nobody
/// is there, ticks are missed: what is later than a minute is not made up for, or once for all of them, as
/// [`Cron::catch_up`] says.
///
/// The expression has five fields (minute, hour, day of the month, month, day of the week), or six with
/// seconds before them, or is a nickname such as `@hourly`. It is read in a time zone of the IANA database. When
/// clocks go forward, a time of day that does not exist fires at the first instant after the gap. When they go
/// back, a fixed time of day fires once, at the first of the two, and what is due each hour or minute goes on
/// in both.
///
/// ```
/// use pq_core::{Pq, memory::MemoryStore};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let pq = Pq::new(MemoryStore::new());
/// let bills = pq.queue::<String>("bills")?;
/// let monthly = bills.cron("bill-everybody", "0 6 1 * *", &"all".to_owned())?.time_zone("Europe/Berlin")?;
/// pq.set_cron(&monthly)?;
/// assert_eq!(pq.crons()?.len(), 1);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct Cron {
    /// What it is known by; another one of the name takes its place.
    pub name: String,
    /// When, in fields.
    pub expression: String,
    /// In which time zone.
    pub time_zone: String,
    /// Where its jobs are put.
    pub queue: QueueName,
    /// What they carry.
    pub payload: Payload,
    /// Their priority.
    pub priority: i32,
    /// Whether one job makes up for all ticks that were missed.
    pub catch_up: bool,
}

impl Cron {
    pub(crate) fn new(
        name: &str,
        expression: &str,
        queue: &QueueName,
        payload: Payload,
    ) -> Result<Self, Error> {
        let reason = if name.is_empty() {
            "it is empty".to_owned()
        } else if name.len() > MAX_NAME_BYTES {
            format!("it has {} bytes, and {MAX_NAME_BYTES} are the most", name.len())
        } else if name.contains('\0') {
            "it holds a NUL character".to_owned()
        } else {
            Ticks::new(expression, "UTC")?;
            return Ok(Self {
                name: name.to_owned(),
                expression: expression.to_owned(),
                time_zone: "UTC".to_owned(),
                queue: queue.clone(),
                payload,
                priority: 0,
                catch_up: false,
            });
        };
        let shown: String = name.chars().take(40).collect();
        Err(Error::InvalidSetting(format!("{shown:?} cannot name a periodic job: {reason}")))
    }

    /// Reads the expression in this time zone, by its name in the IANA database; in UTC unless said.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidSetting`] where there is no such zone.
    pub fn time_zone(mut self, zone: &str) -> Result<Self, Error> {
        Ticks::new(&self.expression, zone)?;
        self.time_zone = zone.to_owned();
        Ok(self)
    }

    /// The priority of its jobs; 0 unless said.
    pub fn priority(mut self, priority: i32) -> Self {
        self.priority = priority;
        self
    }

    /// Whether one job makes up for all the ticks that were missed because nobody was there; unless said there
    /// is none.
    pub fn catch_up(mut self, catch_up: bool) -> Self {
        self.catch_up = catch_up;
        self
    }

    /// The first tick after an instant; `None` where there is no more.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidSetting`] where the expression or the zone cannot be read.
    pub fn next_after(&self, instant: DateTime<Utc>) -> Result<Option<DateTime<Utc>>, Error> {
        Ok(Ticks::new(&self.expression, &self.time_zone)?.after(instant))
    }

    /// The expression in English.
    #[must_use]
    pub fn describe(&self) -> String {
        Ticks::new(&self.expression, &self.time_zone).map_or_else(
            |error| error.to_string(),
            |ticks| ticks.pattern.describe().trim_end_matches('.').to_owned(),
        )
    }
}

/// A periodic job as the store knows it.
#[derive(Clone, Debug)]
pub struct CronEntry {
    /// What was set.
    pub cron: Cron,
    /// Whether it is paused.
    pub paused: bool,
    /// The next tick; none while it is paused, or where there is no more.
    pub next_at: Option<DateTime<Utc>>,
    /// The last tick for which a job was put.
    pub last_at: Option<DateTime<Utc>>,
}

/// An expression and its zone, read.
struct Ticks {
    pattern: croner::Cron,
    zone: Tz,
}

impl Ticks {
    fn new(expression: &str, zone: &str) -> Result<Self, Error> {
        let invalid = |what: &str, why: &dyn fmt::Display| Error::InvalidSetting(format!("{what}: {why}"));
        let zone = Tz::from_str(zone).map_err(|_| {
            let what = format!("{zone:?} is no time zone");
            invalid(&what, &"a name of the IANA database is wanted, such as Europe/Berlin or UTC")
        })?;
        let pattern = CronParser::builder()
            .seconds(Seconds::Optional)
            .year(Year::Disallowed)
            .build()
            .parse(expression)
            .map_err(|why| {
                let what = format!("{expression:?} is no cron expression, such as '0 6 * * mon-fri'");
                invalid(&what, &why)
            })?;
        Ok(Self { pattern, zone })
    }

    fn after(&self, instant: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let local = instant.with_timezone(&self.zone);
        self.pattern.find_next_occurrence(&local, false).ok().map(|next| next.with_timezone(&Utc))
    }
}

/// What is due of a periodic job, and when it is due again.
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
/// Workers and [`Pq::maintain`](crate::Pq::maintain) do this for themselves. Call it to fire ticks in a transaction
/// of your own: if that is rolled back, the ticks are due again.
///
/// # Errors
///
/// What the store cannot do.
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
                    // Whoever wrote it did so past the library. It must not keep the others from firing.
                    tracing::error!(name = cron.name, %error, "a periodic job cannot be read; it is not fired");
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

    fn ticks(expression: &str, zone: &str, from: &str, count: usize) -> Vec<String> {
        let ticks = Ticks::new(expression, zone).unwrap_or_else(|error| panic!("{error}"));
        std::iter::successors(ticks.after(at(from)), |tick| ticks.after(*tick))
            .take(count)
            .map(|tick| tick.format("%d %H:%M:%S").to_string())
            .collect()
    }

    #[test]
    fn a_time_that_a_change_of_clocks_skips_fires_at_the_first_instant_after_the_gap() {
        // In Berlin 02:00 is 03:00 on 29 March 2026: from UTC+1 to UTC+2.
        let days = ticks("30 2 * * *", "Europe/Berlin", "2026-03-27T12:00:00Z", 3);
        assert_eq!(days, ["28 01:30:00", "29 01:00:00", "30 00:30:00"]);
    }

    #[test]
    fn a_time_of_day_that_a_change_of_clocks_repeats_fires_once() {
        // In Berlin 03:00 is 02:00 on 25 October 2026: from UTC+2 to UTC+1.
        let days = ticks("30 2 * * *", "Europe/Berlin", "2026-10-23T12:00:00Z", 3);
        assert_eq!(days, ["24 00:30:00", "25 00:30:00", "26 01:30:00"]);
    }

    #[test]
    fn what_is_due_each_hour_goes_on_through_changes_of_clocks() {
        let back = ticks("0 * * * *", "Europe/Berlin", "2026-10-24T23:30:00Z", 4);
        assert_eq!(back, ["25 00:00:00", "25 01:00:00", "25 02:00:00", "25 03:00:00"]);
        let forward = ticks("0 * * * *", "Europe/Berlin", "2026-03-29T00:30:00Z", 3);
        assert_eq!(forward, ["29 01:00:00", "29 02:00:00", "29 03:00:00"]);
    }

    #[test]
    fn five_fields_six_and_nicknames_are_read_and_nothing_else() {
        assert_eq!(ticks("*/20 * * * * *", "UTC", "2026-01-01T00:00:01Z", 2), ["01 00:00:20", "01 00:00:40"]);
        assert_eq!(ticks("@daily", "UTC", "2026-01-01T00:00:01Z", 1), ["02 00:00:00"]);
        for wrong in ["", "* * *", "0 0 6 * * * 2027", "61 * * * *", "often", "0 0 30 2 x"] {
            let error = Ticks::new(wrong, "UTC").err().map(|error| error.to_string()).unwrap_or_default();
            assert!(error.contains("cron expression"), "{wrong}: {error}");
        }
        let error = Ticks::new("@daily", "Mars/Olympus").err().map(|error| error.to_string());
        assert!(error.is_some_and(|error| error.contains("Mars/Olympus") && error.contains("IANA")));
    }

    #[test]
    fn a_date_that_never_comes_has_no_tick() {
        assert_eq!(ticks("0 0 30 2 *", "UTC", "2026-01-01T00:00:00Z", 1), [""; 0]);
    }

    #[test]
    fn every_tick_of_the_last_minute_fires_and_missed_ones_at_most_once() {
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
