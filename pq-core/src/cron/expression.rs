//! Cron expressions: checks them, and decides which dates and times of day they name.

use chrono::{Datelike, NaiveDate, NaiveTime};
use croner::parser::{CronParser, Seconds, Year};
use croner::{CronComponent, CronPattern, Weekday};

use crate::Error;

/// The nicknames of expressions.
const NICKNAMES: [(&str, &str); 8] = [
    ("@yearly", "0 0 1 1 *"),
    ("@annually", "0 0 1 1 *"),
    ("@monthly", "0 0 1 * *"),
    ("@weekly", "0 0 * * 0"),
    ("@daily", "0 0 * * *"),
    ("@midnight", "0 0 * * *"),
    ("@hourly", "0 * * * *"),
    ("@minutely", "* * * * *"),
];

/// The fields of an expression, each with the number of its values.
const FIELDS: [(&str, u32); 6] = [
    ("second", 60),
    ("minute", 60),
    ("hour", 24),
    ("day of the month", 31),
    ("month", 12),
    ("day of the week", 7),
];

/// A parsed expression.
pub(super) struct Expression {
    pattern: CronPattern,
    /// The values of the hour, the minute and the second, ascending.
    hours: Vec<u16>,
    minutes: Vec<u16>,
    seconds: Vec<u16>,
}

impl Expression {
    pub(super) fn parse(expression: &str) -> Result<Self, Error> {
        let invalid = |rule: &str| {
            Error::InvalidSetting(format!(
                "invalid cron expression {expression:?}: {}; an example is '0 6 * * mon-fri'",
                rule.trim_end_matches('.')
            ))
        };
        let fields = resolve_nickname(expression).and_then(check_steps).map_err(|rule| invalid(&rule))?;
        let parser = CronParser::builder().seconds(Seconds::Optional).year(Year::Disallowed).build();
        let pattern = parser.parse(fields).map_err(|rule| invalid(&rule.to_string()))?.pattern;
        let [hours, minutes, seconds] =
            [&pattern.hours, &pattern.minutes, &pattern.seconds].map(CronComponent::values);
        Ok(Self { pattern, hours, minutes, seconds })
    }

    /// Returns whether the expression follows real time, because its hour or its minute is `*` or `*/n`.
    ///
    /// All others name fixed times of day.
    pub(super) fn follows_real_time(&self) -> bool {
        self.pattern.hours.from_wildcard || self.pattern.minutes.from_wildcard
    }

    /// Returns whether the expression names times of this date.
    pub(super) fn matches(&self, date: NaiveDate) -> bool {
        let weekday = Weekday::from_days_from_sunday(date.weekday().num_days_from_sunday());
        self.pattern.month_match(date.month()).is_ok_and(|matches| matches)
            && self
                .pattern
                .day_match(date.year(), date.month(), date.day(), weekday)
                .is_ok_and(|matches| matches)
    }

    /// Returns the number of times in a date that matches.
    pub(super) fn times_per_day(&self) -> usize {
        self.hours.len() * self.minutes.len() * self.seconds.len()
    }

    /// Returns a time of the day. They ascend with the index.
    pub(super) fn time(&self, index: usize) -> Option<NaiveTime> {
        let (index, second) = (index / self.seconds.len(), self.seconds.get(index % self.seconds.len())?);
        let (hour, minute) =
            (self.hours.get(index / self.minutes.len())?, self.minutes.get(index % self.minutes.len())?);
        NaiveTime::from_hms_opt((*hour).into(), (*minute).into(), (*second).into())
    }

    /// Describes the expression in English.
    pub(super) fn describe(&self) -> String {
        let english = self.pattern.describe();
        let english = english.trim_end_matches('.');
        // croner describes LW as L.
        if self.pattern.as_str().contains("LW") {
            return english.replace("the last day of the month", "the last weekday of the month");
        }
        english.to_owned()
    }
}

/// Returns the fields of an expression that may be a nickname.
fn resolve_nickname(expression: &str) -> Result<&str, String> {
    let trimmed = expression.trim();
    if !trimmed.starts_with('@') {
        return Ok(trimmed);
    }
    let known = NICKNAMES.iter().find(|(nickname, _)| nickname.eq_ignore_ascii_case(trimmed));
    known
        .map(|(_, fields)| *fields)
        .ok_or_else(|| format!("unknown nickname; expected one of {}", nicknames()))
}

fn nicknames() -> String {
    NICKNAMES.map(|(nickname, _)| nickname).join(", ")
}

