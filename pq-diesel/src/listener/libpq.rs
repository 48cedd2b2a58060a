//! The little of libpq that a listener needs and diesel does not show: the socket to sleep on.

#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char, c_void};
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;

use pq_sys::{ConnStatusType, ExecStatusType, PGconn};

use crate::conninfo::ConnInfo;

/// What a session has told.
pub(super) struct Notification {
    pub(super) channel: String,
    /// The process of the server that serves the session.
    pub(super) sender: i32,
    /// It says nothing, as those of the table's trigger.
    pub(super) is_of_one_put: bool,
}

/// A connection that is used by one thread at a time and closed when it is dropped.
pub(super) struct Connection(NonNull<PGconn>);

// SAFETY: libpq allows a connection to be used from any thread, one at a time; every method that
// touches it takes `&mut self` or, for the socket's number, reads a field that does not change.
unsafe impl Send for Connection {}

impl Connection {
    /// Connects, with all of the string's TLS and socket settings. The error holds no password.
    pub(super) fn open(conninfo: &ConnInfo) -> Result<Self, String> {
        let text =
            CString::new(conninfo.as_str()).map_err(|_| "the connection string holds NUL".to_owned())?;
        // SAFETY: the string is terminated and outlives the call; the result is checked for null and
        // then owned by `Self`, which closes it.
        let conn = unsafe { pq_sys::PQconnectdb(text.as_ptr()) };
        let conn = Self(NonNull::new(conn).ok_or("libpq is out of memory")?);
        // SAFETY: the connection is open or failed, but not null; a processor that ignores its
        // arguments may be set on it. Without one libpq writes notices to standard error.
        let ok = unsafe {
            pq_sys::PQsetNoticeProcessor(conn.0.as_ptr(), Some(ignore), std::ptr::null_mut());
            pq_sys::PQstatus(conn.0.as_ptr()) == ConnStatusType::CONNECTION_OK
        };
        if ok { Ok(conn) } else { Err(conninfo.redact(&conn.message())) }
    }

    /// Runs a command that returns no rows.
    pub(super) fn run(&mut self, sql: &str) -> Result<(), String> {
        self.exec(sql, |result| {
            // SAFETY: the result may be null, which is taken for an error.
            let status = unsafe { pq_sys::PQresultStatus(result) };
            (status == ExecStatusType::PGRES_COMMAND_OK).then_some(())
        })
    }

    /// Runs a query of one boolean.
    pub(super) fn ask(&mut self, sql: &str) -> Result<bool, String> {
        // SAFETY: as in `run`. A value is read only where there is one, and is a terminated string inside of the result.
        self.exec(sql, |result| unsafe {
            let has_value = pq_sys::PQresultStatus(result) == ExecStatusType::PGRES_TUPLES_OK
                && pq_sys::PQntuples(result) == 1;
            has_value.then(|| CStr::from_ptr(pq_sys::PQgetvalue(result, 0, 0)) == c"t")
        })
    }

    /// Runs a command and reads what came of it; where it does not read anything the command has failed.
    fn exec<R>(
        &mut self,
        sql: &str,
        read: impl FnOnce(*const pq_sys::PGresult) -> Option<R>,
    ) -> Result<R, String> {
        let text = CString::new(sql).map_err(|_| "the command holds NUL".to_owned())?;
        // SAFETY: connection and string are valid for the call; the result belongs to us, may be null (which PQclear
        // ignores), and is freed once, after it was read.
        let read = unsafe {
            let result = pq_sys::PQexec(self.0.as_ptr(), text.as_ptr());
            let read = read(result);
            pq_sys::PQclear(result);
            read
        };
        read.ok_or_else(|| self.message())
    }

    /// Reads what has come and returns the notifications in it, without blocking.
    pub(super) fn notifications(&mut self) -> Result<Vec<Notification>, String> {
        // SAFETY: the connection is valid.
        if unsafe { pq_sys::PQconsumeInput(self.0.as_ptr()) } == 0 {
            return Err(self.message());
        }
        let mut heard = Vec::new();
        // SAFETY: each notification is ours until it is freed, once; its channel and its payload are terminated
        // strings inside of it, copied and compared before.
        unsafe {
            while let Some(notify) = NonNull::new(pq_sys::PQnotifies(self.0.as_ptr())) {
                let told = notify.as_ref();
                heard.push(Notification {
                    channel: CStr::from_ptr(told.relname).to_string_lossy().into_owned(),
                    sender: told.be_pid,
                    is_of_one_put: CStr::from_ptr(told.extra).is_empty(),
                });
                pq_sys::PQfreemem(notify.as_ptr().cast());
            }
        }
        Ok(heard)
    }

    /// The server's version: 150018 is 15.18.
    pub(super) fn server_version(&self) -> i32 {
        // SAFETY: the connection is valid.
        unsafe { pq_sys::PQserverVersion(self.0.as_ptr()) }
    }

    /// The socket to sleep on; none where the connection is gone.
    pub(super) fn socket(&self) -> Option<BorrowedFd<'_>> {
        // SAFETY: the connection is valid. A descriptor that is not negative is open for as long as
        // the connection is not reset or closed, which the borrow of `self` prevents.
        unsafe {
            let fd = pq_sys::PQsocket(self.0.as_ptr());
            (fd >= 0).then(|| BorrowedFd::borrow_raw(fd))
        }
    }

    fn message(&self) -> String {
        // SAFETY: libpq returns a terminated string that lives until the next call on the connection;
        // it is copied at once.
        unsafe { CStr::from_ptr(pq_sys::PQerrorMessage(self.0.as_ptr())).to_string_lossy().trim().to_owned() }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // SAFETY: the connection is valid and nobody uses it after this.
        unsafe { pq_sys::PQfinish(self.0.as_ptr()) }
    }
}

extern "C" fn ignore(_: *mut c_void, _: *const c_char) {}
