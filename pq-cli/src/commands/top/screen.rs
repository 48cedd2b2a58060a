//! The terminal: switches it to the view, reads its events, and restores it however the view ends.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event};

use super::state::State;
use super::{TICK, view};
use crate::failure::Failure;

/// The terminal while the view is shown.
pub(super) struct Screen {
    // Dropped before `_restored`, because dropping it shows the cursor.
    terminal: DefaultTerminal,
    event_reader: EventReader,
    _restored: RestoreTerminal,
}

impl Screen {
    /// Takes the terminal. After a panic, ratatui restores it before the panic message is printed.
    pub(super) fn take() -> Result<Self, Failure> {
        let restored = RestoreTerminal;
        let terminal = ratatui::try_init().map_err(|error| unusable(&error))?;
        let event_reader = EventReader::open().map_err(|error| unusable(&error))?;
        Ok(Self { terminal, event_reader, _restored: restored })
    }

    pub(super) fn draw(&mut self, state: &State) -> Result<(), Failure> {
        self.terminal.draw(|frame| view::draw(frame, state)).map_err(|error| unusable(&error))?;
        Ok(())
    }

    /// Returns the next event, or `None` after a short time without one.
    pub(super) fn next_event(&self) -> Result<Option<Event>, Failure> {
        match self.event_reader.events.recv_timeout(TICK) {
            Ok(event) => event.map(Some).map_err(|error| unusable(&error)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => {
                Err(Failure::Io("the thread that reads the terminal has ended unexpectedly".to_owned()))
            }
        }
    }
}

fn unusable(error: &io::Error) -> Failure {
    Failure::Io(format!("cannot use the terminal: {error}"))
}

/// Restores the terminal when dropped.
struct RestoreTerminal;

impl Drop for RestoreTerminal {
    fn drop(&mut self) {
        // After a panic the terminal is restored already. A second time would move the cursor above the message.
        if !thread::panicking() {
            // An error means that the terminal was closed.
            let _ = ratatui::try_restore();
        }
    }
}

/// Reads terminal events in a thread of its own.
///
/// If the terminal is closed, crossterm reads its end in an endless loop and does not return. The main thread must
/// still react to signals, so it must not call crossterm itself.
struct EventReader {
    events: Receiver<io::Result<Event>>,
    closed: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl EventReader {
    fn open() -> io::Result<Self> {
        let (sender, events) = mpsc::channel();
        let closed = Arc::new(AtomicBool::new(false));
        let is_closed = Arc::clone(&closed);
        let listen = move || {
            while !is_closed.load(Ordering::Relaxed) {
                let event = match event::poll(TICK) {
                    Ok(false) => continue,
                    Ok(true) => event::read(),
                    Err(error) => Err(error),
                };
                let is_error = event.is_err();
                if sender.send(event).is_err() || is_error {
                    return;
                }
            }
        };
        let thread = thread::Builder::new().name("event-reader".to_owned()).spawn(listen)?;
        Ok(Self { events, closed, thread })
    }
}

impl Drop for EventReader {
    fn drop(&mut self) {
        const AT_MOST: Duration = Duration::from_secs(1);
        self.closed.store(true, Ordering::Relaxed);
        // Keys that are typed from now on are for the shell, so the thread must stop reading.
        let begun = Instant::now();
        while !self.thread.is_finished() && begun.elapsed() < AT_MOST {
            thread::sleep(Duration::from_millis(5));
        }
    }
}
