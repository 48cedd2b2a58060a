//! Runs the checks of the doctor: one examination at a time, shared by all who ask for one.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use chrono::{DateTime, Utc};
use pq_diesel::Pq;
use pq_diesel::doctor::{Examination, Finding};
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::database::Unread;

/// For this long a result is not replaced.
const KEPT: Duration = Duration::from_secs(60);

/// How long a request waits for an examination. It continues, and its result is shown later.
const MAX_WAIT: Duration = Duration::from_secs(20);

/// The result of an examination.
#[derive(Clone, Debug)]
pub(crate) struct Examined {
    /// When it began, by the clock of this machine.
    pub(crate) at: DateTime<Utc>,
    begun: Instant,
    pub(crate) findings: Result<Vec<Finding>, Unread>,
}

/// Examines a database. It uses its own connections of the handle, so that the pages do not wait for it.
pub(crate) struct Examiner {
    pq: Pq,
    /// The newest result. An examination holds the lock, also when nobody waits for it any more.
    newest: Arc<Mutex<Option<Examined>>>,
}

impl Examiner {
    pub(crate) fn new(pq: &Pq) -> Self {
        Self { pq: pq.clone(), newest: Arc::default() }
    }

    /// Returns the newest result, or an error while an examination runs.
    pub(crate) fn newest(&self) -> Result<Option<Examined>, Unread> {
        let newest = self.newest.try_lock();
        newest.map(|newest| newest.clone()).map_err(|_| {
            Unread("the database is being examined; load this page again to see the result".to_owned())
        })
    }

    /// Examines the database unless that was done within the last minute, and waits for the end for some seconds.
    pub(crate) async fn examine(&self) {
        let examined = async {
            let mut newest = Arc::clone(&self.newest).lock_owned().await;
            let is_kept = |newest: &Examined| newest.findings.is_ok() && newest.begun.elapsed() < KEPT;
            if newest.as_ref().is_some_and(is_kept) {
                return;
            }
            let pq = self.pq.clone();
            let examination = tokio::task::spawn_blocking(move || {
                let (at, begun) = (Utc::now(), Instant::now());
                let findings = pq.examine(&Examination::new().clock(SystemTime::now));
                let findings = findings.map_err(|error| Unread(error.to_string()));
                *newest = Some(Examined { at, begun, findings });
            });
            // An error means that the examination panicked, and there is no result.
            let _ = examination.await;
        };
        // An error means that it takes longer.
        let _ = timeout(MAX_WAIT, examined).await;
    }
}
