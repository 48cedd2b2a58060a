//! The way that takes have gone along the line, in pieces that can be walked one by one.

use std::time::{Duration, Instant};

use super::scan_costs;
use super::sort_key::SortKey;

/// A part of the line that an index scan leaves at its end. (One that is bounded by a comparison of rows does not
/// stop where the comparison fails, PostgreSQL 15 at least: it goes on to the end of the index.)
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct KeyRange {
    pub(super) after: SortKey,
    pub(super) end: RangeEnd,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum RangeEnd {
    /// All that is behind the place and of a rank before this one.
    Priority(i64),
    /// All that is behind it, of the same rank, and wanted before this.
    ExpectedAt(i64),
    /// All that is behind it, alike in both, to this number and with it.
    Id(i64),
}

/// From behind the one place to the other, in at most three pieces.
fn ranges(after: SortKey, upto: SortKey) -> Vec<KeyRange> {
    let (mut pieces, mut after) = (Vec::new(), after);
    if after.neg_priority != upto.neg_priority {
        pieces.push(KeyRange { after, end: RangeEnd::Priority(upto.neg_priority) });
        after = SortKey { neg_priority: upto.neg_priority, ..SortKey::FIRST };
    }
    if after.expected_at != upto.expected_at {
        pieces.push(KeyRange { after, end: RangeEnd::ExpectedAt(upto.expected_at) });
        after = SortKey { expected_at: upto.expected_at, id: i64::MIN, ..after };
    }
    pieces.push(KeyRange { after, end: RangeEnd::Id(upto.id) });
    pieces
}

/// SortKeys that takes have come by, about as many jobs apart.
#[derive(Debug)]
pub(super) struct ScanCheckpoints {
    places: Vec<SortKey>,
    apart: usize,
    /// How many jobs were taken since the last place.
    beyond: usize,
    /// The place to which the line is walked next, and how many pieces of the way there were.
    next: usize,
    step: usize,
    /// What the last one cost in microseconds, and when it ended.
    cost: i64,
    at: Instant,
    /// What the pieces of this round have cost.
    round: i64,
}

impl ScanCheckpoints {
    /// So many remains are passed by in a few milliseconds.
    const APART: usize = 16_384;
    /// When there are so many places every other is given up.
    const MOST: usize = 512;

    pub(super) fn new(now: Instant) -> Self {
        Self {
            places: Vec::new(),
            apart: Self::APART,
            beyond: 0,
            next: 0,
            step: 0,
            cost: 0,
            at: now,
            round: 0,
        }
    }

    /// A take of so many jobs ended there.
    pub(super) fn advance(&mut self, place: SortKey, jobs: usize) {
        self.beyond += jobs;
        if self.beyond < self.apart || self.places.last().is_some_and(|last| *last >= place) {
            return;
        }
        self.places.push(place);
        self.beyond = 0;
        if self.places.len() == Self::MOST {
            self.places = self.places.iter().skip(1).step_by(2).copied().collect();
            self.apart *= 2;
            (self.next, self.step) = (self.next / 2, 0);
        }
    }

    /// How many places there are, and so about how many pieces.
    pub(super) fn count(&self) -> i64 {
        i64::try_from(self.places.len()).unwrap_or(i64::MAX)
    }

    /// The piece that is walked next.
    pub(super) fn next_range(&self) -> Option<KeyRange> {
        self.ranges().get(self.step).copied()
    }

    fn ranges(&self) -> Vec<KeyRange> {
        let Some(upto) = self.places.get(self.next) else { return Vec::new() };
        let after = self.next.checked_sub(1).map_or(SortKey::FIRST, |before| self.places[before]);
        ranges(after, *upto)
    }

    /// How long it is until that is due.
    pub(super) fn due_in(&self, now: Instant) -> Duration {
        scan_costs::due_in(self.cost, self.at, now)
    }

    /// The piece was walked, to its end or not; gives what it has cost on average from place to place when it was the
    /// last.
    pub(super) fn note_scan(
        &mut self,
        piece: KeyRange,
        cost: i64,
        to_its_end: bool,
        now: Instant,
    ) -> Option<i64> {
        (self.cost, self.at) = (cost, now);
        self.round += cost;
        // Another thread may have been there as well.
        if !to_its_end || self.next_range() != Some(piece) {
            return None;
        }
        self.step += 1;
        if self.step < self.ranges().len() {
            return None;
        }
        (self.next, self.step) = (self.next + 1, 0);
        if self.next < self.places.len() {
            return None;
        }
        self.next = 0;
        Some(std::mem::take(&mut self.round) / self.count())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(id: i64) -> SortKey {
        SortKey { neg_priority: 0, expected_at: i64::MAX, id }
    }

    /// Walks all pieces of a round, each for so long.
    fn round(trail: &mut ScanCheckpoints, cost: i64) -> (Vec<KeyRange>, i64) {
        let (now, mut walked) = (Instant::now(), Vec::new());
        loop {
            let piece = trail.next_range().expect("a piece");
            // One that has found as much as was asked for may have more.
            assert_eq!(trail.note_scan(piece, 0, false, now), None);
            assert_eq!(trail.next_range(), Some(piece));
            walked.push(piece);
            if let Some(mean) = trail.note_scan(piece, cost, true, now) {
                return (walked, mean);
            }
        }
    }

    #[test]
    fn the_pieces_are_the_whole_way_one_after_the_other() {
        let mut trail = ScanCheckpoints::new(Instant::now());
        assert_eq!(trail.next_range(), None);
        // Back there, and on again.
        for id in [9_000, 18_000, 27_000, 10, 36_000, 45_000, 54_000] {
            trail.advance(place(id), 9_000);
        }
        let to = |after, id| KeyRange { after, end: RangeEnd::Id(id) };
        let of_rank = SortKey { neg_priority: 0, ..SortKey::FIRST };
        let wanted = vec![
            KeyRange { after: SortKey::FIRST, end: RangeEnd::Priority(0) },
            KeyRange { after: of_rank, end: RangeEnd::ExpectedAt(i64::MAX) },
            to(SortKey { expected_at: i64::MAX, ..of_rank }, 18_000),
            to(place(18_000), 36_000),
            to(place(36_000), 54_000),
        ];
        for _ in 0..2 {
            assert_eq!(round(&mut trail, 300), (wanted.clone(), 500));
        }
    }

    #[test]
    fn what_another_thread_has_walked_as_well_is_not_walked_twice() {
        let now = Instant::now();
        let mut trail = ScanCheckpoints::new(now);
        trail.advance(place(20_000), 20_000);
        let piece = trail.next_range().expect("a piece");
        trail.note_scan(piece, 1, true, now);
        let next = trail.next_range();
        assert_ne!(next, Some(piece));
        trail.note_scan(piece, 1, true, now);
        assert_eq!(trail.next_range(), next);
    }

    #[test]
    fn a_piece_is_forty_times_its_cost_after_the_last_one() {
        let now = Instant::now();
        let mut trail = ScanCheckpoints::new(now);
        trail.advance(place(20_000), 20_000);
        assert_eq!(trail.due_in(now), Duration::ZERO);
        trail.note_scan(trail.next_range().expect("a piece"), 5_000, true, now);
        assert_eq!(trail.due_in(now), Duration::from_millis(200));
        assert_eq!(trail.due_in(now + Duration::from_millis(200)), Duration::ZERO);
    }

    #[test]
    fn a_long_way_has_longer_pieces_and_no_gap() {
        let mut trail = ScanCheckpoints::new(Instant::now());
        for id in 1..=3_000 {
            trail.advance(place(id * 20_000), 20_000);
        }
        let (pieces, _) = round(&mut trail, 1);
        assert!((258..515).contains(&pieces.len()), "{}", pieces.len());
        let mut at = i64::MIN;
        for piece in &pieces[2..] {
            assert_eq!(piece.after.id, at);
            let RangeEnd::Id(end) = piece.end else { panic!("{piece:?}") };
            at = end;
        }
        assert!(at >= 2_980 * 20_000, "{at}");
    }
}
