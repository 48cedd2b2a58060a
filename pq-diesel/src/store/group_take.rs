//! Takes that commit by themselves, grouped over the threads of a handle.

use std::sync::Arc;

use pq_core::store::Connect;
use pq_core::{Claim, QueueName, Scan, Taken};

use super::PgStore;
use super::take::{Owner, TakeRequest, warn_unreleased};
use crate::Error;
use crate::connection::blocking;
use crate::group_commit::{GroupCommit, Leader, Reply, Turn};

/// The maximum number of jobs of a call that can be grouped with others.
const MAX_REQUEST: usize = 64;

/// The maximum number of jobs that a group takes.
const MAX_GROUP: usize = 1024;

/// The takes of a handle that commit by themselves.
pub(crate) type GroupTakes = GroupCommit<QueueName, TakeRequest, Result<Taken, Error>>;

impl PgStore {
    /// Takes and commits, grouped with the threads that take from the queue at the same time.
    pub(super) fn take_grouped(&self, queue: &QueueName, request: TakeRequest) -> Result<Taken, Error> {
        if !(1..=MAX_REQUEST).contains(&request.count) {
            return self.take_alone(queue, request);
        }
        match self.group_takes.turn(queue, || request, |queued| followers(request.count, queued)) {
            Turn::Lead(leader) => self.take_as_leader(queue, request, leader),
            Turn::Answered(taken) => {
                let taken = taken?;
                if has_keys(&taken.jobs) {
                    let released = self.with_connection(|conn| {
                        blocking(self.release_keys_after_commit(conn, queue, &taken.jobs));
                        Ok(())
                    });
                    warn_unreleased(queue, released);
                }
                Ok(taken)
            }
            Turn::RunAlone => self.take_alone(queue, request),
            Turn::LeaderLost => {
                Err(Error::Unavailable("the thread that led the group of takes panicked or hangs".to_owned()))
            }
        }
    }

    fn take_as_leader(
        &self,
        queue: &QueueName,
        request: TakeRequest,
        leader: Leader<'_, QueueName, TakeRequest, Result<Taken, Error>>,
    ) -> Result<Taken, Error> {
        let counts: Vec<usize> = leader.requests().map(|request| request.count).collect();
        let is_full = leader.requests().chain([&request]).any(|request| request.scan == Scan::Full);
        let group = TakeRequest {
            count: request.count + counts.iter().sum::<usize>(),
            scan: if is_full { Scan::Full } else { Scan::Resume },
        };
        let mut leader = Some(leader);
        let taken: Result<_, Error> = self.with_connection(|conn| {
            let mut taken = blocking(self.take_only(conn, queue, group, Owner::Caller))?;
            let mut replies = distribute(&mut taken, request.count, &counts);
            if has_keys(&taken.jobs) {
                // Releasing a unique key waits for a transaction that puts the same key. The followers must not.
                if let Some(leader) = leader.take() {
                    leader.reply(std::mem::take(&mut replies));
                }
                blocking(self.release_keys_after_commit(conn, queue, &taken.jobs));
            }
            Ok((taken, replies))
        });
        match (taken, leader) {
            (Ok((taken, replies)), leader) => {
                if let Some(leader) = leader {
                    leader.reply(replies);
                }
                Ok(taken)
            }
            (Err(error), Some(leader)) => {
                leader.fail(error, Error::for_another, || self.take_alone(queue, request))
            }
            // The followers have their replies and this call its jobs.
            (Err(error), None) => Err(error),
        }
    }

    fn take_alone(&self, queue: &QueueName, request: TakeRequest) -> Result<Taken, Error> {
        self.with_connection(|conn| {
            blocking(async {
                let taken = self.take_only(conn, queue, request, Owner::Caller).await?;
                self.release_keys_after_commit(conn, queue, &taken.jobs).await;
                Ok(taken)
            })
        })
    }
}

/// Returns the number of followers of a leader that requests `count` jobs.
fn followers(count: usize, queued: &mut dyn Iterator<Item = &TakeRequest>) -> usize {
    let totals = queued.scan(count, |total, request| {
        *total += request.count;
        Some(*total)
    });
    totals.take_while(|total| *total <= MAX_GROUP).count()
}

/// Leaves the first `count` jobs to the leader, and distributes the others in the order of the followers.
fn distribute(taken: &mut Taken, count: usize, counts: &[usize]) -> Vec<Reply<Result<Taken, Error>>> {
    let (next_due, rolled_back) = (taken.next_due, taken.rolled_back);
    let mut others = taken.jobs.split_off(taken.jobs.len().min(count)).into_iter();
    let is_empty = taken.jobs.is_empty();
    let reply = |count: &usize| {
        let jobs: Vec<Arc<Claim>> = others.by_ref().take(*count).collect();
        // A take that found jobs does not know when the next one is due, nor whether a key has become free by now.
        let is_unknown = jobs.is_empty() && !is_empty;
        if is_unknown { Reply::Requeue } else { Reply::Answer(Ok(Taken { jobs, next_due, rolled_back })) }
    };
    counts.iter().map(reply).collect()
}

fn has_keys(jobs: &[Arc<Claim>]) -> bool {
    jobs.iter().any(|job| job.unique_key.is_some() || job.serialization_key.is_some())
}
