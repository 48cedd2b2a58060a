//! Tests of the keys and of the drawing.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use pq_core::{LimitUse, Payload};
use pq_diesel::admin::{QueueCounts, WorkerId, WorkerInfo};
use pq_diesel::{
    Annotations, GroupUse, JobId, JobRecord, JobState, LimitedQueue, Limits, QueueName, Reason, Status,
    StopMode,
};
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::buffer::Buffer;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::style::Color;
use ratatui::text::Span;
use serde_json::json;

use super::action::Action;
use super::keys::Effect;
use super::poller::{DeadJobs, Snapshot, StuckJob, Update};
use super::state::State;
use super::table::{self, Pane};
use super::view;

const HOSTILE: &str =
    "\u{1b}[2J\u{202e}liam\u{7} \u{1f4a5}請求書\nsecond line of a name that goes on and on and on";

fn at() -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000, 0).unwrap()
}

fn name(name: &str) -> QueueName {
    QueueName::new(name).unwrap()
}

fn empty() -> Snapshot {
    Snapshot {
        at: at(),
        queues: Vec::new(),
        workers: Vec::new(),
        dead: DeadJobs::default(),
        stuck: None,
        limited: None,
        progress: BTreeMap::new(),
    }
}

fn queue(of: &str, ready: u64, dead: u64) -> QueueCounts {
    let mut queue = QueueCounts::new(name(of));
    (queue.ready, queue.dead, queue.per_second) = (ready, dead, 12.34);
    queue.oldest = (ready > 0).then_some(Duration::from_secs(4_000));
    queue
}

fn worker(id: i64, running: &serde_json::Value) -> WorkerInfo {
    let status: Status = serde_json::from_value(json!({
        "running": running,
        "buffered": 20,
        "report": { "done": 1_234, "failed": 5, "dead": 2 },
        "per_second": 98.76,
    }))
    .unwrap();
    WorkerInfo {
        id: WorkerId(id),
        host: "a.example".to_owned(),
        pid: 4_711,
        supervisor: 4_711,
        queues: vec!["mail".to_owned(), HOSTILE.to_owned()],
        threads: 4,
        started_at: at(),
        heartbeat_age: Duration::from_secs(if id == 1 { 1 } else { 40 }),
        stop: (id == 2).then_some(StopMode::Drain),
        status,
    }
}

fn dead(id: i64, error: &str) -> JobRecord {
    JobRecord {
        id: JobId(id),
        queue: name(HOSTILE),
        payload: Payload::from_stored("{\n \"to\": \"\u{9b}31mx\" }".to_owned()),
        enqueued_at: at(),
        schedule_at: None,
        expected_at: None,
        priority: 0,
        attempt: 3,
        crashes: 0,
        serialization_key: None,
        unique_key: None,
        state: JobState::Dead,
        error: Some(error.to_owned()),
        result: None,
        lease_until: None,
        ended_at: Some(at() - Duration::from_secs(90)),
        annotations: Annotations::default(),
        attempt_log: Vec::new(),
    }
}

fn busy() -> Snapshot {
    let running = json!([
        { "id": 7, "queue": "mail", "task": "send\u{1b}[31m", "attempt": 1, "age": 0.2 },
        { "id": 9, "queue": HOSTILE, "attempt": 2, "age": 75.0 },
    ]);
    let mut paused = queue("thumbnails", 3, 0);
    paused.paused_at = Some(at() - Duration::from_secs(7_260));
    (paused.scheduled, paused.blocked, paused.running) = (2, 1, 4);
    Snapshot {
        at: at(),
        queues: vec![queue(HOSTILE, 0, 2), queue("mail", 5, 0), paused],
        workers: vec![worker(1, &running), worker(2, &json!([]))],
        dead: DeadJobs {
            of: Some(name(HOSTILE)),
            jobs: vec![dead(42, "550 no\r\nsuch\u{0} mailbox"), dead(41, &"long ".repeat(400))],
        },
        stuck: None,
        limited: None,
        progress: BTreeMap::new(),
    }
}

fn drawn(state: &State, width: u16, height: u16) -> Buffer {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| view::draw(frame, state)).unwrap();
    terminal.backend().buffer().clone()
}

/// The screen as text. A wide character takes two cells.
fn screen(state: &State, width: u16, height: u16) -> String {
    let buffer = drawn(state, width, height);
    let line = |y| {
        let (mut line, mut x) = (String::new(), 0);
        while x < width {
            let symbol = buffer[(x, y)].symbol();
            line.push_str(symbol);
            x += Span::raw(symbol).width().max(1) as u16;
        }
        line.trim_end().to_owned()
    };
    (0..height).map(line).collect::<Vec<_>>().join("\n")
}

fn state(snapshot: Snapshot) -> State {
    State::new(snapshot, None, true)
}

fn press(state: &mut State, key: char) -> Effect {
    let code = match key {
        '\t' => KeyCode::Tab,
        '\u{1b}' => KeyCode::Esc,
        key => KeyCode::Char(key),
    };
    state.press(KeyEvent::new(code, KeyModifiers::NONE))
}

