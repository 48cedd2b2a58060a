//! Charts as SVG, drawn on the server. They have no inline styles, which the content security policy forbids.

use std::fmt::Write as _;

use maud::{Markup, html};

use crate::html::duration;
use crate::sampler::Point;

/// The size of a chart in its own units.
const WIDTH: f64 = 300.0;
const HEIGHT: f64 = 60.0;

/// Draws a number and its course.
pub(crate) fn chart(title: &str, newest: &str, points: &[Point], value: impl Fn(&Point) -> f64) -> Markup {
    let values: Vec<f64> = points.iter().map(value).collect();
    let most = values.iter().copied().fold(0.0, f64::max);
    html! {
        figure class="card" {
            figcaption { (title) " " strong { (newest) } }
            @if let [first, .., last] = points {
                @let span = duration((last.at - first.at).to_std().unwrap_or_default());
                svg viewBox={ "0 0 " (WIDTH) " " (HEIGHT) } role="img" preserveAspectRatio="none"
                    aria-label={ (title) " over the last " (span) ", at most " (format!("{most:.1}")) } {
                    polyline points=(line(points, &values, most)) class="line" vector-effect="non-scaling-stroke" {}
                }
                p class="quiet" { "last " (span) ", at most " (format!("{}", (most * 10.0).round() / 10.0)) }
            } @else {
                p class="quiet" { "The chart begins with the next sample." }
            }
        }
    }
}

/// Returns the points of the line, by their times.
fn line(points: &[Point], values: &[f64], most: f64) -> String {
    let [first, .., last] = points else { return String::new() };
    let whole = (last.at - first.at).num_milliseconds().max(1) as f64;
    let scale = if most > 0.0 { most } else { 1.0 };
    points.iter().zip(values).fold(String::new(), |mut line, (point, value)| {
        let x = (point.at - first.at).num_milliseconds() as f64 / whole * WIDTH;
        let y = HEIGHT - 1.0 - value / scale * (HEIGHT - 2.0);
        let _ = write!(line, "{x:.1},{y:.1} ");
        line
    })
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::*;

    #[test]
    fn a_line_spans_the_chart() {
        let point = |seconds, waiting| Point {
            at: DateTime::from_timestamp(seconds, 0).expect("a time"),
            waiting,
            running: 0,
            per_second: 0.0,
        };
        let points = [point(0, 0), point(5, 4), point(10, 2)];
        assert_eq!(line(&points, &[0.0, 4.0, 2.0], 4.0), "0.0,59.0 150.0,1.0 300.0,30.0 ");
        assert_eq!(line(&points[..1], &[0.0], 0.0), "");
        let flat = chart("Waiting", "0", &points, |_| 0.0).into_string();
        assert!(flat.contains("0.0,59.0") && !flat.contains("style="), "{flat}");
    }
}
