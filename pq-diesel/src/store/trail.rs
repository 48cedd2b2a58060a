//! The way that takes have gone along the line, in pieces that can be walked one by one.

use std::time::{Duration, Instant};

use super::head::{APART, Place};

/// Places that takes have come by, about as many jobs apart.
#[derive(Debug)]
pub(super) struct Trail {
    places: Vec<Place>,
    apart: usize,
    /// How many jobs were taken since the last place.
    beyond: usize,
    /// The piece that is walked next, by the place that it ends at.
    next: usize,
    /// What the last one cost in microseconds, and when it ended.
    cost: u64,
    at: Instant,
    /// What the pieces of this round have cost.
    round: i64,
}

impl Trail {
    /// So many remains are passed by in a few milliseconds.
    const APART: usize = 16_384;
    /// When there are so many places every other is given up.
    const MOST: usize = 512;

    pub(super) fn new(now: Instant) -> Self {
        Self { places: Vec::new(), apart: Self::APART, beyond: 0, next: 0, cost: 0, at: now, round: 0 }
    }

    /// A take of so many jobs ended there.
    pub(super) fn went(&mut self, place: Place, jobs: usize) {
        self.beyond += jobs;
        if self.beyond < self.apart || self.places.last().is_some_and(|last| *last >= place) {
            return;
        }
        self.places.push(place);
        self.beyond = 0;
        if self.places.len() == Self::MOST {
            self.places = self.places.iter().skip(1).step_by(2).copied().collect();
            self.apart *= 2;
            self.next /= 2;
        }
    }

    /// The piece that is walked next: from behind the one place to the other.
    pub(super) fn piece(&self) -> Option<(Place, Place)> {
        let upto = *self.places.get(self.next)?;
        let after = self.next.checked_sub(1).map_or(Place::FIRST, |before| self.places[before]);
        Some((after, upto))
    }

    /// How long it is until that is due.
    pub(super) fn due_in(&self, now: Instant) -> Duration {
        let apart = Duration::from_micros(self.cost).saturating_mul(APART);
        apart.saturating_sub(now.saturating_duration_since(self.at))
    }

    /// The piece that ends there was walked, to its end or not; gives what a piece has cost on average when it was the
    /// last of them.
    pub(super) fn walked(&mut self, upto: Place, cost: i64, to_its_end: bool, now: Instant) -> Option<i64> {
        (self.cost, self.at) = (cost.max(0).unsigned_abs(), now);
        self.round += cost;
        // Another thread may have been there as well.
        if !to_its_end || self.piece().is_none_or(|(_, next)| next != upto) {
            return None;
        }
        self.next += 1;
        if self.next < self.places.len() {
            return None;
        }
        let pieces = i64::try_from(std::mem::take(&mut self.next)).unwrap_or(i64::MAX);
        Some(std::mem::take(&mut self.round) / pieces)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(id: i64) -> Place {
        Place { rank: 0, wanted: i64::MAX, id }
    }

    #[test]
    fn the_pieces_are_the_whole_way_one_after_the_other() {
        let now = Instant::now();
        let mut trail = Trail::new(now);
        assert_eq!(trail.piece(), None);
        // Back there, and on again.
        for id in [9_000, 18_000, 27_000, 10, 36_000, 45_000, 54_000] {
            trail.went(place(id), 9_000);
        }
        let ends = [18_000, 36_000, 54_000].map(place);
        for round in 0..2 {
            let mut after = Place::FIRST;
            for (at, upto) in ends.into_iter().enumerate() {
                assert_eq!(trail.piece(), Some((after, upto)), "{round}");
                // One that has found as much as was asked for may have more.
                assert_eq!(trail.walked(upto, 100, false, now), None);
                assert_eq!(trail.piece(), Some((after, upto)), "{round}");
                assert_eq!(trail.walked(upto, 200, true, now), (at == 2).then_some(300));
                assert_eq!(trail.walked(upto, 0, true, now), None, "another thread has walked it as well");
                after = upto;
            }
        }
    }

    #[test]
    fn a_piece_is_forty_times_its_cost_after_the_last_one() {
        let now = Instant::now();
        let mut trail = Trail::new(now);
        let upto = place(20_000);
        trail.went(upto, 20_000);
        assert_eq!(trail.due_in(now), Duration::ZERO);
        trail.walked(upto, 5_000, true, now);
        assert_eq!(trail.due_in(now), Duration::from_millis(200));
        assert_eq!(trail.due_in(now + Duration::from_millis(200)), Duration::ZERO);
    }

    #[test]
    fn a_long_way_has_longer_pieces_and_no_gap() {
        let now = Instant::now();
        let mut trail = Trail::new(now);
        for id in 1..=3_000 {
            trail.went(place(id * 20_000), 20_000);
        }
        let mut after = Place::FIRST;
        let mut pieces = 0;
        while let Some((from, upto)) = trail.piece().filter(|(from, _)| *from == after) {
            assert!(from < upto);
            (after, pieces) = (upto, pieces + 1);
            if trail.walked(upto, 1, true, now).is_some() {
                break;
            }
        }
        assert!((256..512).contains(&pieces), "{pieces}");
        assert!(after >= place(2_980 * 20_000), "{after:?}");
    }
}
