//! Charts as SVG, drawn on the server. They have no inline styles, which the content security policy forbids.

use std::collections::VecDeque;
use std::fmt::Write as _;

use chrono::{DateTime, Utc};
use maud::{Markup, html};

use crate::html::duration;

/// The size of a chart in its own units.
const WIDTH: f64 = 300.0;
const HEIGHT: f64 = 60.0;

/// The most values of a chart.
const MAX_VALUES: usize = 150;

/// The values of a chart by their times. The oldest is forgotten first.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Course(VecDeque<(DateTime<Utc>, f64)>);

impl Course {
    pub(crate) fn add(&mut self, at: DateTime<Utc>, value: f64) {
        self.0.push_back((at, value));
        if self.0.len() > MAX_VALUES {
            self.0.pop_front();
        }
    }

    /// Returns the newest value.
    pub(crate) fn newest(&self) -> f64 {
        self.0.back().map(|(_, value)| *value).unwrap_or_default()
    }

    /// Returns the first and the last time, if they differ.
    fn span(&self) -> Option<(DateTime<Utc>, DateTime<Utc>)> {
        let (first, _) = self.0.front()?;
        let (last, _) = self.0.back()?;
        (first < last).then_some((*first, *last))
    }
}

/// Draws a number and its course.
pub(crate) fn chart(title: &str, newest: &str, course: &Course) -> Markup {
    let most = course.0.iter().map(|(_, value)| *value).fold(0.0, f64::max);
    html! {
        figure class="card" {
            figcaption { (title) " " strong { (newest) } }
            @if let Some((first, last)) = course.span() {
                @let span = duration((last - first).to_std().unwrap_or_default());
                svg viewBox={ "0 0 " (WIDTH) " " (HEIGHT) } role="img" preserveAspectRatio="none"
                    aria-label={ (title) " over the last " (span) ", at most " (format!("{most:.1}")) } {
                    polyline points=(line(course, most)) class="line" vector-effect="non-scaling-stroke" {}
                }
                p class="quiet" { "last " (span) ", at most " (format!("{}", (most * 10.0).round() / 10.0)) }
            } @else {
                p class="quiet" { "The chart begins with the next sample." }
            }
        }
    }
}

/// Returns the points of the line, by their times.
fn line(course: &Course, most: f64) -> String {
    let Some((first, last)) = course.span() else { return String::new() };
    let whole = (last - first).num_milliseconds().max(1) as f64;
    let scale = if most > 0.0 { most } else { 1.0 };
    course.0.iter().fold(String::new(), |mut line, (at, value)| {
        let x = (*at - first).num_milliseconds() as f64 / whole * WIDTH;
        let y = HEIGHT - 1.0 - value / scale * (HEIGHT - 2.0);
        let _ = write!(line, "{x:.1},{y:.1} ");
        line
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn course(values: &[(i64, f64)]) -> Course {
        let mut course = Course::default();
        for (seconds, value) in values {
            course.add(DateTime::from_timestamp(*seconds, 0).expect("a time"), *value);
        }
        course
    }

    #[test]
    fn a_line_spans_the_chart() {
        let three = course(&[(0, 0.0), (5, 4.0), (10, 2.0)]);
        assert_eq!(line(&three, 4.0), "0.0,59.0 150.0,1.0 300.0,30.0 ");
        assert_eq!(line(&course(&[(0, 0.0)]), 0.0), "");
        let flat = chart("Waiting", "0", &course(&[(0, 0.0), (5, 0.0)])).into_string();
        assert!(flat.contains("0.0,59.0") && !flat.contains("style="), "{flat}");
    }

    #[test]
    fn a_course_is_bounded() {
        let values: Vec<(i64, f64)> = (0..400).map(|second| (second, second as f64)).collect();
        let course = course(&values);
        assert_eq!((course.0.len(), course.newest()), (MAX_VALUES, 399.0));
    }
}
