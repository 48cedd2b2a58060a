//! Being told of puts: one connection and one thread for all queues and waiters of a handle.
//!
//! The thread sleeps on the connection's socket and on a pipe by which the handle wakes it. It is
//! started by the first wait. When its connection is lost it connects anew, with backoff, listens
//! again and rings every signal, since what was told in between is lost.

mod coalescing;
mod libpq;
mod switchboard;

use std::collections::HashMap;
use std::io::{PipeReader, Read, Write, pipe};
use std::os::fd::AsFd;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use pq_core::{QueueName, WakeSignal};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use self::coalescing::{Act, Coalescing};
use self::libpq::Connection;
use self::switchboard::{Orders, Switchboard};
use crate::conninfo::ConnInfo;
use crate::presence::Present;
use crate::table::{Ident, Table, channel, told_on};

/// The pauses between attempts to connect: the first, and the longest.
const FIRST_RETRY: Duration = Duration::from_millis(50);
const LAST_RETRY: Duration = Duration::from_secs(5);

/// How long a wait that begins holds on for LISTEN to be confirmed before it polls instead.
const CONFIRM_WITHIN: Duration = Duration::from_secs(5);

/// After how long a session that tells for others, and does not, is ended by the server.
const SILENT: Duration = Duration::from_secs(5);

pub(crate) struct Listener {
    conninfo: ConnInfo,
    table: Table,
    board: Arc<Switchboard>,
    present: Present,
}

/// Keeps a signal subscribed to a queue's channel while it lives.
#[derive(Debug)]
pub struct Subscription {
    board: Arc<Switchboard>,
    channel: String,
    signal: Weak<WakeSignal>,
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.board.unsubscribe(&self.channel, &self.signal);
    }
}

impl Listener {
    pub(crate) fn new(conninfo: ConnInfo, table: Table) -> Self {
        Self { conninfo, table, board: Arc::default(), present: Present::default() }
    }

    /// Subscribes a signal, and returns when the server listens for it, so that a put which commits
    /// after this is heard. Where the server cannot be reached it returns at once; the signal rings
    /// when it can be reached again.
    pub(crate) fn subscribe(&self, queue: &QueueName, signal: &Arc<WakeSignal>) -> Subscription {
        let channel = channel(queue.as_str()).as_str().to_owned();
        self.start();
        self.board.subscribe(queue, &channel, signal, CONFIRM_WITHIN);
        Subscription { board: Arc::clone(&self.board), channel, signal: Arc::downgrade(signal) }
    }

    /// Rings the signals of those who wait for a queue by this handle.
    pub(crate) fn ring(&self, queue: &QueueName) {
        self.board.ring(channel(queue.as_str()).as_str());
    }

    /// Has the waiters of a queue told of a put that has committed. Returns at once; many are told
    /// together.
    pub(crate) fn tell(&self, queue: &QueueName) {
        self.start();
        self.board.tell(told_on(queue.as_str()));
    }

