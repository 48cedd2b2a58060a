//! Servers given by a connection string. They are used and never stopped.

mod common;

use common::{lives, parent, private_in, start};
use pq_testing::{Error, Kind, Options, Origin, Server, Stop};

#[test]
fn a_given_server_is_used_and_never_stopped() {
    let parent = parent();
    let theirs = start(&private_in(parent.path()));
    let pid = theirs.pid().expect("it runs");

    let given = Server::start(&Options::durable().url(theirs.url())).expect("it answers");
    assert!(matches!(given.origin(), Origin::Url { from: "Options::url", .. }));
    assert_eq!(given.url(), theirs.url());
    assert_eq!((given.pid(), given.directory()), (None, None));
    let database = given.database().expect("a database");
    database.connect().expect("a connection");
    let refused = given.stop(Stop::Fast).expect_err("it is not ours");
    assert!(matches!(refused, Error::NotPrivate { operation: "stop", .. }), "{refused}");
    assert!(matches!(given.restart(Stop::Fast), Err(Error::NotPrivate { .. })));
    assert!(matches!(given.start_again(), Err(Error::NotPrivate { .. })));
    drop((database, given));

    assert!(lives(pid));
    theirs.database().expect("it still answers");
}

#[test]
fn a_keyword_value_connection_string_works() {
    let parent = parent();
    let theirs = start(&private_in(parent.path()));
    let url = theirs.url().strip_prefix("postgres://postgres:").expect("its form");
    let (password, rest) = url.split_once('@').expect("its form");
    let port =
        rest.strip_prefix("127.0.0.1:").and_then(|rest| rest.strip_suffix("/postgres")).expect("its form");
    let form = format!("host=127.0.0.1 port={port} user=postgres password='{password}' dbname=postgres");
    let given = Server::start(&Options::throwaway().kind(Kind::Url).url(form)).expect("it answers");
    let database = given.database().expect("a database");
    database.connect().expect("a connection");
}

#[test]
fn no_error_about_a_connection_string_shows_its_password() {
    for url in [
        "postgres://u:s3cr3t@127.0.0.1:1/d",
        "postgres://u:s3cr3t@s3cr3t@127.0.0.1:1/d",
        "postgres://u:a/s3cr3t@127.0.0.1:1/d",
        "postgres://u:%73%33cr3t@127.0.0.1:1/d",
        "postgres://127.0.0.1:1/d?user=u&password=s3cr3t",
        "postgres://u:s3cr3t@127.0.0.1:port/d",
        "postgres://u:s3cr3t@127.0.0.1:1/d?bad=s3cr3t",
        "host=127.0.0.1 port=1 password=s3cr3t",
        "host=127.0.0.1 port=1 password=a s3cr3t",
        "mysql://u:s3cr3t@127.0.0.1:1/d",
        "s3cr3t",
    ] {
        let error = Server::start(&Options::throwaway().url(url)).expect_err("no server listens there");
        let shown = format!("{error} {error:?}");
        assert!(!shown.contains("s3cr3t"), "{shown}");
    }
}
