//! The logs of jobs.

use std::sync::Mutex;
use std::sync::mpsc::channel;
use std::time::Duration;

use pq_core::store::Notes;
use pq_core::{Backoff, Claim, JobId, LogLevel, LogLine, NewNotes, Outcome, StopMode, StoredLine, Worker};

use super::cases;
use crate::Fixture;
use crate::harness::{Harness, TIMEOUT, run_beside, run_until_empty, task, wait_until};

cases![
    lines_are_kept_with_the_archive: Own,
    lines_are_kept_through_retries: Own,
    lines_of_a_running_job_are_seen: Own,
    the_newest_lines_are_kept: Own,
    lines_have_any_text: Own,
    a_line_of_a_refused_attempt_is_not_kept: Own,
    lines_are_stored_before_the_outcome: Own,
    lines_of_a_transaction_of_the_handler_are_kept_once: Own,
    a_lost_transaction_of_the_handler_loses_no_line: Own,
    a_log_can_be_followed: Own,
    lines_of_many_jobs_are_stored_together: Own,
];

fn texts<F: Fixture>(harness: &Harness<F>, id: JobId) -> Vec<String> {
    harness.pq.log(id).unwrap().into_iter().map(|stored| stored.line.text).collect()
}

fn line<F: Fixture>(harness: &Harness<F>, text: &str) -> LogLine {
    LogLine { at: harness.pq.now().unwrap(), level: LogLevel::Info, text: text.to_owned() }
}

fn write<F: Fixture>(harness: &Harness<F>, job: &Claim, text: &str) -> bool {
    let line = line(harness, text);
    let notes = NewNotes { job, lines: std::slice::from_ref(&line), progress: None };
    harness.pq.store().write_notes(&mut harness.connect(), &[notes], false).unwrap().all()
}

fn lines_are_kept_with_the_archive<F: Fixture>(harness: &Harness<F>) {
    let id = task::<F, u32>(harness).call(&1).unwrap().id;
    let handler = task::<F, u32>(harness).keep_history(true).leased(|context, _| {
        context.log("began");
        context.log_at(LogLevel::Warn, "the list is empty");
        Ok::<_, String>(())
    });
    let before = harness.pq.now().unwrap();
    assert_eq!(run_until_empty(harness, handler).done, 1);
    let lines = harness.pq.log(id).unwrap();
    let found: Vec<_> =
        lines.iter().map(|stored| (stored.attempt, stored.line.level, stored.line.text.as_str())).collect();
    assert_eq!(found, [(1, LogLevel::Info, "began"), (1, LogLevel::Warn, "the list is empty")]);
    // The worker's estimate of the store's clock may be off by a moment.
    let within = Duration::from_secs(10);
    let near = |at| (before - within..=before + TIMEOUT).contains(&at);
    assert!(lines.iter().all(|stored| near(stored.line.at)), "{before}: {lines:?}");
}

fn lines_are_kept_through_retries<F: Fixture>(harness: &Harness<F>) {
    let task = task::<F, u32>(harness).max_retries(2).backoff(Backoff::fixed(Duration::ZERO));
    let id = task.call(&1).unwrap().id;
    let handler = task.leased(|context, job| {
        context.log(format!("attempt {}", job.attempt));
        Err::<(), _>("it fails")
    });
    assert_eq!(run_until_empty(harness, handler).dead, 1);
    let lines = harness.pq.log(id).unwrap();
    let found: Vec<_> = lines.iter().map(|stored| (stored.attempt, stored.line.text.as_str())).collect();
    assert_eq!(found, [(1, "attempt 1"), (2, "attempt 2"), (3, "attempt 3")]);
    assert!(harness.queue().retry(id).unwrap());
    assert_eq!(texts(harness, id).len(), 3, "a requeued job keeps them");
}

fn lines_of_a_running_job_are_seen<F: Fixture>(harness: &Harness<F>) {
    let id = task::<F, u32>(harness).call(&1).unwrap().id;
    let (proceed, wait) = channel::<()>();
    let wait = Mutex::new(wait);
    let handler = task::<F, u32>(harness).leased(move |context, _| {
        context.log("waits");
        wait.lock().unwrap().recv_timeout(TIMEOUT)
    });
    run_beside::<F>(Worker::new(&harness.pq).serve(handler), |control| {
        wait_until("the line is stored", || texts(harness, id) == ["waits"]);
        proceed.send(()).unwrap();
        control.stop(StopMode::Finish);
    });
}

fn the_newest_lines_are_kept<F: Fixture>(harness: &Harness<F>) {
    let id = harness.put("a");
    let job = harness.lease_one();
    // Each counts 1,024 bytes, so 64 of them are kept.
    let text = |number: u32| format!("{number:0>width$}", width = 1_024 - LogLine::OVERHEAD);
    for batch in 0..10 {
        let lines: Vec<LogLine> = (0..20).map(|number| line(harness, &text(20 * batch + number))).collect();
        let notes = NewNotes { job: &job, lines: &lines, progress: None };
        assert!(harness.pq.store().write_notes(&mut harness.connect(), &[notes], false).unwrap().all());
    }
    let kept: Vec<u32> = texts(harness, id).iter().map(|text| text.parse().unwrap()).collect();
    assert_eq!(kept, (136..200).collect::<Vec<_>>());
    // What the store has is bounded, too: the rest of the oldest batch may be there.
    let stored = harness.pq.log_after(id, i64::MIN).unwrap();
    let bytes: usize = stored.iter().map(|stored| stored.line.size()).sum();
    assert!(bytes < 2 * LogLine::MAX_KEPT, "{bytes}");
}

