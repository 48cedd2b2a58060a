//! Reads what a command prints.

use std::io::Read;
use std::process::Child;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::output;

/// Bytes kept from the end of standard error, for the error message of the job.
const STDERR_LIMIT: usize = 1_500;
/// The longest part of standard error that is passed on as one line, in bytes. The log of a job keeps no more of a
/// line.
const LINE_LIMIT: usize = 8 << 10;
/// The longest result of a job, in bytes.
const STDOUT_LIMIT: usize = 1 << 20;
/// Time to wait for the end of the output after the command has ended.
const GRACE: Duration = Duration::from_millis(500);

/// A pipe that a thread reads.
struct Pipe {
    kept: Arc<Mutex<Vec<u8>>>,
    ended: Receiver<()>,
}

impl Pipe {
    /// Reads the pipe to its end. `keep` adds what was read to what is kept.
    fn read(
        mut from: impl Read + Send + 'static,
        mut keep: impl FnMut(&mut Vec<u8>, &[u8]) + Send + 'static,
    ) -> Self {
        let kept = Arc::new(Mutex::new(Vec::new()));
        let (end, ended) = channel::<()>();
        let filled = Arc::clone(&kept);
        std::thread::spawn(move || {
            let mut some = [0; 4_096];
            while let Ok(read @ 1..) = from.read(&mut some) {
                keep(&mut filled.lock().unwrap_or_else(PoisonError::into_inner), &some[..read]);
            }
            // What `keep` has sent must arrive before the end.
            drop(keep);
            drop(end);
        });
        Self { kept, ended }
    }

    /// Returns what was kept. A process that the command left running may hold the pipe open without end, so the wait
    /// is bounded.
    fn end(&self) -> Vec<u8> {
        if let Err(RecvTimeoutError::Timeout) = self.ended.recv_timeout(GRACE) {
            tracing::debug!("the output is still open after the command ended");
        }
        std::mem::take(&mut self.kept.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Standard error of a command. It is forwarded.
pub(crate) struct Stderr {
    tail: Option<Pipe>,
    lines: Receiver<String>,
}

impl Stderr {
    /// Begins to read. `by_line` says whether [`Stderr::lines`] is called while the command runs.
    pub(crate) fn of(child: &mut Child, by_line: bool) -> Self {
        let (sender, lines) = channel();
        let mut splitter = by_line.then(|| Lines { begun: Vec::new(), sender });
        let keep = move |kept: &mut Vec<u8>, read: &[u8]| {
            output::forward_stderr(read);
            if let Some(lines) = &mut splitter {
                lines.add(read);
            }
            kept.extend_from_slice(read);
            let surplus = kept.len().saturating_sub(STDERR_LIMIT);
            kept.drain(..surplus);
        };
        Self { tail: child.stderr.take().map(|stderr| Pipe::read(stderr, keep)), lines }
    }

    /// Returns the lines since the last call.
    pub(crate) fn lines(&self) -> impl Iterator<Item = String> {
        self.lines.try_iter()
    }

    /// Returns the end of the text after the command has ended. Then [`Stderr::lines`] has the last lines.
    pub(crate) fn end(&self) -> String {
        let tail = self.tail.as_ref().map(Pipe::end).unwrap_or_default();
        String::from_utf8_lossy(&tail).into_owned()
    }
}

/// Sends what is read line by line.
struct Lines {
    begun: Vec<u8>,
    sender: Sender<String>,
}

impl Lines {
    fn add(&mut self, read: &[u8]) {
        for byte in read {
            match byte {
                b'\n' => self.send(),
                _ => self.begun.push(*byte),
            }
            if self.begun.len() >= LINE_LIMIT {
                self.send();
            }
        }
    }

    /// Sends the line. Nobody is there to receive it if the command has ended and left a process behind.
    fn send(&mut self) {
        let line =
            String::from_utf8_lossy(self.begun.strip_suffix(b"\r").unwrap_or(&self.begun)).into_owned();
        let _ = self.sender.send(line);
        self.begun.clear();
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        if !self.begun.is_empty() {
            self.send();
        }
    }
}

/// Standard output of a command, of which the beginning is kept as the result of its job.
pub(crate) struct Stdout {
    beginning: Option<Pipe>,
    /// All bytes that were read.
    bytes: Arc<AtomicU64>,
}

impl Stdout {
    /// Begins to read, if the output is piped.
    pub(crate) fn of(child: &mut Child) -> Self {
        let bytes = Arc::<AtomicU64>::default();
        let counted = Arc::clone(&bytes);
        let keep = move |kept: &mut Vec<u8>, read: &[u8]| {
            counted.fetch_add(read.len() as u64, Ordering::Relaxed);
            let room = (STDOUT_LIMIT + 1).saturating_sub(kept.len());
            kept.extend_from_slice(&read[..read.len().min(room)]);
        };
        Self { beginning: child.stdout.take().map(|stdout| Pipe::read(stdout, keep)), bytes }
    }

    /// Returns the text after the command has ended, without the line break at its end, or why it cannot be a result.
    /// It is empty if the output was not piped.
    pub(crate) fn end(&self) -> Result<String, String> {
        let printed = self.beginning.as_ref().map(Pipe::end).unwrap_or_default();
        if printed.len() > STDOUT_LIMIT {
            let bytes = self.bytes.load(Ordering::Relaxed);
            return Err(format!("it printed {bytes} bytes, and a result has at most {STDOUT_LIMIT}"));
        }
        let mut text = String::from_utf8(printed).map_err(|_| "it printed no UTF-8".to_owned())?;
        text.truncate(text.trim_end_matches(['\n', '\r']).len());
        Ok(text)
    }
}
