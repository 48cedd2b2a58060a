//! Lists the files of the demo and computes their statistics.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use ignore::WalkBuilder;
use sha2::{Digest, Sha256};

use crate::failure::Failure;

/// Returns the sorted relative paths of all regular files in a directory, without files that git ignores.
pub(super) fn list(folder: &Path) -> Result<Vec<String>, Failure> {
    let mut files = Vec::new();
    let walk =
        WalkBuilder::new(folder).hidden(false).filter_entry(|entry| entry.file_name() != ".git").build();
    for entry in walk {
        let entry = entry.map_err(|error| Failure::Io(error.to_string()))?;
        // A name that is not UTF-8 cannot be a JSON payload.
        if let (Some(true), Ok(path)) =
            (entry.file_type().map(|kind| kind.is_file()), entry.path().strip_prefix(folder))
            && let Some(path) = path.to_str()
        {
            files.push(path.to_owned());
        }
    }
    files.sort();
    Ok(files)
}

/// The statistics of a file.
pub(super) struct FileStats {
    pub(super) bytes: i64,
    pub(super) lines: i64,
    pub(super) sha256: String,
}

pub(super) fn stats(path: &Path) -> io::Result<FileStats> {
    let mut file = File::open(path)?;
    let (mut hash, mut bytes, mut lines) = (Sha256::new(), 0_i64, 0_i64);
    let mut buffer = [0; 64 * 1024];
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        hash.update(&buffer[..read]);
        bytes += i64::try_from(read).unwrap_or(i64::MAX);
        lines += buffer[..read].iter().map(|byte| i64::from(*byte == b'\n')).sum::<i64>();
    }
    let sha256 = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(FileStats { bytes, lines, sha256 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stats_match_wc_and_sha256sum() -> io::Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("file");
        std::fs::write(&path, "a\nb\n")?;
        let stats = stats(&path)?;
        assert_eq!((stats.bytes, stats.lines), (4, 2));
        // By `printf 'a\nb\n' | sha256sum`.
        assert_eq!(stats.sha256, "911169ddaaf146aff539f58c26c489af3b892dff0fe283c1c264c65ae5aa59a2");
        Ok(())
    }
}
