//! The parts of libpq that diesel does not expose: the listener's socket and its notifications, connection strings, the
//! SQLSTATE of an error, and the end of a call that hangs.

#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char, c_void};
use std::os::fd::{BorrowedFd, RawFd};
use std::ptr::NonNull;
use std::time::{Duration, Instant};

use diesel::result::DatabaseErrorInformation;
use pq_sys::{ConnStatusType, ExecStatusType, PGconn, PGresult};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::conninfo::ConnInfo;

/// A notification that has arrived.
pub(super) struct Notification {
    pub(super) channel: String,
    /// Empty in a notification of a put, unless a listener sent it on behalf of many writers.
    pub(super) payload: String,
}

/// A connection that one thread uses at a time. It is closed when it is dropped.
pub(super) struct Connection {
    conn: NonNull<PGconn>,
    /// The longest time that a statement waits for the server's answer.
    timeout: Duration,
}

// SAFETY: libpq allows a connection to be used from any thread, one at a time; every method that
// touches it takes `&mut self` or, for the socket's number, reads a field that does not change.
unsafe impl Send for Connection {}

impl Connection {
    /// Connects with all TLS and socket settings of the connection string. The error contains no password.
    ///
    /// A statement fails if the server does not answer it within `timeout`. The connection must then be dropped.
    pub(super) fn open(conninfo: &ConnInfo, timeout: Duration) -> Result<Self, String> {
        let text =
            CString::new(conninfo.complete()).map_err(|_| "the connection string contains NUL".to_owned())?;
        // SAFETY: the string is terminated and outlives the call. The result is checked for null and
        // then owned by `Self`, which closes it.
        let conn = unsafe { pq_sys::PQconnectdb(text.as_ptr()) };
        let conn = Self { conn: NonNull::new(conn).ok_or("libpq is out of memory")?, timeout };
        // SAFETY: the connection is open or failed, but not null. The processor ignores its arguments.
        // Without a processor libpq writes notices to standard error.
        let ok = unsafe {
            pq_sys::PQsetNoticeProcessor(conn.conn.as_ptr(), Some(ignore), std::ptr::null_mut());
            pq_sys::PQstatus(conn.conn.as_ptr()) == ConnStatusType::CONNECTION_OK
        };
        if ok { Ok(conn) } else { Err(conninfo.redact(&conn.message())) }
    }

    /// Runs a command that returns no rows.
    pub(super) fn run(&mut self, sql: &str) -> Result<(), String> {
        self.exec(sql, |result| {
            // SAFETY: the result may be null, for which libpq returns an error status.
            let status = unsafe { pq_sys::PQresultStatus(result) };
            (status == ExecStatusType::PGRES_COMMAND_OK).then_some(())
        })
    }

    /// Runs a query that returns one boolean.
    pub(super) fn ask(&mut self, sql: &str) -> Result<bool, String> {
        Ok(self.row(sql)?.first().is_some_and(|value| value == "t"))
    }

    /// Runs a query and returns the columns of its only row. Null is an empty text.
    pub(super) fn row(&mut self, sql: &str) -> Result<Vec<String>, String> {
        // SAFETY: as in `run`. The values are those of the first row, if there is one. Each is a terminated string
        // inside of the result, which is copied.
        self.exec(sql, |result| unsafe {
            let has_row = pq_sys::PQresultStatus(result) == ExecStatusType::PGRES_TUPLES_OK
                && pq_sys::PQntuples(result) == 1;
            let value =
                |column| CStr::from_ptr(pq_sys::PQgetvalue(result, 0, column)).to_string_lossy().into_owned();
            has_row.then(|| (0..pq_sys::PQnfields(result)).map(value).collect())
        })
    }

