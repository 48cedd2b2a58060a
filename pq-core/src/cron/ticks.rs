//! The ticks of a cron expression in a time zone.
//!
//! The dates and times of an expression are local. An offset from UTC that grows (clocks go forward) leaves a gap of
//! local times that do not exist, and one that shrinks (clocks go back) an overlap of those that exist twice:
//!
//! * A fixed time of day is one instant per date: the first instant after the gap, or the first of the two.
//! * An expression that follows real time ticks at every instant whose local time matches: never in a gap, twice in an
//!   overlap.

use std::str::FromStr;

use chrono::{DateTime, Days, MappedLocalTime, NaiveDateTime, TimeZone, Utc};
use chrono_tz::{GapInfo, Tz};

use super::expression::Expression;
use crate::Error;

/// The dates to search for the next tick. 29 February on a given day of the week occurs after 40 years at most.
const MAX_DAYS: usize = 41 * 366;

/// The greatest distance in days between the date of a local time and the date of its instant in UTC, across a gap.
const MAX_DATE_SHIFT: Days = Days::new(2);

/// A parsed expression and its time zone.
pub(super) struct Ticks {
    expression: Expression,
    zone: Tz,
}

/// The instant of a local time that exists twice.
#[derive(Clone, Copy)]
enum Occurrence {
    First,
    Second,
}

/// The instant of a local time.
struct Instant {
    at: DateTime<Utc>,
    /// Whether the local time does not exist. `at` is the first instant after the gap then.
    in_gap: bool,
}

impl Ticks {
    pub(super) fn new(expression: &str, zone: &str) -> Result<Self, Error> {
        let zone = Tz::from_str(zone).map_err(|_| {
            Error::InvalidSetting(format!(
                "invalid time zone {zone:?}: expected a name of the IANA database, such as Europe/Berlin or UTC"
            ))
        })?;
        Ok(Self { expression: Expression::parse(expression)?, zone })
    }

    /// Returns the first tick after an instant.
    pub(super) fn after(&self, instant: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let first = self.first_after(instant, Occurrence::First);
        if !self.expression.follows_real_time() {
            return first;
        }
        [first, self.first_after(instant, Occurrence::Second)].into_iter().flatten().min()
    }

    /// Returns the first tick after an instant, of the ticks that are the given occurrence of their local time.
    ///
    /// The instants of one occurrence ascend with the local times, so a date's times can be searched by halves.
    fn first_after(&self, instant: DateTime<Utc>, occurrence: Occurrence) -> Option<DateTime<Utc>> {
        let count = self.expression.times_per_day();
        let start = instant.date_naive().checked_sub_days(MAX_DATE_SHIFT)?;
        for date in start.iter_days().take(MAX_DAYS).filter(|date| self.expression.matches(*date)) {
            let time = |index| Some(self.instant(date.and_time(self.expression.time(index)?), occurrence));
            let (mut low, mut high) = (0, count);
            while low < high {
                let middle = low.midpoint(high);
                if time(middle)?.at <= instant { low = middle + 1 } else { high = middle }
            }
            let mut later = (low..count).filter_map(time);
            if let Some(tick) = later.find(|tick| !(tick.in_gap && self.expression.follows_real_time())) {
                return Some(tick.at);
            }
        }
        None
    }

    fn instant(&self, local: NaiveDateTime, occurrence: Occurrence) -> Instant {
        let at = match self.zone.from_local_datetime(&local) {
            MappedLocalTime::Single(at) => at,
            MappedLocalTime::Ambiguous(first, second) => match occurrence {
                Occurrence::First => first,
                Occurrence::Second => second,
            },
            MappedLocalTime::None => {
                // The zone's table begins and ends without a gap, so a gap has an end.
                let end = GapInfo::new(&local, &self.zone).and_then(|gap| gap.end);
                let at = end.map_or_else(|| local.and_utc(), |end| end.with_timezone(&Utc));
                return Instant { at, in_gap: true };
            }
        };
        Instant { at: at.with_timezone(&Utc), in_gap: false }
    }

    /// Describes the expression in English.
    pub(super) fn describe(&self) -> String {
        self.expression.describe()
    }
}

#[cfg(test)]
#[path = "ticks_tests.rs"]
mod tests;
