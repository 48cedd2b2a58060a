//! Makes cron entries: checks the name, the expression and the time zone.

use chrono::{DateTime, Utc};

use super::Cron;
use super::ticks::Ticks;
use crate::{Error, Payload, QueueName};

/// The longest name, in bytes.
const MAX_NAME_BYTES: usize = 200;

impl Cron {
    pub(crate) fn new(
        name: &str,
        expression: &str,
        queue: &QueueName,
        payload: Payload,
    ) -> Result<Self, Error> {
        let rule = if name.is_empty() {
            "it must not be empty".to_owned()
        } else if name.len() > MAX_NAME_BYTES {
            format!("it has {} bytes, and at most {MAX_NAME_BYTES} are allowed", name.len())
        } else if name.contains('\0') {
            "it must not contain a NUL character".to_owned()
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
        Err(Error::InvalidSetting(format!("invalid cron entry name {shown:?}: {rule}")))
    }

    /// Sets the time zone of the expression, by its IANA name. Default: UTC.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidSetting`] if there is no such zone.
    pub fn time_zone(mut self, zone: &str) -> Result<Self, Error> {
        Ticks::new(&self.expression, zone)?;
        self.time_zone = zone.to_owned();
        Ok(self)
    }

    /// Sets the priority of the jobs. Default: 0.
    pub fn priority(mut self, priority: i32) -> Self {
        self.priority = priority;
        self
    }

    /// Sets whether one job is put for all missed ticks. Default: `false`.
    pub fn catch_up(mut self, catch_up: bool) -> Self {
        self.catch_up = catch_up;
        self
    }

    /// Returns the first tick after an instant, or `None` if there is none.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidSetting`] if the expression or the time zone is invalid.
    pub fn next_after(&self, instant: DateTime<Utc>) -> Result<Option<DateTime<Utc>>, Error> {
        Ok(Ticks::new(&self.expression, &self.time_zone)?.after(instant))
    }

    /// Returns the first ticks after an instant, at most `count`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidSetting`] if the expression or the time zone is invalid.
    pub fn ticks_after(&self, instant: DateTime<Utc>, count: usize) -> Result<Vec<DateTime<Utc>>, Error> {
        let ticks = Ticks::new(&self.expression, &self.time_zone)?;
        Ok(std::iter::successors(ticks.after(instant), |tick| ticks.after(*tick)).take(count).collect())
    }

    /// Describes the expression in English.
    #[must_use]
    pub fn describe(&self) -> String {
        Ticks::new(&self.expression, &self.time_zone)
            .map_or_else(|error| error.to_string(), |ticks| ticks.describe())
    }
}
