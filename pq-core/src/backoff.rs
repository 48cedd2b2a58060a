//! The delay before a failed job is retried.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::when::{UNIT_M, has_unit_m};
use crate::{Error, JobId};

/// The delay before a failed job is retried, as a pure function of the number of failed attempts.
///
/// Default: 30 s, as in Python's `pq`.
///
/// ```
/// use std::time::Duration;
/// use pq_core::{Backoff, JobId};
///
/// let backoff = Backoff::exponential(Duration::from_secs(1), Duration::from_secs(3_600)).without_jitter();
/// assert_eq!(backoff.delay(4, JobId(1)), Duration::from_secs(8));
/// assert_eq!(backoff.delay(4_000_000, JobId(1)), Duration::from_secs(3_600));
/// ```
#[derive(Clone)]
pub struct Backoff(Kind);

#[derive(Clone)]
enum Kind {
    Plain(Plain),
    Custom(Arc<dyn Fn(u32) -> Duration + Send + Sync>),
}

/// A backoff that can be stored with a job.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Plain {
    Fixed { ms: u64 },
    Linear { step_ms: u64, max_ms: u64 },
    Exponential { first_ms: u64, max_ms: u64, jitter: bool },
}

impl Backoff {
    /// The longest delay: 365 days. Longer ones are shortened to it.
    pub const MAX: Duration = Duration::from_secs(365 * 86_400);

    /// Waits for the same time after each failure.
    #[must_use]
    pub fn fixed(delay: Duration) -> Self {
        Self(Kind::Plain(Plain::Fixed { ms: millis(delay) }))
    }

    /// Waits for `step` after the first failure, twice as long after the second, three times after the third, at most
    /// `max`.
    #[must_use]
    pub fn linear(step: Duration, max: Duration) -> Self {
        Self(Kind::Plain(Plain::Linear { step_ms: millis(step), max_ms: millis(max) }))
    }

    /// Waits for `first` after the first failure, and for twice as long after each further one, at most `max`.
    ///
    /// Jitter shortens the delay by up to a half, so that jobs that failed together are not retried together. It is
    /// derived from the job's id and the attempt. See [`Backoff::without_jitter`].
    #[must_use]
    pub fn exponential(first: Duration, max: Duration) -> Self {
        Self(Kind::Plain(Plain::Exponential { first_ms: millis(first), max_ms: millis(max), jitter: true }))
    }

    /// Waits for as long as the function returns for the number of failed attempts, 1 for the first.
    ///
    /// Set it at a task or a handler. It cannot be stored with a job, so a call refuses it.
    #[must_use]
    pub fn custom(delay: impl Fn(u32) -> Duration + Send + Sync + 'static) -> Self {
        Self(Kind::Custom(Arc::new(delay)))
    }

    /// Removes the jitter.
    #[must_use]
    pub fn without_jitter(self) -> Self {
        match self.0 {
            Kind::Plain(Plain::Exponential { first_ms, max_ms, .. }) => {
                Self(Kind::Plain(Plain::Exponential { first_ms, max_ms, jitter: false }))
            }
            other => Self(other),
        }
    }

    /// Returns the delay after this many attempts of the job have failed, 1 for the first.
    ///
    /// It is at most [`Backoff::MAX`].
    #[must_use]
    pub fn delay(&self, attempt: u32, id: JobId) -> Duration {
        let delay = match &self.0 {
            Kind::Plain(Plain::Fixed { ms }) => Duration::from_millis(*ms),
            Kind::Plain(Plain::Linear { step_ms, max_ms }) => {
                Duration::from_millis(step_ms.saturating_mul(u64::from(attempt)).min(*max_ms))
            }
            Kind::Plain(Plain::Exponential { first_ms, max_ms, jitter }) => {
                let doublings = attempt.saturating_sub(1);
                let factor = 1_u64.checked_shl(doublings).unwrap_or(u64::MAX);
                let whole = first_ms.saturating_mul(factor).min(*max_ms);
                let part = if *jitter { draw(id, attempt) } else { 1.0 };
                Duration::from_millis(whole).mul_f64(0.5 + part / 2.0)
            }
            Kind::Custom(delay) => delay(attempt),
        };
        delay.min(Self::MAX)
    }

    /// Returns the text that is stored with a job; `None` for [`Backoff::custom`].
    pub(crate) fn to_wire(&self) -> Option<String> {
        match &self.0 {
            Kind::Plain(plain) => serde_json::to_string(plain).ok(),
            Kind::Custom(_) => None,
        }
    }

    pub(crate) fn from_wire(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok().map(|plain| Self(Kind::Plain(plain)))
    }
}

