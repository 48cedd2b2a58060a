//! Periodic jobs.

use chrono::{DateTime, Utc};

use super::MemoryStore;
use super::state::{Periodic, State};
use super::transaction::{MemoryConn, Open};
use crate::store::Schedules;
use crate::{Cron, CronEntry, Error};

impl Schedules for MemoryStore {
    fn set_cron(
        &self,
        conn: &mut MemoryConn,
        cron: &Cron,
        next_at: Option<DateTime<Utc>>,
    ) -> Result<bool, Error> {
        conn.operate(|state, open| Ok(set_cron(state, open, cron, next_at)))
    }

    fn crons(&self, conn: &mut MemoryConn) -> Result<Vec<CronEntry>, Error> {
        conn.operate(|state, _| Ok(state.crons.values().map(|periodic| periodic.entry.clone()).collect()))
    }

    fn remove_cron(&self, conn: &mut MemoryConn, name: &str) -> Result<bool, Error> {
        conn.operate(|state, open| {
            let was_there = state.crons.contains_key(name);
            open.set_cron(state, name, None);
            Ok(was_there)
        })
    }

    fn pause_cron(
        &self,
        conn: &mut MemoryConn,
        name: &str,
        paused: bool,
        next_at: Option<DateTime<Utc>>,
    ) -> Result<bool, Error> {
        conn.operate(|state, open| {
            let change = |entry: &mut CronEntry| (entry.paused, entry.next_at) = (paused, next_at);
            Ok(change_cron(state, open, name, change))
        })
    }

    fn due_crons(&self, conn: &mut MemoryConn) -> Result<Vec<CronEntry>, Error> {
        let now = Utc::now();
        conn.operate(|state, open| Ok(due_crons(state, open, now)))
    }

    fn advance_cron(
        &self,
        conn: &mut MemoryConn,
        name: &str,
        last_at: Option<DateTime<Utc>>,
        next_at: Option<DateTime<Utc>>,
    ) -> Result<(), Error> {
        conn.operate(|state, open| {
            let change = |entry: &mut CronEntry| (entry.last_at, entry.next_at) = (last_at, next_at);
            change_cron(state, open, name, change);
            Ok(())
        })
    }
}

fn set_cron(state: &mut State, open: &mut Open, cron: &Cron, next_at: Option<DateTime<Utc>>) -> bool {
    let last_at = state.crons.get(&cron.name).and_then(|old| old.entry.last_at);
    let entry = CronEntry { cron: cron.clone(), paused: false, next_at, last_at };
    let is_new = !state.crons.contains_key(&cron.name);
    open.set_cron(state, &cron.name, Some(Periodic { entry, held_by: None }));
    is_new
}

fn change_cron(state: &mut State, open: &mut Open, name: &str, change: impl FnOnce(&mut CronEntry)) -> bool {
    let Some(mut periodic) = state.crons.get(name).cloned() else { return false };
    change(&mut periodic.entry);
    open.set_cron(state, name, Some(periodic));
    true
}

fn due_crons(state: &mut State, open: &mut Open, now: DateTime<Utc>) -> Vec<CronEntry> {
    let due = |periodic: &&Periodic| {
        periodic.held_by.is_none() && periodic.entry.next_at.is_some_and(|next| next <= now)
    };
    let due: Vec<Periodic> = state.crons.values().filter(due).cloned().collect();
    for periodic in &due {
        let held = Periodic { held_by: Some(open.tx), ..periodic.clone() };
        open.set_cron(state, &periodic.entry.cron.name, Some(held));
    }
    due.into_iter().map(|periodic| periodic.entry).collect()
}
