//! Creates a cluster's files.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use super::account::Account;
use super::binaries::Binaries;
use super::directory::Directory;
use crate::error::Error;
use crate::watchdog::Watchdog;

/// Locales in order of preference: sorting by code point with the letters of all alphabets, or else `C`.
const LOCALES: [&str; 2] = ["C.UTF-8", "C"];

/// Returns a command that runs as the server's user, in its directory, without PostgreSQL's environment.
///
/// It gets a process group of its own, so that a terminal's Ctrl-C does not reach the server.
pub(super) fn command(program: PathBuf, account: &Account, directory: &Directory) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("PG") {
            command.env_remove(name);
        }
    }
    command
        .env("LC_ALL", "C")
        .env("TZ", "UTC")
        .current_dir(directory.path())
        .stdin(Stdio::null())
        .process_group(0);
    account.apply(&mut command);
    command
}

/// Runs `initdb`: superuser `postgres` with this password, UTF-8, no connection without it.
pub(super) fn run(
    binaries: &Binaries,
    account: &Account,
    directory: &Directory,
    watchdog: &mut Watchdog,
    password: &str,
) -> Result<(), Error> {
    // The password is in a file, because every user can read arguments in `ps`.
    let file = directory.path().join("password");
    fs::write(&file, password).map_err(Error::io(format!("write {}", file.display())))?;
    account.give(&file)?;
    let mut result = Ok(());
    for locale in LOCALES {
        let mut command = command(binaries.program("initdb"), account, directory);
        command.args(arguments(locale, directory, &file)).stdout(Stdio::piped()).stderr(Stdio::piped());
        let output = watched(&mut command, account, watchdog)?;
        if output.status.success() {
            result = Ok(());
            break;
        }
        let text = last_lines(&output.stderr);
        let unknown_locale = text.contains("locale");
        result = Err(Error::Initdb { status: output.status.to_string(), output: text });
        if !unknown_locale {
            break;
        }
    }
    fs::remove_file(&file).map_err(Error::io(format!("remove {}", file.display())))?;
    result
}

fn arguments(locale: &str, directory: &Directory, password_file: &Path) -> Vec<String> {
    vec![
        format!("--pgdata={}", directory.data().display()),
        "--username=postgres".to_owned(),
        format!("--pwfile={}", password_file.display()),
        "--auth=scram-sha-256".to_owned(),
        "--encoding=UTF8".to_owned(),
        format!("--locale={locale}"),
        "--lc-messages=C".to_owned(),
        // The new files need not survive a crash of the machine.
        "--no-sync".to_owned(),
    ]
}

fn watched(command: &mut Command, account: &Account, watchdog: &mut Watchdog) -> Result<Output, Error> {
    let what = match account.name() {
        Some(name) => format!("run initdb as user {name}"),
        None => "run initdb".to_owned(),
    };
    let child = command.spawn().map_err(Error::io(what))?;
    watchdog.process(child.id())?;
    let output = child.wait_with_output().map_err(Error::io("wait for initdb"))?;
    watchdog.nothing()?;
    Ok(output)
}

/// Returns the end of a program's output on one line.
pub(crate) fn last_lines(output: &[u8]) -> String {
    let text = String::from_utf8_lossy(output);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(6)..].join(" | ")
}
