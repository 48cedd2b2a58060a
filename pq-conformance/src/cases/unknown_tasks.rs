//! Jobs whose task the worker does not know: they are left to others.

use std::sync::Mutex;
use std::sync::mpsc::channel;
use std::time::Duration;

use chrono::Utc;
use pq_core::{JobState, StopMode, Worker};
use serde_json::json;

use super::cases;
use crate::Fixture;
use crate::harness::{CaseError, Harness, TIMEOUT, both, run_beside, run_until_empty, task, wait_until};

cases![
    an_unknown_task_goes_back_uncounted_with_a_growing_delay: Own,
    a_worker_that_left_a_job_to_others_lets_them_take_it_first: Own,
    an_unknown_task_is_moved_to_dead_after_a_bound: Own,
    an_old_worker_beside_a_new_one_fails_no_job: Own,
];

fn an_unknown_task_goes_back_uncounted_with_a_growing_delay<F: Fixture>(harness: &Harness<F>) {
    let (known, unknown) = (task::<F, ()>(harness), harness.named::<()>("apples").task::<()>("drink"));
    for handler in both::<F, _, _, _>(&known, |_| Ok::<_, CaseError>(())) {
        let first = unknown.call(&()).unwrap().id;
        known.call(&()).unwrap();
        let sixth = harness.put(json!({ "function": "drink", "unknown": 5 }));
        let report = run_until_empty(harness, handler);
        assert_eq!((report.done, report.failed, report.snoozed), (1, 0, 2));
        assert!(harness.counts().error.unwrap().contains("unknown task \"drink\""));
        for (id, seconds) in [(first, 1), (sixth, 32)] {
            let job = harness.queue().find(id).unwrap().unwrap();
            assert_eq!(job.attempt, 0);
            assert!(job.error.unwrap().contains("unknown task \"drink\""));
            let delay = job.schedule_at.unwrap().signed_duration_since(job.enqueued_at);
            assert!((seconds..seconds + 10).contains(&delay.num_seconds()), "{delay}");
        }
        harness.clear();
    }
}

fn a_worker_that_left_a_job_to_others_lets_them_take_it_first<F: Fixture>(harness: &Harness<F>) {
    // Puts of other cases into queues of the same name would wake the worker.
    let queue = harness.named::<()>("of this case only");
    let (known, unknown) = (queue.task::<()>("eat"), queue.task::<()>("drink"));
    for handler in both::<F, _, _, _>(&known, |_| Ok::<_, CaseError>(())) {
        unknown.call(&()).unwrap();
        let (leave, left) = channel();
        let leave = Mutex::new(leave);
        let worker = Worker::new(&harness.pq).serve(handler).on_failure(move |info, _, _| {
            let due = info.job.schedule_at;
            leave.lock().unwrap().send(due.map(|due| Utc::now().signed_duration_since(due))).unwrap();
        });
        run_beside::<F>(worker, |control| {
            assert_eq!(left.recv_timeout(TIMEOUT).unwrap(), None);
            let waited = left.recv_timeout(TIMEOUT).unwrap().unwrap();
            assert!(waited.num_milliseconds() >= 400, "it waited for {waited}");
            control.stop(StopMode::Finish);
        });
        queue.clear().unwrap();
    }
}

fn an_unknown_task_is_moved_to_dead_after_a_bound<F: Fixture>(harness: &Harness<F>) {
    let known = task::<F, ()>(harness);
    for handler in both::<F, _, _, _>(&known, |_| Ok::<_, CaseError>(())) {
        // Workers without a handler have left it to others for 1 + 2 + 4 + 8 + 16 + 32 + 60 seconds.
        let job = json!({ "function": "drink", "unknown": 7 });
        harness.put(job.clone());
        let kept = Worker::new(&harness.pq).leave_unknown_tasks_for(Duration::from_secs(124));
        let worker = kept.serve(known.leased(|_, _| Ok::<_, CaseError>(())));
        assert_eq!((worker.run_until_empty().unwrap().dead, harness.counts().scheduled), (0, 1));
        harness.clear();
        harness.put(job);
        let worker = Worker::new(&harness.pq).leave_unknown_tasks_for(Duration::from_secs(123));
        let report = worker.serve(handler).run_until_empty().unwrap();
        assert_eq!((report.dead, report.failed), (1, 1));
        assert!(harness.archived(JobState::Dead)[0].error.as_ref().unwrap().contains("drink"));
    }
}

fn an_old_worker_beside_a_new_one_fails_no_job<F: Fixture>(harness: &Harness<F>) {
    let (old, new) = (task::<F, u32>(harness), harness.named::<()>("apples").task::<u32>("drink"));
    let nothing = |_| Ok::<_, CaseError>(());
    let [eat, drink] = [&old, &new].map(|task| both::<F, _, _, _>(task, nothing));
    for ((only_eat, eat), drink) in both::<F, _, _, _>(&old, nothing).into_iter().zip(eat).zip(drink) {
        old.call_many((0..20).collect::<Vec<_>>()).unwrap();
        new.call_many((0..20).collect::<Vec<_>>()).unwrap();
        // The old worker takes every job first.
        let report = run_until_empty(harness, only_eat);
        assert!(report.done == 20 && report.failed == 0 && report.snoozed >= 20, "{report:?}");
        let report = run_beside::<F>(Worker::new(&harness.pq).serve(eat).serve(drink), |control| {
            wait_until("all jobs are done", || harness.counts().live() == 0);
            control.stop(StopMode::Finish);
        });
        assert_eq!((report.done, report.failed, harness.counts().total()), (20, 0, 0));
    }
}
