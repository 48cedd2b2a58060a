//! Tests of the ticks, above all around clock changes.

use std::collections::BTreeSet;

use chrono::{NaiveTime, Offset, TimeDelta};
use chrono_tz::TZ_VARIANTS;

use super::*;

fn at(text: &str) -> DateTime<Utc> {
    DateTime::parse_from_rfc3339(text).map(|at| at.with_timezone(&Utc)).unwrap_or_default()
}

fn ticks(expression: &str, zone: &str, from: &str, count: usize) -> Vec<String> {
    let ticks = Ticks::new(expression, zone).unwrap_or_else(|error| panic!("{error}"));
    std::iter::successors(ticks.after(at(from)), |tick| ticks.after(*tick))
        .take(count)
        .map(|tick| tick.format("%d %H:%M:%S").to_string())
        .collect()
}

// In Berlin 02:00 is 03:00 on 29 March 2026, and 03:00 is 02:00 on 25 October 2026.
const BERLIN: &str = "Europe/Berlin";

#[test]
fn a_time_in_a_gap_fires_at_the_first_instant_after_it() {
    let days = ticks("30 2 * * *", BERLIN, "2026-03-27T12:00:00Z", 3);
    assert_eq!(days, ["28 01:30:00", "29 01:00:00", "30 00:30:00"]);
    let twice_a_day = ticks("30 2,14 * * *", BERLIN, "2026-03-28T12:00:00Z", 4);
    assert_eq!(twice_a_day, ["28 13:30:00", "29 01:00:00", "29 12:30:00", "30 00:30:00"]);
}

#[test]
fn times_that_fall_into_one_gap_are_one_tick() {
    let days = ticks("0,30 2 * * *", BERLIN, "2026-03-28T12:00:00Z", 3);
    assert_eq!(days, ["29 01:00:00", "30 00:00:00", "30 00:30:00"]);
    let seconds = ticks("* 30 2 * * *", BERLIN, "2026-03-28T12:00:00Z", 2);
    assert_eq!(seconds, ["29 01:00:00", "30 00:30:00"]);
}

#[test]
fn a_time_in_an_overlap_fires_at_its_first_occurrence() {
    let days = ticks("30 2 * * *", BERLIN, "2026-10-23T12:00:00Z", 3);
    assert_eq!(days, ["24 00:30:00", "25 00:30:00", "26 01:30:00"]);
    let twice_an_hour = ticks("0,30 2 * * *", BERLIN, "2026-10-24T12:00:00Z", 4);
    assert_eq!(twice_an_hour, ["25 00:00:00", "25 00:30:00", "26 01:00:00", "26 01:30:00"]);
    let twice_a_day = ticks("30 2,14 * * *", BERLIN, "2026-10-24T12:45:00Z", 3);
    assert_eq!(twice_a_day, ["25 00:30:00", "25 13:30:00", "26 01:30:00"]);
    let between_the_two = ticks("30 2 * * *", BERLIN, "2026-10-25T00:45:00Z", 1);
    assert_eq!(between_the_two, ["26 01:30:00"]);
}

#[test]
fn an_hour_or_minute_of_a_star_follows_real_time() {
    let back = ticks("0 * * * *", BERLIN, "2026-10-24T23:30:00Z", 4);
    assert_eq!(back, ["25 00:00:00", "25 01:00:00", "25 02:00:00", "25 03:00:00"]);
    let forward = ticks("0 * * * *", BERLIN, "2026-03-29T00:30:00Z", 3);
    assert_eq!(forward, ["29 01:00:00", "29 02:00:00", "29 03:00:00"]);
    let in_both_hours = ticks("*/30 2 * * *", BERLIN, "2026-10-24T12:00:00Z", 5);
    assert_eq!(in_both_hours, ["25 00:00:00", "25 00:30:00", "25 01:00:00", "25 01:30:00", "26 01:00:00"]);
    let in_no_hour = ticks("*/30 2 * * *", BERLIN, "2026-03-28T12:00:00Z", 1);
    assert_eq!(in_no_hour, ["30 00:00:00"]);
}

#[test]
fn a_gap_that_ends_at_midnight_does_not_lose_a_time_of_the_day_before() {
    // In Nuuk 23:00 of Saturday, 28 March 2026, is 00:00 of Sunday.
    let saturdays = ticks("30 23 * * sat", "America/Nuuk", "2026-03-27T12:00:00Z", 2);
    assert_eq!(saturdays, ["29 01:00:00", "05 00:30:00"]);
    // Samoa had no 30 December 2011.
    let daily = ticks("0 12 * * *", "Pacific/Apia", "2011-12-29T12:00:00Z", 3);
    assert_eq!(daily, ["29 22:00:00", "30 10:00:00", "30 22:00:00"]);
}

#[test]
fn seconds_and_rare_dates_are_found() {
    assert_eq!(ticks("*/20 * * * * *", "UTC", "2026-01-01T00:00:01Z", 2), ["01 00:00:20", "01 00:00:40"]);
    assert_eq!(ticks("@daily", "UTC", "2026-01-01T00:00:01Z", 1), ["02 00:00:00"]);
    assert_eq!(ticks("0 0 LW * *", "UTC", "2026-05-01T00:00:00Z", 1), ["29 00:00:00"]);
    let ticks_of = |expression| Ticks::new(expression, "UTC").unwrap_or_else(|error| panic!("{error}"));
    // 2100 has no 29 February, so the next Monday on that date is 40 years later.
    let leap_monday = ticks_of("0 0 29 2 +mon").after(at("2072-02-29T00:00:00Z"));
    assert_eq!(leap_monday, Some(at("2112-02-29T00:00:00Z")));
    assert_eq!(ticks_of("0 0 30 2 *").after(at("2026-01-01T00:00:00Z")), None);
}

