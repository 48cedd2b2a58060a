//! The process that a server belongs to, and whether that process has ended.

use std::fmt;
use std::fs;
use std::str::FromStr;

use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;

/// Identifies a process uniquely.
///
/// A process id alone is reused later, and names another process on another machine or in another container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Owner {
    host: String,
    /// The boot id and the pid namespace. Both are empty on systems other than Linux.
    boot: String,
    namespace: String,
    pid: i32,
    /// When the process started, in the kernel's ticks; 0 if unknown.
    started: u64,
}

impl Owner {
    /// This process.
    pub(crate) fn current() -> Self {
        let pid = Pid::this().as_raw();
        let host = nix::unistd::gethostname().unwrap_or_default();
        let namespace = fs::read_link("/proc/self/ns/pid").unwrap_or_default();
        Self {
            host: word(&host.to_string_lossy()),
            boot: word(&fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default()),
            namespace: word(&namespace.to_string_lossy()),
            pid,
            started: start_time(pid).unwrap_or(0),
        }
    }

    /// Returns `true` if the process has certainly ended.
    ///
    /// Returns `false` if that is unknown, as for a process on another machine or in another container.
    pub(crate) fn is_gone(&self) -> bool {
        let here = Self::current();
        if self.host != here.host {
            return false;
        }
        if self.boot != here.boot {
            return true;
        }
        if self.namespace != here.namespace || self.pid <= 0 {
            return false;
        }
        if kill(Pid::from_raw(self.pid), None) == Err(Errno::ESRCH) {
            return true;
        }
        self.started != 0 && start_time(self.pid).is_some_and(|time| time != self.started)
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, boot, namespace, pid, started } = self;
        write!(f, "{host}/{boot}/{namespace}/{pid}/{started}")
    }
}

impl FromStr for Owner {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let fields: Vec<&str> = text.trim().split('/').collect();
        let [host, boot, namespace, pid, started] = fields[..] else {
            return Err(());
        };
        Ok(Self {
            host: host.to_owned(),
            boot: boot.to_owned(),
            namespace: namespace.to_owned(),
            pid: pid.parse().map_err(drop)?,
            started: started.parse().map_err(drop)?,
        })
    }
}

fn word(text: &str) -> String {
    text.trim().replace(['/', '\n'], "-")
}

/// Returns field 22 of `/proc/PID/stat`, counted after the command's name, which may contain spaces.
fn start_time(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_live_process_has_not_ended() {
        let me = Owner::current();
        assert_eq!(me.to_string().parse(), Ok(me.clone()));
        assert!(!me.is_gone());
    }

    #[test]
    fn an_ended_process_and_a_reused_id_have_ended() {
        let mut child = std::process::Command::new("true").spawn().expect("true");
        let pid = i32::try_from(child.id()).expect("a process id");
        child.wait().expect("it ends");
        let ended = Owner { pid, ..Owner::current() };
        assert!(ended.is_gone());
        if Owner::current().started != 0 {
            let reused = Owner { started: 1, ..Owner::current() };
            assert!(reused.is_gone());
        }
    }

    #[test]
    fn processes_elsewhere_are_unknown() {
        let elsewhere = Owner { host: "elsewhere".into(), pid: 1, started: 1, ..Owner::current() };
        assert!(!elsewhere.is_gone());
        assert!("".parse::<Owner>().is_err());
        assert!("a/b/c/d/e".parse::<Owner>().is_err());
    }
}
