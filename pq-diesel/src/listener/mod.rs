//! Being told of puts: one connection and one thread for all queues and waiters of a handle.
//!
//! The thread sleeps on the connection's socket and on a pipe by which the handle wakes it. It is
//! started by the first wait. When its connection is lost it connects anew, with backoff, listens
//! again and rings every bell, since what was told in between is lost.

mod libpq;
mod switchboard;

use std::io::{PipeReader, Read, Write, pipe};
use std::os::fd::AsFd;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use pq_core::{Bell, QueueName};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use self::libpq::Connection;
use self::switchboard::{Orders, Switchboard};
use crate::conninfo::ConnInfo;
use crate::presence::Present;
use crate::table::{channel, told_on};

/// The pauses between attempts to connect: the first, and the longest.
const FIRST_RETRY: Duration = Duration::from_millis(50);
const LAST_RETRY: Duration = Duration::from_secs(5);

/// How long a wait that begins holds on for LISTEN to be confirmed before it polls instead.
const CONFIRM_WITHIN: Duration = Duration::from_secs(5);

pub(crate) struct Listener {
    conninfo: ConnInfo,
    board: Arc<Switchboard>,
    present: Present,
}

/// Keeps a bell subscribed to a queue's channel while it lives.
#[derive(Debug)]
pub struct Subscription {
    board: Arc<Switchboard>,
    channel: String,
    bell: Weak<Bell>,
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.board.unsubscribe(&self.channel, &self.bell);
    }
}

impl Listener {
    pub(crate) fn new(conninfo: ConnInfo) -> Self {
        Self { conninfo, board: Arc::default(), present: Present::default() }
    }

    /// Subscribes a bell, and returns when the server listens for it, so that a put which commits
    /// after this is heard. Where the server cannot be reached it returns at once; the bell rings
    /// when it can be reached again.
    pub(crate) fn subscribe(&self, queue: &QueueName, bell: &Arc<Bell>) -> Subscription {
        let channel = channel(queue.as_str()).as_str().to_owned();
        self.start();
        self.board.subscribe(&channel, bell, CONFIRM_WITHIN);
        Subscription { board: Arc::clone(&self.board), channel, bell: Arc::downgrade(bell) }
    }

    /// Rings the bells of those who wait for a queue by this handle.
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
            let (conninfo, board) = (self.conninfo.clone(), Arc::clone(&self.board));
            let thread = std::thread::Builder::new().name("pq-listener".to_owned());
            let here = self.present.enter();
            let listening = move || {
                listen(&conninfo, &board, reader);
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

fn listen(conninfo: &ConnInfo, board: &Switchboard, mut pipe: PipeReader) {
    let mut retry_in = FIRST_RETRY;
    while !board.is_closed() {
        let connected = Instant::now();
        if let Err(reason) = serve(conninfo, board, &mut pipe) {
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

/// Serves one connection until it is lost or the handle is closed.
fn serve(conninfo: &ConnInfo, board: &Switchboard, pipe: &mut PipeReader) -> Result<(), String> {
    let mut conn = Connection::open(conninfo)?;
    // What it commits is notifications alone; there is nothing to keep on disk.
    conn.run("SET synchronous_commit = off")?;
    loop {
        let orders = board.orders();
        if orders.closed {
            return Ok(());
        }
        carry_out(&mut conn, board, &orders)?;
        for channel in conn.notifications()? {
            board.ring(&channel);
        }
        let socket = conn.socket().ok_or("the connection has no socket")?;
        sleep(Some(socket), pipe, orders.look_again_in);
    }
}

fn carry_out(conn: &mut Connection, board: &Switchboard, orders: &Orders) -> Result<(), String> {
    for channel in &orders.listen {
        conn.run(&format!("LISTEN {}", channel.quoted()))?;
        board.listening(channel.as_str());
    }
    for channel in &orders.unlisten {
        conn.run(&format!("UNLISTEN {}", channel.quoted()))?;
    }
    if !orders.tell.is_empty() {
        // One transaction for all of them.
        let commands: Vec<String> =
            orders.tell.iter().map(|channel| format!("NOTIFY {}", channel.quoted())).collect();
        conn.run(&commands.join("; "))?;
    }
    Ok(())
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
