//! Limits, jobs that wait for others, steps, signals, results, progress and logs, by clicks.

use std::time::Duration;

use pq_diesel::pq_core::PutOptions;
use pq_diesel::{Outcome as JobOutcome, Worker};
use thirtyfour::prelude::*;

use crate::harness::{Outcome, with_actions, with_and_without_javascript, work};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_and_its_groups_are_limited() -> Outcome {
    with_and_without_javascript(with_actions, async |site, browser, _| {
        let mail = site.pq.queue::<u32>("mail")?;
        for (group, jobs) in [("tenant 7", 4), ("tenant 8", 2)] {
            for job in 0..jobs {
                mail.put_with(&job, &PutOptions::new().group(group))?;
            }
        }
        browser.open("/queue?name=mail").await?;
        browser.see("The queue is not limited.").await?;
        browser.driver.find(By::XPath("//summary[.='Set limits']")).await?.click().await?;
        browser.fill("running", "3").await?;
        browser.fill("rate", "100/1m").await?;
        browser.fill("burst", "20").await?;
        browser.fill("running_per_group", "2").await?;
        browser.click("Set the limits").await?;
        browser.see("The queue is limited to 3 running").await?;
        browser.see("0 of at most 3").await?;
        browser.see("at most 100/1m, 20 at once, now 20 of 20 tokens").await?;
        browser.see("No due job waits for a limit.").await?;
        let held = mail.lease(3, Duration::from_secs(60), pq_diesel::Wait::No)?;
        assert_eq!(held.len(), 3);
        browser.open("/queue?name=mail").await?;
        browser.see("3 due jobs wait because as many jobs of the queue run as may.").await?;
        browser.see("17 of 20 tokens").await?;
        browser.driver.find(By::XPath("//summary[.='Set limits']")).await?.click().await?;
        browser.fill("group", "tenant 7").await?;
        browser.fill("group_rate", "soon").await?;
        browser.click("Set the limits of the group").await?;
        browser.see("invalid rate").await?;
        browser.open("/queue?name=mail").await?;
        browser.driver.find(By::XPath("//summary[.='Set limits']")).await?.click().await?;
        browser.fill("running", "9").await?;
        browser.click("Set the limits").await?;
        browser.see("2 due jobs wait because as many jobs of their group run as may.").await?;
        browser.see("the group is full").await?;
        browser.driver.find(By::XPath("//summary[.='Set limits']")).await?.click().await?;
        browser.fill("group", "tenant 7").await?;
        browser.fill("group_running", "5").await?;
        browser.click("Set the limits of the group").await?;
        browser.see("2 of 5").await?;
        browser.see("No due job waits for a limit.").await?;
        browser.click("Remove").await?;
        browser.see("the group is full").await?;
        // The numbers of this page are those of the newest sample.
        browser.open("/queues").await?;
        while !browser.text().await?.contains("limited 2 wait for a limit") {
            tokio::time::sleep(Duration::from_millis(200)).await;
            browser.open("/queues").await?;
        }
        browser.open("/queue?name=mail").await?;
        browser.driver.find(By::XPath("//summary[.='Set limits']")).await?.click().await?;
        browser.click("Remove all limits…").await?;
        browser.see("All jobs that wait for a limit can be taken at once.").await?;
        browser.click("Yes, do it").await?;
        browser.see("The queue is not limited.").await?;
        browser.open("/audit").await?;
        browser.see("limit").await?;
        browser.end().await
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_lead_to_those_that_wait_for_them_and_back() -> Outcome {
    with_and_without_javascript(with_actions, async |site, browser, _| {
        let queue = site.pq.queue::<u32>("imports")?;
        let task = site.pq.queue::<()>("imports")?.task::<u32>("report");
        let mut jobs = Vec::new();
        let put = task.batch(&0, |conn, batch| {
            for part in 1..=3 {
                jobs.push(queue.on(conn).put_with(&part, &PutOptions::new().in_batch(batch.id()))?.id);
            }
            Ok::<_, pq_diesel::Error>(())
        });
        let (report, ()) = put?;
        queue.cancel(jobs[0])?;
        site.pq.maintain(&pq_diesel::Retention::default())?;
        browser.open(&format!("/job/{report}")).await?;
        browser.see("2 not ended, 1 cancelled.").await?;
        browser.click(&format!("job {}", jobs[1])).await?;
        browser.see("Jobs that wait for it").await?;
        browser.see(&format!("batch of\njob {report}")).await?;
        browser.click(&format!("job {report}")).await?;
        browser.see("it waits for 2 jobs").await?;
        browser.end().await
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_goes_on_by_a_signal_and_again_from_a_step() -> Outcome {
    with_and_without_javascript(with_actions, async |site, browser, _| {
        let task = site.pq.queue::<()>("orders")?.task::<u32>("order").keep_history(true);
        let id = task.call(&7)?.id;
        let serve = move |worker: Worker| {
            worker.serve(task.leased(|context, order| {
                context.progress(1, 2, "half of it");
                context.log("charging <b>");
                let charge: u32 = context.step("charge", || Ok::<_, pq_diesel::Error>(order.data * 100))?;
                let week = Duration::from_secs(7 * 24 * 60 * 60);
                match context.wait_for_signal::<String>("approved", week)? {
                    Some(by) if by == "nobody" => Err("refused".into()),
                    by => Ok::<_, Box<dyn std::error::Error + Send + Sync>>(JobOutcome::result(
                        &serde_json::json!({"charge": charge, "by": by}),
                    )?),
                }
            }))
        };
        work(&site.pq, serve.clone()).await?;
        browser.open(&format!("/job/{id}")).await?;
        browser.see("charging <b>").await?;
        browser.see("700").await?;
        browser.fill("signal", "approved").await?;
        browser.fill("value", "{").await?;
        browser.click("Send").await?;
        browser.see("invalid value of the signal").await?;
        browser.open(&format!("/job/{id}")).await?;
        browser.fill("signal", "approved").await?;
        browser.fill("value", "\"nobody\"").await?;
        browser.click("Send").await?;
        browser.see("the signal approved is sent.").await?;
        browser.see("Signals that are not delivered").await?;
        work(&site.pq, serve.clone()).await?;
        browser.open(&format!("/job/{id}")).await?;
        browser.see("refused").await?;
        assert!(!browser.text().await?.contains("Signals that are not delivered"));
        browser.see("1/2 (50 %) half of it").await?;
        let retry = browser.driver.find_all(By::XPath("//button[.='Retry from here…']")).await?;
        assert_eq!(retry.len(), 2);
        retry[1].click().await?;
        browser.see("from the step approved?").await?;
        browser.click("Yes, do it").await?;
        browser.see(&format!("Job {id}: changed.")).await?;
        browser.fill("signal", "approved").await?;
        browser.fill("value", "\"Ada\"").await?;
        browser.click("Send").await?;
        work(&site.pq, serve).await?;
        browser.open(&format!("/job/{id}")).await?;
        browser.see("\"by\": \"Ada\"").await?;
        browser.open("/audit").await?;
        browser.see("from step approved").await?;
        browser.see("signal").await?;
        browser.end().await
    })
    .await
}
