//! Puts of many tasks that share a statement and a commit.
//!
//! A put queues its jobs and waits for the answer. A task of its own, the leader, puts what has queued by one
//! statement, again and again until nothing is queued. While a statement is on its way the next group gathers, so the
//! more tasks put at once, the larger are the groups. A put whose future is dropped is not undone.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pq_core::{NewJob, Put, QueueName};
use pq_diesel::Error;
use tokio::sync::oneshot;

use crate::shared::{Shared, change_on_connection};

/// The most calls and bytes of payload of a group.
const MAX_CALLS: usize = 1_024;
const MAX_BYTES: usize = 1 << 20;

/// The time after which a leader that has not answered is stalled, and another one may run beside it.
const STALLED_AFTER: Duration = Duration::from_millis(300);

/// The puts of a handle that wait to be grouped.
#[derive(Default)]
pub(crate) struct GroupPuts(Mutex<HashMap<QueueName, Group>>);

#[derive(Default)]
struct Group {
    queued: VecDeque<Call>,
    leaders: usize,
    /// When the newest statement was sent.
    sent_at: Option<Instant>,
}

struct Call {
    jobs: Vec<NewJob>,
    reply: oneshot::Sender<Result<Vec<Put>, Error>>,
}

impl GroupPuts {
    fn lock(&self) -> MutexGuard<'_, HashMap<QueueName, Group>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns whether a new leader must be spawned for the queue, and counts it.
    fn may_lead(&self, queue: &QueueName) -> bool {
        let mut groups = self.lock();
        let Some(group) = groups.get_mut(queue) else { return false };
        let is_stalled = || group.sent_at.is_some_and(|at| at.elapsed() >= STALLED_AFTER);
        if group.queued.is_empty() || group.leaders > 0 && !is_stalled() {
            return false;
        }
        (group.leaders, group.sent_at) = (group.leaders + 1, Some(Instant::now()));
        true
    }

    /// Returns the next group. If nothing is queued, the leader has ended.
    fn next(&self, queue: &QueueName) -> Vec<Call> {
        let mut groups = self.lock();
        let Some(group) = groups.get_mut(queue) else { return Vec::new() };
        let mut bytes = 0;
        let mut calls = Vec::new();
        while let Some(call) = group.queued.front()
            && calls.len() < MAX_CALLS
            && (calls.is_empty() || bytes < MAX_BYTES)
        {
            bytes += call.jobs.iter().map(|job| job.payload.as_str().len()).sum::<usize>();
            calls.extend(group.queued.pop_front());
        }
        group.sent_at = Some(Instant::now());
        calls
    }

    fn leader_ended(&self, queue: &QueueName) {
        let mut groups = self.lock();
        if let Some(group) = groups.get_mut(queue) {
            group.leaders -= 1;
            if group.leaders == 0 && group.queued.is_empty() {
                groups.remove(queue);
            }
        }
    }
}

/// Puts jobs that may share a statement with others, see [`pq_diesel::store::may_be_shared`].
pub(crate) async fn put_grouped(
    shared: &Arc<Shared>,
    queue: &QueueName,
    jobs: Vec<NewJob>,
) -> Result<Vec<Put>, Error> {
    let (reply, mut answer) = oneshot::channel();
    shared.group_puts.lock().entry(queue.clone()).or_default().queued.push_back(Call { jobs, reply });
    loop {
        if shared.group_puts.may_lead(queue) {
            tokio::spawn(lead(Arc::clone(shared), queue.clone()));
        }
        match tokio::time::timeout(STALLED_AFTER, &mut answer).await {
            Ok(Ok(answer)) => return answer,
            Ok(Err(_)) => {
                return Err(Error::OutcomeUnknown("the task that led the group of puts panicked".to_owned()));
            }
            // The leader may hang, and this call may still be queued behind it.
            Err(_) => {}
        }
    }
}

/// Counts a leader as ended when it is dropped.
struct Leading<'g>(&'g Shared, &'g QueueName);

impl Drop for Leading<'_> {
    fn drop(&mut self) {
        self.0.group_puts.leader_ended(self.1);
    }
}

/// Puts the queued jobs, group by group, until nothing is queued.
async fn lead(shared: Arc<Shared>, queue: QueueName) {
    // Tasks that are ready to put join the first group.
    tokio::task::yield_now().await;
    loop {
        {
            let _leading = Leading(&shared, &queue);
            loop {
                let calls = shared.group_puts.next(&queue);
                if calls.is_empty() {
                    break;
                }
                put_group(&shared, &queue, calls).await;
            }
        }
        // A call that was queued since found a leader.
        if !shared.group_puts.may_lead(&queue) {
            return;
        }
    }
}

async fn put_group(shared: &Shared, queue: &QueueName, calls: Vec<Call>) {
    let put = {
        let jobs: Vec<&[NewJob]> = calls.iter().map(|call| call.jobs.as_slice()).collect();
        put_calls(shared, queue, &jobs).await
    };
    match put {
        Ok(put) => calls.into_iter().zip(put).for_each(|(call, put)| drop(call.reply.send(Ok(put)))),
        Err(error) => {
            let mut error = Some(error);
            let is_alone = calls.len() == 1;
            for call in calls {
                let answer = match &error {
                    Some(shared) if !is_alone => shared.for_another(),
                    _ => error.take(),
                };
                let answer = match answer {
                    Some(error) => Err(error),
                    // Nothing was put, and one of the calls may be at fault.
                    None => put_alone(shared, queue, &call.jobs).await,
                };
                drop(call.reply.send(answer));
            }
        }
    }
}

async fn put_calls(shared: &Shared, queue: &QueueName, calls: &[&[NewJob]]) -> Result<Vec<Vec<Put>>, Error> {
    change_on_connection!(shared, |conn| shared.store().put_calls_on(conn, queue, calls))
}

/// Puts jobs in a transaction of their own.
pub(crate) async fn put_alone(
    shared: &Shared,
    queue: &QueueName,
    jobs: &[NewJob],
) -> Result<Vec<Put>, Error> {
    change_on_connection!(shared, |conn| shared.store().put_now_on(conn, queue, jobs))
}
