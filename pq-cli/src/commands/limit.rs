//! `pq limit`.

use std::process::ExitCode;

use pq_diesel::{GroupLimits, LimitedQueue, Limits, Rate};

use super::examples;
use crate::failure::Failure;
use crate::global::Global;
use crate::{output, values};

/// Limit how many jobs of a queue run at once, and how many start in a period. Without options, show the limits.
///
/// The limits are shown with what is used of them and with the number of due jobs that wait because of each, of about
/// the first 10,000. They apply to every worker and every get, at once. An option changes its limit and keeps the
/// others. With --group the limits are those of one group, which replace those of each group. A rate counts a job as
/// its cost, see pq put --cost. In a fair queue the groups take turns among jobs of the same priority, so that a
/// group with many jobs delays the others only by its share. The Python pq ignores limits and turns.
#[derive(Debug, clap::Args)]
#[command(after_help = examples(
    "pq limit mail --running 50 --running-per-group 3\n\
     pq limit mail --rate 100/1m --burst 20\n\
     pq limit mail --burst 40\n\
     pq limit mail --group 'tenant 7' --running 10\n\
     pq limit mail --fair\n\
     pq limit mail --group 'tenant 7' --weight 3\n\
     pq limit mail\n\
     pq limit mail --clear"
))]
pub(crate) struct Limit {
    /// Queue name.
    queue: String,
    /// Limit the jobs of this group only.
    #[arg(long, value_name = "GROUP", conflicts_with_all = [
        "running_per_group", "rate_per_group", "burst_per_group", "fair", "unfair"
    ])]
    group: Option<String>,
    /// Maximum number of jobs that run at any time.
    #[arg(long, value_name = "N", value_parser = jobs)]
    running: Option<u32>,
    /// Maximum number of jobs that start in a period: a number, and a duration behind a slash. It replaces the burst,
    /// too.
    #[arg(long, value_name = "N/PERIOD", value_parser = rate)]
    rate: Option<Rate>,
    /// Maximum number of jobs that start at once after a pause. Default: as many as start in a second, and at least
    /// 1. Without --rate it changes the rate that is set.
    #[arg(long, value_name = "N", value_parser = jobs)]
    burst: Option<u32>,
    /// Maximum number of jobs of each group that run at any time.
    #[arg(long, value_name = "N", value_parser = jobs)]
    running_per_group: Option<u32>,
    /// Maximum number of jobs of each group that start in a period. It replaces their burst, too.
    #[arg(long, value_name = "N/PERIOD", value_parser = rate)]
    rate_per_group: Option<Rate>,
    /// Maximum number of jobs of each group that start at once after a pause. Default: as for --burst. Without
    /// --rate-per-group it changes the rate that is set.
    #[arg(long, value_name = "N", value_parser = jobs)]
    burst_per_group: Option<u32>,
    /// Let the groups take turns. Jobs without a group are a group of their own.
    #[arg(long, conflicts_with = "unfair")]
    fair: bool,
    /// Let no group have turns any more, and remove the weights.
    #[arg(long)]
    unfair: bool,
    /// Number of jobs that a turn of the group has in a fair queue. Default: 1.
    #[arg(long, value_name = "N", value_parser = weight, requires = "group")]
    weight: Option<u32>,
    /// Remove all limits, turns and weights, or those of the group, before the others are set.
    #[arg(long)]
    clear: bool,
    /// Print the limits as JSON.
    #[arg(long)]
    json: bool,
}