    fn start(&self) {
        let Some(sender) = self.board.claim_start() else { return };
        let started = pipe().and_then(|(reader, writer)| {
            let (conninfo, table, board) =
                (self.conninfo.clone(), self.table.clone(), Arc::clone(&self.board));
            let thread = std::thread::Builder::new().name("pq-listener".to_owned());
            let here = self.present.enter();
            let listening = move || {
                listen(&conninfo, &table, &board, reader);
                drop(here);
            };
            thread.spawn(listening).map(|_| writer)
        });
        match started {
            Ok(writer) => sender.started(writer),
            Err(error) => {
                tracing::error!(%error, "the listener's thread cannot be started; waits poll");
                sender.failed();
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.board.close();
        self.present.wait_for_all_to_leave();
    }
}

fn listen(conninfo: &ConnInfo, table: &Table, board: &Switchboard, mut pipe: PipeReader) {
    let mut retry_in = FIRST_RETRY;
    while !board.is_closed() {
        let connected = Instant::now();
        let served =
            Connection::open(conninfo).and_then(|conn| Session::new(conn, table, board).serve(&mut pipe));
        if let Err(reason) = served {
            tracing::warn!(reason, server = conninfo.server(), "the listener has no connection; waits poll");
        }
        board.disconnected();
        if board.is_closed() {
            return;
        }
        // A connection that has served for a while was good, and the next attempt begins anew.
        retry_in =
            if connected.elapsed() > LAST_RETRY { FIRST_RETRY } else { (retry_in * 2).min(LAST_RETRY) };
        sleep(None, &mut pipe, Some(retry_in));
    }
}

/// One connection, and the channels that it listens to.
struct Session<'a> {
    conn: Connection,
    table: &'a Table,
    board: &'a Switchboard,
    channels: HashMap<String, Listened>,
    /// When others are told again of what the handle has put: many are told as well by one notification.
    tell_at: Instant,
    /// The server ends the session if it is silent.
    is_limited: bool,
}

struct Listened {
    told_on: Vec<Ident>,
    coalescing: Coalescing,
}

impl<'a> Session<'a> {
    fn new(conn: Connection, table: &'a Table, board: &'a Switchboard) -> Self {
        Self { conn, table, board, channels: HashMap::new(), tell_at: Instant::now(), is_limited: false }
    }

    /// Serves until the connection is lost or the handle is closed.
    fn serve(&mut self, pipe: &mut PipeReader) -> Result<(), String> {
        // What it commits is notifications alone; there is nothing to keep on disk.
        self.conn.run("SET synchronous_commit = off")?;
        loop {
            let orders = self.board.orders(self.tell_at);
            let is_closed = orders.closed;
            let look_again_in = orders.look_again_in;
            self.carry_out(orders)?;
            if is_closed {
                let all = self.channels.keys().map(|channel| Ident::of_channel(channel)).collect();
                return self.leave(all);
            }
            self.hear()?;
            self.coalesce()?;
            // What this session told itself has come with the answer, and nothing is left to wake it.
            self.hear()?;
            let next = self.channels.values().filter_map(|listened| listened.coalescing.next_at()).min();
            let next = next.map(|at| at.saturating_duration_since(Instant::now()));
            let socket = self.conn.socket().ok_or("the connection has no socket")?;
            sleep(Some(socket), pipe, look_again_in.into_iter().chain(next).min());
        }
    }

    /// Rings for all notifications that have come.
    fn hear(&mut self) -> Result<(), String> {
        for told in self.conn.notifications()? {
            self.board.ring(&told.channel);
            if let Some(listened) = self.channels.get_mut(&told.channel).filter(|_| told.is_of_one_put) {
                listened.coalescing.heard(told.sender, Instant::now());
            }
        }
        Ok(())
    }

    fn carry_out(&mut self, orders: Orders) -> Result<(), String> {
        for listen in orders.listen {
            self.conn.run(&format!("LISTEN {}", listen.channel))?;
            self.board.listening(listen.channel.as_str());
            let listened = Listened { told_on: listen.told_on, coalescing: Coalescing::new(Instant::now()) };
            self.channels.insert(listen.channel.as_str().to_owned(), listened);
        }
        for channel in &orders.unlisten {
            self.conn.run(&format!("UNLISTEN {channel}"))?;
        }
        self.leave(orders.unlisten)?;
        if !orders.tell.is_empty() {
            self.tell_at = Instant::now() + coalescing::TICK;
        }
        self.tell(orders.tell)
    }

