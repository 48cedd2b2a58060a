//! Times of jobs: a delay from now, or an instant.

use std::time::Duration;

use chrono::{DateTime, Datelike, NaiveDateTime, TimeDelta, TimeZone, Utc};

/// A time that cannot be used as `schedule_at` or `expected_at`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid time {given}: {reason}")]
pub struct TimeError {
    given: String,
    reason: String,
}

impl TimeError {
    fn new(given: String, reason: impl Into<String>) -> Self {
        // The beginning is enough to recognise a long text.
        Self { given: given.chars().take(60).collect(), reason: reason.into() }
    }
}

/// A time for a job: a delay or an instant.
///
/// A delay is added to the store's own clock. Therefore a process with a wrong clock still schedules correctly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum When {
    /// A delay after the put, on the store's clock. A negative delay is a time in the past.
    In(TimeDelta),
    /// An instant.
    At(DateTime<Utc>),
}

impl When {
    /// The longest delay, positive or negative: 10,000 years of 365 days.
    ///
    /// PostgreSQL and chrono can both represent the resulting times.
    pub const MAX_DELAY: TimeDelta = TimeDelta::days(3_650_000);

    /// Parses a delay, such as `90s`, `5m`, `1h30m` or `2d`, or an RFC 3339 instant with any offset.
    ///
    /// A day is 24 hours. An instant is for example `2026-11-21T08:00:00Z`.
    ///
    /// # Errors
    ///
    /// [`TimeError`] for any other text, and for a time out of range.
    pub fn parse(text: &str) -> Result<Self, TimeError> {
        if let Ok(instant) = DateTime::parse_from_rfc3339(text) {
            return Self::at(instant);
        }
        if has_unit_m(text) {
            return Err(TimeError::new(format!("{text:?}"), UNIT_M));
        }
        match humantime::parse_duration(text) {
            Ok(span) => Self::after(span).map_err(|_| out_of_range(format!("{text:?}"))),
            Err(humantime::DurationError::NumberOverflow) => Err(out_of_range(format!("{text:?}"))),
            Err(found) => Err(TimeError::new(
                format!("{text:?}"),
                format!(
                    "{found}; it must be a delay such as 90s, 5m, 1h30m or 2d, or an RFC 3339 instant such as \
                     2026-11-21T08:00:00Z"
                ),
            )),
        }
    }

    /// Returns an instant of any time zone.
    ///
    /// # Errors
    ///
    /// [`TimeError`] for an instant outside of the years 1 to 9999.
    pub fn at<Tz: TimeZone>(instant: DateTime<Tz>) -> Result<Self, TimeError> {
        let utc = instant.with_timezone(&Utc);
        if (1..=9999).contains(&utc.year()) {
            Ok(Self::At(utc))
        } else {
            Err(TimeError::new(format!("{utc:?}"), "it must be in the years 1 to 9999"))
        }
    }

    /// Returns a delay after the put.
    ///
    /// # Errors
    ///
    /// [`TimeError`] for a delay longer than [`Self::MAX_DELAY`], positive or negative.
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

/// The rule that refuses the unit `M`, which is a month and is easily written for `m`.
pub(crate) const UNIT_M: &str = "the unit M is ambiguous; write m or min for minutes, or months";

/// Returns whether a span of time has the unit `M`.
pub(crate) fn has_unit_m(text: &str) -> bool {
    text.split(|c: char| !c.is_alphabetic()).any(|unit| unit == "M")
}

fn out_of_range(given: String) -> TimeError {
    TimeError::new(given, format!("it must be at most {} days from now", When::MAX_DELAY.num_days()))
}

/// Converts into a [`When`].
///
/// Implemented for text, [`Duration`], chrono's [`TimeDelta`], [`DateTime`] of any zone and [`NaiveDateTime`] in UTC.
pub trait IntoWhen {
    /// Checks and converts the time.
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
    fn delays_are_parsed_whole() {
        assert_eq!(span("5m"), Some(300));
        assert_eq!(span("1h30m"), Some(5_400));
        assert_eq!(span("2d"), Some(172_800));
        for invalid in ["", "10s garbage", "10s!", "5", "m", "-5m", "5m-", "1h30", "infinity", "now"] {
            let error = When::parse(invalid).map_err(|e| e.to_string());
            assert!(error.is_err_and(|m| m.contains("RFC 3339")), "{invalid:?} was accepted");
        }
    }

    #[test]
    fn overflowing_delays_are_refused() {
        for span in ["99999999999999999999999d", "10000000d", "18446744073709551615s"] {
            let error = When::parse(span).map_err(|e| e.to_string());
            assert!(
                error.is_err_and(|m| m.contains("it must be at most 3650000 days")),
                "{span:?} was accepted"
            );
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
