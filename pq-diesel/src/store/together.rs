//! Calls of many threads that go together: one statement and one commit serve them all.
//!
//! Whoever comes while few are under way goes at once. Who comes while enough are waits in line, and when one
//! of those has ended the first in line leads: it takes along whoever waits then, and serves them with itself.
//! Where many call, or a call is slow, all go in one group, and those who were served just now have a moment to come
//! again: the last of them leads, or the first in line when the moment is over. Nobody leads twice for others, and a
//! call that is alone pays for two locks that nobody else holds.

mod room;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pq_core::QueueName;

use self::room::{Room, Seat, Word};
use crate::Error;

/// How many are under way at a time for one queue where few call. With one, two threads would go one after the other.
const ABREAST: usize = 2;

/// Where so many call, one is under way. Two groups would share no sync but take turns at it, each with half of the
/// calls, and a statement costs the server nearly as much for half as for all.
const CROWD: usize = 3;

/// A call that takes so long waits for a disk, mostly. Then there is one as well, however few call.
const SLOW: Duration = Duration::from_millis(1);

/// One that takes so many times as long as the last is stuck, and whoever comes goes beside it.
const STUCK: u32 = 10;

/// How long those who were served have to come again, where one is under way: so long for each, for they are woken one
/// after the other, and no longer than half of what their call took.
const MOMENT: Duration = Duration::from_micros(25);

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
    /// Until when those who were served can come again before the next begins.
    moment: Instant,
    /// How many called when the last one ended: those it served, and those who waited.
    callers: usize,
    line: VecDeque<Waiting<A, R>>,
    /// For those who come now.
    room: Arc<Room<R>>,
}

/// A call in line, and where its thread waits.
struct Waiting<A, R> {
    ask: A,
    seat: Seat<R>,
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
    served: usize,
    begun: Instant,
    has_ended: bool,
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
        let mut lanes = self.lanes();
        if !lane_of(&mut lanes, queue).may_go() {
            drop(lanes);
            // What is asked may be long to copy, and is copied while others can go on.
            let ask = ask();
            lanes = self.lanes();
            let lane = lane_of(&mut lanes, queue);
            if !lane.may_go() {
                let (seat, until) = lane.wait(ask);
                drop(lanes);
                return match self.word(queue, &seat, until) {
                    Some(Word::Done(answer)) => Turn::Done(answer),
                    Some(Word::Alone) => Turn::Alone,
                    Some(Word::Lost) => Turn::Lost,
                    Some(Word::Lead | Word::Watch(_)) | None => self.lead(queue, self.lanes(), choose),
                };
            }
        }
        lane_of(&mut lanes, queue).under_way += 1;
        self.lead(queue, lanes, choose)
    }

    /// Waits for a word that ends the waiting, or for the moment at which this call is to lead.
    fn word(&self, queue: &QueueName, seat: &Seat<R>, mut until: Option<Instant>) -> Option<Word<R>> {
        loop {
            match seat.wait(until) {
                Some(Word::Watch(moment)) => until = Some(moment),
                Some(word) => return Some(word),
                None => {
                    let mut lanes = self.lanes();
                    if lane_of(&mut lanes, queue).leave_to_lead(seat) {
                        return None;
                    }
                    // Somebody has gone meanwhile, and tells it what is next.
                    until = None;
                }
            }
        }
    }

    fn lead<'t>(
        &'t self,
        queue: &'t QueueName,
        mut lanes: Lanes<'t, A, R>,
        choose: impl Fn(&mut dyn Iterator<Item = &A>) -> usize,
    ) -> Turn<'t, A, R> {
        let company = lane_of(&mut lanes, queue).begin(choose);
        drop(lanes);
        Turn::Lead(Lead::new(self, queue, company))
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

/// The lane of the queue, which may be new.
fn lane_of<'l, A, R>(lanes: &'l mut Vec<Lane<A, R>>, queue: &QueueName) -> &'l mut Lane<A, R> {
    let at = match lanes.iter().position(|lane| lane.queue == *queue) {
        Some(at) => at,
        None => {
            lanes.retain(|lane| !lane.is_over());
            lanes.push(Lane::new(queue.clone()));
            lanes.len() - 1
        }
    };
    &mut lanes[at]
}

impl<A, R> Lane<A, R> {
    fn new(queue: QueueName) -> Self {
        let now = Instant::now();
        Self {
            queue,
            under_way: 0,
            served: 0,
            begun: now,
            alone: Duration::ZERO,
            moment: now,
            callers: 0,
            line: VecDeque::new(),
            room: Arc::default(),
        }
    }

    fn abreast(&self) -> usize {
        if self.begun.elapsed() < self.alone { 1 } else { ABREAST }
    }

    /// Whether nobody calls any more, and what there is to know of those who did is of no use.
    fn is_over(&self) -> bool {
        self.under_way == 0 && self.line.is_empty() && self.abreast() == ABREAST
    }

    /// Whether so many more make the line as long as it will get.
    fn has_all_with(&self, more: usize) -> bool {
        self.line.len() + more >= self.callers.min(1 + COMPANY)
    }

