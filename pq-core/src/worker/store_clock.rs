//! The store's clock, as far as this process knows it.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};

/// Measures how long jobs have waited, and dates the lines of their logs. Nothing that happens to a job depends on it.
#[derive(Debug)]
pub(crate) struct StoreClock {
    origin: Instant,
    /// The store's time at `origin`, in microseconds since 1970.
    at_origin: AtomicI64,
}

impl StoreClock {
    /// Starts with the clock of this process.
    pub(super) fn new() -> Self {
        Self { origin: Instant::now(), at_origin: Utc::now().timestamp_micros().into() }
    }

    /// Sets the store's time, which it has answered after `asked_at`.
    pub(super) fn set(&self, now: DateTime<Utc>, asked_at: Instant) {
        let half = asked_at.elapsed() / 2;
        let since = micros(asked_at.saturating_duration_since(self.origin) + half);
        self.at_origin.store(now.timestamp_micros() - since, Ordering::Relaxed);
    }

    /// Returns the store's time, as far as it is known.
    pub(crate) fn now(&self) -> DateTime<Utc> {
        let now = self.at_origin.load(Ordering::Relaxed) + micros(self.origin.elapsed());
        DateTime::from_timestamp_micros(now).unwrap_or_default()
    }

    /// Returns how long before `until` an instant of the store was. Zero if it was not.
    pub(super) fn since(&self, at: DateTime<Utc>, until: Instant) -> Duration {
        let until =
            self.at_origin.load(Ordering::Relaxed) + micros(until.saturating_duration_since(self.origin));
        Duration::from_micros((until - at.timestamp_micros()).max(0).unsigned_abs())
    }
}

fn micros(span: Duration) -> i64 {
    i64::try_from(span.as_micros()).unwrap_or(i64::MAX)
}
