//! A server in a Docker container.

mod docker;

use std::env;
use std::path::Path;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use testcontainers::bollard::models::{HostConfig, PortBinding};
use testcontainers::core::IntoContainerPort;
use testcontainers::runners::SyncRunner;
use testcontainers::{ContainerRequest, GenericImage, ImageExt, TestcontainersError};

use self::docker::Docker;
use crate::cluster::last_lines;
use crate::conninfo::Conninfo;
use crate::database::random_name;
use crate::error::Error;
use crate::options::Options;
use crate::watchdog::Watchdog;

const PORT: u16 = 5432;

/// The time that Docker may take to pull an image.
const PULL: Duration = Duration::from_secs(300);

/// Shared memory of parallel queries. Docker's 64 MB are too little for large ones.
const SHARED_MEMORY: u64 = 256 * 1024 * 1024;

/// Stops and removes a container when dropped.
#[derive(Debug)]
pub(crate) struct Container {
    image: String,
    /// The thread drops the container when this is dropped.
    hold: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
    watchdog: Watchdog,
}

impl Container {
    /// Starts a container and waits until the server in it answers.
    ///
    /// It is driven by a thread of its own, because the blocking runner panics on a thread that drives an
    /// async runtime, and the caller's thread may do so.
    pub(crate) fn start(options: &Options) -> Result<(Self, Conninfo), Error> {
        let plan = Plan::new(options)?;
        let mut watchdog = Watchdog::over(None)?;
        watchdog.container(&plan.name)?;
        let image = plan.image();
        let after = plan.timeout + PULL;
        let (hold, released) = mpsc::channel();
        let (started, result) = mpsc::channel();
        let thread = thread::Builder::new()
            .name("pq-testing-container".to_owned())
            .spawn(move || plan.carry_out(&started, &released))
            .map_err(Error::io("start a thread"))?;
        let conninfo = match result.recv_timeout(after) {
            Ok(result) => result?,
            Err(RecvTimeoutError::Timeout) => {
                return Err(Error::Timeout {
                    what: "starting a container",
                    after,
                    detail: format!("Docker may still be pulling {image}"),
                });
            }
            Err(RecvTimeoutError::Disconnected) => {
                let reason = "the Docker client panicked".to_owned();
                return Err(Error::Container { image, reason });
            }
        };
        let container = Self { image, hold: Some(hold), thread: Some(thread), watchdog };
        Ok((container, conninfo))
    }

    /// Image and tag.
    pub(crate) fn image(&self) -> &str {
        &self.image
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        drop(self.hold.take());
        let removed = self.thread.take().is_none_or(|thread| thread.join().is_ok());
        // Otherwise the watchdog removes it.
        if removed && let Err(error) = self.watchdog.nothing() {
            tracing::debug!(%error, "cannot notify the watchdog that the container was removed");
        }
    }
}

/// The container to start.
struct Plan {
    name: String,
    repository: String,
    tag: String,
    password: String,
    arguments: Vec<String>,
    timeout: Duration,
}

type Running = testcontainers::Container<GenericImage>;

impl Plan {
    fn new(options: &Options) -> Result<Self, Error> {
        let (repository, tag) = options.given_image();
        Ok(Self {
            name: random_name("pq-testing-")?,
            repository,
            tag,
            password: random_name("")?,
            arguments: options.arguments()?,
            timeout: options.timeout,
        })
    }

    fn image(&self) -> String {
        format!("{}:{}", self.repository, self.tag)
    }

    /// Runs in the thread: starts the container, reports the result, and keeps the container until released.
    fn carry_out(self, started: &Sender<Result<Conninfo, Error>>, released: &Receiver<()>) {
        match self.start() {
            Ok((container, conninfo)) => {
                // The receiver was dropped if the start took too long.
                if started.send(Ok(conninfo)).is_ok() {
                    // Nothing is ever sent: this returns when the other end is dropped.
                    let _ = released.recv();
                }
                drop(container);
            }
            Err(error) => {
                let _ = started.send(Err(error));
            }
        }
    }

