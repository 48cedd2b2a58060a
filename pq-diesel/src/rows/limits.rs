//! The limits of queues, and how much of them is used.

use diesel::pg::data_types::PgTimestamp;
use diesel::sql_types::{BigInt, Double, Nullable, Text, Timestamptz};
use pq_core::{GroupUse, LimitUse, LimitedQueue, Limits, QueueName, Reason};

use super::nearest;

row! {
    /// How much of the limits of a queue, and of the group of a job, is used.
    LimitUseRow, LimitUseSql {
        limits: String => Text,
        group: Option<String> => Nullable<Text>,
        cost: i64 => BigInt,
        running: i64 => BigInt,
        running_of_group: i64 => BigInt,
        tokens: Option<f64> => Nullable<Double>,
        at: Option<PgTimestamp> => Nullable<Timestamptz>,
        tokens_of_group: Option<f64> => Nullable<Double>,
        at_of_group: Option<PgTimestamp> => Nullable<Timestamptz>,
        ahead: i64 => BigInt,
    }
}

impl LimitUseRow {
    /// Returns the limits that keep the job from being taken at `now`, and, if its queue is fair, its group and how
    /// many jobs of that come first.
    pub(crate) fn reached(
        self,
        now: chrono::DateTime<chrono::Utc>,
    ) -> (Vec<Reason>, Option<(Option<String>, u64)>) {
        let number = |number: i64| u32::try_from(number).unwrap_or(u32::MAX);
        let used = |running, tokens: Option<f64>, at: Option<PgTimestamp>| LimitUse {
            running: number(running),
            tokens: tokens.zip(at.map(nearest)),
        };
        let of_group = used(self.running_of_group, self.tokens_of_group, self.at_of_group);
        let group = self.group.as_deref().map(|group| (group, of_group));
        let of_queue = used(self.running, self.tokens, self.at);
        let limits = Limits::from_stored(Some(&self.limits));
        let reached = limits.reached(number(self.cost), of_queue, group, now);
        let ahead = u64::try_from(self.ahead).unwrap_or_default();
        (reached, limits.fair.then_some((self.group, ahead)))
    }
}

row! {
    /// The jobs of a group of a limited queue.
    LimitedRow, LimitedSql {
        queue: String => Text,
        limits: String => Text,
        group: String => Text,
        due: i64 => BigInt,
        least_cost: i64 => BigInt,
        running: i64 => BigInt,
        tokens: Option<f64> => Nullable<Double>,
        tokens_at: Option<PgTimestamp> => Nullable<Timestamptz>,
        at: PgTimestamp => Timestamptz,
    }
}

impl LimitedRow {
    /// Adds the row to the queues of the rows before. The first row of a queue is that of the jobs without a group.
    pub(crate) fn add_to(self, mut queues: Vec<LimitedQueue>) -> Vec<LimitedQueue> {
        let Ok(queue) = QueueName::new(&self.queue) else { return queues };
        let running = u32::try_from(self.running).unwrap_or(u32::MAX);
        let used = LimitUse { running, tokens: self.tokens.zip(self.tokens_at.map(nearest)) };
        let is_named = !self.group.is_empty();
        let group = GroupUse {
            group: is_named.then_some(self.group),
            due: self.due.max(0).unsigned_abs(),
            least_cost: u32::try_from(self.least_cost).unwrap_or(u32::MAX),
            used: LimitUse { tokens: used.tokens.filter(|_| is_named), running },
        };
        match queues.last_mut().filter(|known| known.queue == queue) {
            Some(known) => {
                known.used.running = known.used.running.saturating_add(running);
                known.groups.push(group);
            }
            None => queues.push(LimitedQueue {
                queue,
                limits: Limits::from_stored(Some(&self.limits)),
                at: nearest(self.at),
                used,
                groups: vec![group],
            }),
        }
        queues
    }
}
