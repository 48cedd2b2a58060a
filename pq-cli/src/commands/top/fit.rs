//! Making a chart fit a width.

use ratatui::text::Span;

use super::chart::Chart;

/// Between two columns.
pub(super) const GAP: u16 = 2;

/// The columns that are shown, by their place in the chart, with their widths. What may be cut is cut first, then
/// columns go by their rank; where even that is not enough the terminal cuts the last ones off.
pub(super) fn columns(chart: &Chart, width: u16) -> Vec<(usize, u16)> {
    let mut shown: Vec<(usize, u16)> =
        (0..chart.columns.len()).map(|column| (column, natural(chart, column).min(width))).collect();
    // Words that no row has are not missed. Numbers stay, or the columns beside them would jump.
    let says_something = |column: usize| {
        chart.columns[column].is_number || chart.rows.iter().any(|row| !row.cells[column].is_empty())
    };
    shown.retain(|(column, _)| says_something(*column));
    loop {
        let gaps = GAP.saturating_mul(u16::try_from(shown.len().saturating_sub(1)).unwrap_or(u16::MAX));
        let wanted = shown.iter().fold(gaps, |sum, (_, width)| sum.saturating_add(*width));
        if wanted <= width {
            return shown;
        }
        let slack = |&(column, now): &(usize, u16)| {
            chart.columns[column].least.map_or(0, |least| now.saturating_sub(least))
        };
        // The widest of those that may be cut, so that they come to be alike.
        let cut = shown.iter_mut().filter(|shown| slack(shown) > 0).max_by_key(|(_, now)| *now);
        if let Some((_, now)) = cut {
            *now -= 1;
            continue;
        }
        let rank = |&(column, _): &(usize, u16)| chart.columns[column].rank;
        match shown.iter().map(rank).max() {
            Some(highest) if highest > 0 => {
                shown.retain(|column| rank(column) < highest);
                // What was cut for the sake of those may have its width back.
                for (column, now) in &mut shown {
                    *now = natural(chart, *column).min(width);
                }
            }
            _ => return shown,
        }
    }
}

/// How wide a column would like to be.
fn natural(chart: &Chart, column: usize) -> u16 {
    let cells = chart.rows.iter().map(|row| row.cells[column].as_str());
    let widest = cells.chain([chart.columns[column].head]).map(|text| Span::raw(text).width()).max();
    u16::try_from(widest.unwrap_or_default()).unwrap_or(u16::MAX)
}

/// Text of at most this width, with a mark where it was cut.
pub(super) fn clip(text: &str, width: u16) -> String {
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
