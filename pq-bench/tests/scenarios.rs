//! Runs scenarios on a server and checks that they return figures.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
use std::process::Command;

use pq_bench::{Bench, Figure, Results};

/// Runs the command with little work, and reads the figures that it writes.
fn measured(scenarios: &[&str]) -> Vec<Figure> {
    let directory = tempfile::tempdir().unwrap();
    let kept = directory.path().join("run.json");
    let run = Command::new(env!("CARGO_BIN_EXE_pq-bench"))
        .arg("run")
        .args(scenarios)
        .args(["--rounds", "2", "--scale", "0.02", "--horizon-seconds", "150", "--out"])
        .arg(&kept)
        .output()
        .unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let figures = Results::read(&kept).unwrap().figures;
    let found: BTreeSet<&str> = figures.iter().map(|figure| figure.scenario.as_str()).collect();
    assert_eq!(found, scenarios.iter().copied().collect());
    let names: BTreeSet<_> =
        figures.iter().map(|figure| (&figure.name, &figure.parameters, &figure.beside)).collect();
    assert_eq!(names.len(), figures.len(), "two figures are identical: {figures:#?}");
    for figure in &figures {
        assert!(!figure.ours.is_empty(), "{figure:?}");
        // The last tenth of a horizon run is a few milliseconds here. A loaded machine may work no job in it.
        let is_positive = |value: f64| value > 0.0 || figure.scenario == "horizon" && value == 0.0;
        assert!(figure.ours.iter().all(|ours| is_positive(*ours)), "{figure:?}");
        let rounds = if figure.beside.is_some() { figure.ours.len() } else { 0 };
        assert_eq!(figure.baseline.len(), rounds, "{figure:?}");
        assert!(figure.target.is_none() || figure.reached().is_some(), "{figure:?}");
    }
    figures
}

#[test]
fn wake_and_notify_report_percentiles() {
    let figures = measured(&["notify", "wake", "answer"]);
    let timed: Vec<_> = figures.iter().filter(|figure| figure.unit == "ms").collect();
    assert!(!timed.is_empty());
    for figure in timed {
        assert!(figure.percentiles.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1), "{figure:?}");
        assert!(figure.percentiles.first().is_some_and(|(_, least)| *least > 0.0), "{figure:?}");
    }
}

#[test]
fn horizon_and_memory_report_tracks() {
    for figure in measured(&["horizon", "memory"]) {
        let expected = if figure.beside.as_deref() == Some("its own second quarter") { 0 } else { 1 };
        assert!(figure.tracks.len() >= expected, "{figure:?}");
        for track in &figure.tracks {
            assert!(track.points.iter().any(|(_, value)| *value > 0.0), "{track:?}");
            assert!(track.points.len() >= 4 && track.points.is_sorted_by(|a, b| a.0 < b.0), "{track:?}");
        }
    }
}

#[test]
fn limits_and_follow_ups_are_measured() {
    let figures = measured(&["limits", "follow-ups"]);
    assert!(figures.len() == 9 && figures.iter().all(|figure| !figure.ours.is_empty()), "{figures:?}");
}

#[test]
fn drains_are_measured_with_and_without_what_observes_them() {
    let figures = measured(&["observed"]);
    assert!(
        figures.len() == 4 && figures.iter().all(|figure| figure.ours.len() == figure.baseline.len()),
        "{figures:?}"
    );
}

#[test]
fn the_dashboard_is_measured_page_by_page() {
    let figures = measured(&["dashboard"]);
    assert!(figures.iter().filter(|figure| figure.unit == "ms").count() > 20, "{figures:?}");
}

#[test]
fn a_second_server_has_its_own_settings() {
    let first = Bench::start().unwrap();
    let second = first.another(&[("commit_delay", "1500")]).unwrap();
    assert_ne!(first.url(), second.url());
    let delay = |bench: &Bench| bench.settings().unwrap()["commit_delay"].clone();
    assert_eq!((delay(&first), delay(&second)), ("0".to_owned(), "1500".to_owned()));
}
