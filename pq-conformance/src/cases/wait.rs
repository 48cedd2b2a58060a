//! Waits: wake-ups, deadlines, cancellation and the CPU time of a wait.

use std::sync::mpsc::{TryRecvError, channel};
use std::time::{Duration, Instant};

use cpu_time::ThreadTime;
use pq_core::{CancellationToken, PutOptions, Wait};
use serde_json::json;

use super::cases;
use crate::Fixture;
use crate::harness::{Harness, TIMEOUT};

cases![
    a_wait_times_out_and_not_early: Own,
    the_default_wait_is_one_second: Own,
    a_put_wakes_a_waiter: Both,
    a_put_wakes_a_waiter_at_the_commit: Both,
    a_bulk_put_wakes_a_waiter: Own,
    a_rolled_back_put_returns_nothing_to_a_waiter: Both,
    an_immediate_job_wakes_a_waiter_for_a_future_job: Both,
    a_waiter_wakes_when_a_job_falls_due: Both,
    a_job_due_in_an_hour_does_not_end_a_wait: Own,
    wakes_do_not_extend_the_deadline_of_a_wait: Own,
    each_waiter_gets_a_different_job: Both,
    get_with_holds_no_transaction_while_it_waits: Own,
    a_wait_without_a_limit_uses_no_cpu: Own,
    cancellation_ends_current_and_later_waits: Own,
    a_cancelled_get_takes_no_job: Own,
    iteration_yields_none_on_a_timeout_and_ends_on_cancellation: Own,
];

const SHORT: Duration = Duration::from_millis(100);

fn a_wait_times_out_and_not_early<F: Fixture>(harness: &Harness<F>) {
    let begun = Instant::now();
    assert!(harness.queue().get(Wait::For(SHORT)).unwrap().is_none());
    assert!(begun.elapsed() >= SHORT);
    assert!(harness.queue().get(Wait::For(Duration::ZERO)).unwrap().is_none());
}

fn the_default_wait_is_one_second<F: Fixture>(harness: &Harness<F>) {
    assert_eq!(Wait::default(), Wait::For(Duration::from_secs(1)));
    assert!(harness.queue().get(Wait::No).unwrap().is_none());
}

fn a_put_wakes_a_waiter<F: Fixture>(harness: &Harness<F>) {
    std::thread::scope(|threads| {
        let waiter = harness.waiter(threads, Wait::Forever);
        harness.put("a");
        assert_eq!(waiter.recv_timeout(TIMEOUT).unwrap(), Some(json!("a")));
    });
}

fn a_put_wakes_a_waiter_at_the_commit<F: Fixture>(harness: &Harness<F>) {
    let queue = harness.queue();
    std::thread::scope(|threads| {
        let waiter = harness.blocked_waiter(threads);
        harness
            .transaction(|conn| {
                queue.on(conn).put(&json!("a"))?;
                // By the time another queue's put has woken a waiter, a notification of this put would have come.
                let other = harness.named::<serde_json::Value>("pears");
                other.put(&json!("pear"))?;
                assert!(other.get(Wait::For(TIMEOUT))?.is_some());
                assert_eq!(waiter.try_recv(), Err(TryRecvError::Empty));
                Ok(())
            })
            .unwrap();
        assert_eq!(waiter.recv_timeout(TIMEOUT).unwrap(), Some(json!("a")));
    });
}

fn a_bulk_put_wakes_a_waiter<F: Fixture>(harness: &Harness<F>) {
    std::thread::scope(|threads| {
        let waiter = harness.blocked_waiter(threads);
        let numbers: Vec<_> = (0..100).map(|n| json!(n)).collect();
        harness.queue().put_many(&numbers).unwrap();
        assert_eq!(waiter.recv_timeout(TIMEOUT).unwrap(), Some(json!(0)));
    });
}

fn a_rolled_back_put_returns_nothing_to_a_waiter<F: Fixture>(harness: &Harness<F>) {
    let queue = harness.queue();
    std::thread::scope(|threads| {
        let waiter = harness.waiter(threads, Wait::For(SHORT));
        let rolled_back = harness.transaction(|conn| {
            queue.on(conn).put(&json!("a"))?;
            crate::harness::roll_back::<()>()
        });
        assert!(rolled_back.is_err());
        assert_eq!(waiter.recv_timeout(TIMEOUT).unwrap(), None);
    });
}

fn an_immediate_job_wakes_a_waiter_for_a_future_job<F: Fixture>(harness: &Harness<F>) {
    harness.put_with("later", &PutOptions::new().schedule_at("1h"));
    std::thread::scope(|threads| {
        let waiter = harness.blocked_waiter(threads);
        harness.put("now");
        assert_eq!(waiter.recv_timeout(TIMEOUT).unwrap(), Some(json!("now")));
    });
}

fn a_waiter_wakes_when_a_job_falls_due<F: Fixture>(harness: &Harness<F>) {
    harness.put_with("soon", &PutOptions::new().schedule_at(SHORT));
    let begun = Instant::now();
    let job = harness.queue().get(Wait::For(TIMEOUT)).unwrap().unwrap();
    assert_eq!(job.data, json!("soon"));
    assert!(begun.elapsed() < TIMEOUT);
}

