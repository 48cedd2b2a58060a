//! How much of the limits of a queue is used, and how many jobs wait because of them.

use chrono::{DateTime, Utc};

use crate::{LimitUse, Limits, QueueName, Reason};

/// A queue with limits, and how much of them is used. See [`crate::Pq::limited`].
#[derive(Clone, Debug, PartialEq)]
pub struct LimitedQueue {
    /// The queue.
    pub queue: QueueName,
    /// Its limits.
    pub limits: Limits,
    /// When it was so, on the store's clock.
    pub at: DateTime<Utc>,
    /// What the queue uses of its own limits.
    pub used: LimitUse,
    /// Its groups that have a due or a running job or limits of their own, sorted by name. The first one, without a
    /// name, has the jobs without a group.
    pub groups: Vec<GroupUse>,
}

/// The jobs of one group of a limited queue.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GroupUse {
    /// The name. `None` for the jobs without a group.
    pub group: Option<String>,
    /// The number of due jobs, of about the first [`Reason::MAX_COUNTED`] of the queue.
    pub due: u64,
    /// The least cost of one of these.
    pub least_cost: u32,
    /// What the group uses of its limits. Without a name only the running jobs are known.
    pub used: LimitUse,
}

impl LimitedQueue {
    /// The names of the limits that can keep jobs waiting, in the order of [`LimitedQueue::held_back`].
    pub const LIMITS: [&str; 4] = ["running", "rate", "group_running", "group_rate"];

    /// Returns the limits that keep every due job of a group from being taken now.
    #[must_use]
    pub fn reached(&self, of: &GroupUse) -> Vec<Reason> {
        let group = of.group.as_deref().map(|name| (name, of.used));
        self.limits.reached(of.least_cost, self.used, group, self.at)
    }

    /// Returns how many due jobs wait because of each kind of limit, with its name. A job that waits because of
    /// several is counted for the first.
    #[must_use]
    pub fn held_back(&self) -> [(&'static str, u64); 4] {
        let mut jobs = [0; 4];
        for group in &self.groups {
            let kind = match self.reached(group).first() {
                Some(Reason::Full { group: None, .. }) => 0,
                Some(Reason::NoTokens { group: None, .. }) => 1,
                Some(Reason::Full { .. }) => 2,
                Some(Reason::NoTokens { .. }) => 3,
                _ => continue,
            };
            jobs[kind] += group.due;
        }
        [0, 1, 2, 3].map(|kind| (Self::LIMITS[kind], jobs[kind]))
    }

    /// Returns the tokens that the bucket of the queue has now. `None` if the queue has no rate.
    #[must_use]
    pub fn tokens(&self) -> Option<f64> {
        let rate = self.limits.rate?;
        Some(rate.held(self.used.tokens, self.at))
    }

    /// Returns the tokens that the bucket of a group has now. `None` if the group has no rate.
    #[must_use]
    pub fn tokens_of(&self, of: &GroupUse) -> Option<f64> {
        let rate = self.limits.of_group(of.group.as_deref()?).rate?;
        Some(rate.held(of.used.tokens, self.at))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{Error, Rate};

    #[test]
    fn jobs_that_wait_are_counted_for_their_first_limit() -> Result<(), Error> {
        let at = DateTime::<Utc>::UNIX_EPOCH;
        let group = |name: &str, due, running| GroupUse {
            group: Some(name.to_owned()).filter(|name| !name.is_empty()),
            due,
            least_cost: 1,
            used: LimitUse { running, tokens: Some((0.0, at)) },
        };
        let rate = Rate::new(1, Duration::from_secs(60));
        let mut queue = LimitedQueue {
            queue: QueueName::new("mail")?,
            limits: Limits::new().running(9).running_per_group(2).rate_of("b", rate),
            at,
            used: LimitUse { running: 5, tokens: None },
            groups: vec![group("", 1, 2), group("a", 20, 2), group("b", 300, 1), group("c", 4_000, 0)],
        };
        let jobs = |queue: &LimitedQueue| queue.held_back().map(|(_, jobs)| jobs);
        assert_eq!(jobs(&queue), [0, 0, 20, 300]);
        queue.limits = queue.limits.rate(rate);
        queue.used.tokens = Some((0.5, at));
        assert_eq!(jobs(&queue), [0, 4_321, 0, 0]);
        queue.used.running = 9;
        assert_eq!(jobs(&queue), [4_321, 0, 0, 0]);
        assert_eq!((queue.tokens(), queue.tokens_of(&queue.groups[1])), (Some(0.5), None));
        Ok(())
    }
}
