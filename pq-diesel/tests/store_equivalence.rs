//! Random sequences of operations on the memory store and on PostgreSQL, on two connections with nested transactions.
//! Both stores must give the same answers. `PQ_SEQUENCES` sets the number of sequences and makes them new each time.

#[path = "common/migrated.rs"]
mod migrated;

use std::env;
use std::sync::Arc;
use std::time::Duration;

use diesel::connection::SimpleConnection;
use pq_core::memory::MemoryStore;
use pq_core::store::Connect;
use pq_core::{
    Claim, JobRecord, Key, NewJob, Outcome, Payload, QueueName, Retention, Scan, Settlement, Store, Taken,
    When,
};
use pq_diesel::Pq;
use pq_testing::Database;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use self::migrated::migrated;

/// One operation on one of two connections.
#[derive(Clone, Debug)]
enum Step {
    Put {
        conn: usize,
        queue: usize,
        jobs: Vec<(u8, i32, Time, Time, Option<u8>)>,
    },
    Take {
        conn: usize,
        queue: usize,
        count: usize,
    },
    Update {
        conn: usize,
        held: usize,
        data: u8,
    },
    GiveBack {
        conn: usize,
        held: usize,
    },
    Counts {
        conn: usize,
        queue: usize,
    },
    Clear {
        conn: usize,
        queue: usize,
    },
    /// The next four run only outside of transactions. On PostgreSQL they may wait for one, and there is one thread.
    Lease {
        conn: usize,
        queue: usize,
        count: usize,
    },
    Settle {
        conn: usize,
        held: usize,
        outcome: usize,
    },
    Maintain {
        conn: usize,
    },
    Cancel {
        conn: usize,
        held: usize,
    },
    Begin {
        conn: usize,
    },
    End {
        commit: bool,
    },
}

/// A time with the same meaning whenever the step runs, on either clock.
#[derive(Clone, Copy, Debug)]
enum Time {
    None,
    Past(i64),
    Future(i64),
}

impl Time {
    fn when(self) -> Option<When> {
        let instant = |hours: i64| {
            let base = chrono::DateTime::from_timestamp(1_000_000_000, 0).unwrap_or_default();
            When::At(base + chrono::TimeDelta::hours(hours))
        };
        match self {
            Self::None => None,
            Self::Past(n) => Some(instant(n)),
            // Seventy years later.
            Self::Future(n) => Some(instant(n + 70 * 365 * 24)),
        }
    }
}

fn time() -> impl Strategy<Value = Time> {
    prop_oneof![4 => Just(Time::None), 1 => (0..5_i64).prop_map(Time::Past), 1 => (0..5_i64).prop_map(Time::Future)]
}

fn step() -> impl Strategy<Value = Step> {
    let which = || (0..2_usize, 0..2_usize);
    let key = || prop::option::weighted(0.3, 0..2_u8);
    let jobs = prop::collection::vec((any::<u8>(), -2..3_i32, time(), time(), key()), 0..5);
    prop_oneof![
        5 => (which(), jobs).prop_map(|((conn, queue), jobs)| Step::Put { conn, queue, jobs }),
        5 => (which(), 0..4_usize).prop_map(|((conn, queue), count)| Step::Take { conn, queue, count }),
        3 => (0..2_usize, any::<usize>(), any::<u8>()).prop_map(|(conn, held, data)| Step::Update { conn, held, data }),
        3 => (0..2_usize, any::<usize>()).prop_map(|(conn, held)| Step::GiveBack { conn, held }),
        2 => which().prop_map(|(conn, queue)| Step::Counts { conn, queue }),
        1 => which().prop_map(|(conn, queue)| Step::Clear { conn, queue }),
        4 => (which(), 0..4_usize).prop_map(|((conn, queue), count)| Step::Lease { conn, queue, count }),
        4 => (0..2_usize, any::<usize>(), 0..6_usize)
            .prop_map(|(conn, held, outcome)| Step::Settle { conn, held, outcome }),
        1 => (0..2_usize).prop_map(|conn| Step::Maintain { conn }),
        1 => (0..2_usize, any::<usize>()).prop_map(|(conn, held)| Step::Cancel { conn, held }),
        3 => (0..2_usize).prop_map(|conn| Step::Begin { conn }),
        3 => any::<bool>().prop_map(|commit| Step::End { commit }),
    ]
}

/// A store, and the answers of its steps.
struct Subject<'a, S: Store> {
    store: &'a S,
    queues: [QueueName; 2],
    /// Every job that was ever taken. Some are still held, and some claims are stale.
    taken: Vec<Arc<Claim>>,
    answers: Vec<String>,
}

type Conns<'c, S> = [&'c mut <S as Connect>::Conn; 2];