    fn start(&self) -> Result<(Running, Conninfo), Error> {
        let docker = Docker::connect()?;
        docker.remove_stale();
        let started = self
            .request()
            .start()
            .map_err(|error| self.failed(&error))
            .and_then(|container| self.wait_until_ready(container));
        if started.is_err() {
            // One that was created and did not start has no guard.
            docker.remove(&self.name);
        }
        started
    }

    fn request(&self) -> ContainerRequest<GenericImage> {
        let request = GenericImage::new(self.repository.as_str(), self.tag.as_str())
            .with_exposed_port(PORT.tcp())
            .with_cmd(["postgres".to_owned()].into_iter().chain(self.arguments.clone()))
            .with_container_name(self.name.as_str())
            .with_label(docker::OWNER_LABEL, docker::owner())
            .with_env_var("POSTGRES_USER", "postgres")
            .with_env_var("POSTGRES_DB", "postgres")
            .with_env_var("POSTGRES_PASSWORD", self.password.as_str())
            .with_shm_size(SHARED_MEMORY)
            .with_startup_timeout(self.timeout);
        if is_local() { request.with_host_config_modifier(on_loopback_only) } else { request }
    }

    /// Connects instead of reading the log. The official image first starts a server that only sets up the
    /// cluster. It logs that it is ready as well, but does not listen on TCP.
    fn wait_until_ready(&self, container: Running) -> Result<(Running, Conninfo), Error> {
        let conninfo = self.conninfo(&container)?;
        let deadline = Instant::now() + self.timeout;
        let mut seen = String::new();
        while Instant::now() < deadline {
            match conninfo.connect("the container") {
                Ok(_) => return Ok((container, conninfo)),
                Err(error) => seen = error.to_string(),
            }
            if !container.is_running().map_err(|error| self.failed(&error))? {
                return Err(self.ended(&container));
            }
            thread::sleep(Duration::from_millis(100));
        }
        Err(Error::Timeout {
            what: "starting the server in the container",
            after: self.timeout,
            detail: seen,
        })
    }

    fn conninfo(&self, container: &Running) -> Result<Conninfo, Error> {
        let address = || {
            let port = container.get_host_port_ipv4(PORT.tcp())?;
            let host = match container.get_host()?.to_string() {
                name if name == "localhost" => "127.0.0.1".to_owned(),
                other => other,
            };
            Ok((host, port))
        };
        let (host, port) = address().map_err(|error: TestcontainersError| self.failed(&error))?;
        Ok(Conninfo::local(&host, port, &self.password))
    }

    fn ended(&self, container: &Running) -> Error {
        let mut log = container.stdout_to_vec().unwrap_or_default();
        log.extend(container.stderr_to_vec().unwrap_or_default());
        Error::Container {
            image: self.image(),
            reason: format!("it ended; its log ends: {}", last_lines(&log)),
        }
    }

    fn failed(&self, error: &TestcontainersError) -> Error {
        Error::Container { image: self.image(), reason: docker::chain(error) }
    }
}

/// Returns `true` if the daemon's 127.0.0.1 is that of this process.
///
/// It is not for a daemon on another machine, nor if this process runs in a container. The port is then
/// published to the daemon's whole network, as Docker does by default, and only the random password protects it.
fn is_local() -> bool {
    let here = |host: String| host.is_empty() || host.starts_with("unix:");
    env::var("DOCKER_HOST").map_or(true, here) && !Path::new("/.dockerenv").exists()
}

/// By default Docker publishes ports to the whole network.
fn on_loopback_only(config: &mut HostConfig) {
    let binding = PortBinding { host_ip: Some("127.0.0.1".to_owned()), host_port: Some(String::new()) };
    config.publish_all_ports = Some(false);
    config.port_bindings = Some([(format!("{PORT}/tcp"), Some(vec![binding]))].into());
}
