//! Starts, kills and ends the worker processes of the demo.

use std::env;
use std::ffi::OsString;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};

use super::environment::Environment;
use crate::failure::Failure;

/// The running worker processes. Dropping the pool kills them.
pub(super) struct WorkerPool {
    program: PathBuf,
    environment: Vec<(&'static str, OsString)>,
    running: Vec<Child>,
    started: usize,
    killed: usize,
    /// Reports of workers that hold a job and wait for a fault.
    held: Sender<HeldJob>,
    holds: Receiver<HeldJob>,
}

/// A worker that waits for a fault, between its result and its commit.
pub(super) struct HeldJob {
    worker: u32,
    /// The backend to terminate. Without it, the worker is to be killed.
    pub(super) backend: Option<i32>,
}

impl WorkerPool {
    /// Starts `count` processes.
    pub(super) fn start(environment: &Environment, folder: &Path, count: usize) -> Result<Self, Failure> {
        let mut environment: Vec<(&str, OsString)> =
            environment.variables().into_iter().map(|(name, value)| (name, value.into())).collect();
        environment.push(("PQ_DEMO_FOLDER", folder.into()));
        let (held, holds) = channel();
        let program = env::current_exe().map_err(failed)?;
        let mut workers =
            Self { program, environment, running: Vec::new(), started: 0, killed: 0, held, holds };
        for _ in 0..count {
            workers.start_one()?;
        }
        Ok(workers)
    }

    fn start_one(&mut self) -> Result<(), Failure> {
        let mut command = Command::new(&self.program);
        command
            .arg("demo-worker")
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .env("PQ_DEMO_WORKER", (self.started + 1).to_string())
            // A worker ends when this pipe is closed, so it cannot outlive its parent.
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = command.spawn().map_err(failed)?;
        if let Some(stdout) = child.stdout.take() {
            let (held, worker) = (self.held.clone(), child.id());
            std::thread::spawn(move || {
                for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                    let backend = line.strip_prefix("held ").and_then(|pid| pid.parse().ok());
                    let _ = held.send(HeldJob { worker, backend });
                }
            });
        }
        self.running.push(child);
        self.started += 1;
        Ok(())
    }

    /// Returns the next worker that waits for a fault.
    pub(super) fn next_held(&self) -> Option<HeldJob> {
        self.holds.try_recv().ok()
    }

    /// Kills a worker that waits for a fault. Returns `false` if it has ended.
    pub(super) fn kill_worker(&mut self, held: &HeldJob) -> bool {
        let position = self.running.iter().position(|child| child.id() == held.worker);
        position.is_some_and(|position| self.kill(position))
    }

    /// Kills the worker with this number, modulo the number of workers.
    pub(super) fn kill_nth(&mut self, number: usize) -> bool {
        !self.running.is_empty() && self.kill(number % self.running.len())
    }

    fn kill(&mut self, position: usize) -> bool {
        let mut victim = self.running.swap_remove(position);
        // On Unix this is SIGKILL.
        let killed = victim.kill().is_ok();
        let _ = victim.wait();
        self.killed += usize::from(killed);
        killed
    }

    /// Starts workers until there are `count` of them.
    pub(super) fn replace_killed(&mut self, count: usize) -> Result<(), Failure> {
        while self.running.len() < count {
            self.start_one()?;
        }
        Ok(())
    }

    /// Fails if all workers have ended.
    pub(super) fn check(&mut self) -> Result<(), Failure> {
        let ended = self.running.iter_mut().all(|child| matches!(child.try_wait(), Ok(Some(_))));
        if ended {
            Err(Failure::Demo("all workers have ended before all jobs were done".to_owned()))
        } else {
            Ok(())
        }
    }

    /// Ends the workers and waits for them.
    pub(super) fn finish(&mut self) {
        for child in &mut self.running {
            drop(child.stdin.take());
        }
        for mut child in self.running.drain(..) {
            let _ = child.wait();
        }
    }

    pub(super) fn started(&self) -> usize {
        self.started
    }

    pub(super) fn killed(&self) -> usize {
        self.killed
    }
}

impl Drop for WorkerPool {
    fn drop(&mut self) {
        for child in &mut self.running {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn failed(error: io::Error) -> Failure {
    Failure::Io(format!("cannot start a worker process: {error}"))
}
