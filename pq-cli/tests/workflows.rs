//! Workflows at a shell.

mod common;

use pq_diesel::{Pq, Retention, Workflow};

use self::common::*;

#[test]
fn workflows_are_shown_retried_and_cancelled() -> Outcome {
    let database = migrated()?;
    let pq = Pq::connect(database.url())?;
    let task = pq.queue("orders")?.task::<u32>("charge");
    let workflow = Workflow::new("order 7").job("charge", &task, &1).job("pack", &task, &2).after(["charge"]);
    let id = pq.put_workflow(&workflow)?.to_string();
    let run = |arguments: &[&str]| -> Result<(i32, String, String), Box<dyn std::error::Error>> {
        let done = on(&database, arguments).output()?;
        Ok((status(&done), stdout(&done), stderr(&done)))
    };
    let tree = "workflow 1 \"order 7\": running\n└─ charge (2): ready\n   └─ pack (3): waiting\n";
    assert_eq!(run(&["show", &id, "--tree"])?.1, tree);
    assert_eq!(run(&["show", "3", "--tree"])?.1, tree);
    assert!(run(&["show", "3"])?.1.contains("1, as \"pack\""));
    assert!(run(&["show", &id, "--dot"])?.1.contains("j0 -> j1;"));
    assert!(run(&["show", &id, "--mermaid"])?.1.contains("j0 --> j1"));
    let json: serde_json::Value = serde_json::from_str(&run(&["show", &id, "--tree", "--json"])?.1)?;
    assert_eq!(json["jobs"][1]["after"][0]["name"], "charge");
    let refused = run(&["retry", &id, "--from-job", "charge"])?;
    assert!(refused.0 != 0 && refused.2.contains("job 2 \"charge\" is ready"), "{}", refused.2);
    let listed = run(&["ls"])?.1;
    assert!(listed.contains("pq.workflows  0        0      1        0"), "{listed}");
    let refused = run(&["delete", &id, "--yes"])?;
    assert!(refused.0 == 2 && refused.2.contains("workflow 1: it has not ended"), "{}", refused.2);
    assert_eq!(run(&["cancel", &id])?, (0, "1: running; it is asked to stop\n".to_owned(), String::new()));
    assert!(run(&["show", &id, "--tree"])?.1.contains("pack (3): cancelled, workflow 1 was cancelled"));
    assert_eq!(run(&["retry", &id, "--from-job", "charge"])?.0, 0);
    assert_eq!(run(&["show", &id, "--tree"])?.1, tree);
    let bulk = run(&["cancel", "--queue", "pq.workflows", "--yes"])?;
    assert_eq!(bulk.1, "1 workflow asked to stop\n");
    while pq.maintain(&Retention::default())?.is_none_or(|report| report.more) {}
    assert_eq!(run(&["delete", &id, "--yes"])?.1, "1: deleted\n");
    assert_eq!(run(&["show", "3"])?.0, 1, "its jobs are deleted with it");
    let unknown = run(&["show", "99", "--tree"])?;
    assert!(unknown.0 == 1 && unknown.2.contains("cannot show the workflow of job 99"), "{}", unknown.2);
    Ok(())
}

#[test]
fn a_workflow_is_put_from_a_file() -> Outcome {
    let database = migrated()?;
    let put = |workflow: &str| -> Result<(i32, String, String), Box<dyn std::error::Error>> {
        let done = feed(on(&database, &["put", "--workflow", "-"]), workflow)?;
        Ok((status(&done), stdout(&done), stderr(&done)))
    };
    let jobs = r#"{"name": "charge", "queue": "orders", "task": "charge"},
        {"name": "pack", "queue": "orders", "task": "pack", "after": ["charge"]}"#;
    assert_eq!(
        put(&format!(r#"{{"name": "order 7", "jobs": [{jobs}]}}"#))?,
        (0, "1\n".to_owned(), String::new())
    );
    let tree = "workflow 1 \"order 7\": running\n└─ charge (2): ready\n   └─ pack (3): waiting\n";
    assert_eq!(stdout(&on(&database, &["show", "1", "--tree"]).output()?), tree);
    for (workflow, reason) in [
        ("{", "invalid input: it must be one JSON document"),
        (
            r#"{"name": "w", "tasks": []}"#,
            "invalid workflow \"w\": unknown member \"tasks\"; expected jobs, name, on_failure",
        ),
    ] {
        let (code, _, error) = put(workflow)?;
        assert!(code == 2 && error.contains(reason), "{code} {error}");
    }
    let both = on(&database, &["put", "orders", "--workflow", "-"]).output()?;
    assert!(status(&both) == 2 && stderr(&both).contains("cannot be used with"), "{}", stderr(&both));
    let neither = on(&database, &["put"]).output()?;
    assert!(status(&neither) == 2 && stderr(&neither).contains("<QUEUE>"), "{}", stderr(&neither));
    Ok(())
}