impl Limit {
    pub(crate) fn run(&self, global: &Global) -> Result<ExitCode, Failure> {
        let pq = global.connect()?;
        let queue = pq.queue::<()>(&self.queue)?;
        let before = queue.limits()?;
        let limits = self.changed(before.clone())?;
        let is_changed = limits != before;
        if is_changed {
            queue.set_limits(&limits)?;
        }
        match self.json {
            true => output::print_json(&limits)?,
            false if limits.is_empty() => output::print("no limits")?,
            false => {
                output::print(&lines(&limits).join("\n"))?;
                if !is_changed {
                    let limited = pq.limited()?;
                    let of_queue = limited.iter().filter(|limited| limited.queue == *queue.name());
                    of_queue.flat_map(used_lines).try_for_each(|line| output::print(&line))?;
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Returns the limits with the changes that the options ask for.
    fn changed(&self, mut limits: Limits) -> Result<Limits, Failure> {
        if let Some(group) = &self.group {
            if self.clear {
                limits.groups.remove(group);
            }
            let of_group = limits.groups.get(group).and_then(|limits| limits.rate);
            let missing = "the group has no rate of its own; add --rate N/PERIOD";
            let rate = changed_rate(of_group, self.rate, self.burst, missing)?;
            if let Some(jobs) = self.running {
                limits = limits.running_of(group, jobs);
            }
            if let Some(jobs) = self.weight {
                limits = limits.weight_of(group, jobs);
            }
            return Ok(match rate {
                Some(rate) => limits.rate_of(group, rate),
                None => limits,
            });
        }
        if self.clear {
            limits = Limits::new();
        }
        limits.running = self.running.or(limits.running);
        let missing = "there is no rate; add --rate N/PERIOD";
        limits.rate = changed_rate(limits.rate, self.rate, self.burst, missing)?;
        limits.running_per_group = self.running_per_group.or(limits.running_per_group);
        let missing = "there is no rate of each group; add --rate-per-group N/PERIOD";
        limits.rate_per_group =
            changed_rate(limits.rate_per_group, self.rate_per_group, self.burst_per_group, missing)?;
        if self.unfair {
            for group in limits.groups.values_mut() {
                group.weight = None;
            }
            limits.groups.retain(|_, group| *group != GroupLimits::default());
        }
        limits.fair = (limits.fair || self.fair) && !self.unfair;
        Ok(limits)
    }
}

/// Returns the rate that is set, or the new one, with its burst changed. `missing` is the error if there is none.
fn changed_rate(
    set: Option<Rate>,
    new: Option<Rate>,
    burst: Option<u32>,
    missing: &str,
) -> Result<Option<Rate>, Failure> {
    match (new.or(set), burst) {
        (None, Some(_)) => Err(Failure::Usage(format!("cannot set a burst: {missing}"))),
        (rate, None) => Ok(rate),
        (Some(rate), Some(burst)) => Ok(Some(rate.burst(burst))),
    }
}

/// Parses a limit.
fn jobs(text: &str) -> Result<u32, String> {
    values::whole_in(text, Limits::MAX)
}

/// Parses the weight of a group.
fn weight(text: &str) -> Result<u32, String> {
    values::whole_in(text, Limits::MAX_WEIGHT)
}

/// Parses a number of jobs and a period, such as `100/1m`.
fn rate(text: &str) -> Result<Rate, String> {
    const RULE: &str = "expected a number and a period such as 100/1m";
    let (jobs, period) = text.split_once('/').ok_or(RULE)?;
    let jobs = jobs.parse().map_err(|_| RULE)?;
    Ok(Rate::new(jobs, values::positive_duration(period).map_err(|_| RULE)?))
}

/// Describes how much of its limits a queue uses, and which jobs wait because of them.
fn used_lines(limited: &LimitedQueue) -> Vec<String> {
    let mut lines = vec![format!("queue: {} running now", limited.used.running)];
    lines.extend(limited.tokens().map(|tokens| format!("queue: {:.0} tokens now", tokens.floor())));
    lines.extend(held_back(limited));
    lines
}

/// Describes how many due jobs wait because of each limit.
pub(super) fn held_back(limited: &LimitedQueue) -> impl Iterator<Item = String> {
    limited.held_back().into_iter().filter(|(_, jobs)| *jobs > 0).map(|(limit, jobs)| {
        format!("{} waiting for the limit {}", output::plural(jobs, "due job"), limit.replace('_', " "))
    })
}

/// Describes limits in a line for each.
fn lines(limits: &Limits) -> Vec<String> {
    let running = |jobs: u32| format!("at most {jobs} running");
    let started = |Rate { tokens, per, burst }: Rate| {
        format!("at most {tokens} started in {}, {burst} at once", output::format_duration(per))
    };
    let of = |whose: &str, jobs: Option<u32>, rate: Option<Rate>| {
        let all = jobs.map(running).into_iter().chain(rate.map(started));
        all.map(|limit| format!("{whose}: {limit}")).collect::<Vec<_>>()
    };
    let mut lines = of("queue", limits.running, limits.rate);
    lines.extend(limits.fair.then(|| "queue: fair, so its groups take turns".to_owned()));
    lines.extend(of("each group", limits.running_per_group, limits.rate_per_group));
    for (group, limits) in &limits.groups {
        let group = format!("group {}", output::escape(group));
        lines.extend(of(&group, limits.running, limits.rate));
        lines.extend(
            limits.weight.map(|jobs| format!("{group}: {} in each turn", output::plural(jobs.into(), "job"))),
        );
    }
    lines
}
