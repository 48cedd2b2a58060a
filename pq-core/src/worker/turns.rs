//! How many threads take many jobs of a queue at the same time.
//!
//! Takes that run beside one another walk over what the others are about to have, so that the time of all of them
//! grows with the square of their number: sixteen threads took half as many jobs a second as four. A smaller take is
//! mostly its commit, which goes best beside others where the log's sync is slow, and waits for no turn.

use std::sync::{Mutex, MutexGuard};

use super::shared::lock;

/// So many takes at a time keep a server of several cores busy, and those that wait have nothing else to do.
const ABREAST: usize = 4;

/// Only handlers that are done in a tenth of a millisecond are given so many at a time. Four takes of so many to a sync
/// of ten milliseconds are still two hundred thousand jobs a second.
const MANY: usize = 512;

/// The turns of a queue's takes.
#[derive(Default)]
pub(super) struct Turns([Mutex<()>; ABREAST]);

impl Turns {
    /// Waits for the thread's turn to take so many, and holds it; nothing where it need not wait.
    pub(super) fn wait(&self, thread: usize, want: usize) -> Option<MutexGuard<'_, ()>> {
        (want >= MANY).then(|| lock(&self.0[thread % ABREAST]))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn takes_of_many_go_few_abreast_and_those_of_few_do_not_wait() {
        let (turns, under_way) = (Turns::default(), AtomicUsize::new(0));
        let held: Vec<_> = (0..ABREAST).map(|thread| turns.wait(thread, MANY)).collect();
        assert!(held.iter().all(Option::is_some));
        assert!(turns.wait(0, MANY - 1).is_none());
        std::thread::scope(|scope| {
            for thread in 0..4 * ABREAST {
                let (turns, under_way) = (&turns, &under_way);
                scope.spawn(move || {
                    let _turn = turns.wait(thread, MANY);
                    assert!(
                        under_way.fetch_add(1, Ordering::SeqCst) < ABREAST,
                        "more than may are under way"
                    );
                    std::thread::yield_now();
                    under_way.fetch_sub(1, Ordering::SeqCst);
                });
            }
            assert_eq!(under_way.load(Ordering::SeqCst), 0, "somebody did not wait");
            drop(held);
        });
        assert_eq!(under_way.into_inner(), 0);
    }
}
