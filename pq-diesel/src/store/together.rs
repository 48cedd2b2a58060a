//! Calls of many threads that go together: one statement and one commit serve them all.
//!
//! Whoever comes while few are under way goes at once. Who comes while enough are waits in line, and when one
//! of those has ended the first in line leads: it takes along whoever waits then, and serves them with itself.
//! Only where a call takes a millisecond or more does it wait a fifth of one, at most, for those who were served just
//! now. Nobody leads twice for others, and a call that is alone pays for one lock.

use std::collections::VecDeque;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pq_core::QueueName;

use crate::Error;

/// How many are under way at a time for one queue. With one, the server would be idle while the next leader
/// wakes, and two threads would go one after the other; with more, groups get smaller.
const ABREAST: usize = 2;

/// A call that takes so long waits for a disk, mostly. Two at a time would then share no sync but take turns at it,
/// each with half of the calls, so there is one.
const SLOW: Duration = Duration::from_millis(1);

/// One that takes so many times as long as the last is stuck, and whoever comes goes beside it.
const STUCK: u32 = 10;

/// How long a leader gives others to come, where calls take [`SLOW`] or longer.
const MOMENT: Duration = Duration::from_micros(200);

/// The most calls that one takes along.
pub(super) const COMPANY: usize = 64;

/// Who is under way, and who waits: what a call asks is an `A`, and what it is answered an `R`.
pub(crate) struct Together<A, R> {
    lanes: Mutex<Vec<Lane<A, R>>>,
    slow: Duration,
}

/// The calls about one queue, as long as there are any.
struct Lane<A, R> {
    queue: QueueName,
    under_way: usize,
    /// When the last of them began.
    begun: Instant,
    /// For so long it is under way alone: no time, unless the last call was slow.
    alone: Duration,
    /// How many called when the last one ended: those it served, and those who waited.
    callers: usize,
    line: VecDeque<Waiting<A, R>>,
}

/// A call in line. It is sent one word, or learns that its sender is gone.
struct Waiting<A, R> {
    ask: A,
    caller: SyncSender<Word<R>>,
}

enum Word<R> {
    Lead,
    Done(R),
    Alone,
}

/// What a call is to do.
pub(super) enum Turn<'t, A, R> {
    /// Serve itself and its company. Until the lead is dropped it is under way.
    Lead(Lead<'t, A, R>),
    /// Nothing: another thread has served it.
    Done(R),
    /// Serve itself, as if it had never waited: together it did not succeed.
    Alone,
    /// Give up: the thread that was to serve it has panicked, and nobody knows how far it came.
    Lost,
}

/// What becomes of a call that was taken along.
pub(super) enum Fate<R> {
    Done(R),
    Alone,
    /// It goes with the next, before those who came after it.
    Again,
}

/// The right to be under way, which passes to the next in line at the end, whatever the end is.
pub(super) struct Lead<'t, A, R> {
    together: &'t Together<A, R>,
    queue: &'t QueueName,
    company: Vec<Waiting<A, R>>,
    again: Vec<Waiting<A, R>>,
    served: usize,
    begun: Instant,
}

impl<A, R> Default for Together<A, R> {
    fn default() -> Self {
        Self { lanes: Mutex::default(), slow: SLOW }
    }
}

impl<A, R> Together<A, R> {
    /// Waits for this call's turn. `ask` says to a leader what it wants, and `choose` how many of those that
    /// wait it takes along when it leads, first come first.
    pub(super) fn turn<'t>(
        &'t self,
        queue: &'t QueueName,
        ask: impl FnOnce() -> A,
        choose: impl Fn(&mut dyn Iterator<Item = &A>) -> usize,
    ) -> Turn<'t, A, R> {
        let mut lanes = self.lanes();
        if let Some(company) = go(&mut lanes, queue, &choose) {
            return Turn::Lead(Lead::new(self, queue, company));
        }
        // What is asked may be long to copy, and is copied while others can go on.
        drop(lanes);
        let (caller, word) = sync_channel(1);
        let waiting = Waiting { ask: ask(), caller };
        let mut lanes = self.lanes();
        if let Some(company) = go(&mut lanes, queue, &choose) {
            return Turn::Lead(Lead::new(self, queue, company));
        }
        if let Some(lane) = find(&mut lanes, queue) {
            lane.line.push_back(waiting);
        }
        drop(lanes);
        match word.recv() {
            Ok(Word::Lead) => {
                self.gather(queue);
                let mut lanes = self.lanes();
                let company = find(&mut lanes, queue).map(|lane| lane.company(&choose)).unwrap_or_default();
                Turn::Lead(Lead::new(self, queue, company))
            }
            Ok(Word::Done(answer)) => Turn::Done(answer),
            Ok(Word::Alone) => Turn::Alone,
            Err(_) => Turn::Lost,
        }
    }

    /// Where calls are slow, gives those who were served just now a moment to call again: what it takes them is
    /// little beside a call, and without them two groups would take turns, each with half of the calls.
    fn gather(&self, queue: &QueueName) {
        let begun = Instant::now();
        let is_whole = |lane: &mut Lane<A, R>| lane.alone.is_zero() || lane.line.len() + 1 >= lane.callers;
        while begun.elapsed() < MOMENT && !find(&mut self.lanes(), queue).is_none_or(is_whole) {
            std::thread::yield_now();
        }
    }

    fn lanes(&self) -> MutexGuard<'_, Vec<Lane<A, R>>> {
        // Nothing panics while it holds the lock.
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many wait in line for this queue.
    #[cfg(test)]
    pub(super) fn waiting(&self, queue: &QueueName) -> usize {
        find(&mut self.lanes(), queue).map_or(0, |lane| lane.line.len())
    }
}

