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
        conn.operate(|state, open| {
            let mut entry = CronEntry { cron: cron.clone(), paused: false, next_at, last_at: None };
            let old = state.crons.get(&cron.name).map(|old| &old.entry);
            let is_new = old.is_none();
            if let Some(old) = old {
                let has_same_ticks =
                    (&old.cron.expression, &old.cron.time_zone) == (&cron.expression, &cron.time_zone);
                (entry.paused, entry.last_at) = (old.paused, old.last_at);
                entry.next_at = old.next_at.filter(|_| has_same_ticks).or(next_at).filter(|_| !old.paused);
            }
            open.set_cron(state, &cron.name, Some(Periodic { entry, held_by: None }));
            Ok(is_new)
        })
    }

    fn crons(&self, conn: &mut MemoryConn) -> Result<Vec<CronEntry>, Error> {
        conn.operate(|state, _| Ok(state.crons.values().map(|periodic| periodic.entry.clone()).collect()))
    }

    fn remove_cron(&self, conn: &mut MemoryConn, name: &str) -> Result<bool, Error> {
        conn.operate(|state, open| {
            let exists = state.crons.contains_key(name);
            open.set_cron(state, name, None);
            Ok(exists)
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
            Ok(change_entry(state, open, name, change))
        })
    }

    fn due_crons(&self, conn: &mut MemoryConn) -> Result<Vec<CronEntry>, Error> {
        let now = Utc::now();
        conn.operate(|state, open| {
            let is_due = |periodic: &&Periodic| {
                periodic.held_by.is_none() && periodic.entry.next_at.is_some_and(|next| next <= now)
            };
            let due: Vec<Periodic> = state.crons.values().filter(is_due).cloned().collect();
            for periodic in &due {
                let held = Periodic { held_by: Some(open.tx), ..periodic.clone() };
                open.set_cron(state, &periodic.entry.cron.name, Some(held));
            }
            Ok(due.into_iter().map(|periodic| periodic.entry).collect())
        })
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
            change_entry(state, open, name, change);
            Ok(())
        })
    }
}

/// Changes a periodic job, and returns `false` if there is none of that name.
fn change_entry(state: &mut State, open: &mut Open, name: &str, change: impl FnOnce(&mut CronEntry)) -> bool {
    let Some(mut periodic) = state.crons.get(name).cloned() else { return false };
    change(&mut periodic.entry);
    open.set_cron(state, name, Some(periodic));
    true
}
