//! One connection of the listener's thread: LISTEN, NOTIFY, and the locks of coalesced channels.

use std::collections::HashMap;
use std::io::PipeReader;
use std::time::{Duration, Instant};

use pq_core::JobId;

use super::coalescing::{self, Action, Coalescing, Transactions};
use super::sleep;
use super::subscription_registry::{ChannelNames, PendingActions, SubscriptionRegistry};
use crate::libpq::Connection;
use crate::table::{Ident, Table};

/// The time that a session with a notifier lock may be idle before the server ends it.
const IDLE_TIMEOUT: Duration = Duration::from_secs(5);

/// The first version of PostgreSQL with `idle_session_timeout`.
const VERSION_WITH_IDLE_TIMEOUT: i32 = 140_000;

/// The interval between two attempts to acquire the notifier locks of busy channels.
const ACQUIRE_INTERVAL: Duration = Duration::from_millis(100);

/// The longest time for which a session that ends notifies for writers that are left.
const MAX_CLOSING: Duration = Duration::from_millis(200);

/// Asks whether at least two transactions wait for another one to commit with a notification.
///
/// That lock is the one on the object 0 of `pg_database`. The writers of one handle share their commits, so they
/// hardly wait for each other.
const WRITERS_WAIT: &str = "SELECT count(*) >= 2 FROM pg_locks
    WHERE NOT granted AND locktype = 'object' AND classid = 'pg_catalog.pg_database'::regclass AND objid = 0";

/// One connection, and the channels that it listens to or whose writers it may notify for.
pub(super) struct Session<'a> {
    conn: Connection,
    table: &'a Table,
    registry: &'a SubscriptionRegistry,
    channels: HashMap<String, Channel>,
    /// The earliest time of the next notification of the handle's own puts. One notification covers many puts.
    notify_at: Instant,
    /// The earliest time of the next attempt to acquire notifier locks.
    acquire_at: Instant,
    /// Whether [`IDLE_TIMEOUT`] is set.
    has_idle_timeout: bool,
}

struct Channel {
    /// All channels on which puts of the same queue are notified.
    notified: Vec<Ident>,
    is_listening: bool,
    coalescing: Coalescing,
}

impl<'a> Session<'a> {
    pub(super) fn new(conn: Connection, table: &'a Table, registry: &'a SubscriptionRegistry) -> Self {
        let now = Instant::now();
        Self {
            conn,
            table,
            registry,
            channels: HashMap::new(),
            notify_at: now,
            acquire_at: now,
            has_idle_timeout: false,
        }
    }

    /// Serves until the connection is lost or the handle is closed.
    pub(super) fn serve(&mut self, pipe: &mut PipeReader) -> Result<(), String> {
        // The session commits only notifications, which need no durability.
        self.conn.run("SET synchronous_commit = off")?;
        loop {
            let actions = self.registry.pending_actions(self.notify_at);
            let (closed, recheck_in) = (actions.closed, actions.recheck_in);
            self.perform(actions)?;
            if closed {
                return self.stop_coalescing();
            }
            self.drain_notifications()?;
            let coalesce_at = self.coalesce()?;
            // The session's own notifications arrive with the answers to its statements and leave the socket empty,
            // so nothing would end the sleep for them.
            self.drain_notifications()?;
            let next = coalesce_at.map(|at| at.saturating_duration_since(Instant::now()));
            let socket = self.conn.socket().ok_or("the connection has no socket")?;
            sleep(Some(socket), pipe, recheck_in.into_iter().chain(next).min());
        }
    }

    /// Wakes the waiters of all notifications that have arrived.
    fn drain_notifications(&mut self) -> Result<(), String> {
        for notification in self.conn.notifications()? {
            let job = notification.payload.parse().ok().map(JobId);
            self.registry.wake_waiters(&notification.channel, job);
            if notification.payload.is_empty()
                && let Some(channel) = self.channels.get_mut(&notification.channel)
            {
                channel.coalescing.record_notification(Instant::now());
            }
        }
        Ok(())
    }

    fn perform(&mut self, actions: PendingActions) -> Result<(), String> {
        for listen in actions.listen {
            self.conn.run(&format!("LISTEN {}", listen.channel))?;
            self.registry.listening(listen.channel.as_str());
            self.channel(listen).is_listening = true;
        }
        for busy in actions.busy {
            self.channel(busy).coalescing.record_busy(Instant::now());
        }
        for channel in &actions.unlisten {
            self.conn.run(&format!("UNLISTEN {channel}"))?;
            if let Some(channel) = self.channels.get_mut(channel.as_str()) {
                channel.is_listening = false;
            }
        }
        if !actions.notify.is_empty() {
            self.notify_at = Instant::now() + coalescing::TICK;
        }
        self.notify(actions.notify)
    }

    fn channel(&mut self, names: ChannelNames) -> &mut Channel {
        self.channels.entry(names.channel.as_str().to_owned()).or_insert_with(|| Channel {
            notified: names.notified,
            is_listening: false,
            coalescing: Coalescing::new(Instant::now()),
        })
    }

