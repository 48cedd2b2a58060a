//! The ticks of a cron expression in a time zone.

use std::str::FromStr;

use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use croner::parser::{CronParser, Seconds, Year};

use crate::Error;

/// A parsed expression and its time zone.
pub(super) struct Ticks {
    pattern: croner::Cron,
    zone: Tz,
}

impl Ticks {
    pub(super) fn new(expression: &str, zone: &str) -> Result<Self, Error> {
        let zone = Tz::from_str(zone).map_err(|_| {
            Error::InvalidSetting(format!(
                "invalid time zone {zone:?}: expected a name of the IANA database, such as Europe/Berlin or UTC"
            ))
        })?;
        let pattern = CronParser::builder()
            .seconds(Seconds::Optional)
            .year(Year::Disallowed)
            .build()
            .parse(expression)
            .map_err(|rule| {
                let rule = rule.to_string();
                Error::InvalidSetting(format!(
                    "invalid cron expression {expression:?}: {}; an example is '0 6 * * mon-fri'",
                    rule.trim_end_matches('.')
                ))
            })?;
        Ok(Self { pattern, zone })
    }

    /// Returns the first tick after an instant.
    pub(super) fn after(&self, instant: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let local = instant.with_timezone(&self.zone);
        self.pattern.find_next_occurrence(&local, false).ok().map(|next| next.with_timezone(&Utc))
    }

    /// Describes the expression in English.
    pub(super) fn describe(&self) -> String {
        self.pattern.describe().trim_end_matches('.').to_owned()
    }
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
    fn a_time_in_the_gap_of_a_clock_change_fires_at_the_first_instant_after_it() {
        // In Berlin 02:00 is 03:00 on 29 March 2026: from UTC+1 to UTC+2.
        let days = ticks("30 2 * * *", "Europe/Berlin", "2026-03-27T12:00:00Z", 3);
        assert_eq!(days, ["28 01:30:00", "29 01:00:00", "30 00:30:00"]);
    }

    #[test]
    fn a_time_of_day_repeated_by_a_clock_change_fires_once() {
        // In Berlin 03:00 is 02:00 on 25 October 2026: from UTC+2 to UTC+1.
        let days = ticks("30 2 * * *", "Europe/Berlin", "2026-10-23T12:00:00Z", 3);
        assert_eq!(days, ["24 00:30:00", "25 00:30:00", "26 01:30:00"]);
    }

    #[test]
    fn hourly_ticks_continue_through_clock_changes() {
        let back = ticks("0 * * * *", "Europe/Berlin", "2026-10-24T23:30:00Z", 4);
        assert_eq!(back, ["25 00:00:00", "25 01:00:00", "25 02:00:00", "25 03:00:00"]);
        let forward = ticks("0 * * * *", "Europe/Berlin", "2026-03-29T00:30:00Z", 3);
        assert_eq!(forward, ["29 01:00:00", "29 02:00:00", "29 03:00:00"]);
    }

    #[test]
    fn only_five_or_six_fields_and_nicknames_are_valid() {
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
    fn a_date_that_does_not_exist_has_no_tick() {
        assert_eq!(ticks("0 0 30 2 *", "UTC", "2026-01-01T00:00:00Z", 1), [""; 0]);
    }
}