impl<S: Store> Subject<'_, S> {
    /// Runs the steps from `at` to the end of the innermost transaction, and returns whether it commits.
    fn run(&mut self, steps: &[Step], at: &mut usize, mut conns: Conns<'_, S>, depth: usize) -> bool {
        while let Some(step) = steps.get(*at) {
            *at += 1;
            match step {
                Step::Begin { conn } if depth < 4 => {
                    let store = self.store;
                    let [first, second] = &mut conns;
                    let (own, other) = if *conn == 0 { (first, second) } else { (second, first) };
                    let ended = store.transaction(*own, |own| {
                        let conns = if *conn == 0 { [own, &mut **other] } else { [&mut **other, own] };
                        match self.run(steps, at, conns, depth + 1) {
                            true => Ok(()),
                            false => Err(S::Error::from(pq_core::Error::Stopped)),
                        }
                    });
                    self.answers.push(format!("ended {}", ended.is_ok()));
                }
                Step::End { commit } if depth > 0 => return *commit,
                Step::Begin { .. } | Step::End { .. } => {}
                Step::Lease { .. } | Step::Settle { .. } | Step::Maintain { .. } | Step::Cancel { .. }
                    if depth > 0 => {}
                // The stores differ in whether an open clear blocks the jobs behind those of its keys.
                Step::Clear { queue, .. } if depth > 0 && *queue == KEYED => {}
                step => self.step(step, &mut conns, depth),
            }
        }
        true
    }

    fn step(&mut self, step: &Step, conns: &mut Conns<'_, S>, depth: usize) {
        let store = self.store;
        let answer = match step {
            Step::Put { conn, queue, jobs } => {
                let mut jobs: Vec<NewJob> = jobs.iter().map(new_job).collect();
                if *queue != KEYED {
                    jobs.iter_mut().for_each(|job| job.serialization_key = None);
                }
                format!("{:?}", store.put(conns[*conn], &self.queues[*queue], &jobs).ok())
            }
            Step::Take { conn, queue, count } => {
                let taken = store.take(conns[*conn], &self.queues[*queue], *count, Scan::Full);
                self.took(taken.ok())
            }
            Step::Lease { conn, queue, count } => {
                let taken = store.lease(conns[*conn], &self.queues[*queue], *count, LEASE, Scan::Full);
                self.took(taken.ok())
            }
            Step::Settle { conn, held, outcome: number } => match self.pick(*held) {
                Some(job) => {
                    let settlement = Settlement { job: &job, outcome: outcome(*number) };
                    format!("settled {} {:?}", job.id, store.settle(conns[*conn], &[settlement]).ok())
                }
                None => "nothing to settle".to_owned(),
            },
            Step::Maintain { conn } => {
                // All leases expire now.
                let mut leases: Vec<i64> = self.taken.iter().filter_map(|job| job.lease()).collect();
                leases.dedup();
                let extended = store.extend(conns[*conn], &leases, Duration::ZERO).map_or(0, |all| all.len());
                format!("{extended} leases, {:?}", store.maintain(conns[*conn], &Retention::default()).ok())
            }
            Step::Cancel { conn, held } => match self.pick(*held) {
                Some(job) => format!("cancelled {:?}", store.cancel(conns[*conn], &job.queue, job.id).ok()),
                None => "nothing to cancel".to_owned(),
            },
            Step::Update { conn, held, data } => match self.pick_at(*held, depth) {
                Some(job) => {
                    let payload = Payload::from_stored(format!("[{data}]"));
                    format!("updated {}", store.update(conns[*conn], &job, &payload).is_ok())
                }
                None => "nothing to update".to_owned(),
            },
            Step::GiveBack { conn, held } => match self.pick_at(*held, depth) {
                Some(job) => format!("gave back {} {}", job.id, store.give_back(conns[*conn], &job).is_ok()),
                None => "nothing to give back".to_owned(),
            },
            Step::Counts { conn, queue } => {
                let counts = store.counts(conns[*conn], &self.queues[*queue]).ok().map(|mut counts| {
                    // Each store has a clock of its own.
                    counts.oldest = None;
                    counts
                });
                format!("{counts:?}")
            }
            Step::Clear { conn, queue } => {
                format!("cleared {:?}", store.clear(conns[*conn], &self.queues[*queue]).ok())
            }
            Step::Begin { .. } | Step::End { .. } => return,
        };
        self.answers.push(answer);
    }

    fn took(&mut self, taken: Option<Taken>) -> String {
        let Some(taken) = taken else { return "take failed".to_owned() };
        let seen = |job: &Arc<Claim>| {
            let JobRecord {
                id,
                payload,
                schedule_at,
                expected_at,
                priority,
                attempt,
                serialization_key,
                attempt_log,
                ..
            } = &job.record;
            let log: Vec<_> =
                attempt_log.iter().map(|entry| (entry.attempt, entry.end, entry.error.as_str())).collect();
            // A retry is due after a delay, on the store's own clock.
            let schedule_at = schedule_at.map(|at| at.timestamp() / 86_400);
            let payload = payload.as_str();
            format!(
                "{id} {payload} {schedule_at:?} {expected_at:?} {priority} {attempt} {serialization_key:?} {log:?}"
            )
        };
        let answer = taken.jobs.iter().map(seen).collect::<Vec<_>>().join("; ");
        // Both clocks agree on the number of months in seventy years.
        let due_in = taken.next_due.map(|due| due.as_secs() / 86_400 / 30);
        self.taken.extend(taken.jobs);
        format!("took {answer} due in {due_in:?}")
    }

    /// Returns a job, unless it is leased and a transaction is open, like the steps above.
    fn pick_at(&self, number: usize, depth: usize) -> Option<Arc<Claim>> {
        self.pick(number).filter(|job| depth == 0 || job.lease().is_none())
    }

    fn pick(&self, number: usize) -> Option<Arc<Claim>> {
        self.taken.get(number.checked_rem(self.taken.len())?).cloned()
    }
}