    /// Does what is due for writers who do not tell of their puts. PostgreSQL 13 could not limit the silence of a
    /// session.
    fn coalesce(&mut self) -> Result<(), String> {
        if self.conn.server_version() < 140_000 {
            return Ok(());
        }
        for (channel, listened) in &mut self.channels {
            let coalescing = &mut listened.coalescing;
            let name = Ident::of_channel(channel).literal();
            let lock = |what| self.table.channel_lock(what, &name);
            while let Some(act) = coalescing.act(Instant::now()) {
                match act {
                    Act::Tell => {
                        let was_idle =
                            self.conn.ask(&tell_for_others(&listened.told_on, &lock("writers")))?;
                        coalescing.told(was_idle, Instant::now());
                    }
                    Act::GiveBack => give_back(&mut self.conn, &lock("notifier"))?,
                    Act::Claim => {
                        // The table may be gone, or not for this role to see. The writers go on as they did.
                        let claimed =
                            self.conn.ask(&format!("SELECT pg_try_advisory_lock({})", lock("notifier")));
                        if let Err(reason) = &claimed {
                            tracing::debug!(reason, channel, "the writers cannot be told for");
                        }
                        coalescing.claimed(claimed.unwrap_or_default(), Instant::now());
                    }
                }
            }
        }
        self.limit_silence()
    }

    /// A process that was stopped, or cannot be reached, would keep its locks for as long as its session lives, and
    /// nobody would be told. So the server ends a session that has some and is silent.
    fn limit_silence(&mut self) -> Result<(), String> {
        let has_lock = self.channels.values().any(|listened| listened.coalescing.has_lock());
        if has_lock == self.is_limited {
            return Ok(());
        }
        self.is_limited = has_lock;
        let limit = if has_lock { SILENT.as_millis().to_string() } else { "DEFAULT".to_owned() };
        self.conn.run(&format!("SET idle_session_timeout = {limit}"))
    }

    /// Stops to tell on these channels for others, for the last time.
    fn leave(&mut self, channels: Vec<Ident>) -> Result<(), String> {
        let mut tell = Vec::new();
        for channel in channels {
            let Some(listened) = self.channels.remove(channel.as_str()) else { continue };
            if listened.coalescing.has_lock() {
                give_back(&mut self.conn, &self.table.channel_lock("notifier", &channel.literal()))?;
            }
            if listened.coalescing.next_at().is_some() {
                tell.extend(listened.told_on);
            }
        }
        self.limit_silence()?;
        self.tell(tell)
    }

    /// Tells on all of these channels in one transaction.
    fn tell(&mut self, channels: impl IntoIterator<Item = Ident>) -> Result<(), String> {
        let tell = channels.into_iter().map(|channel| format!("NOTIFY {channel}, '{}'", coalescing::PAYLOAD));
        let tell: Vec<_> = tell.collect();
        if tell.is_empty() { Ok(()) } else { self.conn.run(&tell.join("; ")) }
    }
}

/// Tells on these channels with the statement's commit, and says whether nobody was in the middle of a put before.
fn tell_for_others(told_on: &[Ident], putting: &str) -> String {
    let notify = |channel: &Ident| format!(", pg_notify({}, '{}')", channel.literal(), coalescing::PAYLOAD);
    let told: String = told_on.iter().map(notify).collect();
    format!(
        "SELECT CASE WHEN pg_try_advisory_lock({putting}) THEN pg_advisory_unlock({putting}) ELSE false END{told}"
    )
}

fn give_back(conn: &mut Connection, lock: &str) -> Result<(), String> {
    conn.ask(&format!("SELECT pg_advisory_unlock({lock})")).map(drop)
}

/// Sleeps until the socket can be read, the pipe has been written to, or the time is over.
fn sleep(socket: Option<std::os::fd::BorrowedFd<'_>>, pipe: &mut PipeReader, at_most: Option<Duration>) {
    let woken = {
        let mut fds = vec![PollFd::from_borrowed_fd(pipe.as_fd(), PollFlags::IN)];
        fds.extend(socket.map(|socket| PollFd::from_borrowed_fd(socket, PollFlags::IN)));
        let timeout = at_most.and_then(|time| Timespec::try_from(time).ok());
        // An interrupted poll is a wake-up like any other.
        let _ = poll(&mut fds, timeout.as_ref());
        !fds[0].revents().is_empty()
    };
    if woken {
        let _ = pipe.read(&mut [0; 64]);
    }
}

/// Wakes the listener's thread.
fn wake(mut writer: &std::io::PipeWriter) {
    let _ = writer.write_all(&[0]);
}
