//! Limits of queues: which of the ready jobs have a place and tokens.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, Utc};

use super::state::{Row, State, Tx};
use super::transaction::{MemoryConn, Open};
use super::{MemoryStore, settle};
use crate::store::Limiting;
use crate::{Claim, Error, GroupUse, LimitUse, LimitedQueue, Limits, QueueName, Rate, Reason};

/// The delay after which a take looks again if a transaction holds the tokens.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// The pause after which the cost of a job is corrected that needs tokens which a transaction holds.
const BUCKET_WAIT: Duration = Duration::from_millis(1);

/// The tokens of a queue, or of one of its groups.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bucket {
    pub(super) tokens: f64,
    pub(super) at: DateTime<Utc>,
    /// The transaction that took tokens, until it ends.
    pub(super) held_by: Option<Tx>,
}

/// A queue, or one of its groups.
pub(super) type BucketKey = (QueueName, Option<String>);

impl Limiting for MemoryStore {
    fn limits(&self, conn: &mut MemoryConn, queue: &QueueName) -> Result<Limits, Error> {
        conn.operate(|state, _| Ok(state.limits.get(queue).cloned().unwrap_or_default()))
    }

    fn set_limits(&self, conn: &mut MemoryConn, queue: &QueueName, limits: &Limits) -> Result<(), Error> {
        limits.to_json()?;
        conn.operate(|state, open| {
            open.set_limits(state, queue, (!limits.is_empty()).then(|| limits.clone()));
            Ok(())
        })
    }

    fn correct_cost(&self, conn: &mut MemoryConn, job: &Claim, cost: u32) -> Result<bool, Error> {
        loop {
            let corrected: Result<_, Error> =
                conn.operate(|state, open| Ok(correct(state, open, job, cost, Utc::now())));
            match corrected? {
                Some(is_held) => return Ok(is_held),
                // A transaction has taken tokens, and ends in another thread.
                None => std::thread::sleep(BUCKET_WAIT),
            }
        }
    }

    fn limited(&self, conn: &mut MemoryConn, queue: Option<&QueueName>) -> Result<Vec<LimitedQueue>, Error> {
        let at = Utc::now();
        conn.operate(|state, open| {
            let limited = state.limits.iter().filter(|(name, _)| queue.is_none_or(|queue| queue == *name));
            Ok(limited.map(|(name, limits)| in_use(state, name, limits, open.tx, at)).collect())
        })
    }
}

/// Corrects the cost of a job. Returns whether its lease is held, or nothing if another transaction holds the tokens.
fn correct(state: &mut State, open: &mut Open, job: &Claim, cost: u32, now: DateTime<Utc>) -> Option<bool> {
    let Some(lease) = job.lease().filter(|_| settle::held(state, job, open.tx).is_some()) else {
        return Some(false);
    };
    let mut kept = state.notes.get(&job.id).cloned().unwrap_or_default();
    let known = kept.cost.filter(|(of, _)| *of == lease).map(|(_, cost)| cost);
    let more = f64::from(cost) - f64::from(known.unwrap_or(job.annotations.cost().unwrap_or(1)));
    let limits = state.limits.get(&job.queue).cloned().unwrap_or_default();
    let group = job.annotations.group();
    let of_group = group.map(|group| (limits.of_group(&group).rate, Some(group)));
    let mut buckets = Vec::new();
    for (rate, group) in [(limits.rate, None)].into_iter().chain(of_group) {
        if let Some(rate) = rate {
            let key = (job.queue.clone(), group);
            let bucket = self::open(state, &key, rate, open.tx, now)?;
            let tokens = (bucket.tokens - more).min(f64::from(rate.burst));
            buckets.push((key, Bucket { tokens, held_by: Some(open.tx), ..bucket }));
        }
    }
    open.spend(state, buckets);
    kept.cost = Some((lease, cost));
    open.set_notes(state, job.id, Some(kept));
    Some(true)
}

