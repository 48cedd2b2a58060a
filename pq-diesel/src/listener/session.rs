//! One connection of the listener's thread: LISTEN, NOTIFY, and the locks of coalesced channels.

use std::collections::HashMap;
use std::io::PipeReader;
use std::time::{Duration, Instant};

use super::coalescing::{self, Action, Coalescing};
use super::sleep;
use super::subscription_registry::{PendingActions, SubscriptionRegistry};
use crate::libpq::Connection;
use crate::table::{Ident, Table};

/// The time that a session with a notifier lock may be idle before the server ends it.
const IDLE_TIMEOUT: Duration = Duration::from_secs(5);

/// The first version of PostgreSQL with `idle_session_timeout`.
const VERSION_WITH_IDLE_TIMEOUT: i32 = 140_000;

/// One connection and the channels that it listens to.
pub(super) struct Session<'a> {
    conn: Connection,
    table: &'a Table,
    registry: &'a SubscriptionRegistry,
    channels: HashMap<String, Channel>,
    /// The earliest time of the next notification of the handle's own puts. One notification covers many puts.
    notify_at: Instant,
    /// Whether [`IDLE_TIMEOUT`] is set.
    has_idle_timeout: bool,
}

struct Channel {
    /// All channels on which puts of the same queue are notified.
    notified: Vec<Ident>,
    coalescing: Coalescing,
}

impl<'a> Session<'a> {
    pub(super) fn new(conn: Connection, table: &'a Table, registry: &'a SubscriptionRegistry) -> Self {
        Self {
            conn,
            table,
            registry,
            channels: HashMap::new(),
            notify_at: Instant::now(),
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
                let all = self.channels.keys().map(|channel| Ident::of_channel(channel)).collect();
                return self.stop_coalescing(all);
            }
            self.drain_notifications()?;
            self.coalesce()?;
            // The session's own notifications arrive with the answers to its statements and leave the socket empty,
            // so nothing would end the sleep for them.
            self.drain_notifications()?;
            let next = self.channels.values().filter_map(|channel| channel.coalescing.next_action_at()).min();
            let next = next.map(|at| at.saturating_duration_since(Instant::now()));
            let socket = self.conn.socket().ok_or("the connection has no socket")?;
            sleep(Some(socket), pipe, recheck_in.into_iter().chain(next).min());
        }
    }

    /// Wakes the waiters of all notifications that have arrived.
    fn drain_notifications(&mut self) -> Result<(), String> {
        for notification in self.conn.notifications()? {
            self.registry.wake_waiters(&notification.channel);
            if !notification.is_coalesced
                && let Some(channel) = self.channels.get_mut(&notification.channel)
            {
                channel.coalescing.record_notification(notification.sender, Instant::now());
            }
        }
        Ok(())
    }

    fn perform(&mut self, actions: PendingActions) -> Result<(), String> {
        for listen in actions.listen {
            self.conn.run(&format!("LISTEN {}", listen.channel))?;
            self.registry.listening(listen.channel.as_str());
            let channel = Channel { notified: listen.notified, coalescing: Coalescing::new(Instant::now()) };
            self.channels.insert(listen.channel.as_str().to_owned(), channel);
        }
        for channel in &actions.unlisten {
            self.conn.run(&format!("UNLISTEN {channel}"))?;
        }
        self.stop_coalescing(actions.unlisten)?;
        if !actions.notify.is_empty() {
            self.notify_at = Instant::now() + coalescing::TICK;
        }
        self.notify(actions.notify)
    }

    /// Performs the due actions of coalesced channels.
    ///
    /// A process that is stopped or unreachable keeps its locks as long as its session lives, and nothing would notify.
    /// Therefore this needs a server that can limit a session's idle time, which PostgreSQL 13 cannot.
    fn coalesce(&mut self) -> Result<(), String> {
        if self.conn.server_version() < VERSION_WITH_IDLE_TIMEOUT {
            return Ok(());
        }
        for (name, channel) in &mut self.channels {
            let coalescing = &mut channel.coalescing;
            let literal = Ident::of_channel(name).literal();
            let lock = |kind| self.table.channel_lock(kind, &literal);
            while let Some(action) = coalescing.next_action(Instant::now()) {
                match action {
                    Action::Notify => {
                        let no_writers =
                            self.conn.ask(&notify_for_writers(&channel.notified, &lock("writers")))?;
                        coalescing.notified(no_writers, Instant::now());
                    }
                    Action::ReleaseLock => release_lock(&mut self.conn, &lock("notifier"))?,
                    Action::AcquireLock => {
                        // The table may be dropped or hidden from this role. Its writers then continue to notify.
                        let acquired =
                            self.conn.ask(&format!("SELECT pg_try_advisory_lock({})", lock("notifier")));
                        if let Err(reason) = &acquired {
                            tracing::debug!(reason, channel = name, "notifier lock unavailable");
                        }
                        coalescing.lock_attempted(acquired.unwrap_or_default(), Instant::now());
                    }
                }
            }
        }
        self.update_idle_timeout()
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

    /// Releases the locks of these channels and sends the notifications that are still due on them.
    fn stop_coalescing(&mut self, channels: Vec<Ident>) -> Result<(), String> {
        let mut notify = Vec::new();
        for name in channels {
            let Some(channel) = self.channels.remove(name.as_str()) else { continue };
            if channel.coalescing.has_lock() {
                release_lock(&mut self.conn, &self.table.channel_lock("notifier", &name.literal()))?;
            }
            if channel.coalescing.next_action_at().is_some() {
                notify.extend(channel.notified);
            }
        }
        self.update_idle_timeout()?;
        self.notify(notify)
    }

    /// Notifies all of these channels in one transaction.
    fn notify(&mut self, channels: impl IntoIterator<Item = Ident>) -> Result<(), String> {
        let notify = |channel| format!("NOTIFY {channel}, '{}'", coalescing::PAYLOAD);
        let statements: Vec<_> = channels.into_iter().map(notify).collect();
        if statements.is_empty() { Ok(()) } else { self.conn.run(&statements.join("; ")) }
    }
}

/// Returns a query that notifies these channels and answers whether no writer was in flight before.
fn notify_for_writers(channels: &[Ident], writers_lock: &str) -> String {
    let notify = |channel: &Ident| format!(", pg_notify({}, '{}')", channel.literal(), coalescing::PAYLOAD);
    let notify: String = channels.iter().map(notify).collect();
    format!(
        "SELECT CASE WHEN pg_try_advisory_lock({writers_lock}) THEN pg_advisory_unlock({writers_lock}) \
         ELSE false END{notify}"
    )
}

fn release_lock(conn: &mut Connection, lock: &str) -> Result<(), String> {
    conn.ask(&format!("SELECT pg_advisory_unlock({lock})")).map(drop)
}
