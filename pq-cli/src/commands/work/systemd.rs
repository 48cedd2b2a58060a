//! Notifying systemd that the worker is ready, works, and stops.
//!
//! See sd_notify(3). Without `NOTIFY_SOCKET` in the environment nothing is sent.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// Says that the process is ready, and from then on, as often as systemd asks, that it works.
///
/// Once `is_healthy` returns an error, it is no longer reported, so that systemd restarts it.
pub(super) fn start(is_healthy: impl Fn() -> Result<(), String> + Send + 'static) {
    notify("READY=1");
    let Some(interval) = watchdog_interval() else { return };
    std::thread::spawn(move || {
        loop {
            match is_healthy() {
                Ok(()) => notify("WATCHDOG=1"),
                Err(reason) => tracing::error!(reason, "worker hangs; systemd is not notified"),
            }
            std::thread::sleep(interval);
        }
    });
}

/// Says that the process stops.
pub(super) fn stopping() {
    notify("STOPPING=1");
}

/// Returns half of the time within which systemd expects to be notified, if it does and means this process.
fn watchdog_interval() -> Option<Duration> {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let is_meant = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
    let micros = number("WATCHDOG_USEC").filter(|micros| is_meant && *micros > 0)?;
    Some(Duration::from_micros(micros / 2))
}

fn notify(state: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    if let Err(error) = send(&path, state) {
        tracing::warn!(%error, state, "systemd could not be notified");
    }
}

fn send(path: &OsStr, state: &str) -> io::Result<()> {
    let address = match path.as_bytes().strip_prefix(b"@") {
        #[cfg(target_os = "linux")]
        Some(name) => {
            use std::os::linux::net::SocketAddrExt;
            SocketAddr::from_abstract_name(name)?
        }
        _ => SocketAddr::from_pathname(path)?,
    };
    UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address).map(drop)
}
