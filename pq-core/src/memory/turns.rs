//! The turns of the groups of fair queues.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;

use super::state::{Row, State};
use crate::{Limits, QueueName};

/// The turns of a queue, by priority.
pub(super) type TurnKey = (QueueName, i32);

/// Whose turn it was last.
#[derive(Clone, Debug, Default)]
pub(super) struct Turn {
    /// The group. Jobs without one have the empty name.
    pub(super) group: String,
    /// How many jobs it has had in this turn.
    pub(super) taken: u32,
}

/// The ready jobs of a queue, in the order in which a take looks at them.
pub(super) struct InTurn<'s> {
    /// The jobs of each group by priority, the highest last. A queue that is not fair has one group of all priorities.
    levels: Vec<Level<'s>>,
    limits: Option<&'s Limits>,
}

struct Level<'s> {
    priority: i32,
    groups: BTreeMap<String, VecDeque<&'s Row>>,
    turn: Turn,
    has_changed: bool,
}

impl<'s> InTurn<'s> {
    /// Arranges jobs, which come in the order of the queue.
    pub(super) fn new(state: &'s State, queue: &QueueName, jobs: impl Iterator<Item = &'s Row>) -> Self {
        let limits = state.limits.get(queue).filter(|limits| limits.fair);
        let mut levels: Vec<Level<'s>> = Vec::new();
        for row in jobs {
            let (priority, group) = match limits {
                Some(_) => (row.job.priority, row.job.annotations.group().unwrap_or_default()),
                None => (0, String::new()),
            };
            if levels.last().is_none_or(|level| level.priority != priority) {
                let turn = state.turns.get(&(queue.clone(), priority)).cloned().unwrap_or_default();
                levels.push(Level { priority, groups: BTreeMap::new(), turn, has_changed: false });
            }
            if let Some(level) = levels.last_mut() {
                level.groups.entry(group).or_default().push_back(row);
            }
        }
        levels.reverse();
        Self { levels, limits }
    }

    /// Returns the next job, and the position of its level for [`Self::take`] and [`Self::pass`].
    pub(super) fn next(&self) -> Option<(usize, &'s Row)> {
        let (position, level) =
            self.levels.iter().enumerate().rfind(|(_, level)| !level.groups.is_empty())?;
        let group = level.next_group(self.limits)?;
        Some((position, level.groups.get(group)?.front()?))
    }

    /// Counts the job that [`Self::next`] returned for its group.
    pub(super) fn take(&mut self, position: usize) {
        let limits = self.limits;
        let level = &mut self.levels[position];
        let Some(group) = level.next_group(limits).cloned() else { return };
        let goes_on = level.turn.group == group && level.turn.taken < weight(limits, &group);
        level.turn = Turn { taken: if goes_on { level.turn.taken + 1 } else { 1 }, group: group.clone() };
        level.has_changed = true;
        if let Some(jobs) = level.groups.get_mut(&group) {
            jobs.pop_front();
            if jobs.is_empty() {
                level.groups.remove(&group);
            }
        }
    }

    /// Passes the job that [`Self::next`] returned. In a fair queue it passes all jobs of its group.
    pub(super) fn pass(&mut self, position: usize) {
        let limits = self.limits;
        let level = &mut self.levels[position];
        let Some(group) = level.next_group(limits).cloned() else { return };
        let jobs = level.groups.get_mut(&group);
        match jobs.filter(|_| limits.is_none()) {
            Some(jobs) if jobs.len() > 1 => drop(jobs.pop_front()),
            _ => drop(level.groups.remove(&group)),
        }
    }

    /// Returns the turns that have changed.
    pub(super) fn changed(self, queue: &QueueName) -> Vec<(TurnKey, Turn)> {
        let is_fair = self.limits.is_some();
        let changed = self.levels.into_iter().filter(|level| is_fair && level.has_changed);
        changed.map(|level| ((queue.clone(), level.priority), level.turn)).collect()
    }
}

impl Level<'_> {
    /// Returns the group of the last turn if its turn goes on, and the one behind it otherwise.
    fn next_group(&self, limits: Option<&Limits>) -> Option<&String> {
        let Turn { group, taken } = &self.turn;
        if (1..weight(limits, group)).contains(taken)
            && let Some((group, _)) = self.groups.get_key_value(group)
        {
            return Some(group);
        }
        let behind = (Bound::Excluded(group), Bound::Unbounded);
        let behind = if *taken == 0 { (Bound::Unbounded, Bound::Unbounded) } else { behind };
        self.groups
            .range::<String, _>(behind)
            .next()
            .or_else(|| self.groups.first_key_value())
            .map(|(group, _)| group)
    }
}

fn weight(limits: Option<&Limits>, group: &str) -> u32 {
    limits.and_then(|limits| limits.of_group(group).weight).unwrap_or(1)
}