/// Returns how much of its limits a queue uses.
fn in_use(state: &State, queue: &QueueName, limits: &Limits, tx: Tx, at: DateTime<Utc>) -> LimitedQueue {
    let mut groups = BTreeMap::from([(None, GroupUse { least_cost: 1, ..GroupUse::default() })]);
    groups.extend(limits.groups.keys().map(|name| (Some(name.clone()), GroupUse::default())));
    for row in state.rows.values().filter(|row| row.job.queue == *queue) {
        let is_due = row.seen_by(tx) && row.free_for(tx) && row.lease.is_none() && row.is_due(at);
        let runs = row.occupies_key_for(tx);
        if is_due || runs {
            let of = groups.entry(row.job.annotations.group()).or_default();
            if is_due {
                let cost = row.job.annotations.cost().unwrap_or(1);
                of.least_cost = if of.due == 0 { cost } else { of.least_cost.min(cost) };
            }
            of.due += u64::from(is_due);
            of.used.running += u32::from(runs);
        }
    }
    let tokens = |group: Option<&String>| {
        state.buckets.get(&(queue.clone(), group.cloned())).map(|bucket| (bucket.tokens, bucket.at))
    };
    let running = groups.values().map(|group| group.used.running).sum();
    let groups = groups.into_iter().map(|(group, of)| {
        let tokens = group.as_ref().and_then(|group| tokens(Some(group)));
        GroupUse { group, used: LimitUse { tokens, ..of.used }, least_cost: of.least_cost.max(1), ..of }
    });
    let (groups, used) = (groups.collect(), LimitUse { running, tokens: tokens(None) });
    LimitedQueue { queue: queue.clone(), limits: limits.clone(), at, used, groups }
}

/// Decides which jobs of a limited queue a take gets.
pub(super) struct Gate<'s> {
    state: &'s State,
    queue: &'s QueueName,
    limits: &'s Limits,
    tx: Tx,
    now: DateTime<Utc>,
    /// How many more jobs of the queue, and of each group, may run.
    room: Option<u32>,
    room_of: BTreeMap<String, Option<u32>>,
    buckets: BTreeMap<Option<String>, Option<Bucket>>,
    /// The time until there are tokens for a job that lacks them.
    pub(super) wait: Option<Duration>,
}

/// What a take does with a ready job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    Taken,
    /// Its group has no place or no tokens.
    Passed,
    /// The queue has no place or no tokens.
    Ended,
}

impl<'s> Gate<'s> {
    /// Returns `None` if the queue is not limited.
    pub(super) fn new(state: &'s State, queue: &'s QueueName, tx: Tx, now: DateTime<Utc>) -> Option<Self> {
        let limits = state.limits.get(queue)?;
        let room = limits.running.map(|most| most.saturating_sub(running(state, queue, tx, None)));
        let (room_of, buckets) = Default::default();
        Some(Self { state, queue, limits, tx, now, room, room_of, buckets, wait: None })
    }

    /// Counts the job if there is a place and there are tokens for it.
    pub(super) fn admit(&mut self, row: &Row) -> Admission {
        let group = row.job.annotations.group();
        let cost = row.job.annotations.cost().unwrap_or(1);
        if self.room == Some(0) {
            return Admission::Ended;
        }
        if let Some(group) = &group {
            let limits = self.limits.of_group(group);
            let (state, queue, tx) = (self.state, self.queue, self.tx);
            let room = self.room_of.entry(group.clone()).or_insert_with(|| {
                limits.running.map(|most| most.saturating_sub(running(state, queue, tx, Some(group))))
            });
            if *room == Some(0) {
                return Admission::Passed;
            }
            if !self.has_tokens(Some(group), limits.rate, cost) {
                self.room_of.insert(group.clone(), Some(0));
                return Admission::Passed;
            }
        }
        // A job whose group has no room does not wait for tokens.
        if !self.has_tokens(None, self.limits.rate, cost) {
            return Admission::Ended;
        }
        if let Some(group) = &group {
            self.spend(Some(group), cost);
            if let Some(Some(room)) = self.room_of.get_mut(group) {
                *room -= 1;
            }
        }
        self.spend(None, cost);
        self.room = self.room.map(|room| room - 1);
        Admission::Taken
    }

