//! A private cluster: the PostgreSQL programs, in a directory that is removed with it.

mod account;
mod binaries;
mod directory;
mod initdb;
mod postmaster;

use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use self::directory::Directory;
use self::postmaster::{Failure, Postmaster};
use crate::conninfo::Conninfo;
use crate::error::Error;
use crate::options::Options;
use crate::watchdog::Watchdog;

pub(crate) use self::account::Account;
pub(crate) use self::binaries::{Binaries, check_version};
#[cfg(feature = "container")]
pub(crate) use self::initdb::last_lines;
pub use self::postmaster::Stop;

/// The number of ports to try. Another process may take a port after it was found to be free.
const PORTS: usize = 10;

/// The time that a start waits for the port and memory of the previous run.
const PATIENCE: Duration = Duration::from_secs(10);

/// Stops and removes a cluster when dropped.
#[derive(Debug)]
pub(crate) struct Cluster {
    /// `None` while stopped.
    postmaster: Option<Postmaster>,
    binaries: Binaries,
    account: Account,
    port: u16,
    conninfo: Conninfo,
    arguments: Vec<String>,
    timeout: Duration,
    // Dropped in this order, so that the watchdog has nothing left to do.
    directory: Directory,
    watchdog: Watchdog,
}

impl Cluster {
    /// Creates a cluster and starts it.
    pub(crate) fn start(options: &Options, binaries: Binaries) -> Result<Self, Error> {
        let arguments = options.arguments()?;
        let account = Account::find()?;
        let directory = Directory::create(options.directory.as_deref(), &account)?;
        let mut watchdog = Watchdog::over(Some(directory.path()))?;
        let password = crate::database::random_name("")?;
        initdb::run(&binaries, &account, &directory, &mut watchdog, &password)?;
        let mut cluster = Self {
            postmaster: None,
            binaries,
            account,
            port: 0,
            conninfo: Conninfo::local("127.0.0.1", 0, &password),
            arguments,
            timeout: options.timeout,
            directory,
            watchdog,
        };
        cluster.find_port(&password)?;
        Ok(cluster)
    }

    /// The maintenance database.
    pub(crate) fn conninfo(&self) -> &Conninfo {
        &self.conninfo
    }

    pub(crate) fn user(&self) -> Option<&str> {
        self.account.name()
    }

    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Returns the id of the main process while it runs.
    pub(crate) fn pid(&mut self) -> Option<u32> {
        self.postmaster.as_mut().and_then(|postmaster| postmaster.runs().then(|| postmaster.pid()))
    }

    pub(crate) fn stop(&mut self, how: Stop) -> Result<(), Error> {
        let postmaster =
            self.postmaster.take().ok_or(Error::State { operation: "stop", state: "is stopped already" })?;
        postmaster.stop(how);
        self.watchdog.nothing()
    }

    pub(crate) fn start_again(&mut self) -> Result<(), Error> {
        if self.pid().is_some() {
            return Err(Error::State { operation: "start", state: "runs already" });
        }
        // After a kill, sessions that end late still hold the shared memory.
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.run() {
                Ok(()) => return Ok(()),
                Err(Failure::Occupied(_)) if Instant::now() < deadline => {
                    thread::sleep(Duration::from_millis(50));
                }
                Err(Failure::Occupied(error) | Failure::Other(error)) => return Err(error),
            }
        }
    }

    fn find_port(&mut self, password: &str) -> Result<(), Error> {
        let mut tried = 0;
        loop {
            tried += 1;
            self.take_port(password)?;
            match self.run() {
                Ok(()) => return Ok(()),
                Err(Failure::Occupied(error)) if tried < PORTS => {
                    tracing::debug!(port = self.port, %error, "port is in use; trying another one");
                }
                Err(Failure::Occupied(error) | Failure::Other(error)) => return Err(error),
            }
        }
    }

    fn take_port(&mut self, password: &str) -> Result<(), Error> {
        self.port = TcpListener::bind(("127.0.0.1", 0))
            .and_then(|listener| listener.local_addr())
            .map_err(Error::io("find a free port on 127.0.0.1"))?
            .port();
        self.conninfo = Conninfo::local("127.0.0.1", self.port, password);
        Ok(())
    }

    fn run(&mut self) -> Result<(), Failure> {
        let command = self.command();
        let watchdog = &mut self.watchdog;
        let postmaster = Postmaster::start(command, &self.directory, &self.conninfo, self.timeout, |pid| {
            watchdog.process(pid)
        });
        match postmaster {
            Ok(postmaster) => {
                self.postmaster = Some(postmaster);
                Ok(())
            }
            Err(failure) => {
                self.watchdog.nothing().map_err(Failure::Other)?;
                Err(failure)
            }
        }
    }

    fn command(&self) -> Command {
        let program = self.binaries.program("postgres");
        let mut command = initdb::command(program, &self.account, &self.directory);
        // A list in PostgreSQL's syntax, in which a name with a comma has to be quoted.
        let directory = self.directory.path().display().to_string().replace('"', "\"\"");
        command
            .arg("-D")
            .arg(self.directory.data())
            .args(&self.arguments)
            .args(["-c", "listen_addresses=127.0.0.1"])
            .args(["-c", &format!("port={}", self.port)])
            .args(["-c", &format!("unix_socket_directories=\"{directory}\"")])
            .args(["-c", "logging_collector=off", "-c", "log_destination=stderr"]);
        command
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(postmaster) = self.postmaster.take() {
            // The data is deleted, so no checkpoint is needed.
            postmaster.stop(Stop::Immediate);
        }
    }
}