#[test]
fn extreme_instants_have_no_tick_and_do_not_panic() {
    let ticks = Ticks::new("@hourly", "Asia/Kathmandu").unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(ticks.after(DateTime::<Utc>::MAX_UTC), None);
    assert_eq!(ticks.after(DateTime::<Utc>::MIN_UTC), None);
}

#[test]
fn an_unknown_time_zone_is_refused() {
    let error = Ticks::new("@daily", "Mars/Olympus").err().map(|error| error.to_string());
    assert!(error.is_some_and(|error| error.contains("Mars/Olympus") && error.contains("IANA")));
}

/// What an expression means, for a reckoning that does not use the code under test.
enum Meaning {
    /// Times of day, in hours and minutes.
    Fixed(Vec<(u32, u32)>),
    /// All instants whose local hour and minute satisfy the condition.
    RealTime(fn(u32, u32) -> bool),
}

fn meanings() -> Vec<(&'static str, Meaning)> {
    let half_hours = (0..24).flat_map(|hour| [(hour, 0), (hour, 30)]).collect();
    vec![
        ("30 2,14 * * *", Meaning::Fixed(vec![(2, 30), (14, 30)])),
        ("0,30 0-23 * * *", Meaning::Fixed(half_hours)),
        ("15 0-4/2,23 * * *", Meaning::Fixed(vec![(0, 15), (2, 15), (4, 15), (23, 15)])),
        ("0 * * * *", Meaning::RealTime(|_, minute| minute == 0)),
        ("*/20 1,2 * * *", Meaning::RealTime(|hour, minute| (hour == 1 || hour == 2) && minute % 20 == 0)),
        ("45 */2 * * *", Meaning::RealTime(|hour, minute| hour % 2 == 0 && minute == 45)),
    ]
}

/// Returns the offset of a zone, in seconds.
fn offset(zone: Tz, instant: DateTime<Utc>) -> i32 {
    zone.offset_from_utc_datetime(&instant.naive_utc()).fix().local_minus_utc()
}

/// Returns the clock changes of a zone in ten years: the first minute of each new offset.
fn clock_changes(zone: Tz) -> Vec<DateTime<Utc>> {
    let start = at("2020-01-01T00:00:00Z");
    let days = (0..3_653).map(|day| start + TimeDelta::days(day));
    let changed = days.filter(|day| offset(zone, *day) != offset(zone, *day + TimeDelta::days(1)));
    changed
        .map(|day| {
            let minutes: Vec<_> = (0..=1_440).map(|minute| day + TimeDelta::minutes(minute)).collect();
            minutes[minutes.partition_point(|minute| offset(zone, *minute) == offset(zone, day))]
        })
        .collect()
}

/// Returns the ticks within a sequence of minutes, each with its local time.
fn reckon(meaning: &Meaning, minutes: &[(DateTime<Utc>, NaiveDateTime)]) -> Vec<DateTime<Utc>> {
    use chrono::Timelike;
    match meaning {
        Meaning::RealTime(matches) => minutes
            .iter()
            .filter(|(_, local)| matches(local.hour(), local.minute()))
            .map(|(instant, _)| *instant)
            .collect(),
        Meaning::Fixed(times) => {
            // A local time fires when a clock first shows it, or first shows a later time.
            let latest: Vec<NaiveDateTime> = minutes
                .iter()
                .scan(NaiveDateTime::MIN, |latest, (_, local)| {
                    *latest = (*local).max(*latest);
                    Some(*latest)
                })
                .collect();
            let dates: BTreeSet<_> = minutes.iter().map(|(_, local)| local.date()).collect();
            let fired: BTreeSet<DateTime<Utc>> = dates
                .iter()
                .flat_map(|date| {
                    times.iter().filter_map(|(hour, minute)| {
                        Some(date.and_time(NaiveTime::from_hms_opt(*hour, *minute, 0)?))
                    })
                })
                .filter(|local| *local >= minutes[0].1)
                .filter_map(|local| minutes.get(latest.partition_point(|latest| *latest < local)))
                .map(|(instant, _)| *instant)
                .collect();
            fired.into_iter().collect()
        }
    }
}

/// Compares the ticks around each clock change of each zone in ten years with a walk from minute to minute.
///
/// Zones that share a clock change (the same instant and offsets) share the check.
#[test]
fn ticks_around_all_clock_changes_of_ten_years_are_those_of_a_walk_by_minutes() {
    let (mut seen, mut in_gaps) = (BTreeSet::new(), 0);
    for zone in TZ_VARIANTS {
        for change in clock_changes(zone) {
            let before = offset(zone, change - TimeDelta::minutes(1));
            if !seen.insert((change, before, offset(zone, change))) {
                continue;
            }
            in_gaps += usize::from(offset(zone, change) > before);
            let walk = |minute| change + TimeDelta::minutes(minute);
            let minutes: Vec<_> =
                (-1_800..1_800).map(walk).map(|at| (at, at.with_timezone(&zone).naive_local())).collect();
            for (expression, meaning) in meanings() {
                let ticks = Ticks::new(expression, zone.name()).unwrap_or_else(|error| panic!("{error}"));
                let actual = std::iter::successors(ticks.after(walk(-1_801)), |tick| ticks.after(*tick));
                let actual: Vec<_> = actual.take_while(|tick| *tick < walk(1_800)).collect();
                assert_eq!(actual, reckon(&meaning, &minutes), "{expression} in {zone} at {change}");
            }
        }
    }
    assert!(seen.len() > 300 && in_gaps > 100, "{} clock changes, {in_gaps} of them gaps", seen.len());
}
