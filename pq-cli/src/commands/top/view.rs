//! Draws the view from its state and nothing else.

use pq_diesel::QueueName;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Cell, Clear, Paragraph, Row, Table, TableState};

use super::keys::HELP;
use super::layout;
use super::state::State;
use super::table::{self, Pane, PaneTable, Tone};
use crate::output;

/// Lines of a pane above its rows: the title and the column headers.
const HEADER_LINES: u16 = 2;

pub(super) fn draw(frame: &mut Frame<'_>, state: &State) {
    let selected = state.selected_queue();
    let is_selected = |queue: &QueueName| Some(queue) == selected.as_ref();
    let stuck = state.snapshot.stuck.as_ref().filter(|stuck| is_selected(&stuck.queue));
    let stuck = stuck.and_then(|_| table::stuck(&state.snapshot));
    let limited = state.snapshot.limited.as_ref().filter(|limited| is_selected(&limited.queue));
    let why_waiting = stuck.or_else(|| limited.and_then(|_| table::held_back(&state.snapshot)));
    let lines = [
        Constraint::Length(1),
        Constraint::Min(0),
        Constraint::Length(why_waiting.is_some().into()),
        Constraint::Length(1),
    ];
    let [top, middle, why, bottom] = Layout::vertical(lines).areas(frame.area());
    frame.render_widget(headline(state, top.width), top);
    if let Some(waiting) = why_waiting {
        frame.render_widget(
            Line::styled(layout::truncate(&waiting, why.width), paint(state, Tone::Paused)),
            why,
        );
    }
    let tables = Pane::ALL.map(|pane| (pane, PaneTable::of(pane, &state.snapshot)));
    let wants = tables.each_ref().map(|(_, table)| {
        HEADER_LINES.saturating_add(u16::try_from(table.rows.len().max(1)).unwrap_or(u16::MAX))
    });
    let focus = Pane::ALL.iter().position(|pane| *pane == state.pane).unwrap_or_default();
    let mut below = middle;
    for ((pane, table), height) in tables.iter().zip(heights(middle.height, wants, focus)) {
        let area = Rect { height, ..below };
        below = Rect { y: below.y + height, height: below.height - height, ..below };
        if height > 0 {
            draw_pane(frame, state, *pane, table, area);
        }
    }
    frame.render_widget(bottom_line(state, bottom.width), bottom);
    if state.help {
        draw_help(frame, middle);
    }
}

/// Divides the lines among the panes.
///
/// Each pane gets its minimum. The focused pane gets the rows that it needs next, then the others in turn. If the
/// minimums do not fit, only the focused pane is shown.
fn heights(lines: u16, wants: [u16; 4], focus: usize) -> [u16; 4] {
    const MIN_HEIGHT: u16 = HEADER_LINES + 1;
    let mut heights = [MIN_HEIGHT; 4];
    let Some(mut left) = lines.checked_sub(4 * MIN_HEIGHT) else {
        heights = [0; 4];
        heights[focus] = lines;
        return heights;
    };
    let more = wants[focus].saturating_sub(MIN_HEIGHT).min(left);
    heights[focus] += more;
    left -= more;
    while left > 0 {
        let mut satisfied = true;
        for (height, want) in heights.iter_mut().zip(wants) {
            if left > 0 && *height < want {
                *height += 1;
                left -= 1;
                satisfied = false;
            }
        }
        if satisfied {
            break;
        }
    }
    // The last pane gets the rest.
    heights[3] += left;
    heights
}

fn headline(state: &State, width: u16) -> Line<'static> {
    if let Some(lost) = &state.lost {
        let again = output::format_duration(lost.again);
        let text = format!("pq top  no update, retrying in {again}: {}", lost.reason);
        return Line::styled(
            layout::truncate(&text, width),
            paint(state, Tone::Alert).add_modifier(Modifier::BOLD),
        );
    }
    let clock = output::format_time(state.snapshot.at);
    let left = format!("pq top  {}", table::totals(&state.snapshot));
    let gap = usize::from(width).saturating_sub(Span::raw(left.as_str()).width() + clock.len());
    if gap < 2 {
        return Line::styled(layout::truncate(&left, width), Modifier::BOLD);
    }
    Line::from(vec![Span::styled(left, Modifier::BOLD), Span::raw(" ".repeat(gap)), Span::raw(clock)])
}