/// Refuses a step that only the first value of its field satisfies.
///
/// `*/90` in the minute reads like every 90 minutes, which no cron expression can say.
fn check_steps(expression: &str) -> Result<&str, String> {
    let fields: Vec<&str> = expression.split_whitespace().collect();
    let Some(absent) = FIELDS.len().checked_sub(fields.len()).filter(|absent| *absent <= 1) else {
        return Err(format!(
            "it must have 5 fields, or 6 with seconds first, not {}, or be a nickname ({})",
            fields.len(),
            nicknames()
        ));
    };
    for (field, (name, values)) in fields.iter().zip(&FIELDS[absent..]) {
        for item in field.split(',') {
            let Some((_, step)) = item.split_once('/') else { continue };
            if step.parse::<u32>().is_ok_and(|step| step >= *values) {
                return Err(format!("the step of the {name} must be less than {values}, not {step}"));
            }
        }
    }
    Ok(expression)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(expression: &str) -> String {
        Expression::parse(expression).err().map(|error| error.to_string()).unwrap_or_default()
    }

    #[test]
    fn only_five_or_six_fields_and_nicknames_are_valid() {
        for valid in ["* * * * *", "*/20 * * * * *", "0 6 * * mon-fri", "@daily", " @Midnight "] {
            assert_eq!(refusal(valid), "");
        }
        for (wrong, rule) in [
            ("", "it must have 5 fields, or 6 with seconds first, not 0, or be a nickname (@yearly, "),
            ("* * *", "it must have 5 fields, or 6 with seconds first, not 3, or be a nickname (@yearly, "),
            (
                "0 0 6 * * * 2027",
                "it must have 5 fields, or 6 with seconds first, not 7, or be a nickname (@yearly, ",
            ),
            ("often", "it must have 5 fields, or 6 with seconds first, not 1, or be a nickname (@yearly, "),
            ("61 * * * *", "Number out of bounds"),
            ("0 0 30 2 x", "illegal character"),
            ("@reboot", "unknown nickname; expected one of @yearly, "),
        ] {
            let refusal = refusal(wrong);
            assert!(refusal.contains("invalid cron expression") && refusal.contains(rule), "{refusal}");
        }
    }

    #[test]
    fn nicknames_are_the_usual_ones() {
        for (nickname, meaning) in [
            ("@yearly", "At 00:00, on day 1, in January"),
            ("@annually", "At 00:00, on day 1, in January"),
            ("@monthly", "At 00:00, on day 1"),
            ("@weekly", "At 00:00, on Sunday"),
            ("@daily", "At 00:00"),
            ("@midnight", "At 00:00"),
            ("@hourly", "At minute 0 past every hour"),
            ("@minutely", "Every minute"),
        ] {
            let described = Expression::parse(nickname).map(|expression| expression.describe());
            assert_eq!(described.unwrap_or_else(|error| error.to_string()), meaning);
        }
    }

    #[test]
    fn a_step_must_be_smaller_than_its_field() {
        for valid in
            ["*/59 * * * *", "0 */23 * * *", "0 0 */30 */11 */6", "*/59 0 0 * * *", "10-40/30 * * * *"]
        {
            assert_eq!(refusal(valid), "");
        }
        for (wrong, rule) in [
            ("*/61 * * * *", "the step of the minute must be less than 60, not 61"),
            ("*/90 * * * *", "the step of the minute must be less than 60, not 90"),
            ("*/60 * * * *", "the step of the minute must be less than 60, not 60"),
            ("5,0-30/75 * * * *", "the step of the minute must be less than 60, not 75"),
            ("*/90 * * * * *", "the step of the second must be less than 60, not 90"),
            ("0 */24 * * *", "the step of the hour must be less than 24, not 24"),
            ("0 0 */32 * *", "the step of the day of the month must be less than 31, not 32"),
            ("0 0 1 */18 *", "the step of the month must be less than 12, not 18"),
            ("0 0 * * */8", "the step of the day of the week must be less than 7, not 8"),
        ] {
            assert!(refusal(wrong).contains(rule), "{}", refusal(wrong));
        }
    }

    #[test]
    fn the_last_weekday_of_a_month_is_not_described_as_its_last_day() {
        let describe = |expression| Expression::parse(expression).map(|parsed| parsed.describe());
        for (expression, meaning) in [
            ("0 9 LW * *", "At 09:00, on the last weekday of the month"),
            ("0 9 lw * *", "At 09:00, on the last weekday of the month"),
            ("0 9 L * *", "At 09:00, on the last day of the month"),
            ("0 9 15W,L * *", "At 09:00, on the last day of the month and the weekday nearest day 15"),
            ("0 9 * * friL", "At 09:00, on the last Friday of the month"),
        ] {
            assert_eq!(describe(expression).unwrap_or_else(|error| error.to_string()), meaning);
        }
    }
}