/// The queue whose jobs may have serialization keys.
const KEYED: usize = 0;

const LEASE: Duration = Duration::from_secs(3_600);

fn outcome(number: usize) -> Outcome {
    match number {
        0 => Outcome::Complete,
        1 => Outcome::Keep { result: None },
        2 => Outcome::Dead { error: "broken".to_owned() },
        3 => Outcome::Retry { after: Duration::ZERO, error: "again".to_owned(), payload: None },
        4 => Outcome::snooze(LEASE),
        _ => Outcome::GiveBack,
    }
}

fn new_job((data, priority, schedule_at, expected_at, key): &(u8, i32, Time, Time, Option<u8>)) -> NewJob {
    let mut job = NewJob::new(Payload::from_stored(format!("{{\"n\": {data}}}")));
    job.priority = *priority;
    job.schedule_at = schedule_at.when();
    job.expected_at = expected_at.when();
    job.serialization_key = key.map(|key| Key::from_stored(key.to_string()));
    job
}

fn answers<S: Store>(store: &S, mut conns: [S::Conn; 2], steps: &[Step]) -> Vec<String> {
    let queues = ["one", "two"].map(|name| QueueName::new(name).expect("a name"));
    let mut side = Subject { store, queues, taken: Vec::new(), answers: Vec::new() };
    let [first, second] = &mut conns;
    side.run(steps, &mut 0, [first, second], 0);
    side.answers
}

/// Deletes all that a sequence has left. The next job has the id 1 again, as in a new memory store.
const EMPTY: &str = "DO $$ DECLARE found regclass; BEGIN
    FOR found IN SELECT oid FROM pg_class WHERE relnamespace = 'pq'::regnamespace AND relkind = 'r'
        AND relname <> 'queue_migrations'
    LOOP EXECUTE 'DELETE FROM ' || found; END LOOP;
    PERFORM setval(oid::regclass, 1, false) FROM pg_class
        WHERE relnamespace = 'pq'::regnamespace AND relkind = 'S';
END $$";

fn compare(database: &Database, steps: &[Step]) -> Result<(), TestCaseError> {
    let pq = Pq::detached();
    let mut conns = [0, 1].map(|_| database.connect().expect("a connection"));
    for conn in &mut conns {
        // A connection that waits for the other one would wait forever.
        conn.batch_execute("SET lock_timeout TO '10s'").expect("a setting");
    }
    conns[0].batch_execute(EMPTY).expect("empty tables");
    let on_postgres = answers(pq.store(), conns, steps);
    let memory = MemoryStore::new();
    let in_memory = answers(&memory, [memory.connect(), memory.connect()], steps);
    prop_assert_eq!(on_postgres, in_memory);
    Ok(())
}

#[test]
fn both_stores_give_the_same_answers() {
    let database = migrated();
    let cases = env::var("PQ_SEQUENCES").ok().map(|text| text.parse().expect("PQ_SEQUENCES is a number"));
    let config = Config {
        cases: cases.unwrap_or(150),
        failure_persistence: None,
        max_shrink_iters: 500,
        ..Config::default()
    };
    // The default sequences are always the same, so that a failure is due to the change under test.
    let mut runner = match cases {
        Some(_) => TestRunner::new(config),
        None => TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha)),
    };
    runner
        .run(&prop::collection::vec(step(), 1..40), |steps| compare(&database, &steps))
        .unwrap_or_else(|found| panic!("{found}"));
}
