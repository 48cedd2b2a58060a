//! Calls of many threads that go together: one statement and one commit serve them all.
//!
//! Whoever comes while few are under way goes at once. Who comes while enough are waits in line, and when one
//! of those has ended the first in line leads: it takes along whoever waits then, and serves them with itself.
//! Where many call, or a call is slow, all go in one group, and whoever leads it gives those who were served just now
//! a moment to come again. Nobody leads twice for others, and a call that is alone pays for one lock.

use std::collections::VecDeque;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pq_core::QueueName;

use crate::Error;

/// How many are under way at a time for one queue where few call. With one, two threads would go one after the other.
const ABREAST: usize = 2;

/// Where so many call, one is under way. Two groups would share no sync but take turns at it, each with half of the
/// calls, and a statement costs the server nearly as much for half as for all.
const CROWD: usize = 4;

/// A call that takes so long waits for a disk, mostly. Then there is one as well, however few call.
const SLOW: Duration = Duration::from_millis(1);

/// One that takes so many times as long as the last is stuck, and whoever comes goes beside it.
const STUCK: u32 = 10;

/// How long a leader gives others to come, where one is under way: a fifth of what the last call took, and no longer
/// than this.
const MOMENT: Duration = Duration::from_micros(200);

/// The most calls that one takes along.
pub(super) const COMPANY: usize = 64;

/// Who is under way, and who waits: what a call asks is an `A`, and what it is answered an `R`.
pub(crate) struct Together<A, R> {
    lanes: Mutex<Vec<Lane<A, R>>>,
    slow: Duration,
    crowd: usize,
    moment: Duration,
}

type Lanes<'t, A, R> = MutexGuard<'t, Vec<Lane<A, R>>>;

/// The calls about one queue, as long as there are any, and for a moment after many.
struct Lane<A, R> {
    queue: QueueName,
    under_way: usize,
    /// How many calls those serve.
    served: usize,
    /// When the last of them began.
    begun: Instant,
    /// For so long it is under way alone: no time, unless the last call was slow or one of many.
    alone: Duration,
    /// Until when the next leader gives others to come.
    moment: Instant,
    /// How many called when the last one ended: those it served, and those who wait.
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
        Self { lanes: Mutex::default(), slow: SLOW, crowd: CROWD, moment: MOMENT }
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
        let lanes = match self.go(queue, |_| ()) {
            Some(lanes) => lanes,
            None => {
                // What is asked may be long to copy, and is copied while others can go on.
                let (caller, word) = sync_channel(1);
                let waiting = Waiting { ask: ask(), caller };
                match self.go(queue, |lane| lane.line.push_back(waiting)) {
                    Some(lanes) => lanes,
                    None => match word.recv() {
                        Ok(Word::Lead) => self.lanes(),
                        Ok(Word::Done(answer)) => return Turn::Done(answer),
                        Ok(Word::Alone) => return Turn::Alone,
                        Err(_) => return Turn::Lost,
                    },
                }
            }
        };
        Turn::Lead(Lead::new(self, queue, self.gather(queue, lanes, choose)))
    }

    /// Goes under way, unless enough are; then it does what is to be done about that.
    fn go(&self, queue: &QueueName, otherwise: impl FnOnce(&mut Lane<A, R>)) -> Option<Lanes<'_, A, R>> {
        let mut lanes = self.lanes();
        let Some(lane) = find(&mut lanes, queue) else {
            lanes.retain(|lane| !lane.is_over());
            lanes.push(Lane::new(queue.clone()));
            return Some(lanes);
        };
        if lane.under_way >= lane.abreast() {
            otherwise(lane);
            return None;
        }
        lane.under_way += 1;
        Some(lanes)
    }

    /// Takes along whoever waits. Where there is one group, those who were served just now have a moment to call
    /// again: what it takes them is little beside a call, and without them two groups would take turns, each with
    /// half of the calls.
    fn gather<'t>(
        &'t self,
        queue: &QueueName,
        mut lanes: Lanes<'t, A, R>,
        choose: impl Fn(&mut dyn Iterator<Item = &A>) -> usize,
    ) -> Vec<Waiting<A, R>> {
        while let Some(lane) = find(&mut lanes, queue) {
            if lane.line.len() + 1 >= lane.callers || Instant::now() >= lane.moment {
                return lane.company(choose);
            }
            drop(lanes);
            std::thread::yield_now();
            lanes = self.lanes();
        }
        Vec::new()
    }

    fn lanes(&self) -> Lanes<'_, A, R> {
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

impl<A, R> Lane<A, R> {
    /// With one under way, which is alone.
    fn new(queue: QueueName) -> Self {
        let now = Instant::now();
        Self {
            queue,
            under_way: 1,
            served: 0,
            begun: now,
            alone: Duration::ZERO,
            moment: now,
            callers: 0,
            line: VecDeque::new(),
        }
    }

    fn abreast(&self) -> usize {
        if self.begun.elapsed() < self.alone { 1 } else { ABREAST }
    }

    /// Whether nobody calls any more, and what there is to know of those who did is of no use.
    fn is_over(&self) -> bool {
        self.under_way == 0 && self.abreast() == ABREAST
    }

    /// Who goes along with the one that begins now.
    fn company(&mut self, choose: impl Fn(&mut dyn Iterator<Item = &A>) -> usize) -> Vec<Waiting<A, R>> {
        self.begun = Instant::now();
        let most = self.line.len().min(COMPANY);
        let chosen = choose(&mut self.line.iter().take(most).map(|waiting| &waiting.ask)).min(most);
        self.served += 1 + chosen;
        self.line.drain(..chosen).collect()
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
        lane.callers = self.served + lane.line.len();
        for waiting in self.again.drain(..).rev() {
            lane.line.push_front(waiting);
        }
        let now = Instant::now();
        let took = now - self.begun;
        lane.served -= self.served;
        let is_alone = took >= self.together.slow || lane.callers + lane.served >= self.together.crowd;
        (lane.alone, lane.moment) = if is_alone {
            (took.saturating_mul(STUCK), now + self.together.moment.min(took / 5))
        } else {
            (Duration::ZERO, now)
        };
        // Where there is one too many, the other takes all that wait along when it ends.
        while lane.under_way <= lane.abreast()
            && let Some(next) = lane.line.pop_front()
        {
            if next.caller.send(Word::Lead).is_ok() {
                return;
            }
        }
        lane.under_way -= 1;
        if lane.is_over() {
            lanes.swap_remove(at);
        }
    }
}

#[cfg(test)]
mod tests;
