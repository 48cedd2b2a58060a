//! Limits of how many jobs of a queue run at once, and how many are started in a period, and turns of its groups.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::{Error, Reason};

/// The limits of a queue, for all workers and all gets on all hosts. A limit that is not set does not apply.
///
/// ```
/// # use pq_core::{Limits, Pq, Rate, memory::MemoryStore};
/// # use std::time::Duration;
/// # let pq = Pq::new(MemoryStore::new());
/// let mail = pq.queue::<u32>("mail")?;
/// let minute = Duration::from_secs(60);
/// mail.set_limits(&Limits::new().running(50).running_per_group(3).rate(Rate::new(100, minute).burst(20)))?;
/// assert_eq!(mail.limits()?.running, Some(50));
/// # Ok::<(), pq_core::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Limits {
    /// The maximum number of jobs that are taken at any time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running: Option<u32>,
    /// How many jobs are started in a period.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<Rate>,
    /// The maximum number of jobs of each group that are taken at any time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running_per_group: Option<u32>,
    /// How many jobs of each group are started in a period.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_per_group: Option<Rate>,
    /// Whether groups take turns among jobs of the same priority.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub fair: bool,
    /// The limits of single groups, which replace those of each group, and their weights.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub groups: BTreeMap<String, GroupLimits>,
}

/// The limits of one group, where they differ from those of the other groups of its queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct GroupLimits {
    /// Replaces [`Limits::running_per_group`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running: Option<u32>,
    /// Replaces [`Limits::rate_per_group`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<Rate>,
    /// How many jobs a turn of the group has in a fair queue. Default: 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
}

/// A token bucket: it gains tokens at a rate, holds a burst of them at most, and is full at first.
///
/// A job takes one token, or its cost ([`crate::PutOptions::cost`]). So in a time `t` at most
/// `burst + t * tokens / per` are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rate {
    /// The tokens that the bucket gains in a period.
    pub tokens: u32,
    /// The length of the period.
    #[serde(rename = "per_us", serialize_with = "write_micros", deserialize_with = "read_micros")]
    pub per: Duration,
    /// The most tokens that the bucket holds.
    pub burst: u32,
}

impl Rate {
    /// Creates a rate of `tokens` in each period of length `per`. Its burst is what it gains in a second, and at
    /// least 1.
    #[must_use]
    pub fn new(tokens: u32, per: Duration) -> Self {
        let in_a_second = f64::from(tokens) / per.as_secs_f64();
        // A float that is too large for the integer, or no number, becomes its limit or 0.
        Self { tokens, per, burst: (in_a_second as u32).max(1) }
    }

    /// Sets the most tokens that the bucket holds.
    #[must_use]
    pub fn burst(self, burst: u32) -> Self {
        Self { burst, ..self }
    }

    /// Returns the tokens that the bucket holds now, by what it held at an instant. It is full if that is not known.
    pub(crate) fn held(&self, known: Option<(f64, DateTime<Utc>)>, now: DateTime<Utc>) -> f64 {
        let burst = f64::from(self.burst);
        known.map_or(burst, |(tokens, at)| {
            (tokens + self.gain((now - at).to_std().unwrap_or_default())).min(burst)
        })
    }

    /// Returns the tokens that the bucket gains in `time`.
    pub(crate) fn gain(&self, time: Duration) -> f64 {
        time.as_secs_f64() / self.per.as_secs_f64() * f64::from(self.tokens)
    }

    /// Returns the time in which the bucket gains `tokens`.
    pub(crate) fn time_for(&self, tokens: f64) -> Duration {
        Duration::try_from_secs_f64(tokens / f64::from(self.tokens) * self.per.as_secs_f64())
            .unwrap_or(Duration::MAX)
    }

    fn check(self) -> Result<(), Error> {
        let refused = |reason: String| Err(Error::InvalidSetting(format!("invalid rate: {reason}")));
        if self.per < Duration::from_micros(1) || self.per > Self::MAX_PERIOD {
            return refused("its period must be 1 µs to 366 days".to_owned());
        }
        if self.tokens == 0 || self.burst == 0 {
            return refused("its tokens and its burst must be at least 1".to_owned());
        }
        if self.tokens > Limits::MAX || self.burst > Limits::MAX {
            return refused(format!("its tokens and its burst must be at most {}", Limits::MAX));
        }
        Ok(())
    }

    const MAX_PERIOD: Duration = Duration::from_secs(366 * 24 * 60 * 60);
}

impl Limits {
    /// The largest number of any limit.
    pub const MAX: u32 = 1_000_000;
    /// The largest weight of a group.
    pub const MAX_WEIGHT: u32 = 1_000;

    /// Creates limits that limit nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Limits how many jobs of the queue are taken at any time.
    #[must_use]
    pub fn running(mut self, jobs: u32) -> Self {
        self.running = Some(jobs);
        self
    }

