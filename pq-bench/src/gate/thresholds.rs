//! Committed thresholds, and the checks of measured values against them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};
use comfy_table::{CellAlignment, Table, presets};
use serde::Deserialize;

use super::{Group, Measured};

/// The threshold of a figure.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Threshold {
    /// The value when it was written; for a ratio, the lower bound.
    pub value: f64,
    /// How much worse the value may be, in per cent.
    pub tolerance: f64,
}

/// The thresholds file.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(transparent)]
pub struct Thresholds(BTreeMap<String, BTreeMap<String, Threshold>>);

/// The result of a check.
#[derive(Clone, Debug, PartialEq)]
pub enum CheckResult {
    /// The value is within the tolerance.
    Within,
    /// The value is so much better that the threshold can be tightened.
    Improved,
    /// The value is worse than the tolerance allows, by this many per cent of the threshold.
    Worse(f64),
    /// The figure could not be measured, for this reason.
    NotMeasured(String),
    /// The file has no threshold for the figure.
    NoThreshold,
    /// The file has a threshold, but no figure of this name is measured.
    Unused,
}

/// A figure and the result of its check.
#[derive(Clone, Debug)]
pub struct Check {
    /// The group of the figure.
    pub group: Group,
    /// The figure's name.
    pub name: String,
    /// The value, if it was measured.
    pub value: Option<f64>,
    /// The threshold, if there is one.
    pub threshold: Option<Threshold>,
    /// The result.
    pub result: CheckResult,
}

/// Largest relative error of a value that was rounded for the file.
const ROUNDING: f64 = 5e-4;

impl Threshold {
    fn check(&self, value: f64, bound: bool) -> CheckResult {
        let slack = self.value.abs() * (self.tolerance / 100.0 + ROUNDING);
        let worse = if bound { self.value - value } else { value - self.value };
        if worse > slack {
            // A relative difference to zero is undefined.
            CheckResult::Worse(if self.value == 0.0 {
                f64::INFINITY
            } else {
                worse / self.value.abs() * 100.0
            })
        } else if !bound && -worse > slack {
            CheckResult::Improved
        } else {
            CheckResult::Within
        }
    }
}

impl Thresholds {
    /// Reads the file. There are no thresholds if it does not exist.
    ///
    /// # Errors
    ///
    /// If the file cannot be read or is not a thresholds file.
    pub fn read(path: &Path) -> Result<Self> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        toml::from_str(&text).with_context(|| format!("{} is not a thresholds file", path.display()))
    }

    /// Checks the measured values of these groups against the thresholds.
    #[must_use]
    pub fn check(&self, groups: &[Group], measured: &[Measured]) -> Vec<Check> {
        let mut checks = Vec::new();
        for &group in groups {
            let empty = BTreeMap::new();
            let section = self.0.get(group.section()).unwrap_or(&empty);
            let ours = measured.iter().filter(|one| one.group == group);
            let mut names = BTreeSet::new();
            for one in ours {
                names.insert(one.name.as_str());
                let threshold = section.get(&one.name).copied();
                let result = match (&one.value, threshold) {
                    (Err(reason), _) => CheckResult::NotMeasured(reason.clone()),
                    (Ok(_), None) => CheckResult::NoThreshold,
                    (Ok(value), Some(threshold)) => threshold.check(*value, group.is_lower_bound()),
                };
                let value = one.value.as_ref().ok().copied();
                checks.push(Check { group, name: one.name.clone(), value, threshold, result });
            }
            // A threshold without a figure checks nothing, so it fails.
            for (name, threshold) in section.iter().filter(|(name, _)| !names.contains(name.as_str())) {
                checks.push(Check {
                    group,
                    name: name.clone(),
                    value: None,
                    threshold: Some(*threshold),
                    result: CheckResult::Unused,
                });
            }
        }
        checks
    }

    /// Sets the thresholds of these groups to the measured values.
    ///
    /// Keeps tolerances, bounds of ratios, and thresholds of figures that could not be measured.
    pub fn update(&mut self, groups: &[Group], measured: &[Measured]) {
        for &group in groups {
            let old = self.0.remove(group.section()).unwrap_or_default();
            let mut new = BTreeMap::new();
            for one in measured.iter().filter(|one| one.group == group) {
                let previous = old.get(&one.name).copied();
                let threshold = match (&one.value, previous) {
                    (Ok(_), None) if group.is_lower_bound() => {
                        Some(Threshold { value: one.margin, tolerance: 0.0 })
                    }
                    (Ok(value), None) => Some(Threshold { value: rounded(*value), tolerance: one.margin }),
                    (Ok(value), Some(previous)) if !group.is_lower_bound() => {
                        Some(Threshold { value: rounded(*value), ..previous })
                    }
                    (_, previous) => previous,
                };
                new.extend(threshold.map(|threshold| (one.name.clone(), threshold)));
            }
            self.0.insert(group.section().to_owned(), new);
        }
    }

    /// Formats the file.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = HEADER.to_owned();
        for (section, thresholds) in self.0.iter().filter(|(_, thresholds)| !thresholds.is_empty()) {
            let _ = writeln!(text, "\n[{section}]");
            for (name, Threshold { value, tolerance }) in thresholds {
                let name = toml::Value::from(name.as_str());
                let _ = writeln!(text, "{name} = {{ value = {value}, tolerance = {tolerance} }}");
            }
        }
        text
    }
}

