//! Key bindings.

use pq_diesel::StopMode;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::action::Action;
use super::layout;
use super::state::{Question, State};
use super::table::{self, Pane};
use crate::output;

/// The keys and their descriptions for the help window.
pub(super) const HELP: &[(&str, &str)] = &[
    ("up down k j", "select the previous or next row"),
    ("PgUp PgDn Home End", "move the selection further"),
    ("tab, shift-tab", "go to the next or previous pane"),
    ("p", "pause or resume the selected queue"),
    ("r", "retry the selected dead job;"),
    ("", "in the queues pane: all dead jobs of the queue"),
    ("c", "cancel the selected running job"),
    ("s", "stop the selected worker: drain its queues;"),
    ("", "again: finish its running jobs; again: abort"),
    ("?", "show or close this help"),
    ("q, Esc, Ctrl-C", "quit"),
];

/// Rows per page.
const PAGE: isize = 10;

/// Shortens a name so that the question fits on the line.
fn short(name: &str) -> String {
    layout::truncate(&output::escape(name), 32)
}

/// The effect of a key.
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
        // A key with Ctrl or Alt is not the plain key.
        let code =
            if control || key.modifiers.contains(KeyModifiers::ALT) { KeyCode::Null } else { key.code };
        if let Some(question) = self.question.take() {
            return match code {
                KeyCode::Char('y' | 'Y') => Effect::Run(question.action),
                _ => self.refuse("not done"),
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

    fn refuse(&mut self, reason: &str) -> Effect {
        self.note(reason);
        Effect::None
    }

    fn question(&mut self, text: &str, action: Action) -> Effect {
        self.question = Some(Question { text: output::escape(text), action });
        Effect::None
    }

    fn pause_or_resume(&mut self) -> Effect {
        let chosen = self.selected_index(Pane::Queues).and_then(|index| self.snapshot.queues.get(index));
        let Some(queue) = chosen else { return self.refuse("no queue to pause") };
        let name = queue.queue.clone();
        Effect::Run(if queue.paused_at.is_some() { Action::Resume(name) } else { Action::Pause(name) })
    }

    fn retry(&mut self) -> Effect {
        match self.pane {
            Pane::Dead => {
                match self.selected_index(Pane::Dead).and_then(|index| self.snapshot.dead.jobs.get(index)) {
                    Some(job) => Effect::Run(Action::Retry(job.queue.clone(), job.id)),
                    None => self.refuse("no dead job to retry"),
                }
            }
            Pane::Queues => {
                match self.selected_index(Pane::Queues).and_then(|index| self.snapshot.queues.get(index)) {
                    Some(queue) if queue.dead > 0 => {
                        let name = short(queue.queue.as_str());
                        let text = format!("Retry {} of {name}?", output::plural(queue.dead, "dead job"));
                        let action = Action::RetryAllDead(queue.queue.clone());
                        self.question(&text, action)
                    }
                    _ => self.refuse("no dead job to retry"),
                }
            }
            Pane::Workers | Pane::Running => self.refuse("r works on dead jobs and on queues"),
        }
    }

    fn cancel(&mut self) -> Effect {
        if self.pane == Pane::Dead {
            return self.refuse("a dead job cannot be cancelled; r retries it");
        }
        if self.pane != Pane::Running {
            return self.refuse("c works on running jobs");
        }
        let all = table::running(&self.snapshot);
        let Some((worker, job)) = self.selected_index(Pane::Running).and_then(|index| all.get(index)) else {
            return self.refuse("no running job");
        };
        let (host, pid) = (&worker.host, worker.pid);
        let text = format!("Cancel job {} of {}, running on {host} {pid}?", job.id, short(&job.queue));
        let action = Action::Cancel(job.queue.clone(), job.id);
        self.question(&text, action)
    }

    fn stop(&mut self) -> Effect {
        if self.pane != Pane::Workers {
            return self.refuse("s works on workers");
        }
        let chosen = self.selected_index(Pane::Workers).and_then(|index| self.snapshot.workers.get(index));
        let Some(worker) = chosen else { return self.refuse("no worker to stop") };
        let (mode, when) = match worker.stop.max(worker.status.stopping) {
            None => (StopMode::Drain, "when no job is ready"),
            Some(StopMode::Drain) => (StopMode::Finish, "when its running jobs have ended"),
            Some(StopMode::Finish) => (StopMode::Abort, "now"),
            Some(StopMode::Abort) => return self.refuse("the worker is already stopping (abort)"),
        };
        let text = format!("Stop worker {} on {} {} {when}?", worker.id, worker.host, worker.pid);
        let action = Action::Stop(worker.id, mode);
        self.question(&text, action)
    }
}
