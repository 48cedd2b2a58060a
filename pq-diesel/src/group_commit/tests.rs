//! Which calls run, which of them lead, and the replies of the followers.

use std::error::Error as StdError;
use std::panic::resume_unwind;
use std::time::{Duration, Instant};

use super::wait_slots::{self, Signal};
use super::{GroupCommit, MAX_CONCURRENCY, Reply, Turn, queue_group};

type TestResult = Result<(), Box<dyn StdError>>;

type Groups = GroupCommit<&'static str, (), ()>;

const KEY: &str = "apples";

const TIMEOUT: Duration = Duration::from_secs(30);

/// Groups in which no call stalls and no follower gives up while a test runs.
impl<K, R, A> Default for GroupCommit<K, R, A> {
    fn default() -> Self {
        Self::new(1_000 * TIMEOUT)
    }
}

fn until(mut is_true: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_true() {
        assert!(begun.elapsed() < TIMEOUT, "the condition did not become true in time");
        std::thread::yield_now();
    }
}

/// Asserts that two calls run in one group once the first calls have completed, each after `took`.
fn assert_one_runs_at_a_time(group_commit: &Groups, took: Duration) -> TestResult {
    let turn = || group_commit.turn(&KEY, || (), |queued| queued.count());
    let mut leads = Vec::new();
    for _ in 0..MAX_CONCURRENCY {
        let Turn::Lead(mut lead) = turn() else { return Err("a first call does not lead".into()) };
        lead.begun -= took;
        leads.push(lead);
    }
    std::thread::scope(|threads| {
        let calls: Vec<_> = (1..=2)
            .map(|n| {
                let call =
                    threads.spawn(|| matches!(turn(), Turn::Lead(lead) if lead.requests().count() == 1));
                until(|| group_commit.queued(&KEY) == n);
                call
            })
            .collect();
        while leads.len() > 1 {
            drop(leads.pop());
            assert_eq!(group_commit.queued(&KEY), 2, "another call still runs");
        }
        drop(leads.pop());
        let led: Vec<_> = calls.into_iter().filter_map(|call| call.join().ok()).collect();
        assert_eq!(led, [true, false], "the first queued call does not take the other along");
    });
    Ok(())
}

#[test]
fn one_call_runs_at_a_time_if_calls_are_slow() -> TestResult {
    let slow = Duration::from_secs(60);
    assert_one_runs_at_a_time(&GroupCommit { slow, threshold: usize::MAX, ..GroupCommit::default() }, slow)
}

#[test]
fn one_call_runs_at_a_time_if_many_threads_call() -> TestResult {
    let took = Duration::from_secs(60);
    assert_one_runs_at_a_time(
        &GroupCommit { slow: Duration::MAX, threshold: 4, ..GroupCommit::default() },
        took,
    )
}

#[test]
fn the_last_of_the_answered_threads_leads_when_it_calls_again() -> TestResult {
    let group_commit = Groups { threshold: MAX_CONCURRENCY, linger: TIMEOUT, ..GroupCommit::default() };
    let turn = || group_commit.turn(&KEY, || (), |queued| queued.count());
    let mut leads: Vec<_> = (0..MAX_CONCURRENCY).map(|_| turn()).collect();
    std::thread::scope(|threads| {
        let first = threads.spawn(|| matches!(turn(), Turn::Answered(())));
        until(|| group_commit.queued(&KEY) == 1);
        for lead in &mut leads {
            if let Turn::Lead(lead) = lead {
                lead.begun -= 10 * TIMEOUT;
            }
        }
        drop(leads);
        // A call that did not linger would have run by now.
        for _ in 0..10_000 {
            std::thread::yield_now();
        }
        assert_eq!(group_commit.queued(&KEY), 1, "it did not linger for the thread that calls again");
        let Turn::Lead(last) = turn() else { return Err("the last call does not lead".into()) };
        assert_eq!(last.requests().count(), 1);
        last.reply([Reply::Answer(())]);
        assert!(first.join().is_ok_and(|done| done), "the first call got no answer");
        Ok(())
    })
}

#[test]
fn a_queued_call_leads_when_the_linger_time_has_passed() -> TestResult {
    let group_commit = Groups { threshold: 1, linger: TIMEOUT, ..GroupCommit::default() };
    let turn = || group_commit.turn(&KEY, || (), |queued| queued.count());
    let Turn::Lead(mut lead) = turn() else { return Err("a first call does not lead".into()) };
    lead.begun -= TIMEOUT;
    drop(lead);
    let mut lead = turn();
    std::thread::scope(|threads| {
        // A call that queued while another ran is signalled how long to linger.
        let second = threads.spawn(|| match turn() {
            Turn::Lead(lead) => Some(lead.is_alone()),
            _ => None,
        });
        until(|| group_commit.queued(&KEY) == 1);
        if let Turn::Lead(lead) = &mut lead {
            lead.begun -= Duration::from_millis(20);
        }
        drop(lead);
        assert!(
            second.join().is_ok_and(|alone| alone == Some(true)),
            "the call still lingers, or has a follower"
        );
    });
    // A call that queues while none runs lingers as well, if two were answered.
    let Turn::Lead(mut lead) = turn() else { return Err("the only call does not lead".into()) };
    (lead.executes, lead.begun) = (2, lead.begun - Duration::from_millis(20));
    group_commit.groups()[0].executing = 2;
    drop(lead);
    assert!(matches!(turn(), Turn::Lead(lead) if lead.is_alone()));
    Ok(())
}

