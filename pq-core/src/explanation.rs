//! Why a job does not run, or who runs it.

use std::fmt;
use std::time::Duration;

use chrono::{DateTime, SubsecRound, Utc};
use serde::Serialize;

use crate::store::{Circumstances, KeyHolder};
use crate::{JobId, JobRecord, JobState, StepKind, StepRecord, WORKFLOWS, WorkerId, WorkerInfo};

/// A reason why a job does not run, or what runs it. Its text is a sentence for an operator.
///
/// See [`crate::Pq::explain`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "reason", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Reason {
    /// There is no job with this id. It may have completed without history.
    Unknown,
    /// Row-level security applies to the caller's role, so the job may exist and be hidden from it.
    Hidden,
    /// The job has ended and is in the archive.
    Ended {
        /// How it ended.
        state: JobState,
        /// When it ended.
        at: Option<DateTime<Utc>>,
    },
    /// A Python `pq` took the job, which keeps its row. The outcome is unknown.
    Dequeued,
    /// The job runs under a lease.
    Running {
        /// The worker that runs it, by the workers' last heartbeats.
        worker: Option<RunningWorker>,
        /// When the lease expires, unless it is extended.
        lease_until: Option<DateTime<Utc>>,
    },
    /// An open transaction holds the job: it takes, changes or puts it.
    Held {
        /// The session of the transaction, if the store knows.
        by: Option<Session>,
    },
    /// The queue is paused.
    Paused {
        /// Since when.
        since: DateTime<Utc>,
        /// The operator who paused it, if that is known.
        by: Option<String>,
    },
    /// It waits until other jobs have ended.
    After {
        /// Their number, at most [`Reason::MAX_COUNTED`].
        jobs: u64,
        /// The first of them.
        first: JobId,
    },
    /// The job is not due yet.
    NotDue {
        /// When it falls due.
        until: DateTime<Utc>,
    },
    /// The job waits for its next attempt.
    BetweenAttempts {
        /// When the next attempt may begin.
        until: DateTime<Utc>,
        /// The number of attempts that were counted.
        attempts: i32,
    },
    /// The job sleeps, see [`crate::Context::sleep`].
    Sleeps {
        /// When it goes on.
        until: DateTime<Utc>,
    },
    /// The job waits for a signal, see [`crate::Context::wait_for_signal`].
    WaitsForSignal {
        /// The name of the signal.
        name: String,
        /// When it goes on if the signal does not come.
        until: DateTime<Utc>,
    },
    /// Another job has the serialization key.
    KeyInUse {
        /// The serialization key.
        key: String,
        /// The job that runs, if the store knows.
        job: Option<JobId>,
        /// The worker that runs it, by the workers' last heartbeats.
        worker: Option<RunningWorker>,
        /// The session whose transaction holds the key, if one does.
        session: Option<Session>,
    },
    /// A waiting job of the same serialization key comes first.
    BehindOfKey {
        /// The serialization key.
        key: String,
        /// The first job of the key.
        job: JobId,
    },
    /// As many jobs run as a limit of the queue allows.
    Full {
        /// The group of the job, if the limit is one of its group.
        group: Option<String>,
        /// The number of jobs that run under leases.
        running: u32,
        /// The limit.
        limit: u32,
    },
    /// As many jobs have been started as a limit of the queue allows for now.
    NoTokens {
        /// The group of the job, if the limit is one of its group.
        group: Option<String>,
        /// When there are tokens for the job, if no other job takes them.
        until: DateTime<Utc>,
    },
    /// No live worker serves the queue. Programs that get jobs without a worker are not known.
    NoWorker,
    /// Live workers serve the queue, and none of them knows the task.
    TaskUnknown {
        /// The name of the task.
        task: String,
    },
    /// The store refuses the polls of all live workers that serve the queue.
    PollsRefused {
        /// One of these workers.
        worker: WorkerId,
        /// The last error of its polls.
        error: String,
    },
    /// Other jobs of the queue come first.
    Behind {
        /// Their number, at most [`Reason::MAX_COUNTED`].
        jobs: u64,
    },
    /// The queue is fair: its groups take turns, and other jobs come first.
    AwaitsTurn {
        /// The group of the job.
        group: Option<String>,
        /// The number of ready jobs of the group with the same priority that come first, at most
        /// [`Reason::MAX_COUNTED`].
        jobs: u64,
    },
    /// The job is ready, and the next of its queue.
    Next,
}

/// A worker that runs a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RunningWorker {
    /// Its id.
    pub id: WorkerId,
    /// The name of its host.
    pub host: String,
    /// The id of its process.
    pub pid: u32,
    /// Since when its handler has run.
    pub since: DateTime<Utc>,
}

/// A session of the database with an open transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Session {
    /// The process id of the server process. `None` for a prepared transaction.
    pub pid: Option<i32>,
    /// The name of the application, if it has set one.
    pub application: Option<String>,
    /// How long its transaction has been open. `None` if the caller's role may not see it.
    pub age: Option<Duration>,
}

