//! Who may see the dashboard, and who may act.

use std::fmt;
use std::net::SocketAddr;

use axum::http::HeaderName;
use sha2::{Digest, Sha256};

/// What a user may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Sees all pages.
    Viewer,
    /// Also runs the actions, if the dashboard allows actions.
    Operator,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
        })
    }
}

/// A user of the dashboard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// The name, which the audit log records.
    pub name: String,
    /// What the user may do.
    pub role: Role,
}

/// How the dashboard finds out who sends a request.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub enum Access {
    /// Without a login, for this machine only. Everybody is an operator.
    ///
    /// A request is answered if its connection comes from a loopback address, it names the local machine as its host,
    /// and no proxy passed it on. So neither another machine nor a web site in a local browser reaches the dashboard.
    /// An application must be served with
    /// [`into_make_service_with_connect_info`](axum::Router::into_make_service_with_connect_info)`::<SocketAddr>()`:
    /// without the address of the client every request is refused. A local proxy that adds no header and speaks
    /// HTTP/1.1 cannot be recognised, and needs another setting.
    #[default]
    Loopback,
    /// By a secret: in the login form, as a bearer token, or as the password of basic authentication.
    Login(Credentials),
    /// By a header that a proxy sets after it has authenticated the user. The proxy must remove the header from the
    /// requests that it receives, and only the proxy may reach the dashboard: another client could write the header
    /// itself.
    #[non_exhaustive]
    Proxy {
        /// The name of the header, which holds the name of the user. A request that has it twice is refused.
        header: HeaderName,
        /// The users that are operators. All others are viewers.
        operators: Vec<String>,
    },
    /// By the application that mounts the router: it adds a [`User`] to the extensions of each request.
    Application,
}

impl Access {
    /// Creates [`Access::Proxy`].
    ///
    /// # Errors
    ///
    /// A text that says why this is not the name of a header.
    pub fn proxy(header: &str, operators: Vec<String>) -> Result<Self, String> {
        let header = HeaderName::from_bytes(header.as_bytes()).map_err(|_| {
            format!("invalid header {header:?}: it must have letters, digits and hyphens only")
        })?;
        Ok(Self::Proxy { header, operators })
    }

    /// Checks whether a server may listen on this address.
    ///
    /// # Errors
    ///
    /// [`StartRefused`] if the address can be reached from other machines and there is no login.
    pub fn check_address(&self, address: SocketAddr) -> Result<(), StartRefused> {
        match self {
            Self::Loopback if !address.ip().is_loopback() => Err(StartRefused { address }),
            _ => Ok(()),
        }
    }
}

/// The address can be reached from other machines, and the dashboard has no login.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "cannot listen on {address} without a login: other machines can reach this address; set a token, or a header of a proxy"
)]
#[non_exhaustive]
pub struct StartRefused {
    /// The address.
    pub address: SocketAddr,
}

/// The secrets of users. Only their hashes are kept.
#[derive(Clone, Default)]
pub struct Credentials(Vec<Credential>);

#[derive(Clone)]
struct Credential {
    user: User,
    hash: [u8; 32],
}

/// Shows the names.
impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|known| &known.user)).finish()
    }
}

/// The least length of a secret, in bytes.
const MIN_SECRET_BYTES: usize = 16;

impl Credentials {
    /// Creates an empty list, with which nobody can log in.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a user.
    ///
    /// # Errors
    ///
    /// A text that says which rule the secret or the name violates, and does not repeat the secret.
    pub fn add(&mut self, role: Role, name: &str, secret: &str) -> Result<(), String> {
        if secret.len() < MIN_SECRET_BYTES {
            let rule = format!("it has {} bytes, and at least {MIN_SECRET_BYTES} are required", secret.len());
            return Err(format!("invalid secret of {role} {name:?}: {rule}"));
        }
        if name.is_empty() || name.contains(':') {
            return Err(format!("invalid name {name:?}: it must not be empty and must not contain a colon"));
        }
        let hash = hash(secret);
        if self.0.iter().any(|known| known.hash == hash) {
            return Err(format!("invalid secret of {role} {name:?}: another user has the same"));
        }
        self.0.push(Credential { user: User { name: name.to_owned(), role }, hash });
        Ok(())
    }

    /// Reads users from a text with one per line: `ROLE NAME SECRET`, where ROLE is `viewer` or `operator`.
    ///
    /// Empty lines and lines that begin with `#` are ignored.
    ///
    /// # Errors
    ///
    /// A text that names the line, and does not repeat a secret.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut all = Self::new();
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let mut words = line.split_whitespace();
            let (role, name, secret, rest) = (words.next(), words.next(), words.next(), words.next());
            let role = match role {
                Some("viewer") => Role::Viewer,
                Some("operator") => Role::Operator,
                _ => return Err(format!("invalid line {number}: it must begin with `viewer` or `operator`")),
            };
            let (Some(name), Some(secret), None) = (name, secret, rest) else {
                return Err(format!("invalid line {number}: expected `{role} NAME SECRET`"));
            };
            all.add(role, name, secret).map_err(|rule| format!("invalid line {number}: {rule}"))?;
        }
        Ok(all)
    }

    /// Returns whether nobody can log in.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the user with this secret, and with this name if one is given.
    ///
    /// Hashes are compared, so the time of the comparison says nothing about the secret.
    pub(crate) fn find(&self, name: Option<&str>, secret: &str) -> Option<&User> {
        let hash = hash(secret);
        let known = self.0.iter().find(|known| known.hash == hash)?;
        name.is_none_or(|name| name == known.user.name).then_some(&known.user)
    }
}

fn hash(secret: &str) -> [u8; 32] {
    Sha256::digest(secret).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "0123456789abcdef";

    #[test]
    fn an_address_of_other_machines_needs_a_login() {
        for open in ["0.0.0.0:80", "[::]:80", "192.168.0.7:80", "[::ffff:127.0.0.1]:80"] {
            let address = open.parse().expect("an address");
            assert!(Access::Loopback.check_address(address).is_err(), "{open}");
            assert!(Access::Login(Credentials::new()).check_address(address).is_ok(), "{open}");
        }
        for local in ["127.0.0.1:80", "127.1.2.3:80", "[::1]:80"] {
            assert!(Access::Loopback.check_address(local.parse().expect("an address")).is_ok(), "{local}");
        }
    }

    #[test]
    fn users_are_read_from_lines_and_found_by_secret() -> Result<(), String> {
        let text = format!("# people\n\nviewer ann {SECRET}1\n operator  bob {SECRET}2 \n");
        let users = Credentials::parse(&text)?;
        let found = users.find(None, &format!("{SECRET}2"));
        assert_eq!(found, Some(&User { name: "bob".to_owned(), role: Role::Operator }));
        assert_eq!(users.find(Some("ann"), &format!("{SECRET}2")), None, "the name must fit the secret");
        assert_eq!(users.find(None, SECRET), None);
        assert!(!format!("{users:?}").contains(SECRET));
        Ok(())
    }

    #[test]
    fn an_invalid_line_is_named_without_its_secret() {
        for line in [
            format!("admin ann {SECRET}"),
            format!("viewer {SECRET}"),
            format!("viewer ann {SECRET} more"),
            "viewer ann 0123456789abcde".to_owned(),
            format!("viewer a:b {SECRET}"),
            format!("viewer ann {SECRET}\nviewer bob {SECRET}"),
        ] {
            let refused = Credentials::parse(&line).err().unwrap_or_default();
            assert!(refused.starts_with("invalid line "), "{line}: {refused}");
            assert!(!refused.contains("0123456789abcde"), "{refused}");
        }
    }
}
