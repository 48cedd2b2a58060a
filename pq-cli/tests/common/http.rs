//! A minimal HTTP client, and the dashboard as a process.

#![allow(dead_code, unreachable_pub)]

use std::error::Error;
use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::TcpStream;

use pq_testing::Database;

use super::{TIMEOUT, Work, on, wait_for};

/// The answer to a request.
pub(crate) struct Answer {
    pub status: u16,
    head: String,
    pub body: String,
}

impl Answer {
    /// Returns the values of a header.
    pub fn headers(&self, name: &str) -> Vec<&str> {
        let pairs = self.head.lines().filter_map(|line| line.split_once(": "));
        pairs.filter(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value).collect()
    }

    /// Returns the cookie of the session that the answer sets.
    pub fn session(&self) -> Option<&str> {
        let cookies = self.headers("set-cookie");
        let session = cookies.into_iter().rfind(|cookie| cookie.starts_with("pq_session"))?;
        session.split(';').next()
    }

    /// Returns the token of the page's forms.
    pub fn form_token(&self) -> Option<&str> {
        let (_, rest) = self.body.split_once("name=\"form_token\" value=\"")?;
        rest.split('"').next()
    }
}

/// Sends a request to this address and reads the whole answer.
pub(crate) fn request(
    address: &str,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Result<Answer, Box<dyn Error>> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    let mut text =
        format!("{method} {path} HTTP/1.1\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        write!(text, "Host: {address}\r\n")?;
    }
    for (name, value) in headers {
        write!(text, "{name}: {value}\r\n")?;
    }
    stream.write_all(format!("{text}\r\n{body}").as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8(answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("no answer")?;
    let status = head.split_whitespace().nth(1).ok_or("no status")?.parse()?;
    Ok(Answer { status, head: head.to_owned(), body: body.to_owned() })
}

/// Sends a form with these headers and fields.
pub(crate) fn post(
    web: &Web,
    path: &str,
    headers: &[(&str, &str)],
    fields: &str,
) -> Result<Answer, Box<dyn Error>> {
    let mut all = vec![("Content-Type", "application/x-www-form-urlencoded")];
    all.extend_from_slice(headers);
    request(&web.address, "POST", path, &all, fields)
}

/// A running `pq web`.
pub(crate) struct Web {
    pub work: Work,
    pub address: String,
}

impl Web {
    /// Starts `pq web` on this database with these options and environment variables.
    pub fn start(
        database: &Database,
        options: &[&str],
        variables: &[(&str, &str)],
    ) -> Result<Self, Box<dyn Error>> {
        let words: Vec<&str> = ["web", "--listen", "127.0.0.1:0"].iter().chain(options).copied().collect();
        let mut command = on(database, &words);
        command.envs(variables.iter().copied());
        let work = Work::start(command)?;
        let mut address = None;
        wait_for("the address", || {
            let printed = work.stderr();
            let rest = printed.split_once("listening on http://").map(|(_, rest)| rest);
            address = rest.and_then(|rest| rest.split_once('\n')).map(|(address, _)| address.to_owned());
            Ok(address.is_some())
        })?;
        Ok(Self { work, address: address.unwrap_or_default() })
    }

    /// Gets a page.
    pub fn get(&self, path: &str) -> Result<Answer, Box<dyn Error>> {
        request(&self.address, "GET", path, &[], "")
    }
}
