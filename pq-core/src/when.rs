//! Times as a user gives them: a delay from now, or an instant.

use std::time::Duration;

use chrono::{DateTime, Datelike, NaiveDateTime, TimeDelta, TimeZone, Utc};

/// A time that cannot be used as `schedule_at` or `expected_at`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{given} is no time for a job: {reason}")]
pub struct TimeError {
    given: String,
    reason: String,
}

impl TimeError {
    fn new(given: String, reason: impl Into<String>) -> Self {
        // Enough to recognise it by, however long it is.
        Self { given: given.chars().take(60).collect(), reason: reason.into() }
    }
}

/// A point in time, kept as it was given.
///
/// A delay travels to the store as a delay and is added to the store's own clock there, so that a
/// worker whose clock is wrong still schedules what it meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// This long after the put, on the store's clock. A negative delay is a time in the past.
    In(TimeDelta),
    /// At this instant.
    At(DateTime<Utc>),
}

impl When {
    /// The longest delay, either way: 10,000 years of 365 days. What is longer would leave the range
    /// that PostgreSQL and chrono can both hold.
    pub const MAX_DELAY: TimeDelta = TimeDelta::days(3_650_000);

    /// Reads a span (`90s`, `5m`, `1h30m`, `2d`; a day is 24 hours) or an RFC 3339 instant
    /// (`2026-11-21T08:00:00Z`, with any offset). The text is matched whole.
    ///
    /// # Errors
    ///
    /// [`TimeError`] for any other text and for what is out of range.
    pub fn parse(text: &str) -> Result<Self, TimeError> {
        if let Ok(instant) = DateTime::parse_from_rfc3339(text) {
            return Self::at(instant);
        }
        match humantime::parse_duration(text) {
            Ok(span) => Self::after(span).map_err(|_| out_of_range(format!("{text:?}"))),
            Err(humantime::DurationError::NumberOverflow) => Err(out_of_range(format!("{text:?}"))),
            Err(found) => Err(TimeError::new(
                format!("{text:?}"),
                format!(
                    "as a span, {found}; a span is like 90s, 5m, 1h30m or 2d, and an instant is RFC 3339, \
                     like 2026-11-21T08:00:00Z"
                ),
            )),
        }
    }

    /// An instant of any time zone.
    ///
    /// # Errors
    ///
    /// [`TimeError`] outside of the years 1 to 9999, and so for the "infinite" ends of
    /// chrono's range too.
    pub fn at<Tz: TimeZone>(instant: DateTime<Tz>) -> Result<Self, TimeError> {
        let utc = instant.with_timezone(&Utc);
        if (1..=9999).contains(&utc.year()) {
            Ok(Self::At(utc))
        } else {
            Err(TimeError::new(format!("{utc:?}"), "an instant lies in the years 1 to 9999"))
        }
    }

    /// A delay from the put.
    ///
    /// # Errors
    ///
    /// [`TimeError`] where it is longer than [`Self::MAX_DELAY`], either way.
    pub fn delay(delay: TimeDelta) -> Result<Self, TimeError> {
        if delay.abs() > Self::MAX_DELAY {
            return Err(out_of_range(format!("a delay of {} seconds", delay.num_seconds())));
        }
        Ok(Self::In(delay))
    }

    fn after(span: Duration) -> Result<Self, TimeError> {
        let delay = TimeDelta::from_std(span)
            .map_err(|_| out_of_range(format!("a delay of {} seconds", span.as_secs())))?;
        Self::delay(delay)
    }
}

fn out_of_range(given: String) -> TimeError {
    TimeError::new(given, format!("{} days are the longest delay", When::MAX_DELAY.num_days()))
}

/// Whatever can be given as a time: text, [`Duration`], chrono's [`TimeDelta`], [`DateTime`] of any
/// zone, [`NaiveDateTime`] (which is UTC), or a [`When`].
pub trait IntoWhen {
    /// The time, checked.
    ///
    /// # Errors
    ///
    /// [`TimeError`], as at [`When::parse`], [`When::at`] and [`When::delay`].
    fn into_when(self) -> Result<When, TimeError>;
}

impl IntoWhen for When {
    fn into_when(self) -> Result<When, TimeError> {
        match self {
            Self::In(delay) => Self::delay(delay),
            Self::At(instant) => Self::at(instant),
        }
    }
}

impl IntoWhen for &str {
    fn into_when(self) -> Result<When, TimeError> {
        When::parse(self)
    }
}

impl IntoWhen for &String {
    fn into_when(self) -> Result<When, TimeError> {
        When::parse(self)
    }
}

impl IntoWhen for Duration {
    fn into_when(self) -> Result<When, TimeError> {
        When::after(self)
    }
}

impl IntoWhen for TimeDelta {
    fn into_when(self) -> Result<When, TimeError> {
        When::delay(self)
    }
}

impl<Tz: TimeZone> IntoWhen for DateTime<Tz> {
    fn into_when(self) -> Result<When, TimeError> {
        When::at(self)
    }
}

impl IntoWhen for NaiveDateTime {
    fn into_when(self) -> Result<When, TimeError> {
        When::at(self.and_utc())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(text: &str) -> Option<i64> {
        match When::parse(text) {
            Ok(When::In(delay)) => Some(delay.num_seconds()),
            _ => None,
        }
    }

    #[test]
    fn spans_are_read_whole() {
        assert_eq!(span("5m"), Some(300));
        assert_eq!(span("1h30m"), Some(5_400));
        assert_eq!(span("2d"), Some(172_800));
        for rubbish in ["", "10s garbage", "10s!", "5", "m", "-5m", "5m-", "1h30", "infinity", "now"] {
            let error = When::parse(rubbish).map_err(|e| e.to_string());
            assert!(error.is_err_and(|m| m.contains("RFC 3339")), "{rubbish:?} was taken");
        }
    }

    #[test]
    fn what_overflows_is_refused() {
        for span in ["99999999999999999999999d", "10000000d", "18446744073709551615s"] {
            let error = When::parse(span).map_err(|e| e.to_string());
            assert!(error.is_err_and(|m| m.contains("longest delay")), "{span:?} was taken");
        }
        assert!(Duration::MAX.into_when().is_err());
        assert!(TimeDelta::MAX.into_when().is_err());
        assert!(TimeDelta::MIN.into_when().is_err());
        assert!(When::In(TimeDelta::MAX).into_when().is_err());
    }

    #[test]
    fn infinite_instants_are_refused() {
        assert!(DateTime::<Utc>::MAX_UTC.into_when().is_err());
        assert!(DateTime::<Utc>::MIN_UTC.into_when().is_err());
        assert!(NaiveDateTime::MAX.into_when().is_err());
    }

    #[test]
    fn instants_keep_their_offset_and_naive_ones_are_utc() {
        let expected = Utc.with_ymd_and_hms(2026, 11, 21, 8, 0, 0).single().map(When::At);
        assert_eq!(When::parse("2026-11-21T08:00:00Z").ok(), expected);
        assert_eq!(When::parse("2026-11-21T10:00:00+02:00").ok(), expected);
        let naive = chrono::NaiveDate::from_ymd_opt(2026, 11, 21).and_then(|d| d.and_hms_opt(8, 0, 0));
        assert_eq!(naive.and_then(|n| n.into_when().ok()), expected);
    }
}
