//! `pq top`: a live view of queues, workers, running and dead jobs.

mod action;
mod keys;
mod layout;
mod poller;
mod screen;
mod state;
mod table;
#[cfg(test)]
mod tests;
mod view;

use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use pq_diesel::{CancellationToken, QueueName};
use ratatui::crossterm::event::Event;

use self::keys::Effect;
use self::poller::{Poller, Request, Snapshot};
use self::screen::Screen;
use self::state::State;
use super::examples;
use crate::failure::Failure;
use crate::global::Global;
use crate::output;
use crate::signals::stop_on_signals;

/// How long a key that was pressed may wait for what was seen meanwhile to be drawn, and the other way round.
const TICK: Duration = Duration::from_millis(100);

/// How long a look waits for a connection before the server counts as lost.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Watch queues, workers, running and dead jobs, and look after them with single keys.
///
/// ? shows the keys. Each look counts all jobs, so on a table of millions a longer interval is kinder; no look
/// begins sooner after another than that one took.
#[derive(Debug, clap::Args)]
#[command(after_help = examples("pq top\npq top --queue mail --interval 5s\npq top --once"))]
pub(crate) struct Top {
    /// How long after a look the next one begins: 100ms or more.
    #[arg(long, value_name = "SPAN", default_value = "1s", value_parser = interval)]
    interval: Duration,
    /// The queue that is chosen at first: its dead jobs are shown.
    #[arg(long, value_name = "NAME")]
    queue: Option<String>,
    /// Print what there is at this moment as plain text, and end. Unless --queue says otherwise the dead jobs are
    /// those of the first queue that has any.
    #[arg(long)]
    once: bool,
}

fn interval(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(span) if span >= TICK => Ok(span),
        Ok(_) => Err("the shortest interval is 100ms".to_owned()),
        Err(error) => Err(format!("{error}; write it as 500ms, 1s or 2m")),
    }
}

impl Top {
    pub(crate) fn run(&self, global: &Global) -> Result<ExitCode, Failure> {
        let chosen = match &self.queue {
            Some(name) => Some(global.detached()?.queue::<()>(name)?.name().clone()),
            None => None,
        };
        if !self.once && !io::stdout().is_terminal() {
            let why = "the view needs a terminal on standard output; --once prints it once as plain text";
            return Err(Failure::Usage(why.to_owned()));
        }
        let pq = global.connect_within(2, CONNECT_TIMEOUT)?;
        // What is wrong from the beginning is better said than shown.
        let first = Snapshot::look(&pq, |queues| {
            let has_dead = || queues.iter().find(|queue| queue.dead > 0).map(|queue| queue.queue.clone());
            chosen.clone().or_else(|| has_dead().filter(|_| self.once))
        })?;
        if self.once {
            output::print(&table::plain(&first))?;
            return Ok(ExitCode::SUCCESS);
        }
        let stop = stop_on_signals()?;
        let mut state = State::new(first, chosen, output::wants_colour());
        let poller = Poller::start(pq, self.interval, state.selected_queue())?;
        // The terminal is itself again before the poller is waited for: that may be in the middle of a look.
        let ended = watch(&mut state, &poller, &stop);
        poller.end();
        ended
    }
}

/// Draws and obeys until somebody quits.
fn watch(state: &mut State, poller: &Poller, stop: &CancellationToken) -> Result<ExitCode, Failure> {
    let mut screen = Screen::take()?;
    let mut watched = state.selected_queue();
    let (mut drawn, mut changed) = (Instant::now(), true);
    while !stop.is_cancelled() {
        while let Some(update) = poller.update()? {
            state.apply(update);
            changed = true;
        }
        choose(state, poller, &mut watched);
        // Where nothing changes this shows all the same that the terminal is there still.
        if changed || drawn.elapsed() > Duration::from_secs(1) {
            screen.draw(state)?;
            (drawn, changed) = (Instant::now(), false);
        }
        let Some(event) = screen.next_event()? else { continue };
        changed = true;
        if let Event::Key(key) = event {
            match state.press(key) {
                Effect::None => {}
                Effect::Quit => return Ok(ExitCode::SUCCESS),
                Effect::Run(action) => poller.ask(Request::Run(action)),
            }
        }
    }
    Ok(ExitCode::from(130))
}

/// Has the poller read the dead jobs of the queue that is chosen now.
fn choose(state: &State, poller: &Poller, watched: &mut Option<QueueName>) {
    let chosen = state.selected_queue();
    if chosen != *watched {
        watched.clone_from(&chosen);
        poller.ask(Request::Watch(chosen));
    }
}