#[test]
fn a_requeued_call_is_counted_once() -> TestResult {
    let group_commit = Groups { threshold: MAX_CONCURRENCY, linger: 2 * TIMEOUT, ..GroupCommit::default() };
    let turn = || group_commit.turn(&KEY, || (), |queued| queued.count());
    let followers = || match turn() {
        Turn::Lead(lead) => Some(lead.requests().count()),
        _ => None,
    };
    let leads: Vec<_> = (0..MAX_CONCURRENCY).map(|_| turn()).collect();
    std::thread::scope(|threads| {
        let first = threads.spawn(|| {
            let Turn::Lead(mut lead) = turn() else { return };
            lead.begun -= 100 * TIMEOUT;
            lead.reply([Reply::Answer(()), Reply::Requeue]);
        });
        until(|| group_commit.queued(&KEY) == 1);
        threads.spawn(|| drop(turn()));
        until(|| group_commit.queued(&KEY) == 2);
        let again = threads.spawn(followers);
        until(|| group_commit.queued(&KEY) == 3);
        drop(leads);
        until(|| first.is_finished());
        assert_eq!(group_commit.queued(&KEY), 1, "it did not linger for the answered threads");
        // The two answered threads call again, and then the group is complete.
        let again_too: Vec<_> = (0..2).map(|_| threads.spawn(followers)).collect();
        until(|| again_too.iter().all(|call| call.is_finished()));
        let mut led: Vec<_> =
            again_too.into_iter().chain([again]).filter_map(|call| call.join().ok()).collect();
        led.sort();
        assert_eq!(led, [None, None, Some(2)]);
    });
    Ok(())
}

#[test]
fn many_answered_threads_are_still_many_when_they_call_again() -> TestResult {
    let group_commit =
        Groups { threshold: MAX_CONCURRENCY, linger: Duration::ZERO, ..GroupCommit::default() };
    let turn = || group_commit.turn(&KEY, || (), |queued| queued.count());
    let mut leads: Vec<_> = (0..MAX_CONCURRENCY).map(|_| turn()).collect();
    for lead in &mut leads {
        if let Turn::Lead(lead) = lead {
            lead.begun -= TIMEOUT;
        }
    }
    drop(leads);
    let lead = turn();
    std::thread::scope(|threads| {
        let next = threads.spawn(|| matches!(turn(), Turn::Lead(lead) if lead.is_alone()));
        until(|| group_commit.queued(&KEY) == 1);
        drop(lead);
        assert!(next.join().is_ok_and(|leads| leads), "the call does not lead alone");
    });
    Ok(())
}

/// Creates groups in which a call that runs until the end of the test does not make others queue.
fn never_alone<T>() -> GroupCommit<&'static str, T, T> {
    GroupCommit { slow: Duration::MAX, threshold: usize::MAX, ..GroupCommit::default() }
}

#[test]
fn followers_fail_when_their_leader_panics_and_the_next_call_runs() -> TestResult {
    let group_commit = never_alone::<()>();
    let turn = || group_commit.turn(&KEY, || (), |queued| queued.count());
    let mut leads: Vec<_> = (0..MAX_CONCURRENCY).map(|_| turn()).collect();
    std::thread::scope(|threads| {
        let first = threads.spawn(|| match turn() {
            Turn::Lead(lead) if lead.requests().count() == 2 => resume_unwind(Box::new("on purpose")),
            _ => (),
        });
        until(|| group_commit.queued(&KEY) == 1);
        let others: Vec<_> = (0..2).map(|_| threads.spawn(|| matches!(turn(), Turn::LeaderLost))).collect();
        until(|| group_commit.queued(&KEY) == 3);
        drop(leads.pop());
        assert!(first.join().is_err(), "the call did not lead");
        let failed: Vec<_> = others.into_iter().map(|other| other.join().ok()).collect();
        assert_eq!(failed, [Some(true), Some(true)]);
    });
    drop(leads);
    assert!(group_commit.groups().is_empty(), "a call still runs");
    assert!(matches!(turn(), Turn::Lead(lead) if lead.is_alone()));
    Ok(())
}