const HEADER: &str = "\
# Thresholds of `pq-bench gate`; `pq-bench gate --write` updates them.
# A figure fails if it is worse than its value by more than its tolerance in per cent. An update keeps tolerances.
# Bounds of ratios are set by hand, and an update keeps them as well.
";

/// Rounds to four digits, or to a whole number from 1,000 on.
fn rounded(value: f64) -> f64 {
    if value == 0.0 || value.abs() >= 1_000.0 {
        return value.round();
    }
    let factor = 10_f64.powi(3 - value.abs().log10().floor() as i32);
    (value * factor).round() / factor
}

impl Check {
    /// Returns whether the check fails the gate. A figure that could not be measured fails only if it is
    /// `required`.
    #[must_use]
    pub fn fails(&self, required: bool) -> bool {
        match self.result {
            CheckResult::Within | CheckResult::Improved => false,
            CheckResult::NotMeasured(_) => required,
            CheckResult::Worse(_) | CheckResult::NoThreshold | CheckResult::Unused => true,
        }
    }

    /// Formats them as a table.
    #[must_use]
    pub fn table(checks: &[Self], required: bool) -> Table {
        let mut table = Table::new();
        table.load_style(presets::UTF8_FULL_CONDENSED);
        table.set_header(["figure", "measured", "threshold", "result"]);
        for one in checks {
            let threshold = one.threshold.map_or("none".to_owned(), |it| {
                let side = if one.group.is_lower_bound() { "at least " } else { "" };
                let tolerance = match it.tolerance {
                    0.0 => String::new(),
                    tolerance if one.group.is_lower_bound() => format!(" - {tolerance} %"),
                    tolerance => format!(" + {tolerance} %"),
                };
                format!("{side}{}{tolerance}", format_value(it.value))
            });
            let mark = if one.fails(required) { "FAILED: " } else { "" };
            table.add_row([
                format!("{}, {}", one.group.section(), one.name),
                one.value.map_or("-".to_owned(), format_value),
                threshold,
                format!("{mark}{}", one.result),
            ]);
        }
        for column in [1, 2] {
            if let Some(column) = table.column_mut(column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        table
    }
}

/// Formats a rounded value.
fn format_value(value: f64) -> String {
    format!("{}", rounded(value))
}

impl std::fmt::Display for CheckResult {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Within => write!(f, "ok"),
            Self::Improved => write!(f, "ok, and can be tightened"),
            Self::Worse(by) if by.is_finite() => write!(f, "{by:.1} % worse than the threshold"),
            Self::Worse(_) => write!(f, "must be 0"),
            Self::NotMeasured(reason) => write!(f, "not measured: {reason}"),
            Self::NoThreshold => write!(f, "the file has no threshold for it"),
            Self::Unused => write!(f, "no figure of this name is measured"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn thresholds(text: &str) -> Thresholds {
        toml::from_str(text).expect("valid thresholds")
    }

    fn results(thresholds: &Thresholds, measured: &[Measured]) -> Vec<CheckResult> {
        let groups: BTreeSet<Group> = measured.iter().map(|one| one.group).collect();
        let groups: Vec<Group> = groups.into_iter().collect();
        thresholds.check(&groups, measured).into_iter().map(|one| one.result).collect()
    }

    #[test]
    fn values_beyond_the_tolerance_are_worse_or_improved() {
        let thresholds = thresholds("[wal]\n\"a put\" = { value = 200, tolerance = 5 }");
        for (value, result) in [
            (200.0, CheckResult::Within),
            (210.0, CheckResult::Within),
            (220.0, CheckResult::Worse(10.0)),
            (190.0, CheckResult::Within),
            (150.0, CheckResult::Improved),
        ] {
            let measured = Measured::new(Group::Wal, "a put", value, 1.0);
            assert_eq!(results(&thresholds, &[measured]), [result], "{value}");
        }
    }

    #[test]
    fn a_threshold_of_zero_is_exact() {
        let thresholds = thresholds("[counts]\n\"commits\" = { value = 0, tolerance = 0 }");
        let measured = |value| [Measured::new(Group::Counts, "commits", value, 0.0)];
        assert_eq!(results(&thresholds, &measured(0.0)), [CheckResult::Within]);
        assert_eq!(results(&thresholds, &measured(0.01)), [CheckResult::Worse(f64::INFINITY)]);
    }

    #[test]
    fn values_are_rounded_to_four_digits() {
        let numbers = [0.0, 0.000_123_456, 0.002, 1.0 / 3.0, 99.996, 323.4567, 141_898.4, -0.5];
        let expected = [0.0, 0.000_123_5, 0.002, 0.3333, 100.0, 323.5, 141_898.0, -0.5];
        assert_eq!(numbers.map(format_value), expected.map(|number: f64| number.to_string()));
        // A written threshold passes for the value that it was written for.
        let exact = |number: f64| Threshold { value: rounded(number), tolerance: 0.0 }.check(number, false);
        assert!(numbers.iter().all(|number| exact(*number) == CheckResult::Within));
    }

    #[test]
    fn a_ratio_fails_only_below_its_bound() {
        let mut thresholds = Thresholds::default();
        let measured = |value| [Measured::new(Group::Ratios, "puts", value, 0.5)];
        thresholds.update(&[Group::Ratios], &measured(0.97));
        assert_eq!(results(&thresholds, &measured(0.51)), [CheckResult::Within]);
        assert_eq!(results(&thresholds, &measured(9.0)), [CheckResult::Within]);
        assert_eq!(results(&thresholds, &measured(0.25)), [CheckResult::Worse(50.0)]);
    }

    #[test]
    fn a_figure_without_threshold_or_a_threshold_without_figure_fails() {
        let thresholds = thresholds("[wal]\n\"an old name\" = { value = 200, tolerance = 5 }");
        let measured = Measured::new(Group::Wal, "a new name", 200.0, 5.0);
        let checks = thresholds.check(&[Group::Wal], &[measured]);
        let results: Vec<_> = checks.iter().map(|one| one.result.clone()).collect();
        assert_eq!(results, [CheckResult::NoThreshold, CheckResult::Unused]);
        assert!(checks.iter().all(|one| one.fails(false)));
    }

    #[test]
    fn an_unmeasured_figure_fails_only_if_required() {
        let one = Measured {
            value: Err("valgrind is not installed".to_owned()),
            ..Measured::new(Group::Instructions, "a put", 0.0, 5.0)
        };
        let checks = Thresholds::default().check(&[Group::Instructions], &[one]);
        assert!(!checks[0].fails(false));
        assert!(checks[0].fails(true));
        assert!(
            Check::table(&checks, true)
                .to_string()
                .contains("FAILED: not measured: valgrind is not installed")
        );
    }

    #[test]
    fn update_keeps_tolerances_bounds_and_unmeasured_figures() {
        let mut previous = thresholds(
            "[counts]\n\"kept\" = { value = 1, tolerance = 0 }\n\
             [wal]\n\"a put\" = { value = 200, tolerance = 7 }\n\"gone\" = { value = 1, tolerance = 1 }\n\
             [ratios-debug]\nputs = { value = 0.3, tolerance = 0 }\n\
             [ratios-release]\nputs = { value = 0.3, tolerance = 0 }",
        );
        let measured = [
            Measured::new(Group::Wal, "a put", 250.123_456, 3.0),
            Measured::new(Group::Wal, "a \"new\" one", 0.123_456, 3.0),
            Measured::new(Group::Ratios, "puts", 0.9, 0.5),
        ];
        previous.update(&[Group::Wal, Group::Ratios], &measured);
        let again = thresholds(&previous.text());
        assert_eq!(again, previous);
        let expected = thresholds(
            "[counts]\n\"kept\" = { value = 1, tolerance = 0 }\n\
             [wal]\n\"a put\" = { value = 250.1, tolerance = 7 }\n'a \"new\" one' = { value = 0.1235, tolerance = 3 }\n\
             [ratios-debug]\nputs = { value = 0.3, tolerance = 0 }\n\
             [ratios-release]\nputs = { value = 0.3, tolerance = 0 }",
        );
        assert_eq!(again, expected);
    }
}
