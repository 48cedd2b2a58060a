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

use pq_diesel::admin::QueueCounts;
use pq_diesel::{CancellationToken, QueueName};
use ratatui::crossterm::event::Event;

use self::keys::Effect;
use self::poller::{Chosen, Poller, Request, Snapshot, is_stuck};
use self::screen::Screen;
use self::state::State;
use super::examples;
use crate::failure::Failure;
use crate::global::Global;
use crate::output;
use crate::signals::stop_on_signals;

/// Time to wait for a key before updates are applied, and the minimum of `--interval`.
const TICK: Duration = Duration::from_millis(100);

/// Time to wait for a connection before the server counts as unreachable.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Watch and manage queues, workers, running jobs and dead jobs.
///
/// Press ? for the keys. Each poll counts all jobs, so use a longer interval on a table of millions of jobs. The pause
/// between two polls is at least as long as the first of them took.
#[derive(Debug, clap::Args)]
#[command(after_help = examples("pq top\npq top --queue mail --interval 5s\npq top --once"))]
pub(crate) struct Top {
    /// Pause between two polls, at least 100ms.
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = interval)]
    interval: Duration,
    /// Queue to select at first. Its dead jobs are shown.
    #[arg(long, value_name = "NAME")]
    queue: Option<String>,
    /// Print one poll as plain text and exit. Without --queue, the dead jobs are those of the first queue that has
    /// any, and a job that does not run is one of the first queue in which due jobs wait and none runs.
    #[arg(long)]
    once: bool,
}

fn interval(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(interval) if interval >= TICK => Ok(interval),
        Ok(_) => Err("the interval must be at least 100ms".to_owned()),
        Err(error) => Err(format!("{error}; expected a duration such as 500ms, 1s or 2m")),
    }
}

impl Top {
    pub(crate) fn run(&self, global: &Global) -> Result<ExitCode, Failure> {
        let chosen = match &self.queue {
            Some(name) => Some(global.detached()?.queue::<()>(name)?.name().clone()),
            None => None,
        };
        if !self.once && !io::stdout().is_terminal() {
            let reason = "cannot show the view: standard output is not a terminal; use --once for plain text";
            return Err(Failure::Usage(reason.to_owned()));
        }
        let pq = global.connect_within(2, CONNECT_TIMEOUT)?;
        // The first poll runs before the terminal is taken, so that its error is printed and not drawn.
        let first = Snapshot::read(&pq, |queues| {
            let first = |is_wanted: fn(&QueueCounts) -> bool| {
                let found = queues.iter().find(|queue| is_wanted(queue)).filter(|_| self.once);
                chosen.clone().or_else(|| found.map(|queue| queue.queue.clone()))
            };
            let waits = |queue: &QueueCounts| queue.limits.is_some() && queue.ready > 0;
            let stuck = first(is_stuck).or_else(|| first(waits));
            Chosen { dead: first(|queue| queue.dead > 0), stuck }
        })?;
        if self.once {
            output::print(&table::plain(&first))?;
            return Ok(ExitCode::SUCCESS);
        }
        let stop = stop_on_signals()?;
        let mut state = State::new(first, chosen, output::wants_colour());
        let poller = Poller::start(pq, self.interval, state.selected_queue())?;
        // `watch` restores the terminal when it returns. Ending the poller may take seconds.
        let ended = watch(&mut state, &poller, &stop);
        poller.end();
        ended
    }
}

/// Draws the view and handles keys until the user quits.
fn watch(state: &mut State, poller: &Poller, stop: &CancellationToken) -> Result<ExitCode, Failure> {
    let mut screen = Screen::take()?;
    let mut watched = state.selected_queue();
    let (mut drawn, mut changed) = (Instant::now(), true);
    while !stop.is_cancelled() {
        while let Some(update) = poller.next_update()? {
            state.apply(update);
            changed = true;
        }
        choose(state, poller, &mut watched);
        // Drawing fails if the terminal was closed, so the view is drawn even if nothing has changed.
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
                Effect::Run(action) => poller.request(Request::Run(action)),
            }
        }
    }
    Ok(ExitCode::from(130))
}

/// Has the poller read the dead jobs of the selected queue.
fn choose(state: &State, poller: &Poller, watched: &mut Option<QueueName>) {
    let chosen = state.selected_queue();
    if chosen != *watched {
        watched.clone_from(&chosen);
        poller.request(Request::Watch(chosen));
    }
}
