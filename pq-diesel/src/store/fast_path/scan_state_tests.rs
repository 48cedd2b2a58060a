//! Which way takes go, by a clock that only tests move.

use chrono::{DateTime, Utc};
use pq_core::{Claim, Held, JobId, JobRecord, JobState, NewJob, Payload, QueueName, When};

use super::super::scan_planner::ScanPlanner;
use super::*;

fn jobs(last: i64) -> Vec<Claim> {
    let record = JobRecord {
        state: JobState::Running,
        error: None,
        result: None,
        lease_until: None,
        ended_at: None,
        id: JobId(last),
        queue: QueueName::new("q").expect("a name"),
        payload: Payload::from_stored("1".to_owned()),
        enqueued_at: DateTime::<Utc>::default(),
        schedule_at: None,
        expected_at: None,
        priority: 2,
        attempt: 1,
        serialization_key: None,
        unique_key: None,
    };
    vec![Claim { record, token: 1, held: Held::Transaction }]
}

const MS: Duration = Duration::from_millis(1);

/// A queue's head, and a clock that only tests move.
struct Line {
    state: ScanState,
    now: Instant,
    last: i64,
}

/// What walks cost from the start, from a while ago, and from the last place.
struct Costs {
    start: Duration,
    since: Duration,
    on: Duration,
}

impl Line {
    fn new() -> Self {
        let now = Instant::now();
        Self { state: ScanState::new(now), now, last: 0 }
    }

    /// A take of one job; gives its way.
    fn take(&mut self, costs: &Costs) -> Plan {
        let (way, begun) = (self.state.plan(self.now), self.now);
        self.now += match way {
            Plan::FromStart | Plan::Full => costs.start,
            Plan::ResumeEarlier(_) | Plan::Backfill(..) => costs.since,
            Plan::Resume(_) => costs.on,
        };
        self.last += 1;
        // There is never anything but at the end of the line.
        let found = if let Plan::Backfill(..) = way { Vec::new() } else { jobs(self.last) };
        self.state.note(way, &found, 1, begun, self.now);
        way
    }

    /// Takes so often; gives how many walks were from the start, and from a while ago.
    fn takes(&mut self, times: usize, costs: &Costs) -> (usize, usize) {
        let ways: Vec<Plan> = (0..times).map(|_| self.take(costs)).collect();
        (
            count(&ways, |way| *way == Plan::FromStart),
            count(&ways, |way| matches!(way, Plan::ResumeEarlier(_))),
        )
    }
}

fn count(ways: &[Plan], is: fn(&Plan) -> bool) -> usize {
    ways.iter().filter(|way| is(way)).count()
}

fn costs(start: Duration, since: Duration, on: Duration) -> Costs {
    Costs { start, since, on }
}

#[test]
fn while_walks_are_cheap_all_are_from_the_start() {
    let mut line = Line::new();
    assert_eq!(line.takes(100, &costs(MS, MS, MS)), (100, 0));
    // A dear one now and then is none of the index's doing.
    for _ in 0..50 {
        let first = line.takes(1, &costs(30 * MS, MS, MS));
        assert_eq!((first, line.takes(10, &costs(MS, MS, MS))), ((1, 0), (10, 0)));
    }
}

#[test]
fn dear_walks_are_forty_times_their_cost_apart() {
    let mut line = Line::new();
    let dear = costs(21 * MS, 3 * MS, MS);
    line.takes(40, &dear);
    // They cost 20 more than the others, and so there are 800 ms between them; 80 ms between those from a
    // while ago.
    let (start, since) = line.takes(10_000, &dear);
    assert!((12..=13).contains(&start), "{start}");
    assert!((100..=130).contains(&since), "{since}");
    // Once they are cheap again all are from the start.
    let cheap = costs(MS, MS, MS);
    line.takes(1_000, &cheap);
    assert_eq!(line.takes(100, &cheap), (100, 0));
}

#[test]
fn a_walk_that_gets_dearer_is_believed_at_once() {
    let mut line = Line::new();
    line.takes(40, &costs(21 * MS, MS, MS));
    let dearer = costs(201 * MS, MS, MS);
    while line.take(&dearer) != Plan::FromStart {}
    while line.take(&dearer) != Plan::FromStart {}
    assert_eq!(line.takes(7_500, &dearer).0, 0, "it is eight seconds until the next");
}