/// Parses a duration such as `30s`, or `linear STEP MAX`, or `exponential FIRST MAX`.
impl FromStr for Backoff {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let invalid = || {
            Error::InvalidSetting(format!(
                "invalid backoff {text:?}: expected a duration such as `30s`, `linear 10s 5m` or `exponential 1s 1h`"
            ))
        };
        if has_unit_m(text) {
            return Err(Error::InvalidSetting(format!("invalid backoff {text:?}: {UNIT_M}")));
        }
        let span = |word: &str| humantime::parse_duration(word).map_err(|_| invalid());
        let words: Vec<&str> = text.split_whitespace().collect();
        match words.as_slice() {
            ["linear", step, max] => Ok(Self::linear(span(step)?, span(max)?)),
            ["exponential", first, max] => Ok(Self::exponential(span(first)?, span(max)?)),
            ["linear" | "exponential", ..] | [] => Err(invalid()),
            _ => Ok(Self::fixed(span(text)?)),
        }
    }
}

impl Default for Backoff {
    fn default() -> Self {
        Self::fixed(Duration::from_secs(30))
    }
}

impl fmt::Debug for Backoff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Plain(plain) => plain.fmt(f),
            Kind::Custom(_) => f.write_str("Custom"),
        }
    }
}

fn millis(delay: Duration) -> u64 {
    u64::try_from(delay.min(Backoff::MAX).as_millis()).unwrap_or(u64::MAX)
}

/// Returns a number from 0 to 1 for an attempt of a job, always the same one.
///
/// It is the finaliser of SplitMix64 (Steele, Lea and Flood, 2014) over both.
fn draw(id: JobId, attempt: u32) -> f64 {
    let mut bits = id.0.cast_unsigned() ^ (u64::from(attempt) << 32);
    bits = bits.wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^= bits >> 31;
    // A double holds 53 bits.
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn delays_grow_and_stay_within_their_bound() {
        let id = JobId(7);
        let linear = Backoff::linear(SECOND, 3 * SECOND);
        let exponential = Backoff::exponential(SECOND, 60 * SECOND).without_jitter();
        let delays = |backoff: &Backoff| [1, 2, 3, 4].map(|attempt| backoff.delay(attempt, id).as_secs());
        assert_eq!(delays(&Backoff::default()), [30, 30, 30, 30]);
        assert_eq!(delays(&linear), [1, 2, 3, 3]);
        assert_eq!(delays(&exponential), [1, 2, 4, 8]);
        for attempt in [64, 65, u32::MAX] {
            assert_eq!(exponential.delay(attempt, id), 60 * SECOND);
            assert_eq!(linear.delay(attempt, id), 3 * SECOND);
        }
        assert_eq!(Backoff::custom(|_| Duration::MAX).delay(1, id), Backoff::MAX);
        assert_eq!(Backoff::fixed(Duration::MAX).delay(1, id), Backoff::MAX);
    }

    #[test]
    fn jitter_is_a_pure_function_and_spreads_jobs() {
        let backoff = Backoff::exponential(SECOND, 60 * SECOND);
        let delay = |id| backoff.delay(3, JobId(id));
        assert_eq!(delay(1), delay(1));
        let delays: Vec<Duration> = (0..1_000).map(delay).collect();
        assert!(delays.iter().all(|delay| (2 * SECOND..=4 * SECOND).contains(delay)));
        let early = delays.iter().filter(|delay| **delay < 3 * SECOND).count();
        assert!((400..600).contains(&early), "{early} of 1000 in the first half");
    }

    #[test]
    fn a_stored_backoff_is_read_back() {
        for backoff in [
            Backoff::default(),
            Backoff::linear(SECOND, 9 * SECOND),
            Backoff::exponential(SECOND, 9 * SECOND),
        ] {
            let wire = backoff.to_wire().unwrap_or_default();
            let arrived = Backoff::from_wire(&wire).map(|arrived| format!("{arrived:?}"));
            assert_eq!(arrived, Some(format!("{backoff:?}")));
        }
        assert!(Backoff::custom(|_| SECOND).to_wire().is_none());
        assert!(Backoff::from_wire("\"rubbish\"").is_none());
    }

    #[test]
    fn a_backoff_is_parsed_from_text() {
        let read = |text: &str| {
            text.parse().map_or_else(|error: Error| error.to_string(), |b: Backoff| format!("{b:?}"))
        };
        for (text, meant) in [
            ("1m 30s", Backoff::fixed(90 * SECOND)),
            ("linear 10s 5m", Backoff::linear(10 * SECOND, 300 * SECOND)),
            ("exponential 1s 1h", Backoff::exponential(SECOND, 3_600 * SECOND)),
        ] {
            assert_eq!(read(text), format!("{meant:?}"));
        }
        for wrong in ["", "soon", "linear 1s", "exponential 1s 1h 2h", "linear 1s x"] {
            assert!(read(wrong).contains("invalid backoff"), "{wrong}");
        }
    }
}