fn lines_have_any_text<F: Fixture>(harness: &Harness<F>) {
    let id = task::<F, u32>(harness).call(&1).unwrap().id;
    let text = "a\nb\t\"c\" \\ <d> \u{1b}[31m € 😀 {jobs} $1";
    let handler = task::<F, u32>(harness).keep_history(true).leased(move |context, _| {
        context.log(format!("{text}\0"));
        context.log("x".repeat(1_000_000));
        context.progress(1, 2, &format!("{text}\0"));
        Ok::<_, String>(())
    });
    assert_eq!(run_until_empty(harness, handler).done, 1);
    let found = texts(harness, id);
    assert_eq!(found[0], text);
    assert!(found[1].len() <= LogLine::MAX_BYTES && found[1].ends_with("x…"));
    assert_eq!(harness.pq.progress(&[id]).unwrap()[0].progress.note, text);
}

fn a_line_of_a_refused_attempt_is_not_kept<F: Fixture>(harness: &Harness<F>) {
    let id = harness.put("a");
    let zombie = harness.lease_one();
    assert!(write(harness, &zombie, "first"));
    harness.lose_lease(&zombie);
    assert!(!write(harness, &zombie, "zombie"));
    let job = harness.lease_one();
    assert!(!write(harness, &zombie, "zombie"));
    assert!(write(harness, &job, "second"));
    harness.settle(&job, Outcome::Keep { result: None });
    assert!(!write(harness, &job, "after the end"));
    assert!(!write(harness, &zombie, "zombie"));
    assert_eq!(texts(harness, id), ["first", "second"]);
}

fn lines_are_stored_before_the_outcome<F: Fixture>(harness: &Harness<F>) {
    let task = task::<F, u32>(harness).keep_history(true);
    let ids: Vec<JobId> = (0..50).map(|number| task.call(&number).unwrap().id).collect();
    let handler = task.leased(|context, job| {
        context.log(format!("job {}", job.data));
        Ok::<_, String>(())
    });
    let pq = harness.pq.clone();
    let worker = Worker::new(&pq).serve(handler);
    run_beside::<F>(worker, |control| {
        for (number, id) in ids.iter().enumerate() {
            let ended = harness.pq.wait_for::<()>(*id, pq_core::Wait::For(2 * TIMEOUT)).unwrap();
            assert_eq!(ended, pq_core::JobResult::Done(()));
            assert_eq!(texts(harness, *id), [format!("job {number}")]);
        }
        control.stop(StopMode::Finish);
    });
}

fn lines_of_a_transaction_of_the_handler_are_kept_once<F: Fixture>(harness: &Harness<F>) {
    let id = task::<F, u32>(harness).call(&1).unwrap().id;
    let handler = task::<F, u32>(harness).leased(|context, _| {
        context.log("before");
        context
            .transaction(|conn| context.settle_with(conn, Outcome::Keep { result: None }))
            .map_err(|error| error.to_string())?;
        context.log("after the outcome");
        Ok::<_, String>(())
    });
    assert_eq!(run_until_empty(harness, handler).done, 1);
    assert_eq!(texts(harness, id), ["before"]);
}

fn a_lost_transaction_of_the_handler_loses_no_line<F: Fixture>(harness: &Harness<F>) {
    let id = task::<F, u32>(harness).call(&1).unwrap().id;
    let handler = task::<F, u32>(harness).keep_history(true).leased(|context, _| {
        context.log("before");
        let done = context.transaction(|conn| {
            context.complete_with(conn)?;
            crate::harness::roll_back::<()>()
        });
        context.log("after the rollback");
        assert!(done.is_err());
        Ok::<_, String>(())
    });
    assert_eq!(run_until_empty(harness, handler).done, 1);
    assert_eq!(texts(harness, id), ["before", "after the rollback"]);
}

fn a_log_can_be_followed<F: Fixture>(harness: &Harness<F>) {
    let id = harness.put("a");
    let job = harness.lease_one();
    assert!(write(harness, &job, "first"));
    let lines = harness.pq.log(id).unwrap();
    let position = lines.last().map(|StoredLine { position, .. }| *position).unwrap();
    assert!(harness.pq.log_after(id, position).unwrap().is_empty());
    assert!(write(harness, &job, "second") && write(harness, &job, "third"));
    let new = harness.pq.log_after(id, position).unwrap();
    assert_eq!(new.iter().map(|stored| stored.line.text.as_str()).collect::<Vec<_>>(), ["second", "third"]);
}

fn lines_of_many_jobs_are_stored_together<F: Fixture>(harness: &Harness<F>) {
    let ids = ["a", "b", "c"].map(|data| harness.put(data));
    let jobs = harness.lease(3, TIMEOUT);
    harness.settle(&jobs[1], Outcome::Complete);
    let lines = ["one", "two", "three"].map(|text| line(harness, text));
    let notes: Vec<_> = jobs
        .iter()
        .zip(&lines)
        .map(|(job, line)| NewNotes { job, lines: std::slice::from_ref(line), progress: None })
        .collect();
    let accepted = harness.pq.store().write_notes(&mut harness.connect(), &notes, false).unwrap();
    assert_eq!(accepted, [true, false, true]);
    assert_eq!(ids.map(|id| texts(harness, id).concat()), ["one", "", "three"]);
}
