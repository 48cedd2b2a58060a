//! Gets that commit by themselves, and the threads that get together.

use pq_core::{QueueName, RawJob, Scan, Store, Taken};

use super::PgStore;
use super::line::{Hold, Want, warn_of};
use super::together::{Fate, Lead, Together, Turn};
use crate::Error;
use crate::statements::Sized;

/// What goes together with the gets of other threads: no more jobs in one call than this.
const SHARED_JOBS: usize = 64;

/// The most jobs that they take together.
const SHARED_TAKE: usize = 1024;

/// The gets of a handle's own that are under way, and which jobs were taken.
pub(crate) type Gets = Together<Ask, Result<Taken, Error>>;

/// How many jobs a get wants, and what it has to know where there are none.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ask {
    pub(super) count: usize,
    pub(super) scan: Scan,
}

impl PgStore {
    /// Takes and commits, together with the threads that take from the queue at the same time.
    pub(super) fn take_with_others(&self, queue: &QueueName, ask: Ask) -> Result<Taken, Error> {
        if !(1..=SHARED_JOBS).contains(&ask.count) {
            return self.take_alone(queue, ask);
        }
        match self.gets.turn(queue, || ask, |line| company(ask.count, line)) {
            Turn::Lead(lead) => self.take_together(queue, ask, lead),
            Turn::Done(taken) => {
                let taken = taken?;
                if has_keys(&taken.jobs) {
                    let done = self.with_connection(|conn| {
                        self.let_go_after_all(conn, queue, &taken.jobs);
                        Ok(())
                    });
                    warn_of(queue, done);
                }
                Ok(taken)
            }
            Turn::Alone => self.take_alone(queue, ask),
            Turn::Lost => Err(Error::Unavailable("the thread that took the jobs has panicked".to_owned())),
        }
    }

    fn take_together(
        &self,
        queue: &QueueName,
        ask: Ask,
        lead: Lead<'_, Ask, Result<Taken, Error>>,
    ) -> Result<Taken, Error> {
        let counts: Vec<usize> = lead.asks().map(|ask| ask.count).collect();
        let count = ask.count + counts.iter().sum::<usize>();
        let is_whole = lead.asks().chain([&ask]).any(|ask| ask.scan == Scan::Full);
        let scan = if is_whole { Scan::Full } else { Scan::Resume };
        let mut lead = Some(lead);
        let taken: Result<_, Error> = self.with_connection(|conn| {
            let mut taken = self.find(conn, Want { queue, count, hold: Hold::Nothing }, scan)?;
            let mut fates = deal(&mut taken, ask.count, &counts);
            if has_keys(&taken.jobs) {
                // This may wait for whoever puts the same key, and nobody else is to wait for it.
                if let Some(lead) = lead.take() {
                    lead.tell(std::mem::take(&mut fates));
                }
                self.let_go_after_all(conn, queue, &taken.jobs);
            }
            Ok((taken, fates))
        });
        match (taken, lead) {
            (Ok((taken, fates)), lead) => {
                if let Some(lead) = lead {
                    lead.tell(fates);
                }
                Ok(taken)
            }
            (Err(error), Some(lead)) => lead.fail(error, || self.take_alone(queue, ask)),
            // They were told already, and this call has its jobs.
            (Err(error), None) => Err(error),
        }
    }

    fn take_alone(&self, queue: &QueueName, ask: Ask) -> Result<Taken, Error> {
        self.with_connection(|conn| {
            let taken = self.find(conn, Want { queue, count: ask.count, hold: Hold::Nothing }, ask.scan)?;
            self.let_go_after_all(conn, queue, &taken.jobs);
            Ok(taken)
        })
    }
}

/// How many of those in line a get of so many jobs takes along: of the numbers of jobs that makes, the largest
/// for which there is a statement that is planned once; all where there is none.
fn company(count: usize, line: &mut dyn Iterator<Item = &Ask>) -> usize {
    let sums = line.scan(count, |sum, more| {
        *sum += more.count;
        (*sum <= SHARED_TAKE).then_some(*sum)
    });
    let (mut all, mut fixed) = (0, Sized::is_fixed(count).then_some(0));
    for (calls, sum) in (1..).zip(sums) {
        all = calls;
        if Sized::is_fixed(sum) {
            fixed = Some(calls);
        }
    }
    fixed.unwrap_or(all)
}

/// Leaves the first of the jobs to the call that leads, and deals out the others in the order of the calls.
fn deal(taken: &mut Taken, count: usize, counts: &[usize]) -> Vec<Fate<Result<Taken, Error>>> {
    let next_due = taken.next_due;
    let mut others = taken.jobs.split_off(taken.jobs.len().min(count)).into_iter();
    let found = !taken.jobs.is_empty();
    let fate = |count: &usize| {
        let jobs: Vec<RawJob> = others.by_ref().take(*count).collect();
        // Where some were found it is not known when the next falls due, nor whether there is one whose key is
        // free now.
        if jobs.is_empty() && found { Fate::Again } else { Fate::Done(Ok(Taken { jobs, next_due })) }
    };
    counts.iter().map(fate).collect()
}

fn has_keys(jobs: &[RawJob]) -> bool {
    jobs.iter().any(|job| job.unique_key.is_some() || job.serialization_key.is_some())
}
