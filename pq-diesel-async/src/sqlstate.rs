//! The SQLSTATE of an error, which diesel-async does not expose.

#![allow(unsafe_code)]

use diesel::result::DatabaseErrorInformation;
use tokio_postgres::error::DbError;

/// Returns the SQLSTATE of an error that the server reported. diesel-async reads it and keeps only a kind.
///
/// `info` must come from a statement on an [`AsyncPgConnection`].
pub(crate) fn sqlstate(info: &(dyn DatabaseErrorInformation + Send + Sync)) -> Option<String> {
    // The other type that diesel-async uses, for errors that are not the server's, is `String`.
    if size_of_val(info) != size_of::<DbError>() || align_of_val(info) != align_of::<DbError>() {
        return None;
    }
    // SAFETY: diesel-async implements the trait for `String` and for a private type whose only field is a `DbError`.
    // Of the two only the latter has this size, so the value is one, and it is valid while `info` is borrowed. A test
    // of each SQLSTATE that decides something fails if that changes.
    let error = unsafe { &*std::ptr::from_ref(info).cast::<DbError>() };
    Some(error.code().code().to_owned())
}
