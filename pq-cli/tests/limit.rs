//! `pq limit`, and puts with a group and a cost.

mod common;

use std::time::Duration;

use self::common::*;

#[test]
fn limits_are_set_changed_shown_and_removed() -> Outcome {
    let database = migrated()?;
    let run = |words: &[&str]| -> Result<String, Box<dyn std::error::Error>> {
        let ran = on(&database, &[&["limit", "mail"], words].concat()).output()?;
        assert_eq!(status(&ran), 0, "{words:?}: {}", printed(&ran));
        Ok(stdout(&ran))
    };
    assert_eq!(run(&[])?, "no limits\n");
    let set = run(&["--running", "50", "--running-per-group", "3"])?;
    assert_eq!(run(&[])?, format!("{set}queue: 0 running now\n"));
    let words =
        &["--rate", "100/1m", "--burst", "20", "--rate-per-group", "10/1s", "--running-per-group", "4"][..];
    let expected = "\
        queue: at most 50 running\n\
        queue: at most 100 started in 1m, 20 at once\n\
        each group: at most 4 running\n\
        each group: at most 10 started in 1s, 10 at once\n";
    assert_eq!(run(words)?, expected);
    let of_group = "group \\u{1b}7: at most 9 running\n";
    assert_eq!(run(&["--group", "\u{1b}7", "--running", "9"])?, format!("{expected}{of_group}"));
    let shown = parsed(&on(&database, &["limit", "mail", "--json"]).output()?)?;
    assert_eq!((&shown["running"], &shown["rate"]["burst"]), (&50.into(), &20.into()));
    assert_eq!(shown["groups"]["\u{1b}7"]["running"], 9);
    assert_eq!(run(&["--group", "\u{1b}7", "--clear"])?, expected);
    let changed = expected.replace("20 at once", "30 at once").replace("10 at once", "7 at once");
    assert_eq!(run(&["--burst", "30", "--burst-per-group", "7"])?, changed);
    let refused = on(&database, &["limit", "mail", "--group", "a", "--burst", "2"]).output()?;
    let text = printed(&refused);
    let rule = "cannot set a burst: the group has no rate of its own; add --rate N/PERIOD";
    assert!(text.contains(rule), "{text}");
    assert_eq!(status(&refused), 2);
    for words in [&["--running", "-1"][..], &["--running", "0"], &["--burst", "1000001"]] {
        let refused = on(&database, &[&["limit", "mail"], words].concat()).output()?;
        assert!(
            stderr(&refused).contains("expected a whole number from 1 to 1000000"),
            "{}",
            stderr(&refused)
        );
    }
    assert_eq!(run(&["--clear", "--running", "1"])?, "queue: at most 1 running\n");
    let recorded = stdout(&on(&database, &["audit"]).output()?);
    assert!(recorded.contains("limit") && recorded.contains("\"running\":50"), "{recorded}");

    let put = ["put", "mail", "--group", "tenant 7", "--cost", "40"];
    let ids = stdout(&feed(on(&database, &put), "1")?);
    let job = handle(&database)?.find(ids.trim().parse()?)?.ok_or("the job")?;
    assert_eq!((job.annotations.group().as_deref(), job.annotations.cost()), (Some("tenant 7"), Some(40)));
    let grouped = stdout(&on(&database, &["jobs", "mail", "--group", "tenant 7"]).output()?);
    let others = stdout(&on(&database, &["jobs", "mail", "--group", "tenant 8"]).output()?);
    assert_eq!((grouped.lines().count(), others.lines().count()), (2, 1), "{grouped}{others}");
    let get = on(&database, &["get", "mail"]).output()?;
    assert_eq!(status(&get), 0, "{}", printed(&get));
    let listed = stdout(&on(&database, &["ls"]).output()?);
    assert!(listed.contains("limited to 1 running"), "{listed}");
    assert_eq!(parsed(&on(&database, &["ls", "--json"]).output()?)?[0]["limits"]["running"], 1);
    feed(on(&database, &put), "2")?;
    let held =
        handle(&database)?.queue::<u8>("mail")?.lease(1, Duration::from_secs(60), pq_diesel::Wait::No)?;
    assert_eq!(held.len(), 1);
    let waiting = stdout(&feed(on(&database, &put), "3")?);
    let shown = stdout(&on(&database, &["show", waiting.trim()]).output()?);
    assert!(shown.contains("its queue is full: it runs 1 of at most 1 jobs"), "{shown}");
    assert!(stdout(&on(&database, &["ls"]).output()?).contains("full; limited to 1 running"));
    let used = "queue: at most 1 running\nqueue: 1 running now\n1 due job waiting for the limit running\n";
    assert!(run(&[])?.starts_with(used), "{}", run(&[])?);
    assert_eq!(run(&["--clear"])?, "no limits\n");
    Ok(())
}

#[test]
fn a_fair_queue_is_set_shown_and_explained() -> Outcome {
    let database = migrated()?;
    let limit = |words: &[&str]| on(&database, &[&["limit", "mail"], words].concat()).output();
    let refused = limit(&["--group", "a", "--weight", "3"])?;
    assert!(
        printed(&refused).contains("only the groups of a fair queue have weights"),
        "{}",
        printed(&refused)
    );
    assert_eq!(stdout(&limit(&["--fair"])?), "queue: fair, so its groups take turns\n");
    let once = "queue: fair, so its groups take turns\ngroup b: 1 job in each turn\n";
    assert_eq!(stdout(&limit(&["--group", "b", "--weight", "1"])?), once);
    let weighted = "queue: fair, so its groups take turns\ngroup b: 2 jobs in each turn\n";
    assert_eq!(stdout(&limit(&["--group", "b", "--weight", "2"])?), weighted);
    let put = |group: &str, payload: &str| -> Result<String, Box<dyn std::error::Error>> {
        let words: &[&str] =
            if group.is_empty() { &["put", "mail"] } else { &["put", "mail", "--group", group] };
        Ok(stdout(&feed(on(&database, words), payload)?).trim().to_owned())
    };
    for payload in ["1", "2", "3"] {
        put("a", payload)?;
    }
    put("b", "11")?;
    let last = put("b", "12")?;
    put("", "31")?;
    let shown = stdout(&on(&database, &["show", &last]).output()?);
    let expected = "its queue is fair, and its groups take turns; 1 job of group \"b\" comes first";
    assert!(shown.contains(expected), "{shown}");
    assert!(stdout(&on(&database, &["ls"]).output()?).contains("fair, 1 group with a weight"));
    let mut taken = Vec::new();
    for _ in 0..6 {
        taken.push(stdout(&on(&database, &["get", "mail"]).output()?).trim().to_owned());
    }
    assert_eq!(taken, ["31", "1", "11", "12", "2", "3"]);
    assert_eq!(stdout(&limit(&["--unfair"])?), "no limits\n");
    Ok(())
}
