//! Working jobs inline, with faults and time travel, in memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use pq_core::memory::MemoryStore;
use pq_core::{Backoff, CallOptions, Failure, JobState, Pq, Task, Worker};
use pq_testing::{
    Expected, Fault, advance, assert_called, assert_not_called, calls_of, work_all, work_one, work_one_with,
};

type Outcome = Result<(), Box<dyn std::error::Error>>;

const MINUTE: Duration = Duration::from_secs(60);

/// The two kinds of handler.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Leased,
    Transactional,
}

/// A task that puts a call of another one, and counts its attempts.
struct Shop {
    pq: Pq<MemoryStore>,
    order: Task<MemoryStore, u32>,
    mail: Task<MemoryStore, u32>,
    attempts: Arc<AtomicU32>,
}

impl Shop {
    fn new() -> Result<Self, pq_core::Error> {
        let pq = Pq::new(MemoryStore::new());
        let order = pq.queue("orders")?.task("order").max_retries(3).backoff(Backoff::fixed(MINUTE));
        let mail = pq.queue("mails")?.task("mail");
        Ok(Self { pq, order, mail, attempts: Arc::default() })
    }

    fn worker(&self, kind: Kind) -> Worker<MemoryStore> {
        let (mail, attempts) = (self.mail.clone(), Arc::clone(&self.attempts));
        let count = move || attempts.fetch_add(1, Ordering::SeqCst);
        let handler = match kind {
            Kind::Leased => self.order.leased(move |_, job| {
                count();
                mail.call(&job.data).map(drop)
            }),
            Kind::Transactional => self.order.transactional(move |conn, job| {
                count();
                mail.on(conn).call(&job.data).map(drop)
            }),
        };
        Worker::new(&self.pq).serve(handler)
    }

    fn attempts(&self) -> u32 {
        self.attempts.load(Ordering::SeqCst)
    }
}

#[test]
fn all_ready_jobs_are_worked_and_those_that_their_handlers_put() -> Outcome {
    let shop = Shop::new()?;
    let again = shop.order.clone();
    let handler = shop.order.leased(move |_, job| match job.data {
        0 => Ok(()),
        left => again.call(&(left - 1)).map(drop),
    });
    shop.order.call(&2)?;
    shop.order.call_with(&9, &CallOptions::new().schedule_at("1m"))?;
    let worked = work_all(&shop.pq, Worker::new(&shop.pq).serve(handler))?;
    let numbers: Vec<(Option<&str>, u32)> =
        worked.attempts.iter().map(|attempt| (attempt.task.as_deref(), attempt.number)).collect();
    assert_eq!(numbers, [(Some("order"), 1); 3]);
    assert!(worked.attempts.iter().all(|attempt| attempt.result.is_ok()));
    assert_eq!(worked.report.done, 3);
    assert_called(&shop.order, &9);
    Ok(())
}

#[test]
fn one_job_is_worked_at_a_time() -> Outcome {
    for kind in [Kind::Leased, Kind::Transactional] {
        let shop = Shop::new()?;
        assert!(work_one(&shop.pq, shop.worker(kind))?.is_none());
        shop.order.call_many([1, 2])?;
        let attempt = work_one(&shop.pq, shop.worker(kind))?.ok_or("no job was ready")?;
        assert_eq!(
            (attempt.task.as_deref(), attempt.number, attempt.result.is_ok()),
            (Some("order"), 1, true)
        );
        assert_eq!(calls_of(&shop.order)?.len(), 1, "{kind:?}: one is left, and it is free");
        assert_eq!(shop.order.queue().counts()?.ready, 1);
        assert_eq!(calls_of(&shop.mail)?.len(), 1);
    }
    Ok(())
}

#[test]
fn an_injected_failure_is_followed_by_a_retry_after_its_backoff() -> Outcome {
    for (kind, fault, failure) in [
        (Kind::Leased, Fault::Error("no".to_owned()), Failure::Error("no".to_owned())),
        (Kind::Transactional, Fault::Error("no".to_owned()), Failure::Error("no".to_owned())),
        (Kind::Leased, Fault::Panic("oh".to_owned()), Failure::Panic("oh".to_owned())),
        (Kind::Transactional, Fault::Panic("oh".to_owned()), Failure::Panic("oh".to_owned())),
    ] {
        let shop = Shop::new()?;
        shop.order.call(&1)?;
        // From the second attempt on a transactional handler runs under a lease.
        for number in 1..=3 {
            let attempt =
                work_one_with(&shop.pq, shop.worker(kind), fault.clone())?.ok_or("no job was ready")?;
            assert_eq!((attempt.number, attempt.result.err()), (number, Some(failure.clone())), "{kind:?}");
            assert_eq!(shop.attempts(), number, "the handler has run");
            if let Kind::Transactional = kind {
                assert_not_called(&shop.mail, Expected::any());
            }
            let call = assert_called(&shop.order, Expected::arguments(&1).state(JobState::Scheduled));
            assert_eq!(call.job.error, Some(failure.to_string()));
            assert!(work_one(&shop.pq, shop.worker(kind))?.is_none(), "it backs off");
            advance(&shop.pq, MINUTE)?;
        }
        let attempt = work_one(&shop.pq, shop.worker(kind))?.ok_or("no job was ready")?;
        assert_eq!((attempt.number, attempt.result.is_ok()), (4, true));
        assert_not_called(&shop.order, Expected::any());
        assert_called(&shop.mail, &1);
    }
    Ok(())
}

