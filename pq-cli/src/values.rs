//! Parsers of option values.

use std::num::NonZeroUsize;
use std::str::FromStr;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use pq_diesel::{JobState, When};
use serde_json::{Map, Value};

/// The largest number of threads or processes of a worker.
const MAX_PARALLEL: usize = 1_000;

/// Parses a duration such as `90s`, `5m` or `1h30m`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    const RULE: &str = "expected a duration such as 90s, 5m or 1h30m";
    match When::parse(text) {
        Ok(When::In(duration)) => duration.to_std().map_err(|_| RULE.to_owned()),
        Ok(When::At(_)) => Err(RULE.to_owned()),
        Err(error) if text.contains('M') => Err(error.to_string()),
        Err(_) => Err(RULE.to_owned()),
    }
}

/// Parses a duration that is not 0.
pub(crate) fn positive_duration(text: &str) -> Result<Duration, String> {
    duration(text).and_then(|duration| match duration {
        Duration::ZERO => Err("it must be longer than 0 s".to_owned()),
        duration => Ok(duration),
    })
}

/// Parses a number of threads or processes.
pub(crate) fn parallel(text: &str) -> Result<NonZeroUsize, String> {
    let number = text.parse().ok().filter(|number: &NonZeroUsize| number.get() <= MAX_PARALLEL);
    number.ok_or_else(|| format!("expected a whole number from 1 to {MAX_PARALLEL}"))
}

/// Parses a whole number of a type that has no 0.
pub(crate) fn positive<T: FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| "expected a whole number of at least 1".to_owned())
}

/// Parses a whole number that is at least 0.
pub(crate) fn whole(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| format!("expected a whole number from 0 to {}", u32::MAX))
}

/// Parses a whole number from 1 to `most`.
pub(crate) fn whole_in(text: &str, most: u32) -> Result<u32, String> {
    let number = text.parse().ok().filter(|number| (1..=most).contains(number));
    number.ok_or_else(|| format!("expected a whole number from 1 to {most}"))
}

/// The members of a JSON object.
pub(crate) type Members = Map<String, Value>;

/// Parses a JSON object.
pub(crate) fn json_object(text: &str) -> Result<Members, String> {
    serde_json::from_str(text).map_err(|_| "expected a JSON object".to_owned())
}

/// Parses the name of a job's state.
pub(crate) fn state() -> impl TypedValueParser<Value = JobState> {
    PossibleValuesParser::new(JobState::ALL.map(JobState::as_str)).try_map(|name| name.parse::<JobState>())
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    #[test]
    fn durations_are_checked() {
        assert_eq!(duration("1h30m"), Ok(Duration::from_secs(5_400)));
        assert_eq!(duration("0s"), Ok(Duration::ZERO));
        assert!(duration("5M").is_err_and(|rule| rule.contains("ambiguous")));
        for wrong in ["5", "-5m", "2026-11-21T08:00:00Z", "soon"] {
            assert!(duration(wrong).is_err_and(|rule| rule.contains("such as 90s")), "{wrong}");
        }
        assert!(positive_duration("0s").is_err() && positive_duration("1ms").is_ok());
    }

    #[test]
    fn numbers_are_checked() {
        assert!(parallel("1").is_ok() && parallel("1000").is_ok());
        for wrong in ["0", "1001", "100000", "-1", "many", "1.5"] {
            assert!(parallel(wrong).is_err_and(|rule| rule.contains("from 1 to 1000")), "{wrong}");
        }
        assert!(positive::<NonZeroU32>("0").is_err() && positive::<NonZeroU32>("4294967296").is_err());
        assert!(positive::<NonZeroU32>("3").is_ok_and(|number| number.get() == 3));
    }
}
