//! A plot axis with given labels.

use std::ops::Range;

use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};

use super::format::tick;

/// The range of an axis, and its labels.
#[derive(Clone)]
pub(super) struct Axis {
    pub(super) label: String,
    pub(super) from: f64,
    pub(super) to: f64,
    pub(super) ticks: Vec<(f64, String)>,
}

impl Axis {
    /// Creates an axis from zero to slightly above the maximum, with about five labels.
    pub(super) fn from_zero(label: &str, most: f64) -> Self {
        let most = if most > 0.0 { most } else { 1.0 };
        let rough = most / 5.0;
        let power = 10f64.powf(rough.log10().floor());
        let step =
            [1.0, 2.0, 2.5, 5.0, 10.0].map(|part| part * power).into_iter().find(|step| *step >= rough);
        let step = step.unwrap_or(rough);
        let steps = (most / step).ceil();
        let ticks = (0..=steps as usize).map(|at| at as f64 * step).map(|at| (at, tick(at))).collect();
        Self { label: label.to_owned(), from: 0.0, to: steps * step, ticks }
    }

    /// Creates a logarithmic axis with labels at powers of ten.
    pub(super) fn logarithmic(label: &str, least: f64, most: f64) -> Self {
        let powers = least.log10().floor() as i32..=most.log10().ceil() as i32;
        // If there is room, with labels between the powers.
        let parts: &[f64] = if most > 10_000.0 * least { &[1.0] } else { &[1.0, 2.0, 5.0] };
        let values: Vec<f64> =
            powers.flat_map(|power| parts.iter().map(move |part| part * 10f64.powi(power))).collect();
        let from = values.iter().copied().filter(|value| *value <= least).fold(values[0], f64::max);
        let to =
            values.iter().copied().filter(|value| *value >= most).fold(values[values.len() - 1], f64::min);
        let within = values.into_iter().filter(|value| (from..=to).contains(value));
        let ticks = within.map(|value| (value.log10(), tick(value))).collect();
        Self { label: label.to_owned(), from: from.log10(), to: to.log10(), ticks }
    }

    /// Creates an axis that is labelled only at these values.
    pub(super) fn at(label: &str, ticks: Vec<(f64, String)>) -> Self {
        let least = ticks.iter().map(|(at, _)| *at).fold(f64::INFINITY, f64::min);
        let most = ticks.iter().map(|(at, _)| *at).fold(f64::NEG_INFINITY, f64::max);
        let margin = ((most - least) * 0.04).max(0.05);
        Self { label: label.to_owned(), from: least - margin, to: most + margin, ticks }
    }

    fn text(&self, value: f64) -> String {
        let near = |(at, _): &&(f64, String)| (at - value).abs() <= 1e-9 * (self.to - self.from).abs();
        self.ticks.iter().find(near).map(|(_, text)| text.clone()).unwrap_or_default()
    }
}

/// plotters chooses the labels of its own ranges, so this range provides its own.
impl Ranged for Axis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (begin, end): (i32, i32)) -> i32 {
        let part = (value - self.from) / (self.to - self.from);
        begin + (f64::from(end - begin) * part).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        if hint.weight().allow_light_points() {
            return Vec::new();
        }
        self.ticks.iter().map(|(at, _)| *at).collect()
    }

    fn range(&self) -> Range<f64> {
        self.from..self.to
    }
}

impl ValueFormatter<f64> for Axis {
    fn format_ext(&self, value: &f64) -> String {
        self.text(*value)
    }
}
