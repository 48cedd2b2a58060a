//! Periodic jobs.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

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
            let Some(mut periodic) = state.crons.get(&cron.name).cloned() else {
                let entry = CronEntry {
                    cron: cron.clone(),
                    paused: false,
                    paused_at: None,
                    paused_by: None,
                    next_at,
                    last_at: None,
                    failures: 0,
                    error: None,
                };
                open.set_cron(state, &cron.name, Some(Periodic { entry, retry_at: None, held_by: None }));
                return Ok(true);
            };
            let old = &mut periodic.entry;
            let has_same_ticks =
                (&old.cron.expression, &old.cron.time_zone) == (&cron.expression, &cron.time_zone);
            old.next_at = old.next_at.filter(|_| has_same_ticks).or(next_at).filter(|_| !old.paused);
            old.cron = cron.clone();
            open.set_cron(state, &cron.name, Some(periodic));
            Ok(false)
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
        by: Option<&str>,
    ) -> Result<bool, Error> {
        let now = Utc::now();
        conn.operate(|state, open| {
            let change = |Periodic { entry, .. }: &mut Periodic| {
                if entry.paused != paused {
                    entry.paused_at = paused.then_some(now);
                    entry.paused_by = by.filter(|_| paused).map(str::to_owned);
                }
                (entry.paused, entry.next_at) = (paused, next_at);
            };
            Ok(change_periodic(state, open, name, change))
        })
    }

    fn due_cron(&self, conn: &mut MemoryConn, after: Option<&str>) -> Result<Option<CronEntry>, Error> {
        let now = Utc::now();
        conn.operate(|state, open| {
            let is_due = |periodic: &&Periodic| {
                let Periodic { entry, retry_at, held_by } = periodic;
                held_by.is_none()
                    && after.is_none_or(|after| entry.cron.name.as_str() > after)
                    && entry.next_at.is_some_and(|next| next <= now)
                    && retry_at.is_none_or(|retry| retry <= now)
            };
            let Some(due) = state.crons.values().find(is_due).cloned() else { return Ok(None) };
            let held = Periodic { held_by: Some(open.tx), ..due.clone() };
            open.set_cron(state, &due.entry.cron.name, Some(held));
            Ok(Some(due.entry))
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
            let change = |periodic: &mut Periodic| {
                let entry = &mut periodic.entry;
                (entry.last_at, entry.next_at) = (last_at, next_at);
                (entry.failures, entry.error, periodic.retry_at) = (0, None, None);
            };
            change_periodic(state, open, name, change);
            Ok(())
        })
    }

    fn fail_cron(
        &self,
        conn: &mut MemoryConn,
        name: &str,
        tick: DateTime<Utc>,
        error: &str,
        pause: Duration,
    ) -> Result<(), Error> {
        let retry_at = TimeDelta::from_std(pause).ok().and_then(|pause| Utc::now().checked_add_signed(pause));
        conn.operate(|state, open| {
            let change = |periodic: &mut Periodic| {
                if periodic.entry.next_at == Some(tick) {
                    periodic.entry.failures += 1;
                    periodic.entry.error = Some(error.to_owned());
                    periodic.retry_at = retry_at;
                }
            };
            change_periodic(state, open, name, change);
            Ok(())
        })
    }

    fn bring_cron_forward(
        &self,
        conn: &mut MemoryConn,
        name: &str,
        tick: DateTime<Utc>,
        earlier: DateTime<Utc>,
    ) -> Result<bool, Error> {
        conn.operate(|state, open| {
            if state.crons.get(name).is_none_or(|periodic| periodic.entry.next_at != Some(tick)) {
                return Ok(false);
            }
            Ok(change_periodic(state, open, name, |periodic| periodic.entry.next_at = Some(earlier)))
        })
    }
}

/// Changes a periodic job, and returns `false` if there is none of that name.
fn change_periodic(
    state: &mut State,
    open: &mut Open,
    name: &str,
    change: impl FnOnce(&mut Periodic),
) -> bool {
    let Some(mut periodic) = state.crons.get(name).cloned() else { return false };
    change(&mut periodic);
    open.set_cron(state, name, Some(periodic));
    true
}