impl Reason {
    /// The number up to which jobs that come first are counted.
    pub const MAX_COUNTED: u64 = 10_000;

    /// Returns all reasons, the most important first. `last_step` is the last kept step of the job.
    pub(crate) fn all(
        job: Option<&JobRecord>,
        last_step: Option<&StepRecord>,
        circumstances: Circumstances,
        workers: &[WorkerInfo],
    ) -> Vec<Self> {
        let Circumstances { now, is_hidden, paused, held_by, key_holder, first_of_key, after, .. } =
            circumstances;
        let Circumstances { limits, turn, ahead, .. } = circumstances;
        let Some(job) = job else {
            return if is_hidden { vec![Self::Unknown, Self::Hidden] } else { vec![Self::Unknown] };
        };
        let mut reasons = Vec::new();
        match job.state {
            state if state.is_ended() => return vec![Self::Ended { state, at: job.ended_at }],
            JobState::Dequeued => return vec![Self::Dequeued],
            JobState::Running => {
                let worker = running_worker(workers, job.id, now);
                return vec![Self::Running { worker, lease_until: job.lease_until }];
            }
            _ => {}
        }
        if let Some(by) = held_by {
            let is_known = by.pid.is_some() || by.age.is_some();
            reasons.push(Self::Held { by: Some(by).filter(|_| is_known) });
        }
        if let Some((since, by)) = paused {
            reasons.push(Self::Paused { since, by });
        }
        if let (JobState::Scheduled, Some(until)) = (job.state, job.schedule_at) {
            let suspended = last_step.and_then(|step| Self::suspended_by(step, now));
            reasons.push(match (after, suspended, job.attempt) {
                (Some((jobs, first)), _, _) => Self::After { jobs, first },
                (None, Some(suspended), _) => suspended,
                (None, None, 0) => Self::NotDue { until },
                (None, None, attempts) => Self::BetweenAttempts { until, attempts },
            });
        }
        let key = || job.serialization_key.as_ref().map(|key| key.as_str().to_owned()).unwrap_or_default();
        if let Some(KeyHolder { job: holder, session }) = key_holder {
            let worker = holder.and_then(|holder| running_worker(workers, holder, now));
            reasons.push(Self::KeyInUse { key: key(), job: holder, worker, session });
        }
        if let Some(first) = first_of_key {
            reasons.push(Self::BehindOfKey { key: key(), job: first });
        }
        reasons.extend(limits);
        let live = || {
            let queue = job.queue.as_str();
            workers.iter().filter(move |worker| {
                worker.heartbeat_age < WorkerInfo::FORGOTTEN_AFTER
                    && worker.queues.iter().any(|served| served == queue)
            })
        };
        if job.queue.as_str() == WORKFLOWS {
            // Maintenance of any worker runs it.
        } else if live().next().is_none() {
            reasons.push(Self::NoWorker);
        } else if live().all(|worker| worker.status.refused.is_some()) {
            reasons.extend(live().find_map(|worker| {
                let error = worker.status.refused.clone()?;
                Some(Self::PollsRefused { worker: worker.id, error })
            }));
        } else if let Some(task) = job.payload.task() {
            let knows = |worker: &WorkerInfo| {
                worker.status.tasks.get(job.queue.as_str()).is_none_or(|tasks| tasks.contains(&task))
            };
            if !live().any(knows) {
                reasons.push(Self::TaskUnknown { task });
            }
        }
        if job.state != JobState::Scheduled && ahead > 0 {
            reasons.push(match turn {
                Some((group, jobs)) => Self::AwaitsTurn { group, jobs },
                None => Self::Behind { jobs: ahead },
            });
        }
        if reasons.is_empty() {
            reasons.push(Self::Next);
        }
        reasons
    }
}

impl Reason {
    /// Returns the reason of a scheduled job whose last step has not ended.
    fn suspended_by(step: &StepRecord, now: DateTime<Utc>) -> Option<Self> {
        let until = step.until.filter(|until| *until > now)?;
        match step.kind {
            StepKind::Sleep => Some(Self::Sleeps { until }),
            StepKind::Waiting => Some(Self::WaitsForSignal { name: step.name.clone(), until }),
            StepKind::Step | StepKind::Signal | StepKind::Timeout => None,
        }
    }
}

/// Returns the worker whose last heartbeat reported the job as running.
fn running_worker(workers: &[WorkerInfo], job: JobId, now: DateTime<Utc>) -> Option<RunningWorker> {
    workers.iter().find_map(|worker| {
        let running = worker.status.running.iter().find(|running| running.id == job)?;
        let since = now - (worker.heartbeat_age + running.age);
        Some(RunningWorker { id: worker.id, host: worker.host.clone(), pid: worker.pid, since })
    })
}

impl fmt::Display for RunningWorker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, host, pid, since } = self;
        write!(f, "on worker {id} (process {pid} on {host}) since {}", since.trunc_subsecs(0))
    }
}