    /// Limits how many jobs of each group ([`crate::PutOptions::group`]) are taken at any time.
    #[must_use]
    pub fn running_per_group(mut self, jobs: u32) -> Self {
        self.running_per_group = Some(jobs);
        self
    }

    /// Limits how many jobs of the queue are started in a period.
    #[must_use]
    pub fn rate(mut self, rate: Rate) -> Self {
        self.rate = Some(rate);
        self
    }

    /// Limits how many jobs of each group are started in a period.
    #[must_use]
    pub fn rate_per_group(mut self, rate: Rate) -> Self {
        self.rate_per_group = Some(rate);
        self
    }

    /// Limits how many jobs of one group are taken at any time, in place of [`Limits::running_per_group`].
    #[must_use]
    pub fn running_of(mut self, group: impl Into<String>, jobs: u32) -> Self {
        self.groups.entry(group.into()).or_default().running = Some(jobs);
        self
    }

    /// Limits how many jobs of one group are started in a period, in place of [`Limits::rate_per_group`].
    #[must_use]
    pub fn rate_of(mut self, group: impl Into<String>, rate: Rate) -> Self {
        self.groups.entry(group.into()).or_default().rate = Some(rate);
        self
    }

    /// Lets the groups of the queue take turns: among jobs of the same priority, each has one job in turn.
    ///
    /// A group with a million jobs then delays another one only by its share. Jobs without a group take turns as a
    /// group of their own. The order within a group stays.
    ///
    /// ```
    /// # use pq_core::{Limits, Pq, memory::MemoryStore};
    /// # let pq = Pq::new(MemoryStore::new());
    /// let mail = pq.queue::<u32>("mail")?;
    /// mail.set_limits(&Limits::new().fair().weight_of("large customer", 3))?;
    /// assert!(mail.limits()?.fair);
    /// # Ok::<(), pq_core::Error>(())
    /// ```
    #[must_use]
    pub fn fair(mut self) -> Self {
        self.fair = true;
        self
    }

    /// Sets how many jobs a turn of one group has in a fair queue. Default: 1. The most is [`Limits::MAX_WEIGHT`].
    #[must_use]
    pub fn weight_of(mut self, group: impl Into<String>, jobs: u32) -> Self {
        self.groups.entry(group.into()).or_default().weight = Some(jobs);
        self
    }

    /// Returns whether there is no limit.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Returns the limits of a group.
    #[must_use]
    pub fn of_group(&self, group: &str) -> GroupLimits {
        let own = self.groups.get(group).copied().unwrap_or_default();
        GroupLimits {
            running: own.running.or(self.running_per_group),
            rate: own.rate.or(self.rate_per_group),
            weight: own.weight,
        }
    }

    fn of_queue(&self) -> GroupLimits {
        GroupLimits { running: self.running, rate: self.rate, weight: None }
    }

    /// Returns the limits that keep a job of this cost from being taken now, by what of them is used.
    #[must_use]
    pub fn reached(
        &self,
        cost: u32,
        queue: LimitUse,
        group: Option<(&str, LimitUse)>,
        now: DateTime<Utc>,
    ) -> Vec<Reason> {
        let of_queue = self.of_queue();
        let of_group = group.map(|(name, used)| (self.of_group(name), Some(name.to_owned()), used));
        let mut reached = Vec::new();
        for (limits, group, used) in [(of_queue, None, queue)].into_iter().chain(of_group) {
            if let Some(limit) = limits.running.filter(|limit| used.running >= *limit) {
                reached.push(Reason::Full { group: group.clone(), running: used.running, limit });
            }
            if let Some(rate) = limits.rate {
                let missing = f64::from(cost.min(rate.burst)) - rate.held(used.tokens, now);
                let until = chrono::TimeDelta::from_std(rate.time_for(missing.max(0.0)))
                    .ok()
                    .and_then(|wait| now.checked_add_signed(wait));
                if missing > 0.0 {
                    let until = until.unwrap_or(DateTime::<Utc>::MAX_UTC);
                    reached.push(Reason::NoTokens { group, until });
                }
            }
        }
        reached
    }