#[test]
fn a_requeued_call_precedes_the_calls_that_queued_later() -> TestResult {
    let group_commit = never_alone::<u8>();
    let lead = |request| match group_commit.turn(&KEY, || request, |queued| queued.take(2).count()) {
        Turn::Lead(lead) => Ok(lead),
        Turn::Answered(answer) => Err(answer),
        Turn::RunAlone | Turn::LeaderLost => Err(0),
    };
    let leads: Vec<_> = (0..MAX_CONCURRENCY).map(|_| lead(0)).collect();
    std::thread::scope(|threads| {
        let (led, all) = std::sync::mpsc::channel();
        for n in 1..=4 {
            let (lead, led) = (&lead, led.clone());
            threads.spawn(move || match lead(n) {
                Ok(lead) => {
                    let _ = led.send((n, lead.requests().copied().collect::<Vec<_>>()));
                    lead.reply([Reply::Answer(n), Reply::Requeue]);
                }
                Err(by) => drop(led.send((n, vec![by + 100]))),
            });
            until(|| group_commit.queued(&KEY) == usize::from(n));
        }
        drop(led);
        // One call keeps running, so that the others run one after the other.
        let mut leads = leads;
        drop(leads.pop());
        let mut results: Vec<_> = all.iter().collect();
        results.sort();
        assert_eq!(results, [(1, vec![2, 3]), (2, vec![101]), (3, vec![4]), (4, vec![103])]);
    });
    Ok(())
}

/// Whatever the number of calls that hang, the next one leads and answers those that queue behind it.
#[test]
fn calls_that_hang_do_not_stop_the_others() -> TestResult {
    let group_commit = Groups { min_stall: Duration::from_millis(10), ..GroupCommit::default() };
    let turn = || group_commit.turn(&KEY, || (), |queued| queued.count());
    let mut hung = Vec::new();
    for n in 0..4 * MAX_CONCURRENCY {
        let call = std::thread::scope(|threads| {
            let call = threads.spawn(turn);
            until(|| call.is_finished());
            call.join()
        });
        let Ok(Turn::Lead(lead)) = call else { return Err(format!("call {n} does not lead").into()) };
        hung.push(lead);
    }
    for _ in 0..2 {
        std::thread::scope(|threads| {
            let calls: Vec<_> = (0..8)
                .map(|_| {
                    threads.spawn(|| match turn() {
                        Turn::Lead(lead) => {
                            let followers = lead.requests().count();
                            lead.reply((0..followers).map(|_| Reply::Answer(())));
                            true
                        }
                        Turn::Answered(()) => true,
                        _ => false,
                    })
                })
                .collect();
            until(|| calls.iter().all(|call| call.is_finished()));
            assert!(calls.into_iter().all(|call| call.join().is_ok_and(|done| done)));
        });
    }
    drop(hung);
    assert_eq!(group_commit.groups().iter().map(|group| group.executing).sum::<usize>(), 0);
    Ok(())
}

/// Its leader puts it back after it has begun to wait for that leader's answer, and it is told when to lead.
#[test]
fn a_requeued_follower_that_is_told_when_to_lead_leads_then() {
    let group_commit = Groups::default();
    let (slot, taken_along) = {
        let mut groups = group_commit.groups();
        let group = queue_group::of(&mut groups, &KEY, TIMEOUT);
        let (slot, _) = group.enqueue(());
        (slot, group.queue.pop_front())
    };
    std::thread::scope(|threads| {
        let call = threads.spawn(|| group_commit.wait(&KEY, &slot, Instant::now()));
        // By now it waits for its leader.
        for _ in 0..10_000 {
            std::thread::yield_now();
        }
        queue_group::of(&mut group_commit.groups(), &KEY, TIMEOUT).queue.extend(taken_along);
        wait_slots::send([(slot.clone(), Signal::LeadAt(Instant::now()))]);
        assert!(matches!(call.join(), Ok(Signal::Lead)), "it failed or still waits");
    });
    assert_eq!(group_commit.queued(&KEY), 0, "it leads and is still queued");
}

#[test]
fn a_follower_leaves_a_leader_that_does_not_answer() -> TestResult {
    let group_commit = GroupCommit { follow_for: Duration::from_millis(10), ..never_alone::<()>() };
    let turn = || group_commit.turn(&KEY, || (), |queued| queued.count());
    let mut leads: Vec<_> = (0..MAX_CONCURRENCY).map(|_| turn()).collect();
    std::thread::scope(|threads| {
        let calls: Vec<_> = (1..=2)
            .map(|n| {
                let call = threads.spawn(turn);
                until(|| group_commit.queued(&KEY) == n);
                call
            })
            .collect();
        drop(leads.pop());
        let mut turns: Vec<_> = calls.into_iter().filter_map(|call| call.join().ok()).collect();
        assert!(matches!(turns.pop(), Some(Turn::LeaderLost)), "the follower still waits");
        let Some(Turn::Lead(lead)) = turns.pop() else { return Err("the first call does not lead".into()) };
        // The answer is late. Nobody waits for it.
        lead.reply([Reply::Answer(())]);
        Ok(())
    })
}
