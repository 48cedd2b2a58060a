//! Section 4: what a wait waits for, what ends it, and what it costs.

use std::sync::mpsc::{TryRecvError, channel};
use std::time::{Duration, Instant};

use cpu_time::ThreadTime;
use serde_json::json;

use super::scene::{PATIENCE, Scene};
use super::{Fixture, cases};
use crate::{CancellationToken, PutOptions, Wait};

cases![
    a_wait_that_is_over_says_so_and_not_before,
    the_default_is_one_second,
    a_put_wakes_a_waiter,
    a_put_wakes_a_waiter_at_the_commit_and_not_before,
    a_bulk_put_wakes_a_waiter,
    a_rolled_back_put_gives_a_waiter_nothing,
    a_waiter_for_a_future_job_is_woken_by_an_immediate_one,
    a_waiter_is_woken_when_a_job_falls_due,
    a_job_due_in_exactly_an_hour_does_not_end_a_wait,
    one_deadline_holds_through_many_wakes,
    every_waiter_gets_a_job_of_its_own,
    waiting_in_a_transaction_keeps_none_open,
    waiting_for_ever_uses_no_cpu,
    a_stop_ends_a_wait_under_way_and_every_later_one,
    a_stop_takes_no_job,
    iteration_says_that_none_came_and_ends_at_a_stop,
];

const SHORT: Duration = Duration::from_millis(300);

fn a_wait_that_is_over_says_so_and_not_before<F: Fixture>(scene: &Scene<F>) {
    let begun = Instant::now();
    assert!(scene.queue().get(Wait::For(SHORT)).unwrap().is_none());
    assert!(begun.elapsed() >= SHORT);
    assert!(scene.queue().get(Wait::For(Duration::ZERO)).unwrap().is_none());
}

fn the_default_is_one_second<F: Fixture>(scene: &Scene<F>) {
    assert_eq!(Wait::default(), Wait::For(Duration::from_secs(1)));
    assert!(scene.queue().get(Wait::No).unwrap().is_none());
}

fn a_put_wakes_a_waiter<F: Fixture>(scene: &Scene<F>) {
    std::thread::scope(|threads| {
        let waiter = scene.waiter(threads, Wait::Forever);
        scene.put("a");
        assert_eq!(waiter.recv_timeout(PATIENCE).unwrap(), Some(json!("a")));
    });
}

fn a_put_wakes_a_waiter_at_the_commit_and_not_before<F: Fixture>(scene: &Scene<F>) {
    let queue = scene.queue();
    std::thread::scope(|threads| {
        let waiter = scene.sleeper(threads);
        scene
            .transaction(|conn| {
                queue.on(conn).put(&json!("a"))?;
                // Another queue's put and get have come through meanwhile.
                let other = scene.named("pears");
                other.put(&json!("pear"))?;
                assert!(other.get(Wait::For(PATIENCE))?.is_some());
                assert_eq!(waiter.try_recv(), Err(TryRecvError::Empty));
                Ok(())
            })
            .unwrap();
        assert_eq!(waiter.recv_timeout(PATIENCE).unwrap(), Some(json!("a")));
    });
}

fn a_bulk_put_wakes_a_waiter<F: Fixture>(scene: &Scene<F>) {
    std::thread::scope(|threads| {
        let waiter = scene.sleeper(threads);
        let numbers: Vec<_> = (0..100).map(|n| json!(n)).collect();
        scene.queue().put_many(&numbers).unwrap();
        assert_eq!(waiter.recv_timeout(PATIENCE).unwrap(), Some(json!(0)));
    });
}

fn a_rolled_back_put_gives_a_waiter_nothing<F: Fixture>(scene: &Scene<F>) {
    let queue = scene.queue();
    std::thread::scope(|threads| {
        let waiter = scene.waiter(threads, Wait::For(SHORT));
        let rolled_back = scene.transaction(|conn| {
            queue.on(conn).put(&json!("a"))?;
            super::scene::undo::<()>()
        });
        assert!(rolled_back.is_err());
        assert_eq!(waiter.recv_timeout(PATIENCE).unwrap(), None);
    });
}

fn a_waiter_for_a_future_job_is_woken_by_an_immediate_one<F: Fixture>(scene: &Scene<F>) {
    scene.put_with("later", &PutOptions::new().schedule_at("1h"));
    std::thread::scope(|threads| {
        let waiter = scene.sleeper(threads);
        scene.put("now");
        assert_eq!(waiter.recv_timeout(PATIENCE).unwrap(), Some(json!("now")));
    });
}

fn a_waiter_is_woken_when_a_job_falls_due<F: Fixture>(scene: &Scene<F>) {
    scene.put_with("soon", &PutOptions::new().schedule_at(SHORT));
    let begun = Instant::now();
    let job = scene.queue().get(Wait::For(PATIENCE)).unwrap().unwrap();
    assert_eq!(job.data, json!("soon"));
    assert!(begun.elapsed() < PATIENCE);
}