fn find<'l, A, R>(lanes: &'l mut [Lane<A, R>], queue: &QueueName) -> Option<&'l mut Lane<A, R>> {
    lanes.iter_mut().find(|lane| lane.queue == *queue)
}

/// Goes under way, with this company, unless enough are.
fn go<A, R>(
    lanes: &mut Vec<Lane<A, R>>,
    queue: &QueueName,
    choose: impl Fn(&mut dyn Iterator<Item = &A>) -> usize,
) -> Option<Vec<Waiting<A, R>>> {
    match find(lanes, queue) {
        None => {
            lanes.push(Lane {
                queue: queue.clone(),
                under_way: 1,
                begun: Instant::now(),
                alone: Duration::ZERO,
                callers: 0,
                line: VecDeque::new(),
            });
            Some(Vec::new())
        }
        Some(lane) if lane.under_way < lane.abreast() => {
            lane.under_way += 1;
            Some(lane.company(choose))
        }
        Some(_) => None,
    }
}

impl<A, R> Lane<A, R> {
    fn abreast(&self) -> usize {
        if self.begun.elapsed() < self.alone { 1 } else { ABREAST }
    }

    /// Who goes along with the one that begins now.
    fn company(&mut self, choose: impl Fn(&mut dyn Iterator<Item = &A>) -> usize) -> Vec<Waiting<A, R>> {
        self.begun = Instant::now();
        let most = self.line.len().min(COMPANY);
        let chosen = choose(&mut self.line.iter().take(most).map(|waiting| &waiting.ask));
        self.line.drain(..chosen.min(most)).collect()
    }
}

impl<'t, A, R> Lead<'t, A, R> {
    fn new(together: &'t Together<A, R>, queue: &'t QueueName, company: Vec<Waiting<A, R>>) -> Self {
        let served = company.len() + 1;
        Self { together, queue, company, again: Vec::new(), served, begun: Instant::now() }
    }

    /// What those ask that are taken along.
    pub(super) fn asks(&self) -> impl Iterator<Item = &A> {
        self.company.iter().map(|waiting| &waiting.ask)
    }

    pub(super) fn is_alone(&self) -> bool {
        self.company.is_empty()
    }

    /// Tells the company what became of each, in the order of what they ask, and then lets the next go. Whoever
    /// is told nothing is lost.
    ///
    /// In this order, for threads that call over and over are in line again by then, and the next takes them all
    /// along. The other way round every second group would be of one.
    pub(super) fn tell(mut self, fates: impl IntoIterator<Item = Fate<R>>) {
        for (waiting, fate) in std::mem::take(&mut self.company).into_iter().zip(fates) {
            let word = match fate {
                Fate::Done(answer) => Word::Done(answer),
                Fate::Alone => Word::Alone,
                Fate::Again => {
                    self.again.push(waiting);
                    continue;
                }
            };
            // A caller cannot be gone, for it does nothing else than wait.
            let _ = waiting.caller.send(word);
        }
    }
}

impl<A, R> Lead<'_, A, Result<R, Error>> {
    /// Ends with an error. Where that is not about one call alone it is everybody's. Otherwise each call, this one
    /// as well, is made anew by itself.
    pub(super) fn fail(self, error: Error, alone: impl FnOnce() -> Result<R, Error>) -> Result<R, Error> {
        let calls = self.company.len();
        if calls == 0 {
            return Err(error);
        }
        if error.for_another().is_some() {
            self.tell((0..calls).map_while(|_| Some(Fate::Done(Err(error.for_another()?)))));
            return Err(error);
        }
        self.tell((0..calls).map(|_| Fate::Alone));
        alone()
    }
}

impl<A, R> Drop for Lead<'_, A, R> {
    fn drop(&mut self) {
        let mut lanes = self.together.lanes();
        let Some(at) = lanes.iter().position(|lane| lane.queue == *self.queue) else { return };
        let lane = &mut lanes[at];
        for waiting in self.again.drain(..).rev() {
            lane.line.push_front(waiting);
        }
        let took = self.begun.elapsed();
        lane.alone = if took < self.together.slow { Duration::ZERO } else { took.saturating_mul(STUCK) };
        lane.callers = self.served + lane.line.len();
        // Where there is one too many, the other takes all that wait along when it ends.
        while lane.under_way <= lane.abreast()
            && let Some(next) = lane.line.pop_front()
        {
            if next.caller.send(Word::Lead).is_ok() {
                return;
            }
        }
        lane.under_way -= 1;
        if lane.under_way == 0 {
            lanes.swap_remove(at);
        }
    }
}

#[cfg(test)]
mod tests;
