//! The page and the plots that `pq-bench report` writes from runs.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use pq_bench::{Cost, Figure, Results, Target, Track};

fn figure(
    scenario: &str,
    name: &str,
    with: &[(&str, &str)],
    unit: &str,
    ours: &[f64],
    baseline: &[f64],
) -> Figure {
    Figure {
        scenario: scenario.to_owned(),
        name: name.to_owned(),
        parameters: with.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        unit: unit.to_owned(),
        ours: ours.to_vec(),
        beside: (!baseline.is_empty()).then(|| "the server | alone".to_owned()),
        baseline: baseline.to_vec(),
        ..Figure::default()
    }
}

/// Threads, rate and baseline rate of the `put` figures.
const PUTS: [(&str, f64, f64); 3] =
    [("1", 1_000.0, 2_000.0), ("4", 4_000.0, 3_000.0), ("16", 9_000.0, 2_500.0)];

fn run() -> Results {
    let mut figures = Vec::new();
    for (threads, ours, baseline) in PUTS {
        let mut put = figure(
            "puts",
            "put",
            &[("threads", threads)],
            "jobs/s",
            &[ours - 10.0, ours, ours + 10.0],
            &[baseline],
        );
        put.target = Some(Target::RatioAtLeast(0.95));
        put.cost = Some(Cost { rate: ours, trips: 1.0, commits: 0.5, wal: 300.0, ..Cost::default() });
        put.baseline_cost = Some(Cost { rate: baseline, commits: 1.0, wal: 280.0, ..Cost::default() });
        figures.push(put);
    }
    let mut pickup = figure("pickups", "pickup <idle>", &[], "ms", &[0.5], &[0.4]);
    pickup.percentiles = vec![(50.0, 0.5), (90.0, 1.0), (99.0, 2.0), (99.9, 10.0), (100.0, 20.0)];
    pickup.target = Some(Target::RatioAtMost(1.2));
    figures.push(pickup);
    let mut horizon = figure("held", "beside a held snapshot", &[], "jobs/s", &[100.0], &[]);
    horizon.tracks =
        vec![Track { name: "ours".to_owned(), points: vec![(0.0, 100.0), (10.0, 50.0), (20.0, 25.0)] }];
    figures.push(horizon);
    Results {
        began_at: "2026-01-02T03:04:05Z".to_owned(),
        revision: "abc1234".to_owned(),
        server: "private cluster, PostgreSQL 15.18".to_owned(),
        settings: [("fsync".to_owned(), "on".to_owned())].into(),
        machine: "2 cores".to_owned(),
        figures,
    }
}

fn report(runs: &[&Path], out: &Path, more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pq-bench"));
    command.arg("report").arg("--out").arg(out).args(more);
    for run in runs {
        command.arg("--run").arg(run);
    }
    command.output().expect("output")
}

fn reported(runs: &[&Path], out: &Path) -> String {
    page_of(report(runs, out, &[]), out)
}

fn reported_anew(runs: &[&Path], out: &Path) -> String {
    page_of(report(runs, out, &["--anew"]), out)
}

fn page_of(output: Output, out: &Path) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    fs::read_to_string(out.join("benchmarks.md")).expect("the page")
}

/// Reads the appendix of a scenario.
fn appendix(out: &Path, scenario: &str) -> String {
    fs::read_to_string(out.join("benchmarks").join(format!("{scenario}.md"))).expect("the appendix")
}

/// Returns the centres of the circles of a plot, which are its points.
fn circles(svg: &str) -> Vec<(f64, f64)> {
    let value = |tag: &str, name: &str| -> f64 {
        let from = tag.find(&format!("{name}=\"")).expect("the attribute") + name.len() + 2;
        tag[from..].split('"').next().expect("a value").parse().expect("a number")
    };
    svg.split("<circle ").skip(1).map(|tag| (value(tag, "cx"), value(tag, "cy"))).collect()
}

#[test]
fn the_page_shows_the_targets_and_the_appendix_all_figures() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("run.json");
    run().write(&file).expect("a run");
    let page = reported(&[&file], folder.path());
    insta::assert_snapshot!(page);
    insta::assert_snapshot!(appendix(folder.path(), "puts"));
    assert!(page.contains("short by"), "{page}");
}