#[test]
fn a_long_line_is_walked_piece_by_piece() {
    let mut line = Line::new();
    let dear = costs(2_000 * MS, 6 * MS, MS);
    line.takes(100_000, &dear);
    // From the start no more, now that there are pieces; they are 240 ms apart, and those from a while ago too.
    let ways: Vec<Plan> = (0..10_000).map(|_| line.take(&dear)).collect();
    assert_eq!(count(&ways, |way| matches!(way, Plan::FromStart | Plan::Full)), 0);
    let (between, since) = (
        count(&ways, |way| matches!(way, Plan::Backfill(..))),
        count(&ways, |way| matches!(way, Plan::ResumeEarlier(_))),
    );
    assert!((38..=48).contains(&between), "{between}");
    assert!((38..=58).contains(&since), "{since}");
    // When the remains are gone each is from the start again.
    let cheap = costs(MS, MS, MS);
    line.takes(2_000, &cheap);
    assert_eq!(line.takes(100, &cheap), (100, 0));
}

#[test]
fn who_is_slow_for_a_while_does_not_walk_all_of_it_again() {
    let mut line = Line::new();
    line.takes(100_000, &costs(3 * MS, 6 * MS, MS));
    // What a walk from the start would cost now is known by the pieces.
    assert_eq!(line.takes(500, &costs(2_000 * MS, 20 * MS, 20 * MS)).0, 0);
}

#[test]
fn a_machine_that_is_slow_at_all_walks_saves_none() {
    let mut line = Line::new();
    let slow = costs(20 * MS, 20 * MS, 20 * MS);
    line.takes(100, &slow);
    assert_eq!(line.takes(1_000, &slow), (1_000, 0));
}

#[test]
fn a_commit_that_is_late_is_found_where_takes_were_a_while_ago() {
    let mut line = Line::new();
    let dear = costs(301 * MS, 2 * MS, MS);
    line.takes(5_000, &dear);
    let last = line.last;
    let walks: Vec<Plan> = (0..1_000).map(|_| line.take(&dear)).collect();
    let since =
        walks.iter().find_map(|way| if let Plan::ResumeEarlier(place) = way { Some(place.id) } else { None });
    // A take is a millisecond, and a mark is between one second old and two.
    assert!(since.is_some_and(|id| (600..=2_000).contains(&(last - id))), "{last}: {since:?}");
}

#[test]
fn what_is_put_before_the_place_is_looked_for_at_once() {
    let queue = QueueName::new("q").expect("a name");
    let dear = || {
        let mut line = Line::new();
        line.takes(17, &costs(22 * MS, MS, MS));
        ScanPlanner::with(queue.clone(), line.state)
    };
    let at = Some(When::At(DateTime::<Utc>::default()));
    for (priority, expected_at, is_from_start) in [(2, None, false), (3, None, true), (2, at, true)] {
        let mut job = NewJob::new(Payload::from_stored("1".to_owned()));
        (job.priority, job.expected_at) = (priority, expected_at);
        let planner = dear();
        planner.note_put(&queue, &[job]);
        assert_eq!(planner.plan(&queue) == Plan::FromStart, is_from_start, "{priority} {expected_at:?}");
    }
    let planner = dear();
    planner.forget_position(&queue);
    assert_eq!(planner.plan(&queue), Plan::FromStart);
}

#[test]
fn who_found_less_than_was_asked_for_asks_why() {
    let now = Instant::now();
    let mut state = ScanState::new(now);
    state.note(Plan::FromStart, &jobs(1), 5, now, now);
    assert_eq!(state.plan(now), Plan::Full);
    assert_eq!(state.plan(now + 2 * MS), Plan::FromStart, "something has woken it");
    state.note(Plan::Full, &jobs(2), 1, now, now);
    assert_eq!(state.plan(now), Plan::FromStart);
}

#[test]
fn a_line_that_is_never_long_is_walked_on_as_well() {
    let mut line = Line::new();
    line.takes(17, &costs(22 * MS, MS, MS));
    let begun = line.now;
    line.now += 22 * MS;
    line.state.note(Plan::FromStart, &jobs(70), 5, begun, line.now);
    let place = SortKey { neg_priority: -2, expected_at: i64::MAX, id: 70 };
    assert_eq!(line.state.plan(line.now), Plan::Resume(place));
    line.state.note(Plan::Resume(place), &[], 5, line.now, line.now);
    assert_eq!(line.state.plan(line.now), Plan::Resume(place));
    line.now += line.state.before_position_due_in(line.now);
    assert_eq!(line.state.plan(line.now), Plan::FromStart);
}
