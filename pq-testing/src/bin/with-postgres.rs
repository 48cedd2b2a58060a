//! `with-postgres`: runs a command with a throwaway PostgreSQL server.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command talks to its user")]

use std::env;
use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitCode, ExitStatus};
use std::thread;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pq_testing::{Error, Options, Server};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

const VARIABLE: &str = "PQ_TEST_DATABASE_URL";

const HELP: &str = "\
Runs a command with a throwaway PostgreSQL server. The command finds its connection string in
PQ_TEST_DATABASE_URL. If that is set already, no server is started.

Usage: with-postgres [--durable] [--database NAME] [--] COMMAND [ARGUMENT]...

  --durable        fsync on, for measurements (default: off, for tests)
  --database NAME  create this database, and let the connection string name it
                   (default: the maintenance database `postgres`)
  -h, --help       this text
  -V, --version    the version

The exit status is the command's, 128 + N if signal N ended it, 127 if the command does not exist,
126 if it cannot be run, 125 if no server is available, and 2 for a usage error.";

/// The parsed command line.
enum Request {
    Help,
    Version,
    Run(Run),
}

struct Run {
    durable: bool,
    database: Option<String>,
    command: OsString,
    arguments: Vec<OsString>,
}

fn main() -> ExitCode {
    match parse(lexopt::Parser::from_env()) {
        Ok(Request::Help) => println!("{HELP}"),
        Ok(Request::Version) => println!("with-postgres {}", env!("CARGO_PKG_VERSION")),
        Ok(Request::Run(run)) => return run.carry_out(),
        Err(error) => {
            eprintln!("with-postgres: {error}\nTry `with-postgres --help`.");
            return ExitCode::from(2);
        }
    }
    ExitCode::SUCCESS
}

fn parse(mut parser: lexopt::Parser) -> Result<Request, lexopt::Error> {
    use lexopt::prelude::*;

    let mut durable = false;
    let mut database = None;
    while let Some(argument) = parser.next()? {
        match argument {
            Short('h') | Long("help") => return Ok(Request::Help),
            Short('V') | Long("version") => return Ok(Request::Version),
            Long("durable") => durable = true,
            Long("database") => database = Some(parser.value()?.string()?),
            Value(command) => {
                return Ok(Request::Run(Run {
                    durable,
                    database,
                    command,
                    arguments: parser.raw_args()?.collect(),
                }));
            }
            other => return Err(other.unexpected()),
        }
    }
    Err("missing command to run".into())
}

impl Run {
    fn carry_out(&self) -> ExitCode {
        let mut command = Command::new(&self.command);
        command.args(&self.arguments);
        if env::var_os(VARIABLE).is_some_and(|value| !value.is_empty()) {
            // Returns only if the command can't be run.
            return self.not_run(&command.exec());
        }
        self.with_server(command).unwrap_or_else(|error| {
            eprintln!("with-postgres: {error}");
            ExitCode::from(125)
        })
    }

    /// The server and the database are dropped when this returns.
    fn with_server(&self, mut command: Command) -> Result<ExitCode, Error> {
        // From here on a signal must not end this process before the server is removed.
        let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])
            .map_err(|source| Error::Io { what: "catch signals".to_owned(), source })?;
        let server = Server::start(&self.options())?;
        let database = match &self.database {
            Some(name) => Some(server.database_named(name)?),
            None => None,
        };
        let url = database.as_ref().map_or(server.url(), |database| database.url());
        if let Some(signal) = signals.pending().next() {
            return Ok(ended_by(signal));
        }
        let child = match command.env(VARIABLE, url).spawn() {
            Ok(child) => child,
            Err(error) => return Ok(self.not_run(&error)),
        };
        Ok(wait(child, signals))
    }

    fn options(&self) -> Options {
        if self.durable { Options::durable() } else { Options::throwaway() }
    }

    fn not_run(&self, error: &io::Error) -> ExitCode {
        eprintln!("with-postgres: {}: {error}", self.command.to_string_lossy());
        ExitCode::from(match error.kind() {
            io::ErrorKind::NotFound => 127,
            _ => 126,
        })
    }
}

/// Waits for the command, and passes signals on to it meanwhile.
fn wait(mut child: Child, mut signals: Signals) -> ExitCode {
    let handle = signals.handle();
    let pid = i32::try_from(child.id()).map(Pid::from_raw);
    let passer = thread::spawn(move || {
        for signal in signals.forever() {
            if let (Ok(pid), Ok(signal)) = (pid, Signal::try_from(signal)) {
                pass_on(pid, signal);
            }
        }
    });
    let status = child.wait();
    handle.close();
    let _ = passer.join();
    status.map_or(ExitCode::from(125), exit_code)
}

fn pass_on(pid: Pid, signal: Signal) {
    // A terminal sends Ctrl-C to its whole foreground group, which includes the command.
    if signal == Signal::SIGINT && io::stdin().is_terminal() {
        return;
    }
    // The command may have ended already.
    let _ = kill(pid, signal);
}

fn exit_code(status: ExitStatus) -> ExitCode {
    match (status.code(), status.signal()) {
        (Some(code), _) => ExitCode::from(u8::try_from(code).unwrap_or(125)),
        (None, Some(signal)) => ended_by(signal),
        (None, None) => ExitCode::from(125),
    }
}

/// Returns 128 + the signal, as shells do.
fn ended_by(signal: i32) -> ExitCode {
    ExitCode::from(u8::try_from(128 + signal).unwrap_or(125))
}