#[test]
fn plots_have_their_points_in_the_right_places() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("run.json");
    run().write(&file).expect("a run");
    reported(&[&file], folder.path());
    let pages = ["puts", "pickups", "held"].map(|scenario| appendix(folder.path(), scenario)).concat();
    let plot = |name: &str| {
        assert!(pages.contains(&format!("({name})")), "{name} is not shown");
        fs::read_to_string(folder.path().join("benchmarks").join(name)).expect(name)
    };

    let scaling = plot("puts-scaling.svg");
    let points = circles(&scaling);
    assert_eq!(points.len(), 2 * PUTS.len());
    // The x axis is logarithmic, and heights are proportional to rates.
    let height = |at: usize| points[at].1;
    let rates = PUTS.iter().map(|(_, ours, _)| ours).chain(PUTS.iter().map(|(_, _, baseline)| baseline));
    for (at, rate) in rates.enumerate() {
        assert_eq!(points[at].0, points[at % PUTS.len()].0);
        let expected = height(0) + (rate - PUTS[0].1) / (PUTS[2].1 - PUTS[0].1) * (height(2) - height(0));
        assert!((height(at) - expected).abs() <= 1.0, "{rate}: {} and not {expected}", height(at));
    }
    assert!((points[1].0 - points[0].0 - (points[2].0 - points[1].0)).abs() <= 1.0);
    assert!(
        scaling.contains("the server | alone") && scaling.contains("jobs/s") && scaling.contains("threads")
    );

    let latency = plot("pickups-latency.svg");
    assert!(latency.contains("pickup &lt;idle&gt;") && latency.contains("p99.9") && latency.contains("max"));
    let points = circles(&latency);
    assert_eq!(points.len(), 5);
    assert!(points.is_sorted_by(|one, next| one.0 < next.0 && one.1 > next.1), "{points:?}");

    let points = circles(&plot("held-over-time.svg"));
    assert_eq!(points.len(), 3);
    assert!(points.is_sorted_by(|one, next| one.0 < next.0 && one.1 < next.1), "{points:?}");

    let bytes = plot("puts-bytes.svg");
    assert!(bytes.contains("300 ours") && bytes.contains("280 the server | alone"), "{bytes}");
}

#[test]
fn the_same_runs_give_the_same_pages_and_manual_text_is_kept() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("run.json");
    run().write(&file).expect("a run");
    let first = reported(&[&file], folder.path());
    let plot = folder.path().join("benchmarks/puts-scaling.svg");
    let drawn = fs::read(&plot).expect("the plot");
    let others = folder.path().join("benchmarks/gone-scaling.svg");
    fs::write(&others, "<svg/>").expect("a plot of an earlier report");
    assert_eq!(reported(&[&file], folder.path()), first);
    assert_eq!(fs::read(&plot).expect("the plot"), drawn);
    assert!(!others.exists(), "no page shows it any more");

    let mark = "<!-- manual: notes -->\n";
    let page = folder.path().join("benchmarks/puts.md");
    let first = appendix(folder.path(), "puts");
    let edited = first.replace(mark, &format!("{mark}Limited by fsync.\n\nAnd by nothing else.\n"));
    assert_ne!(edited, first);
    fs::write(&page, &edited).expect("the page");
    reported(&[&file], folder.path());
    assert_eq!(appendix(folder.path(), "puts"), edited);
    let redrawn = Command::new(env!("CARGO_BIN_EXE_pq-bench"))
        .args(["report", "--redraw", "--out"])
        .arg(folder.path())
        .output()
        .expect("output");
    assert!(redrawn.status.success(), "{}", String::from_utf8_lossy(&redrawn.stderr));
    assert_eq!(appendix(folder.path(), "puts"), edited);

    // Manual text of a scenario without runs is kept.
    let mut fewer = run();
    fewer.figures.retain(|figure| figure.scenario != "puts");
    fewer.write(&file).expect("a run");
    reported_anew(&[&file], folder.path());
    let left = appendix(folder.path(), "puts");
    assert!(!left.contains("| put"), "{left}");
    assert!(left.contains("Limited by fsync.\n\nAnd by nothing else.\n<!-- end -->"), "{left}");

    run().write(&file).expect("a run");
    let unclear = edited.replace("<!-- end -->", "");
    fs::write(&page, &unclear).expect("the page");
    let refused = report(&[&file], folder.path(), &[]);
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("cannot replace"));
    assert_eq!(fs::read_to_string(&page).expect("the page"), unclear);
}