    /// Returns the buckets from which tokens were taken.
    pub(super) fn spent(self) -> Vec<(BucketKey, Bucket)> {
        let (queue, tx) = (self.queue, self.tx);
        self.buckets
            .into_iter()
            .filter_map(|(group, bucket)| Some(((queue.clone(), group), bucket?)))
            .filter(|(_, bucket)| bucket.held_by == Some(tx))
            .collect()
    }

    fn has_tokens(&mut self, group: Option<&String>, rate: Option<Rate>, cost: u32) -> bool {
        let Some(rate) = rate else { return true };
        let (state, queue, tx, now) = (self.state, self.queue, self.tx, self.now);
        let bucket = self
            .buckets
            .entry(group.cloned())
            .or_insert_with(|| open(state, &(queue.clone(), group.cloned()), rate, tx, now));
        // A job that costs more than the bucket holds is taken when the bucket is full.
        let needed = f64::from(cost.min(rate.burst));
        let wait = match bucket {
            Some(bucket) if bucket.tokens >= needed => return true,
            Some(bucket) => rate.time_for(needed - bucket.tokens),
            None => LOOK_AGAIN,
        };
        self.wait = self.wait.into_iter().chain([wait]).min();
        false
    }

    fn spend(&mut self, group: Option<&String>, cost: u32) {
        if let Some(Some(bucket)) = self.buckets.get_mut(&group.cloned()) {
            bucket.tokens -= f64::from(cost);
            bucket.held_by = Some(self.tx);
        }
    }
}

/// Returns a bucket as it is now, or `None` if another transaction holds it.
fn open(state: &State, key: &BucketKey, rate: Rate, tx: Tx, now: DateTime<Utc>) -> Option<Bucket> {
    let burst = f64::from(rate.burst);
    let Some(known) = state.buckets.get(key) else {
        return Some(Bucket { tokens: burst, at: now, held_by: None });
    };
    if known.held_by.is_some_and(|by| by != tx) {
        return None;
    }
    let gained = (now - known.at).to_std().map_or(0.0, |time| rate.gain(time));
    let at = known.at.max(now);
    Some(Bucket { tokens: (known.tokens + gained).min(burst), at, held_by: known.held_by })
}

/// Returns the limits that keep a waiting job from being taken now.
pub(super) fn reached(state: &State, row: &Row, tx: Tx, now: DateTime<Utc>) -> Vec<Reason> {
    let queue = &row.job.queue;
    let Some(limits) = state.limits.get(queue) else { return Vec::new() };
    let used = |group: Option<&String>| LimitUse {
        running: running(state, queue, tx, group),
        tokens: state.buckets.get(&(queue.clone(), group.cloned())).map(|bucket| (bucket.tokens, bucket.at)),
    };
    let group = row.job.annotations.group();
    let of_group = group.as_ref().map(|group| (group.as_str(), used(Some(group))));
    limits.reached(row.job.annotations.cost().unwrap_or(1), used(None), of_group, now)
}

/// Returns how many jobs of the queue, or of one of its groups, are taken.
fn running(state: &State, queue: &QueueName, tx: Tx, group: Option<&String>) -> u32 {
    let is_counted = |row: &&Row| {
        row.job.queue == *queue
            && row.occupies_key_for(tx)
            && group.is_none_or(|group| row.job.annotations.group().as_ref() == Some(group))
    };
    u32::try_from(state.rows.values().filter(is_counted).count()).unwrap_or(u32::MAX)
}

impl Open {
    /// Stores the buckets from which a take took tokens.
    pub(super) fn spend(&mut self, state: &mut State, buckets: Vec<(BucketKey, Bucket)>) {
        for (key, bucket) in buckets {
            self.set_bucket(state, key, bucket);
        }
    }
}
