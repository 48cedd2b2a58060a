//! The progress that handlers note.

use std::sync::Mutex;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use pq_core::store::Notes;
use pq_core::{Claim, JobId, JobProgress, LogLevel, LogLine, NewNotes, Outcome, Progress, StopMode, Worker};

use super::cases;
use crate::Fixture;
use crate::harness::{Harness, TIMEOUT, run_beside, run_until_empty, task, wait_until};

cases![
    the_progress_of_a_running_job_is_seen: Own,
    the_last_progress_is_kept_with_the_archive: Own,
    progress_begins_anew_after_a_retry: Own,
    progress_changes_no_arguments: Own,
    many_changes_are_few_writes: Own,
    progress_after_the_end_is_refused: Own,
    progress_of_a_lost_lease_is_refused: Own,
    progress_of_jobs_that_are_gone_is_deleted: Own,
    a_job_without_progress_has_none: Own,
];

fn noted<F: Fixture>(harness: &Harness<F>, id: JobId) -> Option<Progress> {
    harness.pq.progress(&[id]).unwrap().pop().map(|JobProgress { progress, .. }| progress)
}

fn progress(done: u64, total: u64, note: &str) -> Progress {
    Progress { done, total, note: note.to_owned() }
}

fn write<F: Fixture>(harness: &Harness<F>, job: &Claim, progress: &Progress) -> bool {
    let notes = NewNotes { job, lines: &[], progress: Some(progress) };
    harness.pq.store().write_notes(&mut harness.connect(), &[notes], false).unwrap().all()
}

fn the_progress_of_a_running_job_is_seen<F: Fixture>(harness: &Harness<F>) {
    let (other, id) = (harness.put("unrelated"), task::<F, u32>(harness).call(&1).unwrap().id);
    harness.queue().cancel(other).unwrap();
    let (proceed, wait) = channel::<()>();
    let wait = Mutex::new(wait);
    let handler = task::<F, u32>(harness).leased(move |context, _| {
        context.progress(40, 100, "rows");
        wait.lock().unwrap().recv_timeout(TIMEOUT)
    });
    run_beside::<F>(Worker::new(&harness.pq).serve(handler), |control| {
        wait_until("the progress is stored", || noted(harness, id).is_some());
        let found = harness.pq.progress(&[other, id]).unwrap();
        assert_eq!((found.len(), found[0].id, found[0].attempt), (1, id, 1));
        assert_eq!(found[0].progress, progress(40, 100, "rows"));
        proceed.send(()).unwrap();
        control.stop(StopMode::Finish);
    });
}

fn the_last_progress_is_kept_with_the_archive<F: Fixture>(harness: &Harness<F>) {
    let id = task::<F, u32>(harness).call(&1).unwrap().id;
    let handler = task::<F, u32>(harness).keep_history(true).leased(|context, _| {
        (0..=100).for_each(|done| context.progress(done, 100, "rows"));
        Ok::<_, String>(())
    });
    assert_eq!(run_until_empty(harness, handler).done, 1);
    assert_eq!(noted(harness, id), Some(progress(100, 100, "rows")));
}

fn progress_begins_anew_after_a_retry<F: Fixture>(harness: &Harness<F>) {
    let id = harness.put("a");
    let job = harness.lease_one();
    assert!(write(harness, &job, &progress(1, 2, "first")));
    assert_eq!(noted(harness, id), Some(progress(1, 2, "first")));
    harness.settle(&job, Outcome::retry(Duration::ZERO, "again"));
    assert_eq!(noted(harness, id), None, "a waiting job has no progress");
    let job = harness.lease_one();
    assert_eq!(noted(harness, id), None, "the next attempt has noted nothing");
    // The number of the next attempt is the same.
    assert!(write(harness, &job, &progress(1, 2, "second")));
    harness.settle(&job, Outcome::GiveBack);
    let job = harness.lease_one();
    assert_eq!(noted(harness, id), None);
    assert!(write(harness, &job, &progress(2, 2, "third")));
    assert_eq!(noted(harness, id), Some(progress(2, 2, "third")));
    harness.settle(&job, Outcome::dead("broken"));
    assert_eq!(noted(harness, id), Some(progress(2, 2, "third")));
}

