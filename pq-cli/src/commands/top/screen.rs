//! The terminal: taken whole, listened to, and given back however the view ends.

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

/// The terminal while the view has it.
pub(super) struct Screen {
    // Gone before the terminal is restored, for it shows the cursor.
    terminal: DefaultTerminal,
    event_reader: EventReader,
    _restored: RestoreTerminal,
}

impl Screen {
    /// Takes the terminal. Should something panic, ratatui gives it back before the panic's words are printed.
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

    /// What happens next at the terminal, where something does in a short while.
    pub(super) fn next_event(&self) -> Result<Option<Event>, Failure> {
        match self.event_reader.events.recv_timeout(TICK) {
            Ok(event) => event.map(Some).map_err(|error| unusable(&error)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => {
                Err(Failure::Io("the thread that listens to the terminal has ended".to_owned()))
            }
        }
    }
}

fn unusable(error: &io::Error) -> Failure {
    Failure::Io(format!("the terminal cannot be used: {error}"))
}

/// Gives the terminal back.
struct RestoreTerminal;

impl Drop for RestoreTerminal {
    fn drop(&mut self) {
        // In a panic it has been done, and doing it again would put the cursor above the panic's words.
        if !thread::panicking() {
            // Where this fails there is no terminal any more.
            let _ = ratatui::try_restore();
        }
    }
}

/// Listens in a thread of its own. crossterm does not come back from a terminal that has been closed, it reads its
/// end again and again; whoever waits for a signal must not be caught in that.
struct EventReader {
    events: Receiver<io::Result<Event>>,
    closed: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl EventReader {
    fn open() -> io::Result<Self> {
        let (updates, events) = mpsc::channel();
        let closed = Arc::new(AtomicBool::new(false));
        let is_closed = Arc::clone(&closed);
        let listen = move || {
            while !is_closed.load(Ordering::Relaxed) {
                let heard = match event::poll(TICK) {
                    Ok(false) => continue,
                    Ok(true) => event::read(),
                    Err(error) => Err(error),
                };
                let is_error = heard.is_err();
                if updates.send(heard).is_err() || is_error {
                    return;
                }
            }
        };
        let thread = thread::Builder::new().name("listens".to_owned()).spawn(listen)?;
        Ok(Self { events, closed, thread })
    }
}

impl Drop for EventReader {
    fn drop(&mut self) {
        const AT_MOST: Duration = Duration::from_secs(1);
        self.closed.store(true, Ordering::Relaxed);
        // What is typed from now on is for whoever has the terminal next.
        let begun = Instant::now();
        while !self.thread.is_finished() && begun.elapsed() < AT_MOST {
            thread::sleep(Duration::from_millis(5));
        }
    }
}
