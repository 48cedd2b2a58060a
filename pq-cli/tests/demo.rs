//! `pq demo`, with and without `--chaos`: no job is lost or done twice.

mod common;

use diesel::connection::SimpleConnection;
use pq_testing::Server;

use self::common::*;

#[test]
fn the_demo_loses_nothing_and_does_nothing_twice() -> Outcome {
    let database = Server::shared()?.database()?;
    let folder = folder(60)?;
    let shown = demo(&database, folder.path()).output()?;
    assert_eq!(status(&shown), 0, "{}", stderr(&shown));
    let counted = rows(&shown, ["jobs (one", "results", "killed", "lost", "twice"]);
    assert_eq!(counted, ["60", "60", "1", "0", "0"], "{}", stdout(&shown));
    assert_nothing_left(&database)
}

#[test]
fn an_interrupted_demo_leaves_nothing_behind() -> Outcome {
    let database = Server::shared()?.database()?;
    let folder = folder(5_000)?;
    let mut running = demo(&database, folder.path()).spawn()?;
    wait_until(&database, DEMO_WORKS)?;
    signal(&running, rustix::process::Signal::INT)?;
    // The demo would block on a full pipe.
    let said = running.stderr.take().map(std::io::read_to_string).transpose()?;
    assert_eq!(running.wait()?.code(), Some(130), "{said:?}");
    assert_nothing_left(&database)
}

#[test]
fn without_postgresql_programs_the_error_names_the_remedy() -> Outcome {
    let folder = folder(1)?;
    let failed = pq(&["demo", "--jobs-from"])
        .arg(folder.path())
        .env("PQ_TEST_PG_BIN", folder.path())
        .env_remove("PQ_TEST_DATABASE_URL")
        .output()?;
    assert_eq!(status(&failed), 5, "{}", stderr(&failed));
    assert!(stderr(&failed).contains("--database-url"), "{}", stderr(&failed));
    Ok(())
}

#[test]
fn chaos_loses_nothing_and_does_nothing_twice() -> Outcome {
    let database = Server::shared()?.database()?;
    let mut bystander = database.connect()?;
    let folder = folder(200)?;
    let shown = demo(&database, folder.path()).args(["--chaos", "--seed", "7"]).output()?;
    assert_eq!(status(&shown), 0, "{}", stderr(&shown));
    let [jobs, results, seed, lost, twice] = rows(&shown, ["jobs (one", "results", "seed", "lost", "twice"]);
    assert_eq!([jobs, results, seed, lost, twice], ["200", "200", "7", "0", "0"], "{}", stdout(&shown));
    // Five faults of each kind are injected in the middle of jobs, and others at random. A random fault can hit a
    // worker that waits for such a fault, so the counts are at least 1.
    let [started, killed, terminated] = rows(&shown, ["started", "killed", "terminated"]);
    let (killed, terminated) = (killed.parse::<usize>()?, terminated.parse::<usize>()?);
    assert!(killed >= 1 && terminated >= 1, "{}", stdout(&shown));
    assert_eq!(started.parse::<usize>()?, 4 + killed, "each killed worker is replaced");
    let printed = stderr(&shown).lines().filter(|line| line.starts_with("after ")).count();
    assert_eq!(printed, killed + terminated, "each fault is printed: {}", stderr(&shown));
    bystander.batch_execute("SELECT 1")?;
    drop(bystander);
    assert_nothing_left(&database)
}

#[test]
fn chaos_with_one_worker_and_few_files_has_one_fault_of_each_kind() -> Outcome {
    let database = Server::shared()?.database()?;
    for files in [1, 10] {
        let folder = folder(files)?;
        let shown = demo(&database, folder.path()).args(["--chaos", "--workers", "1"]).output()?;
        assert_eq!(status(&shown), 0, "{}", stderr(&shown));
        let [results, killed, terminated, lost, twice] =
            rows(&shown, ["results", "killed", "terminated", "lost", "twice"]);
        assert_eq!([results, lost, twice], [files.to_string().as_str(), "0", "0"], "{}", stdout(&shown));
        assert!(killed.parse::<usize>()? >= 1 && terminated.parse::<usize>()? >= 1, "{}", stdout(&shown));
    }
    assert_nothing_left(&database)
}

#[test]
fn chaos_works_with_an_application_name_in_the_url() -> Outcome {
    let database = Server::shared()?.database()?;
    let folder = folder(10)?;
    let joint = if database.url().contains('?') { '&' } else { '?' };
    let url = format!("{}{joint}application_name=shop", database.url());
    let shown =
        pq(&["demo", "--chaos", "--database-url", &url, "--jobs-from"]).arg(folder.path()).output()?;
    assert_eq!(status(&shown), 0, "{}", stderr(&shown));
    let [terminated, lost, twice] = rows(&shown, ["terminated", "lost", "twice"]);
    assert!(terminated.parse::<usize>()? >= 1, "{}", stdout(&shown));
    assert_eq!([lost, twice], ["0", "0"]);
    Ok(())
}

#[test]
fn a_seed_requires_chaos() -> Outcome {
    let refused = pq(&["demo", "--seed", "7"]).output()?;
    assert_eq!(status(&refused), 2);
    assert!(stderr(&refused).contains("--chaos"), "{}", stderr(&refused));
    Ok(())
}

#[test]
fn an_interrupted_chaos_leaves_nothing_behind() -> Outcome {
    let database = Server::shared()?.database()?;
    let folder = folder(5_000)?;
    let mut running = demo(&database, folder.path()).arg("--chaos").spawn()?;
    wait_until(&database, DEMO_WORKS)?;
    signal(&running, rustix::process::Signal::TERM)?;
    // The demo would block on a full pipe.
    let said = running.stderr.take().map(std::io::read_to_string).transpose()?;
    assert_eq!(running.wait()?.code(), Some(130), "{said:?}");
    assert_nothing_left(&database)
}
