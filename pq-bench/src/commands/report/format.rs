//! Formats numbers and names for pages and plots.

use std::collections::BTreeMap;

use pq_bench::{Figure, Target, median};

/// Formats a number with its significant digits: `12,345`, `123`, `12.3`, `1.23`, `0.0012`.
pub(super) fn number(value: f64) -> String {
    let size = value.abs();
    let decimals = match size {
        _ if size >= 100.0 || size == 0.0 => 0,
        _ if size >= 10.0 => 1,
        _ if size >= 0.1 => 2,
        _ => 4,
    };
    if size < 0.000_05 {
        return "0".to_owned();
    }
    let text = format!("{value:.decimals$}");
    match text.split_once('.') {
        Some((whole, part)) => format!("{}.{part}", grouped(whole)),
        None => grouped(&text),
    }
}

/// Formats a number on an axis: `0.5`, `20`, `12,000`.
pub(super) fn tick(value: f64) -> String {
    // Rounding removes floating-point noise.
    let text = format!("{value:.6}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    match text.split_once('.') {
        Some((whole, part)) => format!("{}.{part}", grouped(whole)),
        None => grouped(text),
    }
}

fn grouped(digits: &str) -> String {
    let (sign, digits) = digits.strip_prefix('-').map_or(("", digits), |digits| ("-", digits));
    let mut text = String::from(sign);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Returns the name of a scenario's files, without the extension.
pub(super) fn file_name(scenario: &str) -> String {
    scenario.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' }).collect()
}

/// Formats parameters: `threads 4, batch 500`.
pub(super) fn parameters(parameters: &BTreeMap<String, String>) -> String {
    let each: Vec<String> = parameters.iter().map(|(name, value)| format!("{name} {value}")).collect();
    each.join(", ")
}

/// Formats a figure's name: `put through one handle, threads 4`.
pub(super) fn name(figure: &Figure) -> String {
    match figure.parameters.is_empty() {
        true => figure.name.clone(),
        false => format!("{}, {}", figure.name, parameters(&figure.parameters)),
    }
}

/// Formats median and range: `12,345 (11,900 to 13,000)`; empty without values.
pub(super) fn spread(values: &[f64]) -> String {
    let least = values.iter().copied().reduce(f64::min);
    let most = values.iter().copied().reduce(f64::max);
    match (least, most) {
        (Some(least), Some(most)) if values.len() > 1 => {
            format!("{} ({} to {})", number(median(values)), number(least), number(most))
        }
        (Some(only), _) => number(only),
        _ => String::new(),
    }
}

/// Formats the target of a figure.
pub(super) fn target_text(figure: &Figure) -> String {
    match figure.target {
        Some(Target::RatioAtLeast(least)) => format!("at least {least} times"),
        Some(Target::RatioAtMost(most)) => format!("at most {most} times"),
        Some(Target::AtMost(most)) => format!("at most {} {}", tick(most), figure.unit),
        None => String::new(),
    }
}

/// Formats whether the target is reached, or by how much it is missed.
pub(super) fn reached(figure: &Figure) -> String {
    let percent = |part: f64| match part * 100.0 {
        much if much >= 10.0 => format!("{much:.0} %"),
        little => format!("{little:.1} %"),
    };
    match (figure.reached(), figure.target) {
        (Some(true), _) => "yes".to_owned(),
        (Some(false), Some(Target::RatioAtLeast(least))) => {
            format!("**short by {}**", percent(1.0 - figure.ratio().unwrap_or_default() / least))
        }
        (Some(false), Some(Target::RatioAtMost(most))) => {
            format!("**over by {}**", percent(figure.ratio().unwrap_or_default() / most - 1.0))
        }
        (Some(false), Some(Target::AtMost(most))) => {
            format!("**over by {}**", percent(median(&figure.ours) / most - 1.0))
        }
        _ => "not measured".to_owned(),
    }
}

/// Returns the unit of a figure's single times: its own if that is a time, otherwise ms.
pub(super) fn time_unit(figure: &Figure) -> &str {
    match figure.unit.as_str() {
        unit @ ("s" | "ms" | "µs" | "us" | "ns") => unit,
        _ => "ms",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_significant_digits() {
        let written: Vec<String> =
            [1_234_567.8, 1_000.0, 999.6, 12.34, 1.234, 0.0021, 0.0, -1_234.0].map(number).into();
        assert_eq!(written, ["1,234,568", "1,000", "1,000", "12.3", "1.23", "0.0021", "0", "-1,234"]);
        assert_eq!([0.5, 20.0, 12_000.0, 0.1 + 0.2].map(tick), ["0.5", "20", "12,000", "0.3"]);
    }

    #[test]
    fn a_missed_target_shows_by_how_much() {
        let of = |ours, baseline: &[f64], target| {
            let figure = Figure {
                ours: vec![ours],
                baseline: baseline.to_vec(),
                target: Some(target),
                ..Figure::default()
            };
            reached(&figure)
        };
        assert_eq!(of(95.0, &[100.0], Target::RatioAtLeast(0.95)), "yes");
        assert_eq!(of(76.0, &[100.0], Target::RatioAtLeast(0.95)), "**short by 20 %**");
        assert_eq!(of(150.0, &[100.0], Target::RatioAtMost(1.2)), "**over by 25 %**");
        assert_eq!(of(3.15, &[], Target::AtMost(3.0)), "**over by 5.0 %**");
        assert_eq!(of(1.0, &[], Target::RatioAtLeast(0.95)), "not measured");
    }
}