    /// Whether a call that comes now goes at once. Where none is under way the line is of those who wait for others.
    fn may_go(&self) -> bool {
        match self.under_way {
            0 => self.has_all_with(1) || Instant::now() >= self.moment,
            under_way => under_way < self.abreast(),
        }
    }

    /// Puts a call into the line, and says until when it waits for a word if it is to lead then.
    fn wait(&mut self, ask: A) -> (Seat<R>, Option<Instant>) {
        let seat = Seat::take(&self.room);
        let is_first = self.under_way == 0 && self.line.is_empty();
        self.line.push_back(Waiting { ask, seat: seat.clone() });
        (seat, is_first.then_some(self.moment))
    }

    /// Lets a call in line go under way, unless somebody else is or has taken it along.
    fn leave_to_lead(&mut self, seat: &Seat<R>) -> bool {
        let at = self.line.iter().position(|waiting| waiting.seat == *seat);
        let leads = self.under_way == 0 && at.and_then(|at| self.line.remove(at)).is_some();
        self.under_way += usize::from(leads);
        leads
    }

    /// Begins for one that is under way, and gives who goes along with it.
    fn begin(&mut self, choose: impl Fn(&mut dyn Iterator<Item = &A>) -> usize) -> Vec<Waiting<A, R>> {
        self.begun = Instant::now();
        let most = self.line.len().min(COMPANY);
        let chosen = choose(&mut self.line.iter().take(most).map(|waiting| &waiting.ask)).min(most);
        self.served += 1 + chosen;
        self.room = Arc::default();
        self.line.drain(..chosen).collect()
    }

    /// Who is to be told what when one has ended: the first in line, if there is one and it can go or wait for others.
    fn next(&mut self) -> Option<(Seat<R>, Word<R>)> {
        if self.under_way >= self.abreast() {
            // The other takes all that wait along when it ends.
            return None;
        }
        if self.under_way == 0 && !self.has_all_with(0) && Instant::now() < self.moment {
            return self.line.front().map(|first| (first.seat.clone(), Word::Watch(self.moment)));
        }
        let first = self.line.pop_front()?;
        self.under_way += 1;
        Some((first.seat, Word::Lead))
    }
}

impl<'t, A, R> Lead<'t, A, R> {
    fn new(together: &'t Together<A, R>, queue: &'t QueueName, company: Vec<Waiting<A, R>>) -> Self {
        let served = company.len() + 1;
        Self { together, queue, company, served, begun: Instant::now(), has_ended: false }
    }

    /// What those ask that are taken along.
    pub(super) fn asks(&self) -> impl Iterator<Item = &A> {
        self.company.iter().map(|waiting| &waiting.ask)
    }

    pub(super) fn is_alone(&self) -> bool {
        self.company.is_empty()
    }

    /// Ends, and tells the company what became of each, in the order of what they ask. Whoever is told nothing is
    /// lost.
    pub(super) fn tell(mut self, fates: impl IntoIterator<Item = Fate<R>>) {
        let company = std::mem::take(&mut self.company);
        let mut words = Vec::with_capacity(company.len());
        let (mut fates, mut again) = (fates.into_iter(), Vec::new());
        for waiting in company {
            match fates.next() {
                Some(Fate::Done(answer)) => words.push((waiting.seat, Word::Done(answer))),
                Some(Fate::Alone) => words.push((waiting.seat, Word::Alone)),
                Some(Fate::Again) => again.push(waiting),
                None => words.push((waiting.seat, Word::Lost)),
            }
        }
        self.end(again, words);
    }

    /// Lets the next go, and then tells its company. In this order, for who is told calls again at once, and is to
    /// find how many it is one of.
    fn end(&mut self, again: Vec<Waiting<A, R>>, mut words: Vec<(Seat<R>, Word<R>)>) {
        self.has_ended = true;
        let mut lanes = self.together.lanes();
        if let Some(lane) = find(&mut lanes, self.queue) {
            let now = Instant::now();
            let took = now - self.begun;
            lane.under_way -= 1;
            lane.served -= self.served;
            lane.callers = self.served + lane.line.len();
            for waiting in again.into_iter().rev() {
                lane.line.push_front(waiting);
            }
            let is_alone = took >= self.together.slow || lane.callers + lane.served >= self.together.crowd;
            (lane.alone, lane.moment) = if is_alone {
                let moment =
                    self.together.moment.saturating_mul(u32::try_from(self.served).unwrap_or(u32::MAX));
                (took.saturating_mul(STUCK), now + moment.min(took / 2))
            } else {
                (Duration::ZERO, now)
            };
            words.extend(lane.next());
            if lane.is_over() {
                lanes.retain(|lane| lane.queue != *self.queue);
            }
        }
        drop(lanes);
        room::tell(words);
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
        if !self.has_ended {
            let company = std::mem::take(&mut self.company);
            self.end(Vec::new(), company.into_iter().map(|waiting| (waiting.seat, Word::Lost)).collect());
        }
    }
}

#[cfg(test)]
mod tests;