fn keys(state: &mut State, keys: &str) -> Effect {
    keys.chars().map(|key| press(state, key)).last().unwrap()
}

#[test]
fn empty_view() {
    insta::assert_snapshot!(screen(&state(empty()), 80, 16));
}

#[test]
fn queues_with_hostile_names() {
    insta::assert_snapshot!(screen(&state(busy()), 120, 24));
}

#[test]
fn a_narrow_terminal() {
    insta::assert_snapshot!(screen(&state(busy()), 44, 16));
}

#[test]
fn a_low_terminal_has_the_focused_pane() {
    let mut state = state(busy());
    keys(&mut state, "\t");
    insta::assert_snapshot!(screen(&state, 80, 8));
}

#[test]
fn a_lost_server() {
    let mut state = state(busy());
    let reason = "cannot connect to db.example:5432: connection\nrefused".to_owned();
    state.apply(Update::Lost(reason, Duration::from_secs(4)));
    insta::assert_snapshot!(screen(&state, 100, 20));
    state.apply(Update::Snapshot(empty()));
    assert!(!screen(&state, 100, 20).contains("refused"));
}

#[test]
fn the_help() {
    let mut state = state(busy());
    press(&mut state, '?');
    insta::assert_snapshot!(screen(&state, 90, 20));
    assert_eq!(press(&mut state, '\u{1b}'), Effect::None, "this closes the help");
    assert!(!screen(&state, 90, 20).contains("Ctrl-C"));
    assert_eq!(press(&mut state, '\u{1b}'), Effect::Quit);
}

#[test]
fn a_question() {
    let mut state = state(busy());
    press(&mut state, 'r');
    insta::assert_snapshot!(screen(&state, 90, 20));
}

#[test]
fn plain_text() {
    insta::assert_snapshot!(table::plain(&busy()));
}

#[test]
fn why_a_job_of_the_selected_queue_does_not_run() {
    let mut stuck = busy();
    stuck.stuck = Some(StuckJob {
        queue: name("mail"),
        id: JobId(11),
        reasons: vec![Reason::NoWorker, Reason::Behind { jobs: 3 }],
        error: Some("550 no\r\nsuch\u{0} mailbox".to_owned()),
    });
    let mut state = state(stuck.clone());
    assert!(!screen(&state, 120, 24).contains("job 11"), "another queue is selected");
    press(&mut state, 'j');
    insta::assert_snapshot!(screen(&state, 120, 24));
    assert!(table::plain(&stuck).contains("\n\njob 11 of mail does not run: no live worker"));
}

#[test]
fn which_limits_keep_jobs_of_the_selected_queue_waiting() {
    let mut limited = busy();
    let limits = Limits::new().running(4).running_per_group(1);
    limited.queues[1].limits = Some(limits.clone());
    limited.queues[1].running = 4;
    let group = |name: &str, due| GroupUse { group: Some(name.to_owned()), due, ..GroupUse::default() };
    limited.limited = Some(Box::new(LimitedQueue {
        queue: name("mail"),
        limits,
        at: at(),
        used: LimitUse { running: 4, tokens: None },
        groups: vec![group("a", 2), group("b", 3)],
    }));
    let line = "mail: 5 due jobs waiting for the limit running";
    let mut state = state(limited.clone());
    assert!(!screen(&state, 120, 24).contains(line), "another queue is selected");
    press(&mut state, 'j');
    let drawn = screen(&state, 140, 24);
    assert!(drawn.contains(line), "{drawn}");
    assert!(drawn.contains("full; limited"), "{drawn}");
    assert!(table::plain(&limited).contains(&format!("\n\n{line}\n\n")));
}

#[test]
fn any_size_can_be_drawn() {
    let mut states = [state(empty()), state(busy()), state(busy()), state(busy())];
    keys(&mut states[1], "\t\t\tj");
    press(&mut states[2], '?');
    keys(&mut states[3], "\tjs");
    for state in &states {
        for width in [1, 2, 3, 5, 8, 13, 34, 55, 200] {
            for height in [1, 2, 3, 5, 8, 13, 40] {
                drawn(state, width, height);
            }
        }
    }
}

#[test]
fn no_control_character_is_drawn() {
    for width in [10, 40, 80, 200] {
        let mut state = state(busy());
        press(&mut state, 'r');
        let text = screen(&state, width, 40) + &table::plain(&busy());
        let bad = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
        assert!(!text.contains(bad), "{text:?}");
    }
}

#[test]
fn colours_can_be_switched_off() {
    let is_painted = |colours| {
        let state = State::new(busy(), None, colours);
        drawn(&state, 100, 30).content.iter().any(|cell| cell.fg != Color::Reset || cell.bg != Color::Reset)
    };
    assert!(is_painted(true));
    assert!(!is_painted(false));
}

#[test]
fn a_queue_is_paused_and_resumed() {
    let mut state = state(busy());
    assert_eq!(keys(&mut state, "jp"), Effect::Run(Action::Pause(name("mail"))));
    assert_eq!(keys(&mut state, "jp"), Effect::Run(Action::Resume(name("thumbnails"))));
    assert_eq!(
        keys(&mut state, "jjjp"),
        Effect::Run(Action::Resume(name("thumbnails"))),
        "it is the last queue"
    );
    assert_eq!(keys(&mut state, "\tp"), Effect::Run(Action::Resume(name("thumbnails"))), "from any pane");
    assert_eq!(keys(&mut self::state(empty()), "p"), Effect::None);
}

