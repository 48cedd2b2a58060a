//! Sessions: a random cookie for each browser, the tokens of its forms, and who has logged in with it.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use crate::access::User;

/// How long a login lasts.
pub(crate) const LOGIN_DURATION: Duration = Duration::from_secs(12 * 3600);

/// The number of logins that are kept. The oldest is forgotten first.
const MAX_LOGINS: usize = 1_000;

/// The id of a browser's session: 32 random bytes in hexadecimal.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct SessionId(String);

impl SessionId {
    /// Draws a new id, or returns `None` if the system has no random numbers.
    pub(crate) fn draw() -> Option<Self> {
        Some(Self(hexadecimal(&random()?)))
    }

    /// Returns the id of a cookie's value, if it can be one.
    pub(crate) fn from_cookie(value: &str) -> Option<Self> {
        let is_id = value.len() == 64 && value.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_id.then(|| Self(value.to_owned()))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// The sessions of one dashboard. They end with its process.
#[derive(Default)]
pub(crate) struct Sessions {
    /// Part of each form's token, so that nobody else can compute it.
    key: OnceLock<Option<[u8; 32]>>,
    logins: Mutex<HashMap<SessionId, (User, Instant)>>,
}

impl Sessions {
    /// Returns the token that the forms of this session carry.
    pub(crate) fn form_token(&self, session: &SessionId) -> Option<String> {
        let key = (*self.key.get_or_init(random))?;
        let hash = Sha256::new().chain_update(key).chain_update(session.as_str()).finalize();
        Some(hexadecimal(&hash))
    }

    /// Returns whether a form of this session carries this token.
    pub(crate) fn is_form_token(&self, session: &SessionId, token: &str) -> bool {
        let expected = self.form_token(session);
        // Hashes are compared, so the time of the comparison says nothing about the token.
        expected.is_some_and(|expected| Sha256::digest(expected) == Sha256::digest(token))
    }

    /// Notes that a user has logged in.
    pub(crate) fn log_in(&self, session: SessionId, user: User) {
        let mut logins = self.logins.lock().unwrap_or_else(PoisonError::into_inner);
        logins.retain(|_, (_, since)| since.elapsed() < LOGIN_DURATION);
        if logins.len() >= MAX_LOGINS {
            let oldest = logins.iter().min_by_key(|(_, (_, since))| *since).map(|(id, _)| id.clone());
            oldest.and_then(|id| logins.remove(&id));
        }
        logins.insert(session, (user, Instant::now()));
    }

    /// Forgets a login.
    pub(crate) fn log_out(&self, session: &SessionId) {
        self.logins.lock().unwrap_or_else(PoisonError::into_inner).remove(session);
    }

    /// Returns who has logged in with this session.
    pub(crate) fn user(&self, session: &SessionId) -> Option<User> {
        let logins = self.logins.lock().unwrap_or_else(PoisonError::into_inner);
        let (user, since) = logins.get(session)?;
        (since.elapsed() < LOGIN_DURATION).then(|| user.clone())
    }
}

fn random() -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).ok().map(|()| bytes)
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::Role;

    #[test]
    fn a_form_token_belongs_to_one_session_of_one_dashboard() {
        let (one, other) = (Sessions::default(), Sessions::default());
        let (ann, bob) = (SessionId::draw().expect("random"), SessionId::draw().expect("random"));
        let token = one.form_token(&ann).expect("random");
        assert!(one.is_form_token(&ann, &token));
        assert!(!one.is_form_token(&bob, &token));
        assert!(!other.is_form_token(&ann, &token));
        assert!(!one.is_form_token(&ann, ""));
    }

    #[test]
    fn a_login_ends_when_it_is_logged_out() {
        let sessions = Sessions::default();
        let id = SessionId::draw().expect("random");
        assert_eq!(sessions.user(&id), None);
        let user = User { name: "ann".to_owned(), role: Role::Viewer };
        sessions.log_in(id.clone(), user.clone());
        assert_eq!(sessions.user(&id), Some(user));
        sessions.log_out(&id);
        assert_eq!(sessions.user(&id), None);
    }

    #[test]
    fn only_an_id_is_read_from_a_cookie() {
        let id = SessionId::draw().expect("random");
        assert_eq!(SessionId::from_cookie(id.as_str()), Some(id));
        for value in ["", "abc", &"g".repeat(64), &"a".repeat(65)] {
            assert_eq!(SessionId::from_cookie(value), None);
        }
    }
}
