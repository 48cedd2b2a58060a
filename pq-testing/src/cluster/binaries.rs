//! PostgreSQL's server programs on this machine.

use std::cmp::Reverse;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::error::Error;

const OLDEST: u32 = 13;

/// The directories in which packages install the programs: subdirectories of the first path, highest version first, and
/// the second path below each.
const PLACES: [(&str, &str, &str); 7] = [
    ("/usr/lib/postgresql", "", "bin"),
    ("/usr", "pgsql-", "bin"),
    ("/usr/libexec", "postgresql", ""),
    ("/usr/lib", "postgresql", "bin"),
    ("/opt/homebrew/opt", "postgresql@", "bin"),
    ("/usr/local/opt", "postgresql@", "bin"),
    ("/Applications/Postgres.app/Contents/Versions", "", "bin"),
];

/// A directory with `initdb` and `postgres`.
#[derive(Debug, Clone)]
pub(crate) struct Binaries {
    pub(crate) dir: PathBuf,
}

impl Binaries {
    /// Finds the programs in the given directory, or else the first on this machine.
    pub(crate) fn find(named: Option<(PathBuf, &'static str)>) -> Result<Option<Self>, Error> {
        let found = match named {
            Some((dir, from)) => {
                if let Some(missing) = missing(&dir) {
                    return Err(Error::BinDir { dir, from, missing });
                }
                Some(dir)
            }
            None => candidates().find(|dir| missing(dir).is_none()),
        };
        let Some(dir) = found else { return Ok(None) };
        // An entry on PATH is often a link to one of the programs.
        let dir = fs::canonicalize(dir.join("initdb"))
            .ok()
            .and_then(|program| program.parent().map(Path::to_path_buf))
            .filter(|real| missing(real).is_none())
            .unwrap_or(dir);
        let binaries = Self { dir };
        binaries.check_version()?;
        Ok(Some(binaries))
    }

    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn check_version(&self) -> Result<(), Error> {
        let program = self.program("postgres");
        let printed = output(Command::new(&program).arg("--version"))
            .ok_or_else(|| std::io::Error::other("it cannot be executed"))
            .map_err(Error::io(format!("read the version of {}", program.display())))?;
        // "postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)"
        let version = printed.split_whitespace().nth(2).unwrap_or(&printed);
        check_version(&program.display().to_string(), version)
    }
}

/// Refuses a version that is too old. A version that cannot be parsed is accepted.
pub(crate) fn check_version(what: &str, version: &str) -> Result<(), Error> {
    match leading_number(version) {
        Some(major) if major < OLDEST => {
            Err(Error::TooOld { what: what.to_owned(), version: version.to_owned() })
        }
        _ => Ok(()),
    }
}

fn missing(dir: &Path) -> Option<&'static str> {
    ["initdb", "postgres"].into_iter().find(|name| !dir.join(name).is_file())
}

fn candidates() -> impl Iterator<Item = PathBuf> {
    let configured = output(Command::new("pg_config").arg("--bindir")).map(|dir| PathBuf::from(dir.trim()));
    let path = env::var_os("PATH").unwrap_or_default();
    let on_path: Vec<PathBuf> = env::split_paths(&path).filter(|dir| dir.is_absolute()).collect();
    configured
        .into_iter()
        .chain(on_path)
        .chain(PLACES.into_iter().flat_map(|(base, prefix, below)| versions(base, prefix, below)))
        .chain([PathBuf::from("/usr/local/pgsql/bin")])
}

fn versions(base: &str, prefix: &str, below: &str) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(base) else {
        return Vec::new();
    };
    let mut found: Vec<(u32, PathBuf)> = entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name();
            let version = leading_number(name.to_str()?.strip_prefix(prefix)?)?;
            Some((version, entry.path().join(below)))
        })
        .collect();
    found.sort_by_key(|(version, _)| Reverse(*version));
    found.into_iter().map(|(_, dir)| dir).collect()
}

fn leading_number(text: &str) -> Option<u32> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    text[..end].parse().ok()
}

fn output(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_named_directory_without_the_programs_is_an_error() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(dir.path().join("initdb"), "").expect("a file");
        let named = Some((dir.path().to_path_buf(), "the test"));
        let error = Binaries::find(named).expect_err("there is no server in it");
        let text = error.to_string();
        assert!(text.contains("`postgres`") && text.contains("the test"), "{text}");
    }

    #[test]
    fn the_highest_version_comes_first() {
        let dir = tempfile::tempdir().expect("a directory");
        for name in ["pg-9.6", "pg-15", "pg-16", "other-17", "pg-"] {
            fs::create_dir(dir.path().join(name)).expect("a directory");
        }
        let base = dir.path().to_str().expect("a readable name");
        let found = versions(base, "pg-", "bin");
        let wanted: Vec<PathBuf> =
            ["pg-16/bin", "pg-15/bin", "pg-9.6/bin"].iter().map(|name| dir.path().join(name)).collect();
        assert_eq!(found, wanted);
    }

    #[test]
    fn old_versions_are_refused() {
        assert!(check_version("it", "12.4").is_err());
        assert!(check_version("it", "13beta1").is_ok());
        assert!(check_version("it", "18devel").is_ok());
    }
}
