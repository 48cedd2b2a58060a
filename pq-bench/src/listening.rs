//! A connection that waits for notifications, as a program without a queue would.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use diesel::PgConnection;
use diesel::connection::SimpleConnection;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

use crate::Bench;

/// A connection that listens on one channel.
pub struct Listening {
    conn: PgConnection,
    socket: OwnedFd,
}

impl Listening {
    /// Connects and listens. No other thread may connect at the same time.
    ///
    /// # Errors
    ///
    /// Database errors, or if the socket of the connection cannot be found.
    pub fn on(bench: &Bench, channel: &str) -> Result<Self> {
        // diesel does not expose libpq's socket. The only new socket of this process is that of the connection.
        // `pidfd_getfd` duplicates its descriptor without `unsafe`.
        let before = sockets()?;
        let mut conn = bench.connect()?;
        let new: Vec<i32> = sockets()?.into_iter().filter(|socket| !before.contains(socket)).collect();
        let [number] = new[..] else { anyhow::bail!("{} new sockets, expected 1", new.len()) };
        let ourselves = pidfd_open(getpid(), PidfdFlags::empty())?;
        let socket = pidfd_getfd(&ourselves, number, PidfdGetfdFlags::empty())?;
        conn.batch_execute(&format!("LISTEN \"{channel}\""))?;
        Ok(Self { conn, socket })
    }

    /// Waits for a notification; returns `false` if none arrives in time.
    ///
    /// # Errors
    ///
    /// Database errors.
    pub fn wait(&mut self, at_most: Duration) -> Result<bool> {
        let until = Instant::now() + at_most;
        loop {
            if self.conn.notifications_iter().next().transpose()?.is_some() {
                return Ok(true);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            let timeout = Timespec::try_from(left)?;
            poll(&mut [PollFd::from_borrowed_fd(self.socket.as_fd(), PollFlags::IN)], Some(&timeout))?;
        }
    }

    /// Returns the connection, to take a job after a notification.
    pub fn conn(&mut self) -> &mut PgConnection {
        &mut self.conn
    }
}

/// Returns the descriptors of this process that are sockets.
fn sockets() -> Result<Vec<i32>> {
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd").context("cannot read /proc/self/fd")? {
        let entry = entry?;
        // The descriptor of the directory itself is already closed.
        let Ok(target) = std::fs::read_link(entry.path()) else { continue };
        if target.to_string_lossy().starts_with("socket:") {
            numbers.push(entry.file_name().to_string_lossy().parse()?);
        }
    }
    Ok(numbers)
}