#[test]
fn destructive_actions_ask_for_confirmation() {
    let mut state = state(busy());
    let all = Effect::Run(Action::RetryAllDead(name(HOSTILE)));
    assert_eq!(keys(&mut state, "r"), Effect::None);
    assert_eq!(keys(&mut state, "y"), all);
    for no in ["rn", "rq", "rp", "r\t", "r\u{1b}"] {
        assert_eq!(keys(&mut state, no), Effect::None, "{no:?}");
        assert!(state.question.is_none());
    }
    press(&mut state, 'r');
    let held = KeyEvent::new(KeyCode::Char('y'), KeyModifiers::CONTROL);
    assert_eq!(state.press(held), Effect::None, "Ctrl-y is another key");
    assert_eq!(keys(&mut state, "jr"), Effect::None);
    assert!(state.question.is_none(), "a queue without dead jobs");
}

#[test]
fn a_running_job_is_cancelled_and_a_dead_one_is_retried() {
    let mut state = state(busy());
    assert_eq!(keys(&mut state, "c"), Effect::None);
    assert!(state.question.is_none(), "not in the queues pane");
    assert_eq!(
        keys(&mut state, "\t\tcy"),
        Effect::Run(Action::Cancel(HOSTILE.to_owned(), JobId(9))),
        "the oldest"
    );
    assert_eq!(keys(&mut state, "jcy"), Effect::Run(Action::Cancel("mail".to_owned(), JobId(7))));
    assert_eq!(keys(&mut state, "\tjr"), Effect::Run(Action::Retry(name(HOSTILE), JobId(41))));
    assert_eq!(keys(&mut state, "cy"), Effect::None, "a dead job cannot be cancelled");
}

#[test]
fn repeated_stops_of_a_worker_escalate() {
    let mut state = state(busy());
    assert_eq!(keys(&mut state, "\tsy"), Effect::Run(Action::Stop(WorkerId(1), StopMode::Drain)));
    assert_eq!(keys(&mut state, "jsy"), Effect::Run(Action::Stop(WorkerId(2), StopMode::Finish)));
    let mut snapshot = busy();
    snapshot.workers[1].status.stopping = Some(StopMode::Finish);
    state.apply(Update::Snapshot(snapshot.clone()));
    assert_eq!(keys(&mut state, "sy"), Effect::Run(Action::Stop(WorkerId(2), StopMode::Abort)));
    snapshot.workers[1].stop = Some(StopMode::Abort);
    state.apply(Update::Snapshot(snapshot));
    assert_eq!(keys(&mut state, "sy"), Effect::None);
}

#[test]
fn a_worker_whose_polls_are_refused_says_why() {
    let mut snapshot = busy();
    snapshot.workers[0].status.refused = Some("permission denied\u{1b}".to_owned());
    assert!(crate::worker_output::describe(&snapshot.workers[0].status).contains("permission denied\\u{1b}"));
    let state = state(snapshot);
    assert!(
        screen(&state, 200, 40).contains("polls refused: permission denied"),
        "{}",
        screen(&state, 200, 40)
    );
}

#[test]
fn the_selection_follows_its_row() {
    let mut state = state(busy());
    keys(&mut state, "j");
    let mut snapshot = busy();
    snapshot.queues.insert(0, queue("a new one", 1, 0));
    state.apply(Update::Snapshot(snapshot.clone()));
    assert_eq!(state.selected_queue(), Some(name("mail")));
    snapshot.queues.retain(|queue| queue.queue != name("mail"));
    state.apply(Update::Snapshot(snapshot.clone()));
    assert_eq!(state.selected_queue(), Some(name("thumbnails")), "the row at the same index");
    snapshot.queues.truncate(1);
    state.apply(Update::Snapshot(snapshot));
    assert_eq!(state.selected_queue(), Some(name("a new one")));
    state.apply(Update::Snapshot(empty()));
    assert_eq!(state.selected_queue(), None);
    let named = State::new(busy(), Some(name("mail")), true);
    assert_eq!(named.selected_queue(), Some(name("mail")));
}

#[test]
fn three_keys_quit() {
    for key in ['q', '\u{1b}'] {
        assert_eq!(press(&mut state(busy()), key), Effect::Quit);
    }
    let mut requests = state(busy());
    press(&mut requests, 'r');
    let interrupt = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
    assert_eq!(requests.press(interrupt), Effect::Quit, "with any state of the view");
}

#[test]
fn the_result_of_an_action_is_shown_until_the_next_key() {
    let mut state = state(busy());
    state.apply(Update::ActionDone(Err("the database refused: \u{1b}".to_owned())));
    assert!(screen(&state, 80, 20).ends_with("the database refused: \\u{1b}"));
    press(&mut state, 'k');
    assert!(!screen(&state, 80, 20).contains("refused"));
    assert_eq!(state.selected_index(Pane::Queues), Some(0));
}
