//! Deadlines of calls: a connection whose server does not answer is closed.
//!
//! diesel waits inside of libpq without a limit, and a stopped server process or a network that drops packets never
//! answers. Each connection of a handle's pool therefore has a [`CallTimer`], which its instrumentation starts before a
//! statement and stops after it, without a system call. A thread looks at all timers four times a second. If one has
//! expired, it shuts down the socket of that connection, so that libpq returns as if the server had closed it.
//!
//! diesel does not expose the socket either. But a thread that waits for a server is blocked in poll(2), and Linux
//! shows the arguments of that call. The socket is looked up only then, so it is certainly the one that the call
//! waits for. On other systems only the settings of TCP limit a wait.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, Once, PoisonError, Weak};
use std::time::{Duration, Instant};

/// The interval at which the thread looks at the timers. A shorter timeout has a shorter one.
const MAX_INTERVAL: Duration = Duration::from_millis(250);
const MIN_INTERVAL: Duration = Duration::from_millis(10);

/// The time at which a timer does not run.
const STOPPED: u64 = u64::MAX;

/// The time of a timer whose socket is being shut down.
const CLOSING: u64 = u64::MAX - 1;

/// The limit of a statement that may take as long as it likes.
const UNLIMITED: u64 = u64::MAX;

/// The instant from which timers count milliseconds.
static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);

thread_local! {
    /// The thread's id, or zero before it was read.
    static THREAD: Cell<u32> = const { Cell::new(0) };
    /// The limit of the last call of this thread that was cut off.
    static CUT_OFF: Cell<Option<Duration>> = const { Cell::new(None) };
}

/// Limits how long each statement of a connection may remain without an answer.
#[derive(Debug)]
pub(crate) struct CallTimer {
    /// In milliseconds.
    limit: AtomicU64,
    /// The deadline of the statement that runs, in milliseconds since [`EPOCH`], or [`STOPPED`] or [`CLOSING`].
    deadline: AtomicU64,
    /// The thread that waits for the statement.
    thread: AtomicU32,
    is_cut_off: AtomicBool,
    /// Held while the socket is being shut down. It must not be closed meanwhile, because its number could be given to
    /// another one.
    closing: Mutex<()>,
}

impl CallTimer {
    /// Starts the timer, before a statement is sent.
    pub(crate) fn start(&self) {
        let limit = self.limit.load(Ordering::Relaxed);
        if limit == UNLIMITED {
            return;
        }
        self.thread.store(current_thread(), Ordering::Relaxed);
        self.deadline.store(now().saturating_add(limit).min(CLOSING - 1), Ordering::Release);
    }

    /// Stops the timer, after the answer.
    pub(crate) fn stop(&self) {
        if self.deadline.swap(STOPPED, Ordering::AcqRel) == CLOSING {
            drop(self.lock());
            if self.is_cut_off() {
                CUT_OFF.set(self.limit());
            }
        }
    }

    /// Sets the limit of the statements that follow. `None` is no limit.
    pub(crate) fn set_limit(&self, limit: Option<Duration>) {
        let millis = limit.map_or(UNLIMITED, |limit| u64::try_from(limit.as_millis()).unwrap_or(UNLIMITED));
        self.limit.store(millis, Ordering::Relaxed);
    }

    pub(crate) fn limit(&self) -> Option<Duration> {
        let limit = self.limit.load(Ordering::Relaxed);
        (limit != UNLIMITED).then(|| Duration::from_millis(limit))
    }

    /// Returns `true` if a statement was cut off, so that the connection cannot be used again.
    pub(crate) fn is_cut_off(&self) -> bool {
        self.is_cut_off.load(Ordering::Acquire)
    }

    /// Shuts down the socket if the statement's deadline has passed.
    fn check(&self, now: u64) {
        let deadline = self.deadline.load(Ordering::Acquire);
        if deadline > now {
            return;
        }
        let _closing = self.lock();
        let claim = |from, to| self.deadline.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire);
        // The call may have ended, and another one may have begun.
        if claim(deadline, CLOSING).is_err() {
            return;
        }
        if blocked_in_poll::shut_down(self.thread.load(Ordering::Relaxed)) {
            self.is_cut_off.store(true, Ordering::Release);
            tracing::warn!(limit = ?self.limit(), "statement not answered, connection closed");
        } else {
            // The thread does not wait for the server at this moment. It is looked at again.
            let _ = claim(CLOSING, deadline);
        }
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        self.closing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the limit of a call of this thread that was cut off, once.
pub(crate) fn take_cut_off() -> Option<Duration> {
    CUT_OFF.take()
}

/// The timers of a pool, and the thread that looks at them until the pool is dropped.
#[derive(Clone, Debug)]
pub(crate) struct CallTimers {
    limit: Duration,
    timers: Arc<Mutex<Vec<Weak<CallTimer>>>>,
    started: Arc<Once>,
}

impl CallTimers {
    /// Creates timers with this limit. The thread starts with the first one.
    pub(crate) fn new(limit: Duration) -> Self {
        Self { limit, timers: Arc::default(), started: Arc::new(Once::new()) }
    }

    pub(crate) fn limit(&self) -> Duration {
        self.limit
    }

    /// Creates the timer of a connection.
    pub(crate) fn add(&self) -> Arc<CallTimer> {
        self.started.call_once(|| self.start_thread());
        let timer = Arc::new(CallTimer {
            limit: AtomicU64::new(UNLIMITED),
            deadline: AtomicU64::new(STOPPED),
            thread: AtomicU32::new(0),
            is_cut_off: AtomicBool::new(false),
            closing: Mutex::default(),
        });
        self.timers.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(&timer));
        timer
    }

