//! Assertions on calls of tasks, in memory.

use std::panic::{AssertUnwindSafe, catch_unwind};

use pq_core::memory::MemoryStore;
use pq_core::{CallOptions, JobState, Pickle, Pq, Task, Wait};
use pq_testing::{Expected, assert_called, assert_not_called, calls_of};
use serde::{Deserialize, Serialize};

type Outcome = Result<(), Box<dyn std::error::Error>>;

#[derive(Serialize, Deserialize, PartialEq, Clone, Debug)]
struct Mail {
    to: String,
}

fn mail_to(to: &str) -> Mail {
    Mail { to: to.to_owned() }
}

type Shop = (Pq<MemoryStore>, Task<MemoryStore, Mail>, Task<MemoryStore, u32>);

fn shop() -> Result<Shop, pq_core::Error> {
    let pq = Pq::new(MemoryStore::new());
    let queue = pq.queue("shop")?;
    let (mail, bill) = (queue.task("mail"), queue.task("bill"));
    Ok((pq, mail, bill))
}

/// Returns the message of an assertion that must fail.
fn failure(assertion: impl FnOnce()) -> String {
    let panic = catch_unwind(AssertUnwindSafe(assertion)).expect_err("the assertion holds");
    *panic.downcast::<String>().expect("a text")
}

#[test]
fn a_call_is_found_by_its_arguments() -> Outcome {
    let (_, mail, bill) = shop()?;
    let ada = mail.call(&mail_to("ada"))?.id;
    bill.call(&7)?;
    mail.call(&mail_to("bob"))?;
    assert_eq!(assert_called(&mail, &mail_to("ada")).job.id, ada);
    let all: Vec<Mail> = calls_of(&mail)?.into_iter().map(|call| call.arguments).collect();
    assert_eq!(all, [mail_to("ada"), mail_to("bob")]);
    assert_not_called(&mail, &mail_to("carol"));
    assert_called(&bill, &7);
    assert_called(&bill, Expected::any());
    Ok(())
}

#[test]
fn a_failed_assertion_lists_what_was_called_instead() -> Outcome {
    let (_, mail, bill) = shop()?;
    let message = failure(|| drop(assert_called(&mail, &mail_to("ada"))));
    assert_eq!(
        message,
        "task \"mail\" was not called with {\"to\":\"ada\"}\n\
         it was not called, or its jobs are done and were not kept\n"
    );
    mail.call_with(&mail_to("bob"), &CallOptions::new().priority(3).unique("bob"))?;
    bill.call(&7)?;
    let message = failure(|| drop(assert_called(&mail, Expected::arguments(&mail_to("ada")).priority(3))));
    assert_eq!(
        message,
        "task \"mail\" was not called with {\"to\":\"ada\"}, priority 3\n\
         it was called with\n  job 1, ready: {\"to\":\"bob\"}, priority 3, unique key \"bob\"\n\
         other jobs of queue \"shop\"\n  job 2, ready: bill 7\n"
    );
    let message = failure(|| assert_not_called(&mail, Expected::any()));
    assert!(message.starts_with("task \"mail\" was called with anything, by job 1\n"), "{message}");
    Ok(())
}

#[test]
fn each_option_must_match() -> Outcome {
    let (_, mail, _) = shop()?;
    let arguments = mail_to("ada");
    let at = chrono::DateTime::parse_from_rfc3339("2040-01-01T00:00:00Z")?;
    let options = CallOptions::new()
        .priority(3)
        .schedule_at("1h")
        .expected_at(at)
        .serialization_key("ada")
        .unique("welcome ada");
    mail.call_with(&arguments, &options)?;
    let expected = || Expected::arguments(&arguments);
    let matching = [
        expected().priority(3),
        expected().schedule_at("1h"),
        expected().expected_at(at),
        expected().serialization_key("ada"),
        expected().unique_key("welcome ada"),
        expected().state(JobState::Scheduled),
        expected().with("a short name", |call| call.arguments.to.len() == 3),
    ];
    for expected in matching {
        assert_called(&mail, expected);
    }
    let others = [
        expected().priority(2),
        expected().schedule_at("2h"),
        expected().unscheduled(),
        expected().schedule_at(at),
        expected().expected_at("1h"),
        expected().serialization_key("welcome ada"),
        expected().unique_key("ada"),
        expected().state(JobState::Ready),
        expected().with("a long name", |call| call.arguments.to.len() > 3),
    ];
    for unexpected in others {
        let text = unexpected.to_string();
        let message = failure(|| drop(assert_called(&mail, unexpected)));
        assert!(message.contains(&text), "{message}");
    }
    mail.call(&arguments)?;
    assert_called(&mail, expected().unscheduled().priority(0));
    Ok(())
}

#[test]
fn a_transaction_sees_its_own_calls_and_others_do_not() -> Outcome {
    let (pq, mail, _) = shop()?;
    let rolled_back: Result<(), pq_core::Error> = pq.transaction(|conn| {
        mail.on(conn).call(&mail_to("ada"))?;
        assert_called(mail.on(conn), &mail_to("ada"));
        assert_not_called(&mail, Expected::any());
        Err(pq_core::Error::Stopped)
    });
    assert!(rolled_back.is_err());
    assert_not_called(&mail, Expected::any());
    Ok(())
}

#[test]
fn running_and_archived_calls_count_and_taken_ones_do_not() -> Outcome {
    let (pq, mail, _) = shop()?;
    for to in ["taken", "leased", "cancelled"] {
        mail.call(&mail_to(to))?;
    }
    let queue = pq.queue::<serde_json::Value>("shop")?;
    queue.get(Wait::No)?.ok_or("no job")?;
    queue.lease(1, std::time::Duration::from_secs(60), Wait::No)?;
    queue.cancel(calls_of(&mail)?[1].job.id)?;
    assert_not_called(&mail, &mail_to("taken"));
    assert_called(&mail, Expected::arguments(&mail_to("leased")).state(JobState::Running));
    assert_called(&mail, Expected::arguments(&mail_to("cancelled")).state(JobState::Cancelled));
    Ok(())
}

#[test]
fn a_call_with_other_arguments_and_a_job_that_is_no_call_are_shown() -> Outcome {
    let (pq, mail, _) = shop()?;
    pq.queue::<()>("shop")?.task::<u8>("mail").call(&1)?;
    pq.queue::<bool>("shop")?.put(&true)?;
    assert_not_called(&mail, Expected::any());
    let message = failure(|| drop(assert_called(&mail, Expected::any())));
    assert!(message.contains("job 1, ready: 1 (invalid arguments: they must match"), "{message}");
    assert!(message.contains("job 2, ready: true (invalid task payload"), "{message}");
    Ok(())
}

#[test]
fn calls_are_decoded_by_the_codec_of_the_queue() -> Outcome {
    let pq = Pq::new(MemoryStore::new());
    let mail = pq.queue("shop")?.with_codec(std::sync::Arc::new(Pickle)).task::<Mail>("mail");
    mail.call(&mail_to("ada"))?;
    assert_called(&mail, &mail_to("ada"));
    Ok(())
}
