//! Private clusters: their settings, databases and ways to stop.

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::sync::Barrier;
use std::thread;

use common::{entries, lives, parent, private_in, run, start, value};
use pq_testing::{Error, Kind, Options, Origin, Server, Stop};

#[test]
fn a_private_cluster_runs_with_its_settings() {
    let parent = parent();
    let server = start(&private_in(parent.path()).setting("work_mem", "7MB"));

    assert!(matches!(server.origin(), Origin::PrivateCluster { .. }));
    let shown = server.origin().to_string();
    assert!(shown.starts_with("private cluster, PostgreSQL "), "{shown}");
    assert!(shown.contains(server.origin().version()), "{shown}");

    let database = server.database().expect("a database");
    let mut conn = database.connect().expect("a connection");
    for (setting, wanted) in [
        ("listen_addresses", "127.0.0.1"),
        ("server_encoding", "UTF8"),
        ("fsync", "off"),
        ("synchronous_commit", "on"),
        ("work_mem", "7MB"),
        ("TimeZone", "UTC"),
    ] {
        assert_eq!(value(&mut conn, &format!("current_setting('{setting}')")), wanted, "{setting}");
    }
}

#[test]
fn a_durable_cluster_syncs() {
    let parent = parent();
    let options = Options::durable().kind(Kind::Binaries).directory(parent.path());
    let server = start(&options);
    let database = server.database().expect("a database");
    let mut conn = database.connect().expect("a connection");
    for setting in ["fsync", "synchronous_commit", "full_page_writes"] {
        assert_eq!(value(&mut conn, &format!("current_setting('{setting}')")), "on", "{setting}");
    }
}

#[test]
fn a_cluster_is_private_and_requires_the_password() {
    let parent = parent();
    let server = start(&private_in(parent.path()));
    let dir = server.directory().expect("a private cluster's directory");
    let found = fs::metadata(&dir).expect("its directory");
    assert_eq!(found.permissions().mode() & 0o777, 0o700);
    assert!(entries(&dir).iter().all(|name| name != "password"), "{:?}", entries(&dir));

    let pid = server.pid().expect("it runs");
    let owner = fs::metadata(format!("/proc/{pid}")).expect("its process").uid();
    assert_eq!(owner, found.uid());
    assert_ne!(owner, 0, "PostgreSQL refuses to run as root");

    let (_, address) = server.url().split_once('@').expect("a URL with a user");
    let wrong = Options::throwaway().url(format!("postgres://postgres:wr0ng@{address}"));
    let error = Server::start(&wrong).expect_err("the password is wrong");
    assert!(matches!(error, Error::Connect { .. }), "{error}");
    assert!(error.to_string().contains("password authentication failed"), "{error}");
    assert!(!format!("{error} {error:?}").contains("wr0ng"), "{error:?}");
}

#[test]
fn debug_shows_no_password() {
    let parent = parent();
    let server = start(&private_in(parent.path()));
    let database = server.database().expect("a database");
    let password = server
        .url()
        .strip_prefix("postgres://postgres:")
        .and_then(|rest| rest.split('@').next())
        .expect("a URL with a password");
    assert!(database.url().contains(password));
    assert!(!format!("{server:?} {database:?} {}", server.origin()).contains(password));
}

#[test]
fn sixteen_threads_create_isolated_databases_concurrently() {
    let parent = parent();
    let server = start(&private_in(parent.path()));
    let together = Barrier::new(16);
    thread::scope(|scope| {
        for number in 0..16 {
            let (server, together) = (&server, &together);
            scope.spawn(move || {
                together.wait();
                let database = server.database().expect("a database");
                let mut conn = database.connect().expect("a connection");
                // All databases have a table of this name.
                run(&mut conn, &format!("CREATE TABLE t AS SELECT {number} AS n"));
                together.wait();
                assert_eq!(value(&mut conn, "(SELECT string_agg(n::text, ',') FROM t)"), number.to_string());
                assert_eq!(value(&mut conn, "current_database()::text"), database.name());
            });
        }
    });
    let database = server.database().expect("a database");
    let mut conn = database.connect().expect("a connection");
    let ours = "(SELECT string_agg(datname, ' ') FROM pg_database WHERE datname LIKE 'pq_test%')";
    assert_eq!(value(&mut conn, ours), database.name(), "the others are dropped");
}

#[test]
fn a_copy_has_the_tables_of_its_template_and_a_content_of_its_own() {
    let parent = parent();
    let server = start(&private_in(parent.path()));
    let template = server.database_named("the \"template\"").expect("a database");
    run(&mut template.connect().expect("a connection"), "CREATE TABLE t AS SELECT 1 AS n");
    let copies = [(); 2].map(|()| server.database_like(template.name()).expect("a copy"));
    run(&mut copies[0].connect().expect("a connection"), "UPDATE t SET n = 2");
    for (database, n) in [(&copies[0], "2"), (&copies[1], "1"), (&template, "1")] {
        let mut conn = database.connect().expect("a connection");
        assert_eq!(value(&mut conn, "(SELECT string_agg(n::text, ',') FROM t)"), n);
    }
    assert!(matches!(server.database_like("there is none"), Err(Error::Statement { .. })));
}

