//! `pq migrate`, `pq schema` and `pq grant`.

mod common;

use insta::assert_snapshot;
use pq_testing::Server;

use self::common::*;

#[test]
fn migrations_are_printed_run_and_reverted() -> Outcome {
    let (database, _redacted) = (Server::shared()?.database()?, redact_times());
    let shown = on(&database, &["migrate", "--dry-run"]).output()?;
    assert!(stdout(&shown).starts_with("-- 0001\n"), "{}", printed(&shown));
    assert!(stdout(&shown).contains("CREATE TABLE \"pq\".\"queue\""), "{}", printed(&shown));
    assert_eq!(status(&on(&database, &["ls"]).output()?), 4, "a dry run changed something");
    assert_snapshot!(
        transcript(&database, &[
            &["migrate"],
            &["migrate", "--dry-run"],
            &["migrate", "--down-to", "0001", "--dry-run"],
            &["migrate", "--down-to", "0001", "-y"],
            &["migrate", "--down-to", "0"],
            &["migrate", "--down-to", "0", "--yes"],
            &["migrate", "--down-to", "0"],
            &["ls"],
            &["migrate", "--down-to", "5", "--yes"],
            &["migrate", "--down-to", "newest", "--yes"],
        ])?, @r#"
    $ pq migrate
    [n] migrations applied
    $ pq migrate --dry-run
    ! up to date: no migration is pending
    $ pq migrate --down-to [versions] --dry-run
    ! no migration would be reverted
    $ pq migrate --down-to [versions] -y
    [n] migrations reverted
    $ pq migrate --down-to 0
    ! pq: not confirmed: this reverts [n] migrations, drops the tables and deletes 0 jobs permanently; pass --yes to confirm
    [2]
    $ pq migrate --down-to 0 --yes
    [n] migrations reverted
    $ pq migrate --down-to 0
    [n] migrations reverted
    $ pq ls
    ! pq: cannot use the table pq.queue: it does not exist or is out of date; run `pq migrate` or call `migrate()`
    [4]
    $ pq migrate --down-to 5 --yes
    ! pq: unknown migration "5"; expected [versions], or 0 to revert all
    [2]
    $ pq migrate --down-to newest --yes
    ! pq: unknown migration "newest"; expected [versions], or 0 to revert all
    [2]
    "#);
    Ok(())
}

#[test]
fn migrate_says_what_it_did_and_can_be_run_again() -> Outcome {
    let database = Server::shared()?.database()?;
    for said in ["1 migration applied\n", "up to date: no migration is pending\n"] {
        let done = on(&database, &["migrate"]).output()?;
        assert_eq!((status(&done), stdout(&done).as_str(), stderr(&done).as_str()), (0, said, ""));
    }
    // A dry run prints the SQL that reverts, which psql could run, and changes nothing.
    let shown = on(&database, &["migrate", "--down-to", "0", "--dry-run"]).output()?;
    assert!(stdout(&shown).starts_with("-- 0001\nDROP TABLE "), "{}", printed(&shown));
    assert_eq!(status(&on(&database, &["ls"]).output()?), 0, "a dry run changed something");
    diesel::connection::SimpleConnection::batch_execute(&mut database.connect()?, &stdout(&shown))?;
    assert_eq!(status(&on(&database, &["ls"]).output()?), 4);
    Ok(())
}

#[test]
fn schema_prints_sql_without_a_database() -> Outcome {
    let printed = pq(&["schema", "--schema", "app", "--table", "work"]).output()?;
    assert_eq!(status(&printed), 0);
    assert!(stdout(&printed).contains("CREATE TABLE \"app\".\"work\""), "{}", stdout(&printed));
    let database = Server::shared()?.database()?;
    diesel::connection::SimpleConnection::batch_execute(&mut database.connect()?, &stdout(&printed))?;
    assert_eq!(status(&on(&database, &["get", "a", "--schema", "app", "--table", "work"]).output()?), 1);
    Ok(())
}

/// Returns psql from PATH, or from the directory where Debian installs it.
fn psql() -> std::process::Command {
    let found = std::process::Command::new("psql").arg("--version").output().is_ok();
    let kept = || std::fs::read_dir("/usr/lib/postgresql").ok()?.flatten().map(|dir| dir.path()).max();
    let path = if found { None } else { kept().map(|dir| dir.join("bin/psql")) };
    std::process::Command::new(path.unwrap_or_else(|| "psql".into()))
}

#[test]
fn the_printed_sql_creates_the_same_tables_in_psql() -> Outcome {
    let folder = tempfile::tempdir()?;
    for place in [&[][..], &["--schema", "My \"own\"; --", "--table", "tab'le $names$"]] {
        let (one, other) = (Server::shared()?.database()?, Server::shared()?.database()?);
        assert_eq!(status(&on(&one, &[&["migrate"], place].concat()).output()?), 0);
        let sql = folder.path().join("schema.sql");
        std::fs::write(&sql, pq(&[&["schema"], place].concat()).output()?.stdout)?;
        let run = psql()
            .args(["-X", "-v", "ON_ERROR_STOP=1", "-f"])
            .arg(&sql)
            .args(["-d", other.url()])
            .output()?;
        assert!(run.status.success(), "{}", stderr(&run));
        assert_eq!(catalog::catalog(&mut one.connect()?)?, catalog::catalog(&mut other.connect()?)?);
        let pending = on(&other, &[&["migrate", "--dry-run"], place].concat()).output()?;
        assert_eq!(printed(&pending), "! up to date: no migration is pending\n");
    }
    Ok(())
}

#[test]
fn a_role_is_granted_what_its_kind_of_process_needs() -> Outcome {
    let database = migrated()?;
    // Roles belong to the server, which other tests may use at the same time.
    let name = &format!("o'clock \"{}\"", database.name());
    let mut conn = database.connect()?;
    let run = |conn: &mut _, sql: &str| diesel::connection::SimpleConnection::batch_execute(conn, sql);
    let role = &format!("\"{}\"", name.replace('"', "\"\""));
    run(&mut conn, &format!("CREATE ROLE {role} NOLOGIN"))?;
    let shown = on(&database, &["grant", name, "producer", "--dry-run"]).output()?;
    let grants = |line: &str| line.starts_with("GRANT ") && line.ends_with(&format!(" TO {role};"));
    assert!(stdout(&shown).lines().count() > 3 && stdout(&shown).lines().all(grants), "{}", printed(&shown));
    run(&mut conn, &format!("SET ROLE {role}"))?;
    let put = "INSERT INTO pq.queue (q_name, data) VALUES ('mail', '1')";
    assert!(run(&mut conn, put).is_err(), "a dry run granted something");
    let granted = stdout(&on(&database, &["grant", name, "producer"]).output()?);
    assert!(granted.contains("the privileges of a producer on pq.queue (18 statements)"), "{granted}");
    run(&mut conn, put)?;
    assert!(run(&mut conn, "DELETE FROM pq.queue").is_err(), "a producer takes no jobs");
    run(&mut conn, "RESET ROLE")?;
    assert_snapshot!(transcript(&database, &[&["grant", "nobody here", "reader"], &["grant", "somebody", "admin"]])?, @r#"
    $ pq grant 'nobody here' reader
    ! pq: the database refused: role "nobody here" does not exist
    [5]
    $ pq grant somebody admin
    ! error: invalid value 'admin' for '<KIND>': unknown role "admin"; expected `producer`, `consumer` or `reader`
    !
    ! For more information, try '--help'.
    [2]
    "#);
    run(&mut conn, &format!("DROP OWNED BY {role}; DROP ROLE {role}"))?;
    Ok(())
}

#[test]
fn a_grant_by_a_role_that_may_not_fails() -> Outcome {
    let database = migrated()?;
    let (helpless, target) = (format!("{}_helpless", database.name()), format!("{}_target", database.name()));
    let mut conn = database.connect()?;
    let mut run = |sql: &str| diesel::connection::SimpleConnection::batch_execute(&mut conn, sql);
    run(&format!("CREATE ROLE {helpless}; CREATE ROLE {target}; GRANT USAGE ON SCHEMA pq TO {helpless}"))?;
    run(&format!("GRANT ALL ON ALL TABLES IN SCHEMA pq TO {helpless}"))?;
    run(&format!("GRANT ALL ON ALL SEQUENCES IN SCHEMA pq TO {helpless}"))?;
    let mut granting = on(&database, &["grant", &target, "reader"]);
    granting.env("PGOPTIONS", format!("-c role={helpless}"));
    let failed = granting.output()?;
    assert_eq!(status(&failed), 5, "{}", printed(&failed));
    assert!(
        stderr(&failed).contains("the privileges of a reader: ")
            && stderr(&failed).contains("run it as the owner")
    );
    run(&format!("DROP OWNED BY {helpless}, {target}; DROP ROLE {helpless}, {target}"))?;
    Ok(())
}

#[test]
fn a_role_is_granted_privileges_after_diesel_migration_run_alone() -> Outcome {
    let database = migrated()?;
    let role = format!("{}_reader", database.name());
    let mut conn = database.connect()?;
    let mut run = |sql: &str| diesel::connection::SimpleConnection::batch_execute(&mut conn, sql);
    // diesel's own tools record their migrations elsewhere.
    run(&format!("DROP TABLE pq.queue_migrations; CREATE ROLE {role}"))?;
    for kind in ["producer", "consumer", "reader"] {
        let granted = on(&database, &["grant", &role, kind]).output()?;
        assert_eq!(status(&granted), 0, "{kind}: {}", printed(&granted));
    }
    run(&format!("SET ROLE {role}; SELECT count(*) FROM pq.queue; RESET ROLE"))?;
    run(&format!("DROP OWNED BY {role}; DROP ROLE {role}"))?;
    Ok(())
}

#[path = "../../pq-diesel/tests/catalog/mod.rs"]
mod catalog;