fn a_job_due_in_an_hour_does_not_end_a_wait<F: Fixture>(harness: &Harness<F>) {
    harness.put_with("later", &PutOptions::new().schedule_at("1h"));
    let wait = Duration::from_millis(1_200);
    let begun = Instant::now();
    assert!(harness.queue().get(Wait::For(wait)).unwrap().is_none());
    assert!(begun.elapsed() >= wait);
}

fn wakes_do_not_extend_the_deadline_of_a_wait<F: Fixture>(harness: &Harness<F>) {
    let (done, stop) = channel::<()>();
    std::thread::scope(|threads| {
        // Each of these puts wakes the waiter and gives it no job.
        threads.spawn(move || {
            while stop.try_recv() == Err(TryRecvError::Empty) {
                harness.put_with("later", &PutOptions::new().schedule_at("1h"));
            }
        });
        let begun = Instant::now();
        assert!(harness.queue().get(Wait::For(SHORT)).unwrap().is_none());
        let waited = begun.elapsed();
        drop(done);
        assert!(waited >= SHORT, "it returned after {waited:?}");
        assert!(waited < TIMEOUT, "wake-ups extended the deadline");
    });
}

fn each_waiter_gets_a_different_job<F: Fixture>(harness: &Harness<F>) {
    std::thread::scope(|threads| {
        let waiters: Vec<_> = (0..4).map(|_| harness.waiter(threads, Wait::Forever)).collect();
        for n in 0..4 {
            harness.put(n);
        }
        let mut got: Vec<_> = waiters
            .iter()
            .map(|waiter| waiter.recv_timeout(TIMEOUT).unwrap().and_then(|data| data.as_i64()))
            .collect();
        got.sort_unstable();
        assert_eq!(got, [0, 1, 2, 3].map(Some));
    });
}

fn get_with_holds_no_transaction_while_it_waits<F: Fixture>(harness: &Harness<F>) {
    let queue = harness.queue();
    std::thread::scope(|threads| {
        let (begun, waiting) = channel();
        let worker = threads.spawn({
            let queue = queue.clone();
            move || {
                begun.send(()).unwrap();
                queue.get_with(Wait::Forever, |_, job| Ok::<_, crate::harness::CaseError>(job.data))
            }
        });
        waiting.recv().unwrap();
        // The wait must end with this job, taken by a new transaction.
        harness.put("a");
        assert_eq!(worker.join().unwrap().unwrap(), Some(json!("a")));
    });
}

fn a_wait_without_a_limit_uses_no_cpu<F: Fixture>(harness: &Harness<F>) {
    let stop = CancellationToken::new();
    let queue = harness.queue().with_cancellation_token(&stop);
    std::thread::scope(|threads| {
        let waiter = threads.spawn(move || {
            // The first poll opens connections, which costs CPU time.
            let _ = queue.get(Wait::No);
            let before = ThreadTime::now();
            assert!(queue.get(Wait::Forever).is_err());
            before.elapsed()
        });
        std::thread::sleep(Duration::from_secs(1));
        stop.cancel();
        let used = waiter.join().unwrap();
        // A busy loop would use most of a second. Polling uses little, even on a slow machine.
        assert!(used < Duration::from_millis(250), "a second of waiting used {used:?}");
    });
}

fn cancellation_ends_current_and_later_waits<F: Fixture>(harness: &Harness<F>) {
    let stop = CancellationToken::new();
    let queue = harness.queue().with_cancellation_token(&stop);
    let is_stopped = |outcome: Result<_, crate::harness::Error<F>>| {
        outcome.is_err_and(|error| harness.fixture.core_error(&error).is_some_and(pq_core::Error::is_stopped))
    };
    std::thread::scope(|threads| {
        let waiter = threads.spawn(|| is_stopped(queue.get(Wait::Forever)));
        stop.cancel();
        assert!(waiter.join().unwrap());
    });
    assert!(is_stopped(queue.get(Wait::Forever)));
}

fn a_cancelled_get_takes_no_job<F: Fixture>(harness: &Harness<F>) {
    let stop = CancellationToken::new();
    stop.cancel();
    harness.put("a");
    assert!(harness.queue().with_cancellation_token(&stop).get(Wait::Forever).is_err());
    assert_eq!(harness.drain(), [json!("a")]);
}

fn iteration_yields_none_on_a_timeout_and_ends_on_cancellation<F: Fixture>(harness: &Harness<F>) {
    let stop = CancellationToken::new();
    let queue = harness.queue().with_cancellation_token(&stop);
    harness.put("a");
    let mut jobs = queue.iter(Wait::For(Duration::from_millis(10)));
    assert_eq!(jobs.next().unwrap().unwrap().map(|job| job.data), Some(json!("a")));
    assert!(jobs.next().unwrap().unwrap().is_none());
    harness.put("b");
    assert!(jobs.next().unwrap().unwrap().is_some());
    stop.cancel();
    assert!(jobs.next().is_none());
}
