//! A taken job and the proof that it is held.

use std::ops::Deref;

use crate::{Annotations, Error, JobId, JobRecord};

/// A taken job: its record, and the token that proves that its holder may settle it.
///
/// It dereferences to the record, so that `claim.id` and `claim.priority` work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The job, as the take found it. Its attempt is the number of the attempt that begins now.
    pub record: JobRecord,
    /// The store's fencing token. It distinguishes this take from every other take of the same job.
    pub token: i64,
    /// The owner of the job.
    pub held: Held,
    /// The maximum number of jobs of a lease that has this one, because an earlier lease with it was lost.
    ///
    /// A worker gives back the other jobs of the lease before it begins one. So of the jobs of a lost lease, one that
    /// kills its worker is alone at last.
    pub lease_limit: Option<u32>,
    /// Whether its queue was limited when the job was taken. See [`crate::Limits`].
    pub limited: bool,
}

impl Claim {
    /// Returns the token of the lease, if the job is held under one.
    #[must_use]
    pub fn lease(&self) -> Option<i64> {
        matches!(self.held, Held::Lease { .. }).then_some(self.token)
    }

    /// Returns whether a correction of the cost has to be sent to the store. For a crate that sends it on connections
    /// of its own.
    ///
    /// A job that a transaction took from a queue without limits took no tokens.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidAnnotation`] for a cost above 1,000,000. [`Error::InvalidSetting`] if a transaction took the
    /// job from a limited queue.
    pub fn is_cost_correctable(&self, cost: u32) -> Result<bool, Error> {
        let most = Annotations::MAX_COST;
        if cost > most {
            return Err(Error::InvalidAnnotation(format!("invalid cost {cost}: it must be at most {most}")));
        }
        if self.lease().is_none() && self.limited {
            let id = self.id;
            let rule = "a transaction took it without a lease; take it under a lease, as a worker does";
            return Err(Error::InvalidSetting(format!("cannot correct the cost of job {id}: {rule}")));
        }
        Ok(self.lease().is_some())
    }
}

impl Deref for Claim {
    type Target = JobRecord;

    fn deref(&self) -> &JobRecord {
        &self.record
    }
}

/// The owner of a taken job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Held {
    /// The transaction that took it.
    Transaction,
    /// A lease, whose token is that of the claim.
    Lease {
        /// The number of jobs that were taken under it.
        jobs: u32,
    },
}

/// A lease that was extended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extended {
    /// The token of the lease.
    pub lease: i64,
    /// The jobs of the lease whose cancellation was requested.
    pub cancelled: Vec<JobId>,
}