fn a_job_due_in_exactly_an_hour_does_not_end_a_wait<F: Fixture>(scene: &Scene<F>) {
    scene.put_with("later", &PutOptions::new().schedule_at("1h"));
    let wait = Duration::from_millis(1_200);
    let begun = Instant::now();
    assert!(scene.queue().get(Wait::For(wait)).unwrap().is_none());
    assert!(begun.elapsed() >= wait);
}

fn one_deadline_holds_through_many_wakes<F: Fixture>(scene: &Scene<F>) {
    let (done, stop) = channel::<()>();
    std::thread::scope(|threads| {
        // Each of these puts rings the bell, and gives this waiter nothing.
        threads.spawn(move || {
            while stop.try_recv() == Err(TryRecvError::Empty) {
                scene.put_with("later", &PutOptions::new().schedule_at("1h"));
            }
        });
        let begun = Instant::now();
        assert!(scene.queue().get(Wait::For(SHORT)).unwrap().is_none());
        let waited = begun.elapsed();
        drop(done);
        assert!(waited >= SHORT, "it came back after {waited:?}");
        assert!(waited < PATIENCE, "each wake began the wait anew");
    });
}

fn every_waiter_gets_a_job_of_its_own<F: Fixture>(scene: &Scene<F>) {
    std::thread::scope(|threads| {
        let waiters: Vec<_> = (0..4).map(|_| scene.waiter(threads, Wait::Forever)).collect();
        for n in 0..4 {
            scene.put(n);
        }
        let mut got: Vec<_> = waiters
            .iter()
            .map(|waiter| waiter.recv_timeout(PATIENCE).unwrap().and_then(|data| data.as_i64()))
            .collect();
        got.sort_unstable();
        assert_eq!(got, [0, 1, 2, 3].map(Some));
    });
}

fn waiting_in_a_transaction_keeps_none_open<F: Fixture>(scene: &Scene<F>) {
    let queue = scene.queue();
    std::thread::scope(|threads| {
        let (begun, waiting) = channel();
        let worker = threads.spawn({
            let queue = queue.clone();
            move || {
                begun.send(()).unwrap();
                queue.get_with(Wait::Forever, |_, job| Ok::<_, super::scene::Undo>(job.data))
            }
        });
        waiting.recv().unwrap();
        // Were its transaction older than this put, it would see it all the same: what shows here is
        // that the wait ends with the job, and that the take is a new one.
        scene.put("a");
        assert_eq!(worker.join().unwrap().unwrap(), Some(json!("a")));
    });
}

fn waiting_for_ever_uses_no_cpu<F: Fixture>(scene: &Scene<F>) {
    let stop = CancellationToken::new();
    let queue = scene.queue().with_stop(&stop);
    std::thread::scope(|threads| {
        let waiter = threads.spawn(move || {
            // The first look opens connections.
            let _ = queue.get(Wait::No);
            let before = ThreadTime::now();
            assert!(queue.get(Wait::Forever).is_err());
            before.elapsed()
        });
        std::thread::sleep(Duration::from_secs(1));
        stop.cancel();
        let used = waiter.join().unwrap();
        // Who spins has the most of a processor, and who polls has little even of a slow one.
        assert!(used < Duration::from_millis(250), "a second of waiting used {used:?}");
    });
}

fn a_stop_ends_a_wait_under_way_and_every_later_one<F: Fixture>(scene: &Scene<F>) {
    let stop = CancellationToken::new();
    let queue = scene.queue().with_stop(&stop);
    let is_stopped = |outcome: Result<_, super::scene::Error<F>>| {
        outcome.is_err_and(|error| scene.fixture.core_error(&error).is_some_and(crate::Error::is_stopped))
    };
    std::thread::scope(|threads| {
        let waiter = threads.spawn(|| is_stopped(queue.get(Wait::Forever)));
        stop.cancel();
        assert!(waiter.join().unwrap());
    });
    assert!(is_stopped(queue.get(Wait::Forever)));
}

fn a_stop_takes_no_job<F: Fixture>(scene: &Scene<F>) {
    let stop = CancellationToken::new();
    stop.cancel();
    scene.put("a");
    assert!(scene.queue().with_stop(&stop).get(Wait::Forever).is_err());
    assert_eq!(scene.drain(), [json!("a")]);
}

fn iteration_says_that_none_came_and_ends_at_a_stop<F: Fixture>(scene: &Scene<F>) {
    let stop = CancellationToken::new();
    let queue = scene.queue().with_stop(&stop);
    scene.put("a");
    let mut jobs = queue.iter(Wait::For(Duration::from_millis(10)));
    assert_eq!(jobs.next().unwrap().unwrap().map(|job| job.data), Some(json!("a")));
    assert!(jobs.next().unwrap().unwrap().is_none());
    scene.put("b");
    assert!(jobs.next().unwrap().unwrap().is_some());
    stop.cancel();
    assert!(jobs.next().is_none());
}
