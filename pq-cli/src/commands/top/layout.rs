//! Fits the columns of a table into a width.

use ratatui::text::Span;

use super::table::PaneTable;

/// Space between two columns.
pub(super) const GAP: u16 = 2;

/// Returns the indexes and widths of the columns that are shown.
///
/// Text columns are truncated first. Then columns are dropped by their `drop_order`. If the rest is still too wide, the
/// terminal cuts off the last columns.
pub(super) fn columns(table: &PaneTable, width: u16) -> Vec<(usize, u16)> {
    let mut shown: Vec<(usize, u16)> =
        (0..table.columns.len()).map(|column| (column, natural(table, column).min(width))).collect();
    // Empty text columns are hidden. Number columns stay, so that their neighbours do not move between polls.
    let has_content = |column: usize| {
        table.columns[column].is_number || table.rows.iter().any(|row| !row.cells[column].is_empty())
    };
    shown.retain(|(column, _)| has_content(*column));
    loop {
        let gaps = GAP.saturating_mul(u16::try_from(shown.len().saturating_sub(1)).unwrap_or(u16::MAX));
        let wanted = shown.iter().fold(gaps, |sum, (_, width)| sum.saturating_add(*width));
        if wanted <= width {
            return shown;
        }
        let slack = |&(column, now): &(usize, u16)| {
            table.columns[column].min_width.map_or(0, |min_width| now.saturating_sub(min_width))
        };
        // Truncating the widest column each time makes the columns similar in width.
        let cut = shown.iter_mut().filter(|shown| slack(shown) > 0).max_by_key(|(_, now)| *now);
        if let Some((_, now)) = cut {
            *now -= 1;
            continue;
        }
        let drop_order = |&(column, _): &(usize, u16)| table.columns[column].drop_order;
        match shown.iter().map(drop_order).max() {
            Some(highest) if highest > 0 => {
                shown.retain(|column| drop_order(column) < highest);
                // The truncated columns get the space of the dropped ones.
                for (column, now) in &mut shown {
                    *now = natural(table, *column).min(width);
                }
            }
            _ => return shown,
        }
    }
}

/// Returns the width of the widest cell of a column.
fn natural(table: &PaneTable, column: usize) -> u16 {
    let cells = table.rows.iter().map(|row| row.cells[column].as_str());
    let widest = cells.chain([table.columns[column].header]).map(|text| Span::raw(text).width()).max();
    u16::try_from(widest.unwrap_or_default()).unwrap_or(u16::MAX)
}

/// Truncates text to a width, and marks the cut with an ellipsis.
pub(super) fn truncate(text: &str, width: u16) -> String {
    let width = usize::from(width);
    if Span::raw(text).width() <= width {
        return text.to_owned();
    }
    let (mut clipped, mut used) = (String::new(), 0);
    for c in text.chars() {
        used += Span::raw(c.encode_utf8(&mut [0; 4]) as &str).width();
        if used >= width {
            break;
        }
        clipped.push(c);
    }
    clipped.push('…');
    clipped
}
