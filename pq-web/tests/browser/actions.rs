//! Every action, by clicks.

use thirtyfour::prelude::*;

use crate::harness::{JavaScript, Outcome, with_actions, with_and_without_javascript};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_is_put_cancelled_retried_and_moved() -> Outcome {
    with_and_without_javascript(with_actions, async |_site, browser, _| {
        browser.open("/put").await?;
        browser.fill("queue", "mail").await?;
        browser.fill("payload", "{\"to\": \"ann\"}").await?;
        browser.click("Put the job").await?;
        browser.see("The job is put.").await?;
        browser.click_and_confirm("Cancel…").await?;
        browser.see("Job 1: changed.").await?;
        browser.click("Retry").await?;
        browser.see("Job 1: changed.").await?;
        browser.fill("to", "other").await?;
        browser.click("Move").await?;
        browser.see("Job 1: changed.").await?;
        browser.fill("schedule", "1h").await?;
        browser.click("Reschedule").await?;
        browser.see("scheduled").await?;
        browser.click("Run now").await?;
        browser.see("Job 1: changed.").await?;
        browser.fill("priority", "7").await?;
        browser.click("Set priority").await?;
        browser.see("Job 1: changed.").await?;
        browser.click("Edit the payload").await?;
        browser.fill("payload", "{\"to\": \"bob\"}").await?;
        browser.click("Save").await?;
        browser.see("bob").await?;
        // A notice is shown once.
        browser.open("/job/1").await?;
        assert!(!browser.text().await?.contains("Job 1: changed."));
        browser.open("/put").await?;
        browser.fill("queue", "mail").await?;
        browser.fill("payload", "{").await?;
        browser.click("Put the job").await?;
        browser.see("invalid payload").await?;
        browser.open("/job/1").await?;
        browser.click_and_confirm("Delete…").await?;
        browser.see("Job 1: changed.").await?;
        browser.open("/audit").await?;
        browser.see("set priority").await?;
        browser.end().await
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_is_paused_resumed_moved_and_emptied() -> Outcome {
    with_and_without_javascript(with_actions, async |site, browser, _| {
        site.sql("INSERT INTO pq.queue (q_name, data) VALUES (E'../a\nb', '1'), (E'../a\nb', '2')")?;
        browser.open("/queue?name=..%2Fa%0Ab").await?;
        browser.click("Pause").await?;
        browser.see("The queue is paused").await?;
        browser.open("/pauses").await?;
        browser.see("UTC by local.").await?;
        let labels = browser.driver.find_all(By::Css("main button[aria-label^='Resume ../a']")).await?;
        assert_eq!(labels.len(), 1, "the button says of which queue it is");
        browser.click("Resume").await?;
        browser.see("The queue is resumed.").await?;
        browser.fill("to", "other").await?;
        browser.click("Move…").await?;
        browser.see("Yes, do it").await?;
        browser.click("Yes, do it").await?;
        browser.see("2 jobs moved.").await?;
        browser.open("/queue?name=other").await?;
        browser.click_and_confirm("Delete all waiting jobs…").await?;
        browser.see("2 jobs deleted.").await?;
        browser.end().await
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn selected_and_dead_jobs_are_changed_together() -> Outcome {
    with_and_without_javascript(with_actions, async |site, browser, javascript| {
        site.sql("INSERT INTO pq.queue (q_name, data) SELECT 'mail', '1' FROM generate_series(1, 3)")?;
        browser.open("/jobs?queue=mail").await?;
        let all = browser.driver.find(By::Css("[data-select-all]")).await?;
        assert_eq!(all.is_displayed().await?, javascript == JavaScript::On, "it needs the script");
        if javascript == JavaScript::On {
            all.click().await?;
        } else {
            for id in 1..=3 {
                browser.driver.find(By::Css(format!("input[name=id][value='{id}']"))).await?.click().await?;
            }
        }
        browser.click("Cancel…").await?;
        browser.see("Cancel 3 selected jobs?").await?;
        browser.click("Yes, do it").await?;
        browser.see("3 jobs changed.").await?;
        browser.driver.find(By::Css("input[name=id][value='2']")).await?.click().await?;
        browser.click("Retry").await?;
        browser.see("1 job changed.").await?;
        browser.driver.find(By::Css("input[name=id][value='2']")).await?.click().await?;
        browser.fill("to", "other").await?;
        browser.click("Move").await?;
        browser.see("1 job changed.").await?;
        site.sql("UPDATE pq.queue_archive SET outcome = 'dead'")?;
        browser.open("/dead").await?;
        browser.click("Retry all dead jobs").await?;
        browser.see("2 dead jobs requeued.").await?;
        browser.end().await
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_jobs_of_a_filter_are_changed_after_a_preview() -> Outcome {
    with_and_without_javascript(with_actions, async |site, browser, _| {
        site.sql("INSERT INTO pq.queue (q_name, data, schedule_at) SELECT 'mail', '1', now() + interval '1 day' FROM generate_series(1, 60)")?;
        for (field, value, button, question) in [
            ("schedule", "2h", "Reschedule", "Reschedule 60 jobs?"),
            ("priority", "3", "Set priority", "Set priority 60 jobs?"),
            ("to", "other", "Move", "Move 60 jobs?"),
        ] {
            browser.open("/jobs?queue=mail").await?;
            browser.driver.find(By::Css("input[name=scope][value=filter]")).await?.click().await?;
            browser.fill(field, value).await?;
            browser.click(button).await?;
            browser.see(question).await?;
            browser.click("Yes, do it").await?;
            browser.see("60 jobs changed.").await?;
        }
        for (button, question) in [("Run now", "Run now 60 jobs?"), ("Delete…", "Delete 60 jobs?")] {
            browser.open("/jobs?queue=other").await?;
            browser.driver.find(By::Css("input[name=scope][value=filter]")).await?.click().await?;
            browser.click(button).await?;
            browser.see(question).await?;
            browser.click("Yes, do it").await?;
            browser.see("60 jobs changed.").await?;
        }
        browser.see("There are no jobs.").await?;
        browser.end().await
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_periodic_job_and_a_worker_are_stopped() -> Outcome {
    with_and_without_javascript(with_actions, async |site, browser, _| {
        let reports = site.pq.queue::<u32>("reports")?;
        site.pq.set_cron(&reports.cron("nightly", "30 2 * * *", &1)?)?;
        browser.open("/periodic").await?;
        browser.click("Pause").await?;
        browser.see("The periodic job is paused.").await?;
        browser.click("Resume").await?;
        browser.see("The periodic job is resumed.").await?;
        browser.click("Put a job now").await?;
        browser.see("A job is put, as at a tick.").await?;
        browser.click_and_confirm("Remove…").await?;
        browser.see("The periodic job is removed.").await?;
        site.sql(
            "INSERT INTO pq.queue_workers (id, host, pid, supervisor, queues, threads, status)
             VALUES (1, 'host', 1, 1, '{mail}', 1, '{}')",
        )?;
        browser.open("/workers").await?;
        browser.click("Stop after the running jobs").await?;
        browser.see("Worker 1 is asked to stop (finish)").await?;
        browser.click("Stop when its queues are empty").await?;
        browser.see("Worker 1 is asked to stop (drain)").await?;
        browser.click_and_confirm("Abort…").await?;
        browser.see("Worker 1 is asked to stop (abort)").await?;
        browser.end().await
    })
    .await
}