    /// Runs a command and reads its last result. The command has failed if `read` returns `None`.
    fn exec<R>(
        &mut self,
        sql: &str,
        read: impl Fn(*const pq_sys::PGresult) -> Option<R>,
    ) -> Result<R, String> {
        let text = CString::new(sql).map_err(|_| "the command contains NUL".to_owned())?;
        let deadline = Instant::now() + self.timeout;
        // SAFETY: connection and string are valid for the call.
        if unsafe { pq_sys::PQsendQuery(self.conn.as_ptr(), text.as_ptr()) } == 0 {
            return Err(self.message());
        }
        let mut last = None;
        loop {
            self.await_result(deadline)?;
            // SAFETY: the connection is valid. The result belongs to this function and is freed once, after it was
            // read.
            unsafe {
                let Some(result) = NonNull::new(pq_sys::PQgetResult(self.conn.as_ptr())) else { break };
                last = read(result.as_ptr());
                pq_sys::PQclear(result.as_ptr());
            }
        }
        last.ok_or_else(|| self.message())
    }

    /// Waits until the next result has arrived completely.
    fn await_result(&mut self, deadline: Instant) -> Result<(), String> {
        // SAFETY: the connection is valid.
        while unsafe { pq_sys::PQisBusy(self.conn.as_ptr()) } != 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(format!("the server did not answer within {:?}", self.timeout));
            }
            let socket = self.socket().ok_or("the connection has no socket")?;
            let timeout = Timespec::try_from(left).ok();
            // An interrupted poll counts as a wake-up.
            let _ = poll(&mut [PollFd::from_borrowed_fd(socket, PollFlags::IN)], timeout.as_ref());
            // SAFETY: as above.
            if unsafe { pq_sys::PQconsumeInput(self.conn.as_ptr()) } == 0 {
                return Err(self.message());
            }
        }
        Ok(())
    }

    /// Reads the data that has arrived and returns the notifications in it, without blocking.
    pub(super) fn notifications(&mut self) -> Result<Vec<Notification>, String> {
        // SAFETY: the connection is valid.
        if unsafe { pq_sys::PQconsumeInput(self.conn.as_ptr()) } == 0 {
            return Err(self.message());
        }
        let mut notifications = Vec::new();
        // SAFETY: each notification belongs to this function until it is freed, once. Its channel and its payload are
        // terminated strings inside of it, which are copied and compared before.
        unsafe {
            while let Some(notify) = NonNull::new(pq_sys::PQnotifies(self.conn.as_ptr())) {
                let notification = notify.as_ref();
                notifications.push(Notification {
                    channel: CStr::from_ptr(notification.relname).to_string_lossy().into_owned(),
                    payload: CStr::from_ptr(notification.extra).to_string_lossy().into_owned(),
                });
                pq_sys::PQfreemem(notify.as_ptr().cast());
            }
        }
        Ok(notifications)
    }

    /// Returns the server's version: 150018 is 15.18.
    pub(super) fn server_version(&self) -> i32 {
        // SAFETY: the connection is valid.
        unsafe { pq_sys::PQserverVersion(self.conn.as_ptr()) }
    }

    /// Returns the socket to sleep on, or `None` if the connection is lost.
    pub(super) fn socket(&self) -> Option<BorrowedFd<'_>> {
        // SAFETY: the connection is valid. A descriptor that is not negative is open until the connection
        // is reset or closed, which the borrow of `self` prevents.
        unsafe {
            let fd = pq_sys::PQsocket(self.conn.as_ptr());
            (fd >= 0).then(|| BorrowedFd::borrow_raw(fd))
        }
    }

    fn message(&self) -> String {
        // SAFETY: libpq returns a terminated string that lives until the next call on the connection.
        // It is copied at once.
        unsafe {
            CStr::from_ptr(pq_sys::PQerrorMessage(self.conn.as_ptr())).to_string_lossy().trim().to_owned()
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // SAFETY: the connection is valid and not used afterwards.
        unsafe { pq_sys::PQfinish(self.conn.as_ptr()) }
    }
}

extern "C" fn ignore(_: *mut c_void, _: *const c_char) {}