#[test]
fn dropping_a_database_ends_its_sessions() {
    let parent = parent();
    let server = start(&private_in(parent.path()));
    let database = server.database_named("it's \"odd\" ☃").expect("a database");
    let mut conn = database.connect().expect("a connection");
    assert_eq!(value(&mut conn, "current_database()::text"), "it's \"odd\" ☃");
    let again = server.database_named(database.name()).expect_err("there is one");
    assert!(matches!(again, Error::Statement { .. }), "{again}");
    drop(database);
    assert!(diesel::connection::SimpleConnection::batch_execute(&mut conn, "SELECT 1").is_err());

    for name in ["", "a\0b", &"x".repeat(64)] {
        let error = server.database_named(name).expect_err("a bad name");
        assert!(matches!(error, Error::DatabaseName { .. }), "{error}");
    }
}

#[test]
fn dropping_a_server_removes_its_directory_and_its_process() {
    let parent = parent();
    let server = start(&private_in(parent.path()));
    let pid = server.pid().expect("it runs");
    assert!(lives(pid));
    assert_eq!(entries(parent.path()).len(), 1);
    drop(server);
    assert!(!lives(pid));
    assert_eq!(entries(parent.path()), Vec::<String>::new());
}

#[test]
fn committed_data_survives_every_way_to_stop() {
    let parent = parent();
    let server = start(&private_in(parent.path()));
    let url = server.url().to_owned();
    let database = server.database().expect("a database");
    let mut conn = database.connect().expect("a connection");
    run(&mut conn, "CREATE TABLE t (how text)");
    for how in [Stop::Fast, Stop::Immediate, Stop::Kill] {
        run(&mut conn, &format!("INSERT INTO t VALUES ('{how:?}')"));
        server.stop(how).expect("it stops");
        assert_eq!(server.pid(), None);
        assert!(matches!(server.stop(how), Err(Error::State { .. })));
        assert!(matches!(database.connect(), Err(Error::Connect { .. })));

        server.start_again().expect("it starts");
        assert!(matches!(server.start_again(), Err(Error::State { .. })));
        conn = database.connect().expect("a connection");
    }
    assert_eq!(value(&mut conn, "(SELECT string_agg(how, ' ') FROM t)"), "Fast Immediate Kill");
    assert_eq!(server.url(), url);
    server.restart(Stop::Fast).expect("it restarts");
}

#[test]
fn a_killed_server_starts_again() {
    let parent = parent();
    let server = start(&private_in(parent.path()));
    let pid = nix::unistd::Pid::from_raw(server.pid().expect("it runs").cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).expect("ours to kill");
    common::within(std::time::Duration::from_secs(60), "it is dead", || server.pid().is_none());
    server.start_again().expect("it starts");
    server.database().expect("a database");
}

#[test]
fn the_shared_server_is_one_and_cannot_be_stopped() {
    let first = Server::shared().expect("a server");
    let second = thread::spawn(|| Server::shared().expect("a server")).join().expect("no panic");
    assert_eq!(first.url(), second.url());
    let refused = first.stop(Stop::Fast).expect_err("it is shared");
    assert!(matches!(refused, Error::Shared { .. } | Error::NotPrivate { .. }), "{refused}");
}

#[test]
fn an_error_names_a_directory_without_programs() {
    let options = Options::throwaway().kind(Kind::Binaries).bin_dir("/nowhere/bin");
    let error = Server::start(&options).expect_err("there is nothing");
    assert!(matches!(error, Error::BinDir { .. }));
    let text = error.to_string();
    for word in ["/nowhere/bin", "Options::bin_dir", "`initdb`", "pg_config --bindir"] {
        assert!(text.contains(word), "{text}");
    }
}

#[test]
fn an_error_has_the_log_of_a_server_that_refuses_a_setting() {
    let parent = parent();
    let error =
        Server::start(&private_in(parent.path()).setting("work_mem", "much")).expect_err("no such amount");
    assert!(matches!(error, Error::Exited { .. }), "{error:?}");
    assert!(error.to_string().contains("work_mem"), "{error}");
    assert_eq!(entries(parent.path()), Vec::<String>::new());
}

#[test]
fn a_directory_that_cannot_hold_a_socket_is_refused() {
    let parent = parent();
    let deep = parent.path().join("d".repeat(90));
    fs::create_dir(&deep).expect("a directory");
    let error = Server::start(&private_in(&deep)).expect_err("its path is too long");
    assert!(matches!(error, Error::Directory { .. }), "{error}");
}
