//! A connection that sleeps until it is notified, as a program without a queue would write it.

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
    /// Connects, and listens. No other thread may connect at the same time.
    ///
    /// # Errors
    ///
    /// The database's, and where the system does not say which socket it is.
    pub fn on(bench: &Bench, channel: &str) -> Result<Self> {
        // diesel does not show libpq's socket. It is the one that was not there before; Linux gives us a second
        // descriptor for it, which may be used without asking for trust.
        let before = sockets()?;
        let mut conn = bench.connect()?;
        let new: Vec<i32> = sockets()?.into_iter().filter(|socket| !before.contains(socket)).collect();
        let [number] = new[..] else { anyhow::bail!("{} sockets are new, and not one", new.len()) };
        let ourselves = pidfd_open(getpid(), PidfdFlags::empty())?;
        let socket = pidfd_getfd(&ourselves, number, PidfdGetfdFlags::empty())?;
        conn.batch_execute(&format!("LISTEN \"{channel}\""))?;
        Ok(Self { conn, socket })
    }

    /// Sleeps until it is notified; false where the time is over before.
    ///
    /// # Errors
    ///
    /// The database's.
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

    /// The connection, to take with once it is notified.
    pub fn conn(&mut self) -> &mut PgConnection {
        &mut self.conn
    }
}

/// The numbers of this process's descriptors that are sockets.
fn sockets() -> Result<Vec<i32>> {
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd").context("no /proc/self/fd")? {
        let entry = entry?;
        // The descriptor of the directory itself is gone by the time that it is asked for.
        let Ok(target) = std::fs::read_link(entry.path()) else { continue };
        if target.to_string_lossy().starts_with("socket:") {
            numbers.push(entry.file_name().to_string_lossy().parse()?);
        }
    }
    Ok(numbers)
}
