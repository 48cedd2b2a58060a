//! The leader of a group: it executes its own request and those of its followers.

use std::time::Instant;

use super::queue_group::{self, Completed, Queued};
use super::wait_slots::{self, Signal, Slot};
use super::{GroupCommit, MAX_STALL, STALL_FACTOR};

/// The result of a follower's request.
pub(crate) enum Reply<A> {
    /// It was executed, with this answer.
    Answer(A),
    /// Its own thread executes it, without followers.
    RunAlone,
    /// The next leader executes it, before the requests that were queued later.
    Requeue,
}

/// The right to run, which passes to the first queued call when the leader is dropped.
pub(crate) struct Leader<'g, K: Eq, R, A> {
    group_commit: &'g GroupCommit<K, R, A>,
    key: &'g K,
    followers: Vec<Queued<R, A>>,
    /// The number of calls that it executes, including its own.
    pub(super) executes: usize,
    pub(super) begun: Instant,
    /// The start by which the group knows it.
    started: Instant,
    has_ended: bool,
}

impl<'g, K: Eq, R, A> Leader<'g, K, R, A> {
    pub(super) fn new(
        group_commit: &'g GroupCommit<K, R, A>,
        key: &'g K,
        started: Instant,
        followers: Vec<Queued<R, A>>,
    ) -> Self {
        let executes = followers.len() + 1;
        Self { group_commit, key, followers, executes, begun: started, started, has_ended: false }
    }

    /// Returns the requests of the followers.
    pub(crate) fn requests(&self) -> impl Iterator<Item = &R> {
        self.followers.iter().map(|follower| &follower.request)
    }

    pub(crate) fn is_alone(&self) -> bool {
        self.followers.is_empty()
    }

    /// Ends, and replies to the followers in the order of their requests. A follower without a reply fails, as if the
    /// leader had panicked.
    pub(crate) fn reply(mut self, replies: impl IntoIterator<Item = Reply<A>>) {
        let followers = std::mem::take(&mut self.followers);
        let mut signals = Vec::with_capacity(followers.len());
        let (mut replies, mut requeued) = (replies.into_iter(), Vec::new());
        for follower in followers {
            match replies.next() {
                Some(Reply::Answer(answer)) => signals.push((follower.slot, Signal::Answer(answer))),
                Some(Reply::RunAlone) => signals.push((follower.slot, Signal::RunAlone)),
                Some(Reply::Requeue) => requeued.push(follower),
                None => signals.push((follower.slot, Signal::LeaderLost)),
            }
        }
        self.end(requeued, signals);
    }

    /// Completes the call, and then signals its followers. In this order, because an answered thread calls again at
    /// once, and must find how many calls there are.
    fn end(&mut self, requeued: Vec<Queued<R, A>>, mut signals: Vec<(Slot<A>, Signal<A>)>) {
        self.has_ended = true;
        let GroupCommit { slow, threshold, linger, min_stall, .. } = *self.group_commit;
        let mut groups = self.group_commit.groups();
        if let Some(group) = queue_group::find(&mut groups, self.key) {
            let at = Instant::now();
            let took = at - self.begun;
            let stall = took.saturating_mul(STALL_FACTOR);
            let completed = Completed {
                begun: self.started,
                at,
                stalled_after: stall.clamp(min_stall, min_stall.saturating_mul(MAX_STALL)),
                executed: self.executes,
            };
            group.complete(&completed, requeued, |calls| {
                (took >= slow || calls >= threshold).then(|| {
                    let linger = linger.saturating_mul(u32::try_from(self.executes).unwrap_or(u32::MAX));
                    (stall, linger.min(took / 2))
                })
            });
            signals.extend(group.next_signal());
            queue_group::remove_if_idle(&mut groups, self.key);
        }
        drop(groups);
        wait_slots::send(signals);
    }
}

impl<K: Eq, R, T, E> Leader<'_, K, R, Result<T, E>> {
    /// Ends with an error. If `shared` returns the error for another call, it concerns all calls, and all fail with
    /// it. Otherwise each call is executed again without followers, the leader's own by `alone`.
    pub(crate) fn fail(
        self,
        error: E,
        shared: impl Fn(&E) -> Option<E>,
        alone: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        let followers = self.followers.len();
        if followers == 0 {
            return Err(error);
        }
        if shared(&error).is_some() {
            self.reply((0..followers).map_while(|_| Some(Reply::Answer(Err(shared(&error)?)))));
            return Err(error);
        }
        self.reply((0..followers).map(|_| Reply::RunAlone));
        alone()
    }
}

impl<K: Eq, R, A> Drop for Leader<'_, K, R, A> {
    fn drop(&mut self) {
        if !self.has_ended {
            let followers = std::mem::take(&mut self.followers);
            let failed = followers.into_iter().map(|follower| (follower.slot, Signal::LeaderLost));
            self.end(Vec::new(), failed.collect());
        }
    }
}