    /// Returns the JSON object to store, or `None` if there is no limit.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidSetting`] if a limit is not in 1 to [`Limits::MAX`], a period or a group is invalid, or a
    /// group of a queue that is not fair has a weight.
    pub fn to_json(&self) -> Result<Option<String>, Error> {
        let of_groups = self.groups.values();
        let running = of_groups.clone().map(|group| group.running);
        let running = running.chain([self.running, self.running_per_group]).flatten();
        let rates = of_groups.map(|group| group.rate).chain([self.rate, self.rate_per_group]).flatten();
        for jobs in running {
            if !(1..=Self::MAX).contains(&jobs) {
                let most = Self::MAX;
                return Err(Error::InvalidSetting(format!("invalid limit {jobs}: it must be 1 to {most}")));
            }
        }
        rates.into_iter().try_for_each(Rate::check)?;
        for (group, weight) in self.groups.iter().filter_map(|(group, limits)| Some((group, limits.weight?)))
        {
            let most = Self::MAX_WEIGHT;
            let rule = match (1..=most).contains(&weight) {
                false => format!("it must be 1 to {most}"),
                true if !self.fair => {
                    "only the groups of a fair queue have weights; make it fair first".to_owned()
                }
                true => continue,
            };
            return Err(Error::InvalidSetting(format!("invalid weight {weight} of group {group:?}: {rule}")));
        }
        self.groups.keys().try_for_each(|group| crate::annotations::check_group(group))?;
        if self.is_empty() {
            return Ok(None);
        }
        // Numbers and texts can always be written.
        Ok(serde_json::to_string(self).ok())
    }

    /// Reads limits that a store holds. What another program stored in another form is no limit.
    #[must_use]
    pub fn from_stored(json: Option<&str>) -> Self {
        json.and_then(|json| serde_json::from_str(json).ok()).unwrap_or_default()
    }
}

/// How much of the limits of a queue, or of a group, is used.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LimitUse {
    /// How many jobs run.
    pub running: u32,
    /// The tokens of the bucket at an instant. `None` if it is full.
    pub tokens: Option<(f64, DateTime<Utc>)>,
}

/// Describes the limits in one line.
impl fmt::Display for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = |whose: &str, limits: GroupLimits| {
            let running = limits.running.map(|jobs| format!("{jobs} running{whose}"));
            let rate = limits.rate.map(|rate| format!("{} in {:?}{whose}", rate.tokens, rate.per));
            running.into_iter().chain(rate)
        };
        let each =
            GroupLimits { running: self.running_per_group, rate: self.rate_per_group, ..Default::default() };
        let mut parts: Vec<String> = of("", self.of_queue()).collect();
        parts.extend(of(" per group", each));
        let is_limited = |group: &&GroupLimits| group.running.is_some() || group.rate.is_some();
        match self.groups.values().filter(is_limited).count() {
            0 => {}
            1 => parts.push("1 group with limits of its own".to_owned()),
            groups => parts.push(format!("{groups} groups with limits of their own")),
        }
        let weights = self.groups.values().filter(|group| group.weight.is_some()).count();
        let fair = self.fair.then(|| match weights {
            0 => "fair".to_owned(),
            1 => "fair, 1 group with a weight".to_owned(),
            groups => format!("fair, {groups} groups with weights"),
        });
        let limited = (!parts.is_empty()).then(|| format!("limited to {}", parts.join(", ")));
        f.write_str(&fair.into_iter().chain(limited).collect::<Vec<_>>().join("; "))
    }
}

fn write_micros<S: serde::Serializer>(period: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(u64::try_from(period.as_micros()).unwrap_or(u64::MAX))
}

fn read_micros<'d, D: serde::Deserializer<'d>>(deserializer: D) -> Result<Duration, D::Error> {
    u64::deserialize(deserializer).map(Duration::from_micros)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_limits_are_read_again() -> Result<(), Error> {
        let rate = Rate::new(100, Duration::from_secs(60)).burst(20);
        let limits = Limits::new().running(5).rate(rate).rate_of("a", rate).running_of("b", 2);
        let limits = limits.fair().weight_of("a", 3);
        let json = limits.to_json()?;
        assert_eq!(Limits::from_stored(json.as_deref()), limits);
        assert_eq!(Limits::new().to_json()?, None);
        assert_eq!(Limits::from_stored(Some("[]")), Limits::new());
        Ok(())
    }

    #[test]
    fn the_burst_of_a_rate_is_what_it_gains_in_a_second() {
        let of = |tokens, seconds| Rate::new(tokens, Duration::from_secs(seconds)).burst;
        assert_eq!([of(1_000, 1), of(6_000, 60), of(6, 60)], [1_000, 100, 1]);
        assert!(Rate::new(5, Duration::ZERO).check().is_err());
    }

    #[test]
    fn invalid_limits_are_refused() {
        let minute = Duration::from_secs(60);
        for limits in [
            Limits::new().running(0),
            Limits::new().running_of("a", 1_000_001),
            Limits::new().running_of("", 1),
            Limits::new().rate(Rate::new(0, minute)),
            Limits::new().rate(Rate::new(1, minute).burst(0)),
            Limits::new().rate_of("a", Rate::new(1, Duration::ZERO)),
            Limits::new().fair().weight_of("a", 0),
            Limits::new().fair().weight_of("a", 1_001),
            Limits::new().weight_of("a", 2),
        ] {
            assert!(matches!(limits.to_json(), Err(Error::InvalidSetting(_) | Error::InvalidAnnotation(_))));
        }
    }
}