#[test]
fn a_job_that_fails_its_last_attempt_is_dead() -> Outcome {
    let shop = Shop::new()?;
    shop.mail.call(&1)?;
    let worker = Worker::new(&shop.pq).serve(shop.mail.leased(|_, _| Ok::<_, pq_core::Error>(())));
    work_one_with(&shop.pq, worker, Fault::Error("no".to_owned()))?;
    assert_called(&shop.mail, Expected::arguments(&1).state(JobState::Dead));
    Ok(())
}

#[test]
fn a_leased_job_of_a_dead_worker_returns_when_its_lease_has_expired() -> Outcome {
    let shop = Shop::new()?;
    shop.order.call(&1)?;
    let attempt = work_one_with(&shop.pq, shop.worker(Kind::Leased), Fault::WorkerDies)?;
    assert_eq!((attempt.map(|attempt| attempt.number), shop.attempts()), (Some(1), 1));
    assert_called(&shop.order, Expected::arguments(&1).state(JobState::Running));
    assert!(work_one(&shop.pq, shop.worker(Kind::Leased))?.is_none(), "its lease has not expired");
    advance(&shop.pq, Duration::from_secs(30))?;
    let attempt = work_one(&shop.pq, shop.worker(Kind::Leased))?.ok_or("no job was ready")?;
    assert_eq!((attempt.number, attempt.job.crashes), (2, 1));
    assert_eq!(calls_of(&shop.mail)?.len(), 2, "a leased handler has at-least-once effects");
    assert_not_called(&shop.order, Expected::any());
    Ok(())
}

#[test]
fn a_job_whose_worker_dies_too_often_is_dead() -> Outcome {
    let shop = Shop::new()?;
    shop.order.call(&1)?;
    for _ in 0..3 {
        work_one_with(&shop.pq, shop.worker(Kind::Leased), Fault::WorkerDies)?.ok_or("no job was ready")?;
        advance(&shop.pq, MINUTE)?;
    }
    let attempt = work_one(&shop.pq, shop.worker(Kind::Leased))?.ok_or("no job was ready")?;
    assert_eq!(attempt.result.err(), Some(Failure::Crashed { times: 3 }));
    assert_eq!(shop.attempts(), 3);
    assert_called(&shop.order, Expected::any().state(JobState::Dead));
    Ok(())
}

#[test]
fn the_transaction_of_a_dead_worker_is_rolled_back_and_its_job_is_ready() -> Outcome {
    let shop = Shop::new()?;
    shop.order.call(&1)?;
    // The first death leaves no count. The second one, under a lease, is a crash.
    work_one_with(&shop.pq, shop.worker(Kind::Transactional), Fault::WorkerDies)?
        .ok_or("no job was ready")?;
    assert_not_called(&shop.mail, Expected::any());
    assert_called(&shop.order, Expected::arguments(&1).state(JobState::Ready));
    work_one_with(&shop.pq, shop.worker(Kind::Transactional), Fault::WorkerDies)?
        .ok_or("no job was ready")?;
    assert_not_called(&shop.mail, Expected::any());
    assert_called(&shop.order, Expected::arguments(&1).state(JobState::Running));
    advance(&shop.pq, Duration::from_secs(30))?;
    let attempt = work_one(&shop.pq, shop.worker(Kind::Transactional))?.ok_or("no job was ready")?;
    assert_eq!((attempt.job.crashes, attempt.result.is_ok(), shop.attempts()), (1, true, 3));
    assert_eq!(calls_of(&shop.mail)?.len(), 1);
    Ok(())
}

#[test]
fn an_unknown_task_is_reported() -> Outcome {
    let shop = Shop::new()?;
    shop.pq.queue("orders")?.task::<u8>("other").call(&1)?;
    let attempt = work_one(&shop.pq, shop.worker(Kind::Leased))?.ok_or("no job was ready")?;
    assert_eq!(attempt.result.err(), Some(Failure::UnknownTask("other".to_owned())));
    Ok(())
}

#[test]
fn a_periodic_job_is_put_and_worked_when_its_tick_has_passed() -> Outcome {
    let shop = Shop::new()?;
    let hourly = shop.order.cron("orders", "0 * * * *", &5)?;
    shop.pq.set_cron(&hourly)?;
    let next = shop.pq.crons()?.remove(0).next_at.ok_or("no tick")?;
    // Not at the end of an hour.
    if next - shop.pq.now()? > chrono::TimeDelta::minutes(1) {
        assert_eq!(work_all(&shop.pq, shop.worker(Kind::Leased))?.report.done, 0);
    }
    advance(&shop.pq, Duration::from_secs(3_600))?;
    assert!(work_all(&shop.pq, shop.worker(Kind::Leased))?.report.done >= 1);
    assert_called(&shop.mail, &5);
    Ok(())
}