fn progress_changes_no_arguments<F: Fixture>(harness: &Harness<F>) {
    let id = task::<F, u32>(harness).call(&7).unwrap().id;
    let before = harness.pq.find(id).unwrap().unwrap().payload;
    let handler = task::<F, u32>(harness).keep_history(true).leased(|context, job| {
        context.progress(1, 1, "all");
        assert_eq!(job.data, 7);
        Ok::<_, String>(())
    });
    assert_eq!(run_until_empty(harness, handler).done, 1);
    assert_eq!(harness.pq.find(id).unwrap().unwrap().payload, before);
}

/// A handler that notes its progress without a pause stores it about once a second.
fn many_changes_are_few_writes<F: Fixture>(harness: &Harness<F>) {
    let id = task::<F, u32>(harness).call(&1).unwrap().id;
    let handler = task::<F, u32>(harness).leased(|context, _| {
        let mut done = 0;
        while !context.should_stop() {
            done += 1;
            context.progress(done, 0, "");
        }
        Ok::<_, String>(Outcome::GiveBack)
    });
    run_beside::<F>(Worker::new(&harness.pq).serve(handler), |control| {
        wait_until("the progress is stored", || noted(harness, id).is_some());
        let (first, mut stored) = (Instant::now(), vec![noted(harness, id)]);
        while first.elapsed() < Duration::from_secs(2) {
            std::thread::sleep(Duration::from_millis(20));
            let now = noted(harness, id);
            if stored.last() != Some(&now) {
                stored.push(now);
            }
        }
        assert!((2..=4).contains(&stored.len()), "{stored:?}");
        control.stop(StopMode::Abort);
    });
}

fn progress_after_the_end_is_refused<F: Fixture>(harness: &Harness<F>) {
    let ids = [harness.put("a"), harness.put("b")];
    let jobs = harness.lease(2, TIMEOUT);
    assert!(write(harness, &jobs[0], &progress(1, 2, "before")));
    // One is settled beside the other, and the last ends the lease.
    for (job, id) in jobs.iter().zip(ids) {
        assert!(write(harness, job, &progress(1, 2, "before")));
        harness.settle(job, Outcome::Keep { result: None });
        assert!(!write(harness, job, &progress(2, 2, "after")));
        assert_eq!(noted(harness, id), Some(progress(1, 2, "before")));
    }
}

fn progress_of_a_lost_lease_is_refused<F: Fixture>(harness: &Harness<F>) {
    let id = harness.put("a");
    let zombie = harness.lease_one();
    harness.lose_lease(&zombie);
    assert!(!write(harness, &zombie, &progress(1, 2, "zombie")));
    let job = harness.lease_one();
    assert!(!write(harness, &zombie, &progress(1, 2, "zombie")));
    assert_eq!(noted(harness, id), None);
    harness.settle(&job, Outcome::Keep { result: None });
    assert_eq!(noted(harness, id), None);
}

fn progress_of_jobs_that_are_gone_is_deleted<F: Fixture>(harness: &Harness<F>) {
    let store = harness.pq.store();
    let kept = harness.put("kept");
    for data in ["a", "b"] {
        harness.put(data);
    }
    let jobs = harness.lease(3, TIMEOUT);
    let line = LogLine { at: harness.pq.now().unwrap(), level: LogLevel::Info, text: "a line".to_owned() };
    for job in &jobs {
        let notes = NewNotes { job, lines: std::slice::from_ref(&line), progress: Some(&progress(1, 1, "")) };
        assert!(store.write_notes(&mut harness.connect(), &[notes], false).unwrap().all());
    }
    harness.maintain();
    for job in &jobs {
        assert_eq!(harness.pq.log(job.id).unwrap().len(), 1, "the job runs");
    }
    harness.settle(&jobs[0], Outcome::Keep { result: None });
    harness.settle(&jobs[1], Outcome::Complete);
    harness.settle(&jobs[2], Outcome::retry(Duration::from_secs(3_600), "later"));
    // The first run begins behind the notes that the one before has checked.
    for _ in 0..2 {
        harness.maintain();
    }
    let lines = |id| harness.pq.log(id).unwrap().len();
    assert_eq!(jobs.iter().map(|job| lines(job.id)).collect::<Vec<_>>(), [1, 0, 1]);
    assert_eq!(noted(harness, kept), Some(progress(1, 1, "")));
}

fn a_job_without_progress_has_none<F: Fixture>(harness: &Harness<F>) {
    assert!(harness.pq.progress(&[]).unwrap().is_empty());
    assert!(harness.pq.progress(&[JobId(1), JobId(1)]).unwrap().is_empty());
}
