//! Which plans takes get, by a clock that only the tests move.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use pq_core::{Annotations, Claim, Held, JobId, JobRecord, JobState, NewJob, Payload, QueueName, When};

use super::super::scan_planner::ScanPlanner;
use super::*;

fn jobs(last: i64) -> Vec<Arc<Claim>> {
    let record = JobRecord {
        state: JobState::Running,
        error: None,
        result: None,
        lease_until: None,
        ended_at: None,
        annotations: Annotations::default(),
        attempt_log: Vec::new(),
        id: JobId(last),
        queue: QueueName::new("q").expect("a name"),
        payload: Payload::from_stored("1".to_owned()),
        enqueued_at: DateTime::<Utc>::default(),
        schedule_at: None,
        expected_at: None,
        priority: 2,
        attempt: 1,
        crashes: 0,
        serialization_key: None,
        unique_key: None,
    };
    vec![Arc::new(Claim { record, token: 1, held: Held::Transaction, lease_limit: None, limited: false })]
}

const MS: Duration = Duration::from_millis(1);

/// The scan state of a queue, and a clock.
struct Simulation {
    state: ScanState,
    now: Instant,
    last: i64,
}

/// The costs of scans by their start. A scan of a range costs as much as one that resumes earlier.
struct Costs {
    from_start: Duration,
    resume_earlier: Duration,
    resume: Duration,
}

impl Simulation {
    fn new() -> Self {
        let now = Instant::now();
        Self { state: ScanState::new(now), now, last: 0 }
    }

    /// Takes one job. Returns the plan.
    fn take(&mut self, costs: &Costs) -> Plan {
        let (plan, begun) = (self.state.plan(self.now), self.now);
        self.now += match plan {
            Plan::FromStart | Plan::Full => costs.from_start,
            Plan::ResumeEarlier(_) | Plan::Backfill(..) => costs.resume_earlier,
            Plan::Resume(_) => costs.resume,
        };
        self.last += 1;
        // The only job is behind the position.
        let found = if let Plan::Backfill(..) = plan { Vec::new() } else { jobs(self.last) };
        self.state.note(plan, &found, 1, begun, self.now);
        plan
    }

    /// Takes `times` jobs. Returns how many scans began at the start, and how many resumed earlier.
    fn takes(&mut self, times: usize, costs: &Costs) -> (usize, usize) {
        let plans: Vec<Plan> = (0..times).map(|_| self.take(costs)).collect();
        (
            count(&plans, |plan| *plan == Plan::FromStart),
            count(&plans, |plan| matches!(plan, Plan::ResumeEarlier(_))),
        )
    }
}

fn count(plans: &[Plan], is: fn(&Plan) -> bool) -> usize {
    plans.iter().filter(|plan| is(plan)).count()
}

fn costs(from_start: Duration, resume_earlier: Duration, resume: Duration) -> Costs {
    Costs { from_start, resume_earlier, resume }
}

#[test]
fn every_scan_begins_at_the_start_while_that_is_inexpensive() {
    let mut queue = Simulation::new();
    assert_eq!(queue.takes(100, &costs(MS, MS, MS)), (100, 0));
    // A single expensive scan is not due to the index.
    for _ in 0..50 {
        let first = queue.takes(1, &costs(30 * MS, MS, MS));
        assert_eq!((first, queue.takes(10, &costs(MS, MS, MS))), ((1, 0), (10, 0)));
    }
}

#[test]
fn expensive_scans_are_forty_times_their_cost_apart() {
    let mut queue = Simulation::new();
    let expensive = costs(21 * MS, 3 * MS, MS);
    queue.takes(40, &expensive);
    // They cost 20 ms more than resumed ones, so there are 800 ms between them. Those that resume earlier cost 2 ms
    // more, so there are 80 ms between them.
    let (from_start, earlier) = queue.takes(10_000, &expensive);
    assert!((12..=13).contains(&from_start), "{from_start}");
    assert!((100..=130).contains(&earlier), "{earlier}");
    // When they are inexpensive again, all begin at the start.
    let inexpensive = costs(MS, MS, MS);
    queue.takes(1_000, &inexpensive);
    assert_eq!(queue.takes(100, &inexpensive), (100, 0));
}

#[test]
fn a_scan_that_gets_more_expensive_is_skipped_at_once() {
    let mut queue = Simulation::new();
    queue.takes(40, &costs(21 * MS, MS, MS));
    let slower = costs(201 * MS, MS, MS);
    while queue.take(&slower) != Plan::FromStart {}
    while queue.take(&slower) != Plan::FromStart {}
    assert_eq!(queue.takes(7_500, &slower).0, 0, "the next is due in eight seconds");
}