/// Returns the SQLSTATE of an error that diesel returned for a statement.
///
/// diesel reads the SQLSTATE and keeps only a kind, which does not tell a lock timeout from invalid data. Its messages
/// are in the server's language.
///
/// `info` must come from a statement on a [`diesel::pg::PgConnection`].
pub(crate) fn sqlstate(info: &(dyn DatabaseErrorInformation + Send + Sync)) -> Option<String> {
    // The other type that diesel uses, for errors without a result, is `String`.
    if size_of_val(info) != size_of::<NonNull<PGresult>>()
        || align_of_val(info) != align_of::<NonNull<PGresult>>()
    {
        return None;
    }
    // SAFETY: diesel implements the trait for `String` and for a private type whose only field, through one more type,
    // is a `NonNull<PGresult>`. A test of each SQLSTATE that decides something fails if that changes. Of the two only
    // the latter has the size of a pointer, so the value is one, and it is valid while `info` is borrowed. libpq
    // returns null or a terminated string that belongs to the result and is copied at once.
    unsafe {
        let result = std::ptr::from_ref(info).cast::<NonNull<PGresult>>().read();
        let field = pq_sys::PQresultErrorField(result.as_ptr(), i32::from(b'C'));
        (!field.is_null()).then(|| CStr::from_ptr(field).to_string_lossy().into_owned())
    }
}

/// Parses a connection string and returns the options that it sets, with their values.
///
/// # Errors
///
/// The reason why libpq cannot parse it, without any part of the string.
pub(crate) fn parse_conninfo(text: &str) -> Result<Vec<(String, String)>, String> {
    let text = CString::new(text).map_err(|_| "it holds a NUL character".to_owned())?;
    let mut message = std::ptr::null_mut();
    // SAFETY: the string is terminated and outlives the call. The message is null or belongs to us, and is freed once,
    // after it was copied.
    let (options, message) = unsafe {
        let options = pq_sys::PQconninfoParse(text.as_ptr(), &raw mut message);
        let copied = (!message.is_null()).then(|| CStr::from_ptr(message).to_string_lossy().into_owned());
        pq_sys::PQfreemem(message.cast());
        (options, copied.unwrap_or_default())
    };
    let Some(options) = NonNull::new(options) else {
        // The message quotes parts of the string, in the quotes of its language. Only its words before them are kept.
        let is_word = |c: &char| c.is_alphabetic() || [' ', '-'].contains(c);
        let reason: String = message.chars().take_while(is_word).collect();
        return Err(match reason.trim() {
            "" => "libpq cannot parse it".to_owned(),
            "missing" => "missing \"=\" after a word".to_owned(),
            reason => reason.to_owned(),
        });
    };
    // SAFETY: libpq returned the array, which nothing else uses.
    Ok(unsafe { take_options(options) })
}

/// Returns the names of the options that environment variables or a service set.
pub(crate) fn preset_options() -> Vec<String> {
    // SAFETY: libpq returns null or an array that belongs to us.
    let options = unsafe { NonNull::new(pq_sys::PQconndefaults()).map(|options| take_options(options)) };
    options.unwrap_or_default().into_iter().map(|(keyword, _)| keyword).collect()
}

/// Copies the options of an array that have a value, and frees the array.
///
/// # Safety
///
/// libpq must have returned the array, and nothing may use it afterwards.
unsafe fn take_options(options: NonNull<pq_sys::PQconninfoOption>) -> Vec<(String, String)> {
    let mut set = Vec::new();
    // SAFETY: the array belongs to us, ends at the option without a keyword, and is freed once, after its terminated
    // strings were copied.
    unsafe {
        let mut option = options.as_ptr();
        while !(*option).keyword.is_null() {
            if !(*option).val.is_null() {
                let text = |text: *mut c_char| CStr::from_ptr(text).to_string_lossy().into_owned();
                set.push((text((*option).keyword), text((*option).val)));
            }
            option = option.add(1);
        }
        pq_sys::PQconninfoFree(options.as_ptr());
    }
    set
}

/// Shuts down a socket for which another thread waits inside of libpq, so that its call fails.
///
/// The thread must not return from libpq, where it might close the socket, before this does.
pub(crate) fn shut_down(socket: RawFd) -> bool {
    // SAFETY: the descriptor is not closed during the call, see above.
    let socket = unsafe { BorrowedFd::borrow_raw(socket) };
    rustix::net::shutdown(socket, rustix::net::Shutdown::Both).is_ok()
}