#[test]
fn a_later_run_replaces_an_earlier_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let (earlier, later) = (folder.path().join("earlier.json"), folder.path().join("later.json"));
    run().write(&earlier).expect("a run");
    let mut again = run();
    again.revision = "def5678".to_owned();
    again.figures.retain(|figure| figure.parameters.get("threads").is_some_and(|threads| threads == "4"));
    again.figures[0].ours = vec![5_432.0];
    again.write(&later).expect("a run");
    let page = reported(&[&earlier, &later], folder.path());
    let puts = appendix(folder.path(), "puts");
    assert!(puts.contains("5,432") && !puts.contains("4,000"), "{puts}");
    assert!(puts.contains("9,000"), "{puts}");
    assert!(page.contains("`abc1234`: puts, pickups, held") && page.contains("`def5678`: puts\n"), "{page}");
}

#[test]
fn figures_that_a_run_did_not_measure_are_kept() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("run.json");
    run().write(&file).expect("a run");
    reported(&[&file], folder.path());
    let mut again = run();
    again.revision = "def5678".to_owned();
    again.figures.retain(|figure| figure.scenario == "pickups");
    again.figures[0].ours = vec![0.25];
    again.write(&file).expect("a run");
    let page = reported(&[&file], folder.path());
    assert!(page.contains("`abc1234`: puts, held") && page.contains("`def5678`: pickups\n"), "{page}");
    assert!(page.contains("| 0.25 ms |") && !page.contains("| 0.50 ms |"), "{page}");
    assert_eq!(reported(&[&file], folder.path()), page);

    let kept = folder.path().join("benchmarks/runs.json");
    fs::write(&kept, "[{").expect("the runs");
    let refused = report(&[&file], folder.path(), &[]);
    assert!(!refused.status.success());
    let output = String::from_utf8_lossy(&refused.stderr);
    assert!(output.contains("cannot read the runs in") && output.contains("--anew"), "{output}");
    assert!(reported_anew(&[&file], folder.path()).contains("`def5678`: pickups\n"));
}

#[test]
fn a_scenario_measured_again_keeps_its_position() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("run.json");
    let measured = |scenario: &str, revision: &str| {
        let mut run = run();
        run.revision = revision.to_owned();
        run.figures.truncate(1);
        run.figures[0].scenario = scenario.to_owned();
        run.write(&file).expect("a run");
        reported(&[&file], folder.path())
    };
    measured("put", "abc1234");
    measured("drain", "abc1234");
    let page = measured("put", "def5678");
    let place = |run: &str| page.find(run).unwrap_or_else(|| panic!("{run} is not in {page}"));
    assert!(place("`def5678`: put\n") < place("`abc1234`: drain\n"), "{page}");
}

#[test]
fn an_appendix_whose_runs_are_not_kept_is_not_removed() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("run.json");
    run().write(&file).expect("a run");
    let page = folder.path().join("benchmarks/drain.md");
    let before = "# drain\n\nFast.\n";
    fs::create_dir(folder.path().join("benchmarks")).expect("a folder");
    fs::write(&page, before).expect("the page");
    let refused = report(&[&file], folder.path(), &[]);
    assert!(!refused.status.success());
    let output = String::from_utf8_lossy(&refused.stderr);
    assert!(
        output.contains("no runs of drain") && output.contains("--run") && output.contains("--anew"),
        "{output}"
    );
    assert_eq!(fs::read_to_string(&page).expect("the page"), before);
    reported_anew(&[&file], folder.path());
    assert!(!page.exists());
}