    /// Performs the due actions of coalesced channels, and returns when the next one is due.
    ///
    /// A process that is stopped or unreachable keeps its locks as long as its session lives, and nothing would notify.
    /// Therefore this needs a server that can limit a session's idle time, which PostgreSQL 13 cannot.
    fn coalesce(&mut self) -> Result<Option<Instant>, String> {
        let now = Instant::now();
        self.channels.retain(|_, channel| channel.is_listening || !channel.coalescing.is_idle(now));
        if self.conn.server_version() < VERSION_WITH_IDLE_TIMEOUT {
            return Ok(None);
        }
        let wants_lock = self.channels.values().any(|channel| channel.coalescing.wants_lock(now));
        if wants_lock && self.acquire_at <= now {
            self.acquire_at = now + ACQUIRE_INTERVAL;
            self.acquire_locks();
        }
        for (name, channel) in &mut self.channels {
            let coalescing = &mut channel.coalescing;
            while let Some(action) = coalescing.next_action(Instant::now()) {
                match action {
                    Action::Notify => {
                        let transactions = notify_for_writers(&mut self.conn, &channel.notified)?;
                        coalescing.notified(transactions, Instant::now());
                    }
                    Action::ReleaseLock => {
                        let lock = notifier_lock(self.table, name);
                        self.conn.ask(&format!("SELECT pg_advisory_unlock({lock})"))?;
                    }
                }
            }
        }
        self.update_idle_timeout()?;
        let next = self.channels.values().filter_map(|channel| channel.coalescing.next_action_at());
        Ok(next.chain(wants_lock.then_some(self.acquire_at)).min())
    }

    /// Tries to acquire the notifier locks of the busy channels if writers wait for each other.
    ///
    /// The locks, the table or its schema may be hidden from this role. Its writers then continue to notify.
    fn acquire_locks(&mut self) {
        match self.conn.ask(WRITERS_WAIT) {
            Ok(true) => {}
            Ok(false) => return,
            Err(reason) => {
                tracing::debug!(reason, "waiting writers unknown");
                return;
            }
        }
        for (name, channel) in &mut self.channels {
            if !channel.coalescing.wants_lock(Instant::now()) {
                continue;
            }
            let acquired =
                self.conn.ask(&format!("SELECT pg_try_advisory_lock({})", notifier_lock(self.table, name)));
            match acquired {
                Ok(true) => channel.coalescing.lock_acquired(Instant::now()),
                Ok(false) => {}
                Err(reason) => tracing::debug!(reason, channel = name, "notifier lock unavailable"),
            }
        }
    }

    /// Sets the idle timeout while the session has a notifier lock, and resets it otherwise.
    fn update_idle_timeout(&mut self) -> Result<(), String> {
        let has_lock = self.channels.values().any(|channel| channel.coalescing.has_lock());
        if has_lock == self.has_idle_timeout {
            return Ok(());
        }
        self.has_idle_timeout = has_lock;
        let timeout = if has_lock { IDLE_TIMEOUT.as_millis().to_string() } else { "DEFAULT".to_owned() };
        self.conn.run(&format!("SET idle_session_timeout = {timeout}"))
    }

    /// Releases all locks and notifies until no writer that did not notify is left, for a moment at most.
    fn stop_coalescing(&mut self) -> Result<(), String> {
        let now = Instant::now();
        self.channels.values_mut().for_each(|channel| channel.coalescing.end_lease(now));
        let until = now + MAX_CLOSING;
        self.acquire_at = until + MAX_CLOSING;
        while let Some(at) = self.coalesce()?.filter(|at| *at <= until) {
            std::thread::sleep(at.saturating_duration_since(Instant::now()));
        }
        Ok(())
    }

    /// Notifies all of these channels in one transaction.
    fn notify(&mut self, channels: impl IntoIterator<Item = Ident>) -> Result<(), String> {
        let notify = |channel| format!("NOTIFY {channel}, '{}'", coalescing::PAYLOAD);
        let statements: Vec<_> = channels.into_iter().map(notify).collect();
        if statements.is_empty() { Ok(()) } else { self.conn.run(&statements.join("; ")) }
    }
}

/// Notifies these channels, and returns the transactions that the statement saw.
///
/// The snapshot of the statement is older than its transaction id and than the notification's commit.
fn notify_for_writers(conn: &mut Connection, channels: &[Ident]) -> Result<Transactions, String> {
    let notify = |channel: &Ident| format!(", pg_notify({}, '{}')", channel.literal(), coalescing::PAYLOAD);
    let notify: String = channels.iter().map(notify).collect();
    let row =
        conn.row(&format!("SELECT pg_current_xact_id(), pg_snapshot_xmin(pg_current_snapshot()){notify}"))?;
    let number = |column: usize| row.get(column).and_then(|text| text.parse().ok());
    let (own, oldest) = number(0).zip(number(1)).ok_or("a transaction id is not a number")?;
    Ok(Transactions { own, oldest })
}

/// Returns a SQL expression for the number of a channel's notifier lock.
fn notifier_lock(table: &Table, channel: &str) -> String {
    table.notifier_lock(&Ident::of_channel(channel).literal())
}