impl fmt::Display for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pid {
            Some(pid) => write!(f, "the open transaction of server process {pid}")?,
            None => f.write_str("a prepared transaction")?,
        }
        if let Some(application) = self.application.as_ref().filter(|name| !name.is_empty()) {
            write!(f, " ({application})")?;
        }
        match self.age {
            Some(age) => write!(f, ", open for {} s", age.as_secs()),
            None if self.pid.is_some() => f.write_str(", whose age this role may not see"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let second = |at: &DateTime<Utc>| at.trunc_subsecs(0);
        match self {
            Self::Unknown => f.write_str("there is no such job; it may have completed without history"),
            Self::Hidden => f.write_str(
                "row-level security applies to this role, so the job may exist and be hidden from it",
            ),
            Self::Ended { state, at: Some(at) } => write!(f, "it is {state} since {}", second(at)),
            Self::Ended { state, at: None } => write!(f, "it is {state}"),
            Self::Dequeued => f.write_str("a Python pq has taken it, and its outcome is unknown"),
            Self::Running { worker, lease_until } => {
                f.write_str("it runs")?;
                match worker {
                    Some(worker) => write!(f, " {worker}")?,
                    None => f.write_str(" under a lease; no worker has reported that its handler runs")?,
                }
                match lease_until {
                    Some(until) => {
                        write!(f, "; the lease expires at {} unless it is extended", second(until))
                    }
                    None => Ok(()),
                }
            }
            Self::Held { by: Some(session) } => write!(f, "{session} holds it"),
            Self::Held { by: None } => f.write_str("an open transaction holds it"),
            Self::Paused { since, by } => {
                write!(f, "its queue is paused since {}", second(since))?;
                by.as_ref().map_or(Ok(()), |by| write!(f, " by {by}"))
            }
            Self::After { jobs: 1, first } => write!(f, "it waits for 1 job: job {first}"),
            Self::After { jobs, first } => {
                let least = if *jobs >= Self::MAX_COUNTED { "at least " } else { "" };
                write!(f, "it waits for {least}{jobs} jobs; the first is job {first}")
            }
            Self::NotDue { until } => write!(f, "it is not due until {}", second(until)),
            Self::BetweenAttempts { until, attempts } => {
                let next = attempts + 1;
                write!(f, "it waits until {} for attempt {next}", second(until))
            }
            Self::Sleeps { until } => write!(f, "it sleeps until {}", second(until)),
            Self::WaitsForSignal { name, until } => {
                write!(f, "it waits for the signal {name:?} until {}", second(until))
            }
            Self::KeyInUse { key, job, worker, session } => {
                write!(f, "its serialization key {key:?} is in use")?;
                if let Some(job) = job {
                    write!(f, " by job {job}")?;
                }
                if let Some(worker) = worker {
                    write!(f, ", which runs {worker}")?;
                }
                session.as_ref().map_or(Ok(()), |session| write!(f, " in {session}"))
            }
            Self::BehindOfKey { key, job } => {
                write!(f, "job {job} of the same serialization key {key:?} comes first")
            }
            Self::Full { group: None, running, limit } => {
                write!(f, "its queue is full: it runs {running} of at most {limit} jobs")
            }
            Self::Full { group: Some(group), running, limit } => {
                write!(f, "its group {group:?} is full: it runs {running} of at most {limit} jobs")
            }
            Self::NoTokens { group: None, until } => {
                write!(f, "the rate of its queue lets no job start until {}", second(until))
            }
            Self::NoTokens { group: Some(group), until } => {
                write!(f, "the rate of its group {group:?} lets no job start until {}", second(until))
            }
            Self::NoWorker => f.write_str("no live worker serves its queue"),
            Self::TaskUnknown { task } => {
                write!(f, "no live worker of its queue knows the task {task:?}")
            }
            Self::PollsRefused { worker, error } => {
                write!(f, "the polls of worker {worker}, which serves its queue, are refused: {error}")
            }
            Self::Behind { jobs: 1 } => f.write_str("1 job of its queue comes first"),
            Self::Behind { jobs } if *jobs >= Self::MAX_COUNTED => {
                write!(f, "at least {jobs} jobs of its queue come first")
            }
            Self::Behind { jobs } => write!(f, "{jobs} jobs of its queue come first"),
            Self::AwaitsTurn { group, jobs } => {
                f.write_str("its queue is fair, and its groups take turns; ")?;
                let whose = match group {
                    Some(group) => format!("group {group:?}"),
                    None => "the jobs without a group".to_owned(),
                };
                match *jobs {
                    0 => write!(f, "it is the next of {whose}"),
                    1 => write!(f, "1 job of {whose} comes first"),
                    jobs if jobs >= Self::MAX_COUNTED => {
                        write!(f, "at least {jobs} jobs of {whose} come first")
                    }
                    jobs => write!(f, "{jobs} jobs of {whose} come first"),
                }
            }
            Self::Next => f.write_str("it is ready, and the next of its queue"),
        }
    }
}
