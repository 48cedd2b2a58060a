//! What keys do.

use pq_diesel::StopMode;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::chart::{self, Pane};
use super::deed::Deed;
use super::fit;
use super::state::{Question, State};
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
    fit::clip(&output::visible(name), 32)
}

/// What a key asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    Stay,
    Quit,
    Do(Deed),
}

impl State {
    pub(super) fn press(&mut self, key: KeyEvent) -> Step {
        if !key.is_press() {
            return Step::Stay;
        }
        self.note = None;
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        if control && key.code == KeyCode::Char('c') {
            return Step::Quit;
        }
        // A key that is held with another is not the one that was meant.
        let code =
            if control || key.modifiers.contains(KeyModifiers::ALT) { KeyCode::Null } else { key.code };
        if let Some(question) = self.question.take() {
            return match code {
                KeyCode::Char('y' | 'Y') => Step::Do(question.deed),
                _ => self.refuse("left as it was"),
            };
        }
        if self.help {
            self.help = false;
            return if code == KeyCode::Char('q') { Step::Quit } else { Step::Stay };
        }
        match code {
            KeyCode::Char('q') | KeyCode::Esc => return Step::Quit,
            KeyCode::Char('?') => self.help = true,
            KeyCode::Up | KeyCode::Char('k') => self.go(-1),
            KeyCode::Down | KeyCode::Char('j') => self.go(1),
            KeyCode::PageUp => self.go(-PAGE),
            KeyCode::PageDown => self.go(PAGE),
            KeyCode::Home => self.go(isize::MIN),
            KeyCode::End => self.go(isize::MAX),
            KeyCode::Tab => self.turn(1),
            KeyCode::BackTab => self.turn(Pane::ALL.len() - 1),
            KeyCode::Char('p') => return self.pause_or_resume(),
            KeyCode::Char('r') => return self.retry(),
            KeyCode::Char('c') => return self.cancel(),
            KeyCode::Char('s') => return self.stop(),
            _ => {}
        }
        Step::Stay
    }

    fn turn(&mut self, by: usize) {
        let now = Pane::ALL.iter().position(|pane| *pane == self.pane).unwrap_or_default();
        self.pane = Pane::ALL[(now + by) % Pane::ALL.len()];
    }

    fn refuse(&mut self, why: &str) -> Step {
        self.say(why);
        Step::Stay
    }

    fn question(&mut self, text: &str, deed: Deed) -> Step {
        self.question = Some(Question { text: output::visible(text), deed });
        Step::Stay
    }

    fn pause_or_resume(&mut self) -> Step {
        let chosen = self.place_in(Pane::Queues).and_then(|place| self.seen.queues.get(place));
        let Some(queue) = chosen else { return self.refuse("there is no queue to pause") };
        let name = queue.queue.clone();
        Step::Do(if queue.paused_at.is_some() { Deed::Resume(name) } else { Deed::Pause(name) })
    }

    fn retry(&mut self) -> Step {
        match self.pane {
            Pane::Dead => match self.place_in(Pane::Dead).and_then(|place| self.seen.dead.jobs.get(place)) {
                Some(job) => Step::Do(Deed::Retry(job.queue.clone(), job.id)),
                None => self.refuse("there is no dead job to put back"),
            },
            Pane::Queues => match self.place_in(Pane::Queues).and_then(|place| self.seen.queues.get(place)) {
                Some(queue) if queue.dead > 0 => {
                    let name = short(queue.queue.as_str());
                    let text = format!("Put all {} dead jobs of {name} back into the line?", queue.dead);
                    let deed = Deed::RetryAllDead(queue.queue.clone());
                    self.question(&text, deed)
                }
                _ => self.refuse("there is no dead job to put back"),
            },
            Pane::Workers | Pane::Running => self.refuse("r is for dead jobs, or for all those of a queue"),
        }
    }

    fn cancel(&mut self) -> Step {
        if self.pane == Pane::Dead {
            return self.refuse("a dead job has ended; r puts it back into the line");
        }
        if self.pane != Pane::Running {
            return self.refuse("c is for running jobs");
        }
        let all = chart::running(&self.seen);
        let Some((worker, job)) = self.place_in(Pane::Running).and_then(|place| all.get(place)) else {
            return self.refuse("no job runs");
        };
        let (host, pid) = (&worker.host, worker.pid);
        let text = format!("Cancel job {} of {}, which runs at {host} {pid}?", job.id, short(&job.queue));
        let deed = Deed::Cancel(job.queue.clone(), job.id);
        self.question(&text, deed)
    }

    fn stop(&mut self) -> Step {
        if self.pane != Pane::Workers {
            return self.refuse("s is for workers");
        }
        let chosen = self.place_in(Pane::Workers).and_then(|place| self.seen.workers.get(place));
        let Some(worker) = chosen else { return self.refuse("there is no worker to stop") };
        let (mode, when) = match worker.stop.max(worker.status.stopping) {
            None => (StopMode::Drain, "when nothing waits"),
            Some(StopMode::Drain) => (StopMode::Finish, "when its running jobs have ended"),
            Some(StopMode::Finish) => (StopMode::Abort, "now"),
            Some(StopMode::Abort) => return self.refuse("it was told to stop now, and nothing is sterner"),
        };
        let text = format!("Have worker {} at {} {} stop {when}?", worker.id, worker.host, worker.pid);
        let deed = Deed::Stop(worker.id, mode);
        self.question(&text, deed)
    }
}
