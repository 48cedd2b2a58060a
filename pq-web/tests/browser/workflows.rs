//! The tree of a workflow, and its actions, by clicks.

use pq_diesel::{Error, JobId, OnFailure, Pq, Retention, Worker, Workflow};
use thirtyfour::prelude::*;

use crate::harness::{Outcome, with_actions, with_and_without_javascript, work};

/// Puts an order whose goods are reserved and paid for, packed, and sent. Returns its id.
pub(crate) fn put_order(pq: &Pq) -> Outcome<JobId> {
    let orders = pq.queue::<()>("orders")?;
    let [reserve, release, charge, refund, pack, send] =
        ["reserve", "release", "charge", "refund", "pack", "send"].map(|name| orders.task::<u32>(name));
    let workflow = Workflow::new("order <7>")
        .job("goods", &reserve, &7)
        .undo(&release, &7)
        .job("pay\nment", &charge, &7)
        .undo(&refund, &7)
        .job("parcel", &pack, &7)
        .after(["goods", "pay\nment"])
        .job("letter", &send, &7)
        .after(["parcel"])
        .on_failure(OnFailure::Compensate);
    Ok(pq.put_workflow(&workflow)?)
}

/// Works the jobs of orders until nothing of them is left to do. Packing fails if `packs` is `false`.
pub(crate) async fn work_orders(pq: &Pq, packs: bool) -> Outcome {
    let orders = pq.queue::<()>("orders")?;
    // Each run of maintenance can put the next call that undoes a job.
    for _ in 0..4 {
        let orders = orders.clone();
        work(pq, move |worker: Worker| {
            let does = |name: &str| orders.task::<u32>(name).leased(|_, _| Ok::<_, Error>(()));
            let packing = orders.task::<u32>("pack").leased(move |_, _| match packs {
                true => Ok(()),
                false => Err("no box is large <enough>"),
            });
            ["reserve", "release", "charge", "refund", "send"]
                .into_iter()
                .fold(worker.serve(packing), |worker, name| worker.serve(does(name)))
        })
        .await?;
        pq.maintain(&Retention::default())?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_workflow_is_seen_cancelled_and_retried() -> Outcome {
    with_and_without_javascript(with_actions, async |site, browser, _| {
        let id = put_order(&site.pq)?;
        browser.open("/").await?;
        browser.driver.find(By::LinkText("Workflows")).await?.click().await?;
        browser.see("order <7>").await?;
        browser.see("after other jobs").await?;
        browser.click(&id.to_string()).await?;
        browser.see(&format!("Workflow {id}: ")).await?;
        browser.see("2 ready, 2 waiting").await?;
        browser.see("goods (ready), pay ment (ready)").await?;
        browser.click("goods").await?;
        browser.see(&format!("workflow {id}, as goods")).await?;
        browser.click(&format!("workflow {id}")).await?;
        browser.click_and_confirm("Cancel the workflow…").await?;
        browser.see(&format!("Job {id}: it is running, and is asked to stop.")).await?;
        browser.see("4 cancelled").await?;
        site.pq.maintain(&Retention::default())?;
        browser.open(&format!("/job/{id}")).await?;
        browser.click_and_confirm("Retry the workflow…").await?;
        browser.see(&format!("Job {id}: changed.")).await?;
        browser.see("2 ready, 2 waiting").await?;
        work_orders(&site.pq, false).await?;
        browser.open(&format!("/job/{id}")).await?;
        browser.see("1 cancelled, 1 dead, 2 done").await?;
        browser.see("no box is large <enough>").await?;
        let undone = browser
            .driver
            .find_all(By::XPath("//section[@id='workflow']//td[4][contains(., ': done')]"))
            .await?;
        assert_eq!(undone.len(), 2);
        // The name has a line break, which browsers change in the fields of a form.
        let from = browser.driver.find(By::Css("button[aria-label^='Retry from here… pay']")).await?;
        from.click().await?;
        browser.see(&format!("Retry workflow {id} from the job pay ment?")).await?;
        browser.click("Yes, do it").await?;
        browser.see(&format!("Job {id}: changed.")).await?;
        browser.see("running").await?;
        work_orders(&site.pq, true).await?;
        browser.open(&format!("/job/{id}")).await?;
        browser.see("4 done").await?;
        browser.click("These jobs as a list").await?;
        browser.see("refund").await?;
        browser.open(&format!("/job/{id}/payload")).await?;
        browser.see("The payload of a workflow is its graph").await?;
        browser.open("/audit").await?;
        browser.see("from job pay ment").await?;
        browser.see("cancel").await?;
        browser.end().await
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_workflow_is_shown_in_pages() -> Outcome {
    with_and_without_javascript(with_actions, async |site, browser, _| {
        let task = site.pq.queue::<()>("parts")?.task::<u32>("part");
        let mut workflow = Workflow::new("many").job("part 0", &task, &0);
        for part in 1..250 {
            workflow =
                workflow.job(format!("part {part}"), &task, &part).after([format!("part {}", part - 1)]);
        }
        workflow = workflow.job("all", &task, &0).after((0..250).map(|part| format!("part {part}")));
        let id = site.pq.put_workflow(&workflow)?;
        browser.open(&format!("/job/{id}")).await?;
        browser.see("Jobs 1 to 100 of 251").await?;
        assert_eq!(browser.driver.find_all(By::Css("#workflow tbody tr")).await?.len(), 100);
        browser.click("Later jobs").await?;
        browser.see("part 150").await?;
        browser.click("Later jobs").await?;
        browser.see("Jobs 201 to 251 of 251").await?;
        browser.see("and 245 more").await?;
        browser.click("Earlier jobs").await?;
        browser.see("Jobs 101 to 200 of 251").await?;
        browser.end().await
    })
    .await
}
