//! The way that takes have gone along the line, in pieces that can be walked one by one.

use std::time::{Duration, Instant};

use super::costs;
use super::place::Place;

/// A part of the line that an index scan leaves at its end. (One that is bounded by a comparison of rows does not
/// stop where the comparison fails, PostgreSQL 15 at least: it goes on to the end of the index.)
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Piece {
    pub(super) after: Place,
    pub(super) end: End,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum End {
    /// All that is behind the place and of a rank before this one.
    Rank(i64),
    /// All that is behind it, of the same rank, and wanted before this.
    Wanted(i64),
    /// All that is behind it, alike in both, to this number and with it.
    Id(i64),
}

/// From behind the one place to the other, in at most three pieces.
fn pieces(after: Place, upto: Place) -> Vec<Piece> {
    let (mut pieces, mut after) = (Vec::new(), after);
    if after.rank != upto.rank {
        pieces.push(Piece { after, end: End::Rank(upto.rank) });
        after = Place { rank: upto.rank, ..Place::FIRST };
    }
    if after.wanted != upto.wanted {
        pieces.push(Piece { after, end: End::Wanted(upto.wanted) });
        after = Place { wanted: upto.wanted, id: i64::MIN, ..after };
    }
    pieces.push(Piece { after, end: End::Id(upto.id) });
    pieces
}

/// Places that takes have come by, about as many jobs apart.
#[derive(Debug)]
pub(super) struct Trail {
    places: Vec<Place>,
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

impl Trail {
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
            (self.next, self.step) = (self.next / 2, 0);
        }
    }

    /// How many places there are, and so about how many pieces.
    pub(super) fn places(&self) -> i64 {
        i64::try_from(self.places.len()).unwrap_or(i64::MAX)
    }

    /// The piece that is walked next.
    pub(super) fn piece(&self) -> Option<Piece> {
        self.pieces().get(self.step).copied()
    }

    fn pieces(&self) -> Vec<Piece> {
        let Some(upto) = self.places.get(self.next) else { return Vec::new() };
        let after = self.next.checked_sub(1).map_or(Place::FIRST, |before| self.places[before]);
        pieces(after, *upto)
    }

    /// How long it is until that is due.
    pub(super) fn due_in(&self, now: Instant) -> Duration {
        costs::due_in(self.cost, self.at, now)
    }

    /// The piece was walked, to its end or not; gives what it has cost on average from place to place when it was the
    /// last.
    pub(super) fn walked(&mut self, piece: Piece, cost: i64, to_its_end: bool, now: Instant) -> Option<i64> {
        (self.cost, self.at) = (cost, now);
        self.round += cost;
        // Another thread may have been there as well.
        if !to_its_end || self.piece() != Some(piece) {
            return None;
        }
        self.step += 1;
        if self.step < self.pieces().len() {
            return None;
        }
        (self.next, self.step) = (self.next + 1, 0);
        if self.next < self.places.len() {
            return None;
        }
        self.next = 0;
        Some(std::mem::take(&mut self.round) / self.places())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(id: i64) -> Place {
        Place { rank: 0, wanted: i64::MAX, id }
    }

    /// Walks all pieces of a round, each for so long.
    fn round(trail: &mut Trail, cost: i64) -> (Vec<Piece>, i64) {
        let (now, mut walked) = (Instant::now(), Vec::new());
        loop {
            let piece = trail.piece().expect("a piece");
            // One that has found as much as was asked for may have more.
            assert_eq!(trail.walked(piece, 0, false, now), None);
            assert_eq!(trail.piece(), Some(piece));
            walked.push(piece);
            if let Some(mean) = trail.walked(piece, cost, true, now) {
                return (walked, mean);
            }
        }
    }

    #[test]
    fn the_pieces_are_the_whole_way_one_after_the_other() {
        let mut trail = Trail::new(Instant::now());
        assert_eq!(trail.piece(), None);
        // Back there, and on again.
        for id in [9_000, 18_000, 27_000, 10, 36_000, 45_000, 54_000] {
            trail.went(place(id), 9_000);
        }
        let to = |after, id| Piece { after, end: End::Id(id) };
        let of_rank = Place { rank: 0, ..Place::FIRST };
        let wanted = vec![
            Piece { after: Place::FIRST, end: End::Rank(0) },
            Piece { after: of_rank, end: End::Wanted(i64::MAX) },
            to(Place { wanted: i64::MAX, ..of_rank }, 18_000),
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
        let mut trail = Trail::new(now);
        trail.went(place(20_000), 20_000);
        let piece = trail.piece().expect("a piece");
        trail.walked(piece, 1, true, now);
        let next = trail.piece();
        assert_ne!(next, Some(piece));
        trail.walked(piece, 1, true, now);
        assert_eq!(trail.piece(), next);
    }

    #[test]
    fn a_piece_is_forty_times_its_cost_after_the_last_one() {
        let now = Instant::now();
        let mut trail = Trail::new(now);
        trail.went(place(20_000), 20_000);
        assert_eq!(trail.due_in(now), Duration::ZERO);
        trail.walked(trail.piece().expect("a piece"), 5_000, true, now);
        assert_eq!(trail.due_in(now), Duration::from_millis(200));
        assert_eq!(trail.due_in(now + Duration::from_millis(200)), Duration::ZERO);
    }

    #[test]
    fn a_long_way_has_longer_pieces_and_no_gap() {
        let mut trail = Trail::new(Instant::now());
        for id in 1..=3_000 {
            trail.went(place(id * 20_000), 20_000);
        }
        let (pieces, _) = round(&mut trail, 1);
        assert!((258..515).contains(&pieces.len()), "{}", pieces.len());
        let mut at = i64::MIN;
        for piece in &pieces[2..] {
            assert_eq!(piece.after.id, at);
            let End::Id(end) = piece.end else { panic!("{piece:?}") };
            at = end;
        }
        assert!(at >= 2_980 * 20_000, "{at}");
    }
}