fn bottom_line(state: &State, width: u16) -> Line<'static> {
    if let Some(question) = &state.question {
        // The answers stay visible, however long the names are.
        let answer = " y/n ";
        let room = width.saturating_sub(answer.len() as u16);
        let text = format!("{}{answer}", layout::truncate(&question.text, room));
        return Line::styled(
            text,
            paint(state, Tone::Paused).add_modifier(Modifier::BOLD | Modifier::REVERSED),
        );
    }
    if let Some(note) = &state.note {
        let tone = if note.is_error { Tone::Alert } else { Tone::Plain };
        return Line::styled(
            layout::truncate(&note.text, width),
            paint(state, tone).add_modifier(Modifier::BOLD),
        );
    }
    let own = match state.pane {
        Pane::Queues => "p pause or resume, r retry dead",
        Pane::Workers => "s stop",
        Pane::Running => "c cancel",
        Pane::Dead => "r retry",
    };
    let keys = format!("{own}, tab next pane, ? help, q quit");
    Line::styled(layout::truncate(&keys, width), Modifier::DIM)
}

fn draw_pane(frame: &mut Frame<'_>, state: &State, pane: Pane, table: &PaneTable, area: Rect) {
    let is_focus = state.pane == pane;
    let emphasis = if is_focus { Modifier::BOLD } else { Modifier::DIM };
    let title = layout::truncate(&table.title, area.width.saturating_sub(4));
    let block = Block::new()
        .borders(Borders::TOP)
        .border_style(emphasis)
        .title(Span::styled(format!(" {title} "), if is_focus { Modifier::BOLD } else { Modifier::empty() }));
    if table.rows.is_empty() {
        let empty_text = layout::truncate(&format!("  {}", table.empty_text), area.width);
        frame.render_widget(Paragraph::new(Line::styled(empty_text, Modifier::DIM)).block(block), area);
        return;
    }
    const MARK: &str = "> ";
    let shown = layout::columns(table, area.width.saturating_sub(MARK.len() as u16));
    let cell = |column: usize, width: u16, text: &str| {
        let line = Line::from(layout::truncate(text, width));
        Cell::from(if table.columns[column].is_number { line.right_aligned() } else { line })
    };
    let headers = shown.iter().map(|&(column, width)| cell(column, width, table.columns[column].header));
    let rows = table.rows.iter().map(|row| {
        let cells = shown.iter().map(|&(column, width)| cell(column, width, &row.cells[column]));
        Row::new(cells).style(paint(state, row.tone))
    });
    let table = Table::new(rows, shown.iter().map(|(_, width)| Constraint::Length(*width)))
        .header(Row::new(headers).style(Modifier::BOLD))
        .column_spacing(layout::GAP)
        .highlight_symbol(MARK)
        .highlight_spacing(ratatui::widgets::HighlightSpacing::Always)
        .row_highlight_style(if is_focus { Modifier::REVERSED } else { Modifier::empty() })
        .block(block);
    // The selected queue is always marked, because it determines the dead jobs.
    let index = state.selected_index(pane).filter(|_| is_focus || pane == Pane::Queues);
    frame.render_stateful_widget(table, area, &mut TableState::new().with_selected(index));
}

fn draw_help(frame: &mut Frame<'_>, area: Rect) {
    let widest = HELP.iter().map(|(keys, _)| keys.len()).max().unwrap_or_default();
    let lines: Vec<Line<'_>> = HELP
        .iter()
        .map(|(keys, what)| {
            Line::from(vec![Span::styled(format!(" {keys:widest$}  "), Modifier::BOLD), Span::raw(*what)])
        })
        .collect();
    let width = lines.iter().map(Line::width).max().unwrap_or_default() + 3;
    let area = area.centered(
        Constraint::Length(u16::try_from(width).unwrap_or(u16::MAX)),
        Constraint::Length(u16::try_from(HELP.len() + 2).unwrap_or(u16::MAX)),
    );
    frame.render_widget(Clear, area);
    let block = Block::bordered().title(" Keys ");
    frame.render_widget(Paragraph::new(lines).block(block), area);
}

/// Returns the style of a tone, without a colour if colours are off.
fn paint(state: &State, tone: Tone) -> Style {
    match tone {
        _ if !state.colours => Style::new(),
        Tone::Plain => Style::new(),
        Tone::Paused => Style::new().fg(Color::Yellow),
        Tone::Alert => Style::new().fg(Color::Red),
    }
}