#[test]
fn a_long_queue_is_scanned_range_by_range() {
    let mut queue = Simulation::new();
    let expensive = costs(2_000 * MS, 6 * MS, MS);
    queue.takes(100_000, &expensive);
    // None begins at the start now that there are ranges. Their scans are 240 ms apart, and those that resume earlier
    // too.
    let plans: Vec<Plan> = (0..10_000).map(|_| queue.take(&expensive)).collect();
    assert_eq!(count(&plans, |plan| matches!(plan, Plan::FromStart | Plan::Full)), 0);
    let (ranges, earlier) = (
        count(&plans, |plan| matches!(plan, Plan::Backfill(..))),
        count(&plans, |plan| matches!(plan, Plan::ResumeEarlier(_))),
    );
    assert!((38..=48).contains(&ranges), "{ranges}");
    assert!((38..=58).contains(&earlier), "{earlier}");
    // When the dead tuples have been removed, all begin at the start again.
    let inexpensive = costs(MS, MS, MS);
    queue.takes(2_000, &inexpensive);
    assert_eq!(queue.takes(100, &inexpensive), (100, 0));
}

#[test]
fn a_slow_machine_does_not_make_a_scan_begin_at_the_start() {
    let mut queue = Simulation::new();
    queue.takes(100_000, &costs(3 * MS, 6 * MS, MS));
    // The ranges show what a scan from the start would cost.
    assert_eq!(queue.takes(500, &costs(2_000 * MS, 25 * MS, 20 * MS)).0, 0);
}

#[test]
fn no_scan_is_skipped_if_all_are_equally_slow() {
    let mut queue = Simulation::new();
    let slow = costs(20 * MS, 20 * MS, 20 * MS);
    queue.takes(100, &slow);
    assert_eq!(queue.takes(1_000, &slow), (1_000, 0));
}

#[test]
fn a_scan_resumes_one_to_two_seconds_earlier() {
    let mut queue = Simulation::new();
    let expensive = costs(301 * MS, 2 * MS, MS);
    queue.takes(5_000, &expensive);
    let last = queue.last;
    let plans: Vec<Plan> = (0..1_000).map(|_| queue.take(&expensive)).collect();
    let earlier =
        plans.iter().find_map(|plan| if let Plan::ResumeEarlier(key) = plan { Some(key.id) } else { None });
    // A take is a millisecond.
    assert!(earlier.is_some_and(|id| (600..=2_000).contains(&(last - id))), "{last}: {earlier:?}");
}

#[test]
fn a_job_that_is_put_before_the_position_is_found_at_once() {
    let queue = QueueName::new("q").expect("a name");
    let expensive = || {
        let mut simulation = Simulation::new();
        simulation.takes(17, &costs(22 * MS, MS, MS));
        ScanPlanner::with(queue.clone(), simulation.state)
    };
    let at = Some(When::At(DateTime::<Utc>::default()));
    for (priority, expected_at, is_from_start) in [(2, None, false), (3, None, true), (2, at, true)] {
        let mut job = NewJob::new(Payload::from_stored("1".to_owned()));
        (job.priority, job.expected_at) = (priority, expected_at);
        let planner = expensive();
        planner.note_put(&queue, &[job]);
        assert_eq!(planner.plan(&queue) == Plan::FromStart, is_from_start, "{priority} {expected_at:?}");
    }
    let planner = expensive();
    planner.forget_position(&queue);
    assert_eq!(planner.plan(&queue), Plan::FromStart);
}

#[test]
fn a_take_that_found_fewer_jobs_than_it_wanted_is_followed_by_a_full_scan() {
    let now = Instant::now();
    let mut state = ScanState::new(now);
    state.note(Plan::FromStart, &jobs(1), 5, now, now);
    assert_eq!(state.plan(now), Plan::Full);
    assert_eq!(state.plan(now + 2 * MS), Plan::FromStart, "it was probably notified");
    state.note(Plan::Full, &jobs(2), 1, now, now);
    assert_eq!(state.plan(now), Plan::FromStart);
}

#[test]
fn a_short_queue_is_resumed_as_well() {
    let mut queue = Simulation::new();
    queue.takes(17, &costs(22 * MS, MS, MS));
    let begun = queue.now;
    queue.now += 22 * MS;
    queue.state.note(Plan::FromStart, &jobs(70), 5, begun, queue.now);
    let key = SortKey { neg_priority: -2, expected_at: i64::MAX, id: 70 };
    assert_eq!(queue.state.plan(queue.now), Plan::Resume(key));
    queue.state.note(Plan::Resume(key), &[], 5, queue.now, queue.now);
    assert_eq!(queue.state.plan(queue.now), Plan::Resume(key));
    queue.now += queue.state.before_position_due_in(queue.now);
    assert_eq!(queue.state.plan(queue.now), Plan::FromStart);
}
