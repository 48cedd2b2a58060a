//! What keys do.

use pq_diesel::StopMode;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::action::Action;
use super::layout;
use super::state::{Question, State};
use super::table::{self, Pane};
use crate::output;

/// What the keys are for, for the help.
pub(super) const HELP: &[(&str, &str)] = &[
    ("up down k j", "choose a row"),
    ("PgUp PgDn Home End", "choose a row further away"),
    ("tab, shift-tab", "go to the next pane, or back"),
    ("p", "pause the chosen queue, or have it go on"),
    ("r", "put the chosen dead job back into the line"),
    ("", "among the queues: all dead jobs of the chosen one"),
    ("c", "cancel the chosen running job"),
    ("s", "have the chosen worker stop: when nothing waits;"),
    ("", "again: when its jobs have ended; again: now"),
    ("?", "show or leave this"),
    ("q, Esc, Ctrl-C", "quit"),
];

/// How far a page goes.
const PAGE: isize = 10;

/// A name with room beside it for what is asked.
fn short(name: &str) -> String {
    layout::truncate(&output::escape(name), 32)
}

/// What a key requests for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Effect {
    None,
    Quit,
    Run(Action),
}

impl State {
    pub(super) fn press(&mut self, key: KeyEvent) -> Effect {
        if !key.is_press() {
            return Effect::None;
        }
        self.note = None;
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        if control && key.code == KeyCode::Char('c') {
            return Effect::Quit;
        }
        // A key that is held with another is not the one that was meant.
        let code =
            if control || key.modifiers.contains(KeyModifiers::ALT) { KeyCode::Null } else { key.code };
        if let Some(question) = self.question.take() {
            return match code {
                KeyCode::Char('y' | 'Y') => Effect::Run(question.action),
                _ => self.refuse("left as it was"),
            };
        }
        if self.help {
            self.help = false;
            return if code == KeyCode::Char('q') { Effect::Quit } else { Effect::None };
        }
        match code {
            KeyCode::Char('q') | KeyCode::Esc => return Effect::Quit,
            KeyCode::Char('?') => self.help = true,
            KeyCode::Up | KeyCode::Char('k') => self.move_selection(-1),
            KeyCode::Down | KeyCode::Char('j') => self.move_selection(1),
            KeyCode::PageUp => self.move_selection(-PAGE),
            KeyCode::PageDown => self.move_selection(PAGE),
            KeyCode::Home => self.move_selection(isize::MIN),
            KeyCode::End => self.move_selection(isize::MAX),
            KeyCode::Tab => self.switch_pane(1),
            KeyCode::BackTab => self.switch_pane(Pane::ALL.len() - 1),
            KeyCode::Char('p') => return self.pause_or_resume(),
            KeyCode::Char('r') => return self.retry(),
            KeyCode::Char('c') => return self.cancel(),
            KeyCode::Char('s') => return self.stop(),
            _ => {}
        }
        Effect::None
    }

    fn switch_pane(&mut self, by: usize) {
        let now = Pane::ALL.iter().position(|pane| *pane == self.pane).unwrap_or_default();
        self.pane = Pane::ALL[(now + by) % Pane::ALL.len()];
    }

    fn refuse(&mut self, why: &str) -> Effect {
        self.note(why);
        Effect::None
    }

    fn question(&mut self, text: &str, action: Action) -> Effect {
        self.question = Some(Question { text: output::escape(text), action });
        Effect::None
    }

    fn pause_or_resume(&mut self) -> Effect {
        let chosen = self.selected_index(Pane::Queues).and_then(|place| self.snapshot.queues.get(place));
        let Some(queue) = chosen else { return self.refuse("there is no queue to pause") };
        let name = queue.queue.clone();
        Effect::Run(if queue.paused_at.is_some() { Action::Resume(name) } else { Action::Pause(name) })
    }

    fn retry(&mut self) -> Effect {
        match self.pane {
            Pane::Dead => {
                match self.selected_index(Pane::Dead).and_then(|place| self.snapshot.dead.jobs.get(place)) {
                    Some(job) => Effect::Run(Action::Retry(job.queue.clone(), job.id)),
                    None => self.refuse("there is no dead job to put back"),
                }
            }
            Pane::Queues => {
                match self.selected_index(Pane::Queues).and_then(|place| self.snapshot.queues.get(place)) {
                    Some(queue) if queue.dead > 0 => {
                        let name = short(queue.queue.as_str());
                        let text = format!("Put all {} dead jobs of {name} back into the line?", queue.dead);
                        let action = Action::RetryAllDead(queue.queue.clone());
                        self.question(&text, action)
                    }
                    _ => self.refuse("there is no dead job to put back"),
                }
            }
            Pane::Workers | Pane::Running => self.refuse("r is for dead jobs, or for all those of a queue"),
        }
    }

    fn cancel(&mut self) -> Effect {
        if self.pane == Pane::Dead {
            return self.refuse("a dead job has ended; r puts it back into the line");
        }
        if self.pane != Pane::Running {
            return self.refuse("c is for running jobs");
        }
        let all = table::running(&self.snapshot);
        let Some((worker, job)) = self.selected_index(Pane::Running).and_then(|place| all.get(place)) else {
            return self.refuse("no job runs");
        };
        let (host, pid) = (&worker.host, worker.pid);
        let text = format!("Cancel job {} of {}, which runs at {host} {pid}?", job.id, short(&job.queue));
        let action = Action::Cancel(job.queue.clone(), job.id);
        self.question(&text, action)
    }

    fn stop(&mut self) -> Effect {
        if self.pane != Pane::Workers {
            return self.refuse("s is for workers");
        }
        let chosen = self.selected_index(Pane::Workers).and_then(|place| self.snapshot.workers.get(place));
        let Some(worker) = chosen else { return self.refuse("there is no worker to stop") };
        let (mode, when) = match worker.stop.max(worker.status.stopping) {
            None => (StopMode::Drain, "when nothing waits"),
            Some(StopMode::Drain) => (StopMode::Finish, "when its running jobs have ended"),
            Some(StopMode::Finish) => (StopMode::Abort, "now"),
            Some(StopMode::Abort) => {
                return self.refuse("it was told to stop now, and nothing is sterner");
            }
        };
        let text = format!("Have worker {} at {} {} stop {when}?", worker.id, worker.host, worker.pid);
        let action = Action::Stop(worker.id, mode);
        self.question(&text, action)
    }
}