    fn start_thread(&self) {
        let interval = (self.limit / 8).clamp(MIN_INTERVAL, MAX_INTERVAL);
        let timers = Arc::downgrade(&self.timers);
        let watch = move || {
            while let Some(timers) = timers.upgrade() {
                check_all(&timers);
                drop(timers);
                std::thread::sleep(interval);
            }
        };
        if let Err(error) = std::thread::Builder::new().name("pq-call-timer".to_owned()).spawn(watch) {
            tracing::error!(%error, "call timer thread failed to start; calls have no deadline");
        }
    }
}

fn check_all(timers: &Mutex<Vec<Weak<CallTimer>>>) {
    let mut live = Vec::new();
    timers.lock().unwrap_or_else(PoisonError::into_inner).retain(|timer| {
        live.extend(timer.upgrade());
        timer.strong_count() > 0
    });
    let now = now();
    live.iter().for_each(|timer| timer.check(now));
}

fn now() -> u64 {
    u64::try_from(EPOCH.elapsed().as_millis()).unwrap_or(0)
}

/// Returns the id of the calling thread, which costs a system call the first time.
fn current_thread() -> u32 {
    THREAD.with(|thread| {
        if thread.get() == 0 {
            thread.set(blocked_in_poll::current_thread());
        }
        thread.get()
    })
}

/// Finds the socket that a thread waits for.
#[cfg(target_os = "linux")]
mod blocked_in_poll {
    use std::fs::{File, read_to_string};
    use std::os::fd::RawFd;
    use std::os::unix::fs::FileExt;

    use crate::libpq;

    pub(super) fn current_thread() -> u32 {
        rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs()
    }

    /// Shuts down the socket for which the thread is blocked in poll(2). Returns `false` if it is not blocked.
    ///
    /// The thread waits inside of libpq, and must not return from there before this does.
    pub(super) fn shut_down(thread: u32) -> bool {
        polled_socket(thread).is_some_and(libpq::shut_down)
    }

    /// Returns the only descriptor that the thread polls.
    fn polled_socket(thread: u32) -> Option<RawFd> {
        // The number of the call and its arguments, or `running`.
        let call = read_to_string(format!("/proc/self/task/{thread}/syscall")).ok()?;
        let mut words = call.split_ascii_whitespace();
        let number: libc::c_long = words.next()?.parse().ok()?;
        let mut argument = || u64::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok();
        let (descriptors, count) = (argument()?, argument()?);
        if !is_poll(number) || count != 1 {
            return None;
        }
        // `struct pollfd` begins with the descriptor.
        let mut socket = [0; 4];
        File::open("/proc/self/mem").ok()?.read_exact_at(&mut socket, descriptors).ok()?;
        Some(RawFd::from_ne_bytes(socket)).filter(|socket| *socket >= 0)
    }

    /// Returns `true` for the numbers of poll(2), also after it was interrupted by a stop of the process.
    fn is_poll(number: libc::c_long) -> bool {
        #[cfg(any(target_arch = "x86_64", target_arch = "x86", target_arch = "arm"))]
        if number == libc::SYS_poll {
            return true;
        }
        number == libc::SYS_ppoll || number == libc::SYS_restart_syscall
    }
}

#[cfg(not(target_os = "linux"))]
mod blocked_in_poll {
    pub(super) fn current_thread() -> u32 {
        0
    }

    pub(super) fn shut_down(_: u32) -> bool {
        false
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use rustix::event::{PollFd, PollFlags, poll};

    use super::*;

    const LIMIT: Duration = Duration::from_millis(20);

    /// Waits for an answer that never comes, in a thread of its own, and returns whether it was cut off.
    fn wait_for_answer(
        timers: &CallTimers,
        limit: Option<Duration>,
        at_most: Duration,
    ) -> std::io::Result<bool> {
        let (socket, _server) = UnixStream::pair()?;
        let timer = timers.add();
        std::thread::scope(|threads| {
            let call = threads.spawn(|| -> std::io::Result<_> {
                timer.set_limit(limit);
                timer.start();
                poll(
                    &mut [PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::IN)],
                    at_most.try_into().ok().as_ref(),
                )?;
                timer.stop();
                Ok(take_cut_off())
            });
            let cut_off = call.join().map_err(|_| std::io::Error::other("the call panicked"))??;
            assert_eq!(cut_off, limit.filter(|_| timer.is_cut_off()));
            Ok(timer.is_cut_off())
        })
    }

    #[test]
    fn a_call_without_an_answer_is_cut_off_at_its_deadline() -> std::io::Result<()> {
        let timers = CallTimers::new(LIMIT);
        assert!(wait_for_answer(&timers, Some(LIMIT), Duration::from_secs(60))?);
        assert!(!wait_for_answer(&timers, None, 20 * LIMIT)?, "the call had no limit");
        assert!(!wait_for_answer(&timers, Some(500 * LIMIT), 20 * LIMIT)?, "the call ended in time");
        Ok(())
    }

    /// A thread that is not blocked in libpq is left alone, and its timer stays valid.
    #[test]
    fn a_call_that_does_not_wait_for_the_server_is_not_cut_off() -> std::io::Result<()> {
        let timers = CallTimers::new(LIMIT);
        let timer = timers.add();
        timer.set_limit(Some(LIMIT));
        timer.start();
        std::thread::sleep(10 * LIMIT);
        timer.stop();
        assert!(!timer.is_cut_off());
        assert_eq!(take_cut_off(), None);
        Ok(())
    }
}
